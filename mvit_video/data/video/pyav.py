"""Video files through PyAV, the default. Local files of known containers, one thread, every frame checked.

FFmpeg hands out damaged and stale frames without an error, and seeks by rules that differ between containers. So nothing
is left to it: a scan over the packets (no decoding) numbers the frames by their times; decoding starts at a packet that
was recognised, skips frames that nobody wants or refers to, and hands out a frame only by its time.
"""

# Packets are counted in decoding order ("places"), frames in the order in which they are shown ("numbers").

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import SideData
from av.video.reformatter import VideoReformatter

from mvit_video.data.video.limits import MAX_PIXELS, Unreadable, check_count, check_hours, check_size, short_reason

CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,ogg,3gp"
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "max_pixels": str(MAX_PIXELS)}
SKIPPING = ("h264", "hevc", "mpeg4", "mpeg2video")  # decoders that heed skip_frame packet by packet
SEEK_PACKETS = 32  # fewer packets than these are passed over faster than a container seeks
TAIL_SECONDS = 0.5  # what a header may state beyond the last packet: players round, and sound may end later


class PyAvBackend:
    """See VideoReader. `packets` is what the scan found."""

    num_frames: int
    fps: float

    def __init__(self, file: Path, root: str | Path | None = None, whole: bool = True) -> None:
        self._file, self.num_decoded, self.shortfall = file, 0, ""
        self._mirrored: bool | None = None  # not known before the first frame
        # One converter per video, without threads of its own: a loader's fork would leave them behind and wait for ever.
        self._converter = VideoReformatter()
        self._open()
        try:
            check_hours((self._container.duration or 0) / 1e6)
            self._scan()
            if whole and self.shortfall:
                raise Unreadable(self.shortfall)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Open the file, at its first packet."""
        try:
            self._container = av.open(str(self._file), options=OPTIONS)
        except (av.FFmpegError, ValueError, MemoryError) as reason:
            raise Unreadable(f"cannot be opened as a video ({short_reason(reason)})") from None
        try:
            self._stream = _video_stream(self._container)
        except BaseException:
            self.close()
            raise
        self._codec = self._stream.codec_context
        self._codec.thread_count = 1
        self._codec.options = {"max_pixels": str(MAX_PIXELS)}
        self._demuxer, self._next, self._used = iter(self._container.demux(self._stream)), 0, False

    def _scan(self) -> None:
        self.packets = PacketTable()
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    self.packets.add(packet, self._codec.name)
        except av.FFmpegError as reason:
            raise Unreadable(f"its packets cannot be read ({short_reason(reason)})") from None
        self.packets.number_frames()
        self.num_frames, self._next = self.packets.num_frames, len(self.packets)
        listed = len(self._stream.index_entries)
        if self.container_name == "mov" and len(self.packets) < listed:
            self.shortfall = f"is cut short: it lists {listed} frames and holds {len(self.packets)}"
        self.pixel_aspect = self._stream.sample_aspect_ratio or Fraction(1)
        self.fps = _mean_rate(self.packets.times, self._stream)

    def times(self) -> list[Fraction]:
        return [time * (self._stream.time_base or Fraction(1)) for time in self.packets.times]

    def read(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """Frames by rising, distinct numbers. Where a start in mid-file leads astray, once more from the beginning."""
        while wanted:
            first, group = self.packets.start_of(wanted)
            given = 0
            try:
                for frame in self._group(group, first, self.packets.last_of(group)):
                    yield self._convert(frame)
                    given += 1
            except Unreadable:
                for frame in self._group(group[given:], 0, None):
                    yield self._convert(frame)
            wanted = wanted[len(group) :]

    def stream(self) -> Iterator[np.ndarray]:
        for frame in self._all():
            yield self._convert(frame)

    def check(self) -> Iterator[None]:
        """Decode everything; convert the first frame, and each that has another form than the one before."""
        form = None
        for frame in self._all():
            if form != (frame.width, frame.height, frame.format.name):
                if form and form[:2] != (frame.width, frame.height):
                    raise Unreadable(f"the picture size changes within the video, to {frame.width}×{frame.height}")
                form = (frame.width, frame.height, frame.format.name)
                self._convert(frame)
            yield
        self._check_tail()

    def _check_tail(self) -> None:
        """Whether anything, sound too, goes on to about the end that the header states."""
        self.close()
        self._open()
        stated = (self._container.duration or 0) / 1e6
        try:
            ends = max(_end_of(packet) for packet in self._container.demux())
        except av.FFmpegError as reason:
            raise Unreadable(f"its packets cannot be read ({short_reason(reason)})") from None
        if ends and stated - ends > TAIL_SECONDS + 0.02 * stated:
            raise Unreadable(f"is cut short: it states a length of {stated:.1f} s and ends after {ends:.1f} s")

    def close(self) -> None:
        self._container.close()

    @property
    def container_name(self) -> str:
        return self._container.format.name.partition(",")[0]

    @property
    def codec_name(self) -> str:
        return self._codec.name

    @property
    def pixel_format(self) -> str:
        return self._codec.pix_fmt or "unknown"

    @property
    def num_video_streams(self) -> int:
        return len(self._container.streams.video)

    def key_packets(self) -> Iterator[av.Packet]:
        """The packets that are marked as places to start from."""
        return (packet for _, packet in self._packets_from(0, len(self.packets) - 1) if packet.is_keyframe)

    def is_turned(self) -> bool:
        """Whether the first frame is stored turned or mirrored."""
        frame = next(self._group([0], 0, None))
        return bool(_turns(frame)) or _is_mirrored(frame)

    def _all(self) -> Iterator[av.VideoFrame]:
        expected = 0
        for number, frame in self._numbered(0, None, None):
            if number < expected:
                raise Unreadable(f"frame {number} of {self.num_frames} comes twice")
            if number > expected:
                raise self._missing(expected)
            yield frame
            expected += 1
        if expected < self.num_frames:
            raise self._missing(expected)

    def _missing(self, number: int) -> Unreadable:
        return Unreadable(f"frame {number} of {self.num_frames} is missing: the decoder does not give it")

    def _group(self, numbers: list[int], first: int, last: int | None) -> Iterator[av.VideoFrame]:
        """Frames of rising numbers out of the packets from place `first` to `last`; all packets are decoded without `last`."""
        wanted, ready, given = set(numbers), {}, 0
        skip = wanted if last is not None and self._codec.name in SKIPPING else None
        for number, frame in self._numbered(first, last, skip):
            if number in wanted:
                ready[number] = frame
            while given < len(numbers) and numbers[given] in ready:
                yield ready.pop(numbers[given])
                given += 1
            if given == len(numbers):
                return
        raise self._missing(numbers[given])

    def _numbered(self, first: int, last: int | None, wanted: set[int] | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decoded frames with their numbers. With `wanted`, others are left out of decoding where no frame refers to them.

        A damaged frame is an error even where it is not wanted: what refers to it is damaged too, and not marked.
        """
        table, count, started = self.packets, 0, not first
        earliest = table.number_at(first)
        for frame in self._decode(first, len(table) - 1 if last is None else last, wanted):
            number = table.number_of.get(frame.pts, -1) if table.timed else count
            count += 1
            if number < 0 or (number < earliest and first):
                continue  # it leads the key frame and refers to frames before, or is left from an earlier place
            if not started and (number != earliest or frame.pict_type != av.video.frame.PictureType.I):
                table.distrust_keys()
                raise Unreadable(f"frame {earliest} of {self.num_frames} is marked as a key frame and is none")
            started = True
            if frame.is_corrupt:
                raise Unreadable(f"frame {number} of {self.num_frames} is damaged")
            check_size(frame.width, frame.height)
            yield number, frame

    def _decode(self, first: int, last: int, wanted: set[int] | None) -> Iterator[av.VideoFrame]:
        if self._used:
            self._codec.flush_buffers()
        self._used = True
        for place, packet in self._packets_from(first, last):
            number = self.packets.number_at(place)
            if packet.is_corrupt:
                raise Unreadable(f"frame {max(number, 0)} of {self.num_frames} is damaged")
            self._codec.skip_frame = "DEFAULT" if wanted is None or number in wanted or number < 0 else "NONREF"
            yield from self._frames_of(packet, number)
        yield from self._frames_of(None, self.packets.number_at(last))

    def _frames_of(self, packet: av.Packet | None, number: int) -> list[av.VideoFrame]:
        """What the decoder gives for a packet; at the end, for None, all that it held back to bring it into order."""
        try:
            frames = self._codec.decode(packet)
        except (av.FFmpegError, MemoryError) as reason:
            if isinstance(reason, av.EOFError):
                return []
            why = short_reason(reason)
            if isinstance(reason, av.ArgumentError):  # FFmpeg's only word for a picture above max_pixels
                why += f", or a size above the limit of {MAX_PIXELS:,} pixels"
            raise Unreadable(f"frame {max(number, 0)} of {self.num_frames} cannot be decoded ({why})") from None
        self.num_decoded += len(frames)
        return frames

    def _packets_from(self, first: int, last: int) -> Iterator[tuple[int, av.Packet]]:
        """Packets with their places. A few are passed over, over more the container seeks."""
        if self._next > first or first - self._next > SEEK_PACKETS:
            self._seek(first)
        try:
            for packet in self._demuxer:
                if not packet.size:
                    continue
                place, self._next = self._next, self._next + 1
                if place >= first:
                    yield place, packet
                if place >= last:
                    return
        except av.FFmpegError as reason:
            raise Unreadable(f"its packets cannot be read ({short_reason(reason)})") from None

    def _seek(self, first: int) -> None:
        """Stand at a packet that is known and not behind place `first`; the file is opened again where no seek finds one."""
        target = self.packets.seek_time(first, by_decoding=self.container_name == "mov")
        try:
            if target is not None:
                self._container.seek(target, stream=self._stream)
                packets = iter(self._container.demux(self._stream))
                known = self.packets.place_of
                packet = next(packet for packet in packets if packet.size and _identity(packet) in known)
                if known[_identity(packet)] <= first:
                    self._demuxer, self._next = chain([packet], packets), known[_identity(packet)]
                    return
        except (av.FFmpegError, StopIteration):
            pass
        self.close()
        self._open()

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        picture = self._converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns = _turns(frame)
        if self._mirrored is None:
            self._mirrored = _is_mirrored(frame)
        if turns % 2:
            self.pixel_aspect = 1 / (self._stream.sample_aspect_ratio or Fraction(1))
        if not turns and not self._mirrored:
            return picture
        return np.ascontiguousarray(np.rot90(picture[::-1] if self._mirrored else picture, turns))


class PacketTable:
    """What a scan over a video's packets tells: when each frame is shown, and where decoding can start.

    `timed` is False where the container gives no times (raw streams): frames are then counted as they come.
    """

    def __init__(self) -> None:
        self.times: list[int] = []  # of the frames, rising; empty where not timed
        self.number_of: dict[int | None, int] = {}  # time → number
        self.place_of: dict[tuple, int] = {}  # identity of a key packet → place
        self.num_frames, self.timed, self.hidden = 0, False, 0
        self._time = array("q")  # of each packet; -1 << 63 for none
        self._shown = bytearray()
        self._keys: list[tuple[int, int | None, int | None]] = []  # place, pts, dts
        self._starts: list[tuple[int, int]] = []  # number, place: both rising
        self._place_of_number: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._time)

    def add(self, packet: av.Packet, codec: str) -> None:
        place, shown = len(self._time), not packet.is_discard
        if codec == "vp8":  # its pictures that only others refer to have packets of their own; show_frame is bit 4
            shown = shown and bool(bytes(packet)[0] >> 4 & 1)
        check_count(place)
        self._time.append(NO_TIME if packet.pts is None else packet.pts)
        self._shown.append(shown)
        self.hidden += packet.is_discard
        if packet.is_keyframe:
            self._keys.append((place, packet.pts, packet.dts))
            self.place_of.setdefault(_identity(packet), place)

    def number_frames(self) -> None:
        """Call once, after the last `add`."""
        times = [time for time, shown in zip(self._time, self._shown, strict=True) if shown]
        if not times:
            raise Unreadable("no frames")
        self.num_frames, self.timed = len(times), NO_TIME not in times
        if not self.timed:
            return
        self.times = sorted(times)
        self.number_of = {time: number for number, time in enumerate(self.times)}
        if len(self.number_of) < len(times):
            twin = next(number for number in range(1, len(times)) if self.times[number - 1] == self.times[number])
            raise Unreadable(f"frame {twin} of {len(times)} has the same time as the frame before it")
        self._place_of_number = {self.number_at(place): place for place in range(len(self))}
        for place, time, _ in self._keys:
            number = self.number_of.get(time, -1)
            if number > (self._starts[-1][0] if self._starts else -1):
                self._starts.append((number, place))

    def number_at(self, place: int) -> int:
        """The number of the frame in a packet, -1 for one that is not shown; the packet's place where not timed."""
        return self.number_of.get(self._time[place], -1) if self.timed else place

    def start_of(self, wanted: list[int]) -> tuple[int, list[int]]:
        """The last packet from which the first of the rising numbers can be decoded, and all numbers up to the next such one."""
        behind = bisect_right(self._starts, wanted[0], key=lambda start: start[0])
        place = self._starts[behind - 1][1] if behind > 1 else 0
        end = self._starts[behind][0] if behind < len(self._starts) else self.num_frames
        return place, [number for number in wanted if number < end]

    def last_of(self, numbers: list[int]) -> int | None:
        """The last packet that these frames come from; None where that is not known."""
        if not self.timed:
            return None
        return max(self._place_of_number[number] for number in numbers)

    def distrust_keys(self) -> None:
        """From now on decode from the beginning: marks stand where the picture is refreshed bit by bit."""
        self._starts = []

    @property
    def closed(self) -> bool:
        """Whether no frame is shown before a key frame that it follows in the file, so that groups of pictures stand alone."""
        key = NO_TIME
        keys = {place for place, _, _ in self._keys}
        for place, time in enumerate(self._time):
            if time < key:
                return False
            key = time if place in keys else key
        return 0 in keys

    def seek_time(self, place: int, by_decoding: bool) -> int | None:
        """What to ask the container for: its index is by decoding time in MP4, else by the time of showing."""
        for key, shown, decoded in self._keys:
            if key == place:
                return decoded if by_decoding and decoded is not None else shown
        return None


NO_TIME = -1 << 63


def _video_stream(container):
    """The first video stream, with sizes checked: what a cover picture calls a video does not count."""
    streams = [stream for stream in container.streams.video if not stream.disposition & ATTACHED]
    if not streams:
        raise Unreadable("no video stream")
    codec = streams[0].codec_context
    if codec is None:
        raise Unreadable("no decoder for its video stream")
    check_size(codec.width, codec.height)
    return streams[0]


ATTACHED = av.stream.Disposition.attached_pic


def _identity(packet: av.Packet) -> tuple:
    return (packet.pts, packet.dts, packet.size)


def _end_of(packet: av.Packet) -> float:
    if not packet.size or packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _turns(frame: av.VideoFrame) -> int:
    """Quarter turns to the left that put the picture's rows where they are to be shown."""
    return round((frame.rotation or 0) / 90) % 4


def _is_mirrored(frame: av.VideoFrame) -> bool:
    """Whether the picture is to be turned upside down before it is turned: FFmpeg's angle leaves that out."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    return a * d < b * c


def _mean_rate(times: list[int], stream) -> float:
    """The header's rate where the times agree with it to a frame or a percent, else that of the times; 30 without both."""
    declared = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    span = float((times[-1] - times[0]) * stream.time_base) if len(times) > 1 else 0.0
    if span <= 0:
        return declared[0] if declared else 30.0
    measured = (len(times) - 1) / span
    return next((rate for rate in declared if abs(rate / measured - 1) <= 1 / len(times) + 0.01), measured)
