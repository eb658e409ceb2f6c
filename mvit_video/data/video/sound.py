"""The sound of a video, copied without decoding."""

from collections.abc import Generator
from pathlib import Path

import av

from mvit_video.data.video.limits import short_reason
from mvit_video.data.video.pyav import OPTIONS
from mvit_video.errors import DecodeError

FORMAT = "nut"  # holds any codec, with exact times
MP4_SOUND = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"})


def copy_sound(path: str, target: str, begin: tuple[int, int]) -> Generator[None, None, bool]:
    """A job that copies the first audio track of `path` to the file `target` (in FORMAT) and returns whether there is one.

    Codecs that MP4 cannot hold count as none. `begin` is the time in seconds, as a fraction, that becomes 0; earlier sound is
    dropped, and damaged sound ends at the damage. Raises DecodeError if the file cannot be opened.
    """
    try:
        source = av.open(path, options=OPTIONS)
    except (av.FFmpegError, ValueError) as reason:
        raise DecodeError(f"{path}: cannot be opened for its sound ({short_reason(reason)})") from None
    with source:
        tracks = [track for track in source.streams.audio if track.codec_context is not None]
        if not tracks or tracks[0].codec_context.name.removesuffix("float") not in MP4_SOUND:
            return False
        with av.open(target, "w", format=FORMAT) as copy:
            track, packets = copy.add_stream_from_template(tracks[0]), source.demux(tracks[0])
            while True:
                yield
                try:
                    packet = next(packets)
                except (StopIteration, av.FFmpegError):
                    return True
                if packet.dts is None or packet.pts is None or packet.time_base is None:
                    continue
                shift = round(begin[0] / (begin[1] * packet.time_base))
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                if packet.pts >= 0:
                    packet.stream = track
                    copy.mux(packet)


def sound_in(path: Path) -> av.container.InputContainer:
    """Open a file written by `copy_sound`; being our own, it needs no guard."""
    return av.open(str(path), format=FORMAT)
