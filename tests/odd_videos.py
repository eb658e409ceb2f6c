"""Videos of every container, codec and oddity that PyAV (or ffmpeg, where it is there) can write, in one table.

`TABLE` maps a name to a function that writes the video into a folder and returns its path. The frames are numbered where the
codec keeps that legible (numbered_video.py).
"""

import shutil
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numbered_video import numbered_frame, remux, write_numbered

COUNT = 30
B = {"bf": "2", "g": "12", "b_strategy": "0", "sc_threshold": "0"}
P = {"bf": "0", "g": "12"}
VPX = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
X265 = {"x265-params": "log-level=none:keyint=12:pools=none:frame-threads=1"}
FFMPEG = shutil.which("ffmpeg")
Maker = Callable[[Path], Path]


def plain(name: str, codec: str, options: dict | None = None, **arguments) -> Maker:
    return lambda folder: write_numbered(folder / name, COUNT, codec=codec, options=options, **arguments)


def sized(name: str, codec: str, pixels: str, size: tuple[int, int], rate: int = 25, count: int = 12) -> Maker:
    """For codecs that take few sizes: the numbered image in a grey one."""

    def write(folder: Path) -> Path:
        width, height = size
        with av.open(str(folder / name), "w") as output:
            stream = output.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            for number in range(count):
                picture = np.full((height, width, 3), 60, np.uint8)
                picture[:48, :144] = numbered_frame(number)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, rate)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return folder / name

    return write


def rewritten(make: Maker, name: str, change: Callable[[av.Packet], None], options: dict | None = None) -> Maker:
    return lambda folder: remux(make(folder), folder / name, change, options)


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def packed_b_frames(folder: Path) -> Path:
    """As DivX 5 and old XviD: each B-image in one packet with the image stored before it, then a packet without one."""
    plain_file = write_numbered(
        folder / "unpacked.avi", COUNT, codec="mpeg4", options={"bf": "1", "b_strategy": "0", "g": "12"}
    )
    packets, chunks, place = packets_of(plain_file), list[bytes](), 0
    while place < len(packets):
        following = packets[place + 1] if place + 1 < len(packets) else None
        if following is not None and picture_kind(packets[place]) < 2 and picture_kind(following) == 2:
            chunks += [packets[place] + following, skipped_picture(len(chunks) % 25)]
            place += 2
        else:
            chunks.append(packets[place])
            place += 1
    chunks[0] = b"\0\0\1\xb2DivX503b1393p" + chunks[0]
    return mux_chunks(plain_file, folder / "packed.avi", chunks, [picture_kind(chunk) == 0 for chunk in chunks])


def picture_kind(packet: bytes) -> int:
    """Of an MPEG-4 packet's first image: 0 I, 1 P, 2 B."""
    return packet[packet.find(b"\0\0\1\xb6") + 4] >> 6


def skipped_picture(increment: int) -> bytes:
    """A P-image of MPEG-4 that is not coded."""
    bits = "01" + "0" + "1" + format(increment, "05b") + "1" + "0"
    bits += "0" + "1" * ((8 - (len(bits) + 1) % 8) % 8)
    return b"\0\0\1\xb6" + bytes(int(bits[k : k + 8], 2) for k in range(0, len(bits), 8))


def mux_chunks(like: Path, target: Path, chunks: list[bytes], keys: list[bool]) -> Path:
    """Packets without times of showing, decoded one a tick."""
    with av.open(str(like)) as source, av.open(str(target), "w") as output:
        track = output.add_stream_from_template(source.streams.video[0])
        for number, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.stream, packet.pts, packet.dts = track, None, number
            packet.time_base, packet.is_keyframe = source.streams.video[0].time_base, keys[number]
            output.mux(packet)
    return target


def remuxed(name: str, make: Maker) -> Maker:
    """A raw stream in another container, packet by packet, each shown when it is decoded: the right times are not known."""

    def write(folder: Path) -> Path:
        with av.open(str(make(folder))) as source, av.open(str(folder / name), "w") as output:
            track = output.add_stream_from_template(source.streams.video[0])
            for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
                packet.stream, packet.time_base = track, Fraction(1, 25)
                packet.pts = packet.dts = number
                packet.duration = 1
                output.mux(packet)
        return folder / name

    return write


def units_of(path: Path) -> list[bytes]:
    """The units of a raw H.264 stream, without their start codes."""
    return [unit.rstrip(b"\0") for unit in path.read_bytes().split(b"\0\0\1")[1:]]


def write_units(path: Path, units: list[bytes]) -> Path:
    path.write_bytes(b"".join(b"\0\0\0\1" + unit for unit in units))
    return path


def headers_once(folder: Path) -> Path:
    """Two raw H.264 streams of different headers joined, each with its headers at its beginning only."""
    other = {"bf": "0", "g": "10", "x264-params": "cabac=0:8x8dct=0:ref=1:weightp=0"}
    kept: list[bytes] = []
    for name, options in (("a.h264", B), ("b.h264", other)):
        units = units_of(write_numbered(folder / name, COUNT, options=options))
        kept += [unit for place, unit in enumerate(units) if unit[0] & 31 not in (7, 8) or unit not in units[:place]]
    return write_units(folder / "once.h264", kept)


def turned_once(folder: Path) -> Path:
    """Raw H.264 with a message at its beginning that its frames are rotated by a quarter to the left."""
    units = units_of(write_numbered(folder / "a.h264", COUNT, options=B))
    first = next(place for place, unit in enumerate(units) if unit[0] & 31 == 5)
    # no cancel, no flips, 16 bits of angle (a quarter of 65536), repetition "1", no extension, and the end of the message
    bits = "0" + "0" + "0" + format(0x4000, "016b") + "010" + "0" + "1"
    bits += "0" * (-len(bits) % 8)
    payload = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return write_units(
        folder / "turned.h264", [*units[:first], bytes([6, 47, len(payload)]) + payload + b"\x80", *units[first:]]
    )


def joined(name: str, *makers: Maker) -> Maker:
    def write(folder: Path) -> Path:
        parts = []
        for number, make in enumerate(makers):
            (folder / str(number)).mkdir()
            parts.append(make(folder / str(number)).read_bytes())
        (folder / name).write_bytes(b"".join(parts))
        return folder / name

    return write


def later(seconds: float, make: Maker, name: str) -> Maker:
    """The same with all times moved."""

    def move(packet: av.Packet) -> None:
        ticks = round(seconds / packet.time_base)
        packet.pts += ticks
        packet.dts = None if packet.dts is None else packet.dts + ticks

    return rewritten(make, name, move, {"avoid_negative_ts": "disabled"})


def without_first_packets(name: str, make: Maker, count: int) -> Maker:
    def write(folder: Path) -> Path:
        whole = make(folder)
        with av.open(str(whole)) as old, av.open(str(folder / name), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in [packet for packet in old.demux(old.streams.video[0]) if packet.size][count:]:
                packet.stream = stream
                new.mux(packet)
        return folder / name

    return write


def from_key(name: str, make: Maker) -> Maker:
    """From the second key frame on, with what is shown before it and refers to what is gone."""

    def write(folder: Path) -> Path:
        path = make(folder)
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
            second = [place for place, packet in enumerate(packets) if packet.is_keyframe][1]
            assert any(packet.pts < packets[second].pts for packet in packets[second:])
        return without_first_packets(name, lambda folder: path, second)(folder)

    return write


def filtered(name: str, make: Maker, bitstream_filter: str) -> Maker:
    """Through one of FFmpeg's bitstream filters."""

    def write(folder: Path) -> Path:
        with av.open(str(make(folder))) as old, av.open(str(folder / name), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            through = av.bitstream.BitStreamFilterContext(bitstream_filter, old.streams.video[0], stream)
            for packet in old.demux(old.streams.video[0]):
                for changed in through.filter(packet if packet.size else None):
                    changed.stream = stream
                    new.mux(changed)
        return folder / name

    return write


def two_streams(name: str, default: int) -> Maker:
    """Two video streams, the second black on white numbers, one of them marked as the default."""

    def write(folder: Path) -> Path:
        with av.open(str(folder / name), "w") as output:
            streams = []
            for number in range(2):
                stream = output.add_stream("libx264", rate=25, options=P)
                stream.width, stream.height, stream.pix_fmt = 144, 48, "yuv420p"
                stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
                streams.append(stream)
            for number in range(COUNT):
                for place, stream in enumerate(streams):
                    picture = numbered_frame(number)
                    frame = av.VideoFrame.from_ndarray(255 - picture if place else picture, format="rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 25)
                    output.mux(stream.encode(frame))
            for stream in streams:
                output.mux(stream.encode())
        return folder / name

    return write


def with_cover(folder: Path) -> Path:
    """A cover image as the first stream, then the video."""
    video, path = write_numbered(folder / "video.mp4", COUNT, options=B), folder / "cover.mp4"
    picture = write_numbered(folder / "cover.png", 1, codec="png", pixels="rgb24", form="image2")
    with av.open(str(video)) as film, av.open(str(picture)) as still, av.open(str(path), "w") as output:
        cover = output.add_stream_from_template(still.streams.video[0])
        cover.disposition = av.stream.Disposition.attached_pic
        track = output.add_stream_from_template(film.streams.video[0])
        for source, target in ((still, cover), (film, track)):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = target
                    output.mux(packet)
    return path


def with_sound_only_before(folder: Path) -> Path:
    """A sound track that begins a second before the images."""
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as output:
        sound, pictures = output.add_stream("aac", rate=16000), output.add_stream("libx264", rate=25, options=B)
        pictures.width, pictures.height, pictures.pix_fmt = 144, 48, "yuv420p"
        for number in range(32):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * number
            output.mux(sound.encode(frame))
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = 25 + number, Fraction(1, 25)
            output.mux(pictures.encode(frame))
        output.mux(pictures.encode())
        output.mux(sound.encode())
    return path


def palette(name: str, codec: str, pixels: str, changes: bool = False) -> Maker:
    """Pictures of 256 colours, whose table is sent once, or once more in the midst."""

    def write(folder: Path) -> Path:
        with av.open(str(folder / name), "w") as output:
            stream = output.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 144, 48, pixels
            for number in range(COUNT):
                grey = numbered_frame(number)[..., 0]
                colours = np.stack([*[np.arange(256)] * 3, np.full(256, 255)], 1).astype(
                    np.uint8
                )  # blue, green, red, alpha
                frame = av.VideoFrame(144, 48, pixels)
                frame.planes[0].update(padded(grey, frame.planes[0]))
                if changes and number >= COUNT // 2:
                    colours[:, :3] = 255 - colours[:, :3]
                if pixels == "pal8":
                    frame.planes[1].update(colours.tobytes())
                frame.pts, frame.time_base = number, Fraction(1, 25)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return folder / name

    return write


def padded(grey: np.ndarray, plane) -> bytes:
    rows = np.zeros((plane.height, plane.line_size), np.uint8)
    rows[:, : grey.shape[1]] = grey
    return rows.tobytes()


def empty_chunks(folder: Path) -> Path:
    """An AVI in which some frames are chunks of no bytes, as capture programs write for frames that they dropped."""
    whole = write_numbered(folder / "whole.avi", COUNT, codec="mjpeg", pixels="yuvj420p", options={"qscale": "3"})
    content = bytearray(whole.read_bytes())
    movi = content.index(b"movi")
    chunks, at = [], movi + 4
    end = movi + struct.unpack("<I", content[movi - 4 : movi])[0]
    while at < end:
        size = struct.unpack("<I", content[at + 4 : at + 8])[0]
        chunks.append((bytes(content[at : at + 4]), bytes(content[at + 8 : at + 8 + size])))
        at += 8 + size + size % 2
    body, index = bytearray(b"movi"), bytearray()
    for number, (name, picture) in enumerate(chunks):
        picture = b"" if number % 7 == 3 else picture
        index += name + struct.pack("<III", 16, len(body), len(picture))
        body += name + struct.pack("<I", len(picture)) + picture + b"\0" * (len(picture) % 2)
    rest = b"LIST" + struct.pack("<I", len(body)) + body + b"idx1" + struct.pack("<I", len(index)) + index
    content = content[: movi - 8] + rest
    content[4:8] = struct.pack("<I", len(content) - 8)
    (folder / "empty.avi").write_bytes(content)
    return folder / "empty.avi"


def without_index(folder: Path) -> Path:
    """An AVI whose index is gone, as a recorder leaves it that lost its power."""
    whole = write_numbered(folder / "whole.avi", COUNT, codec="mpeg4", options=P)
    content = whole.read_bytes()
    (folder / "bare.avi").write_bytes(content[: content.index(b"idx1")])
    return folder / "bare.avi"


def by_ffmpeg(name: str, *words: str) -> Maker:
    """By the program, for encoders that PyAV lacks."""

    def write(folder: Path) -> Path:
        source = write_numbered(folder / "source.mkv", COUNT, codec="ffv1")
        command = [str(FFMPEG), "-nostdin", "-y", "-v", "error", "-i", str(source), *words, str(folder / name)]
        subprocess.run(command, check=True, timeout=60)
        return folder / name

    return write


def live(folder: Path) -> Path:
    """Matroska written to a pipe: neither length nor index."""

    class Pipe:
        def __init__(self, file) -> None:
            self.write = lambda content: file.write(content)

    with open(folder / "live.mkv", "wb") as file:
        write_numbered(Pipe(file), COUNT, options=B, form="matroska")
    return folder / "live.mkv"


def edited(folder: Path) -> Path:
    """An edit list that begins ten frames into the stored ones."""

    def earlier(packet: av.Packet) -> None:
        packet.pts -= 10 * 512
        packet.dts -= 10 * 512

    whole = write_numbered(folder / "whole.mp4", COUNT + 10, options=B)
    return remux(whole, folder / "edited.mp4", earlier, {"use_editlist": "1", "avoid_negative_ts": "disabled"})


def same_times(packet: av.Packet) -> None:
    if packet.pts in (320, 640):
        packet.pts = packet.dts = packet.pts - 40


def from_second_key(name: str, make: Maker) -> Maker:
    """A raw stream without what is before its second key frame."""

    def write(folder: Path) -> Path:
        path = make(folder)
        with av.open(str(path)) as container:
            second = [packet.pos for packet in container.demux(video=0) if packet.size and packet.is_keyframe][1]
        (folder / name).write_bytes(path.read_bytes()[second:])
        return folder / name

    return write


def leading_without_times(folder: Path) -> Path:
    """Matroska that begins in an open group, whose first frames have lost their times, as the program cuts it."""
    path = plain("whole.mp4", "libx264", OPEN)(folder)
    command = [str(FFMPEG), "-nostdin", "-y", "-v", "error", "-ss", "0.5", "-i", str(path), "-c", "copy"]
    subprocess.run([*command, str(folder / "cut.mkv")], check=True, timeout=60)
    return folder / "cut.mkv"


OPEN = B | {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=10:scenecut=0"}
OPEN_HEVC = {"x265-params": X265["x265-params"] + ":open-gop=1:bframes=3:b-adapt=0:scenecut=0"}
H264, H264_TS = plain("a.mp4", "libx264", B), plain("a.ts", "libx264", B)
TABLE: dict[str, Maker] = {
    # containers × codecs
    "MP4 H.264": H264,
    "MP4 H.264, P-frames": plain("a.mp4", "libx264", P),
    "MP4 H.264, open groups": plain("a.mp4", "libx264", B | {"x264-params": "open-gop=1"}),
    "MP4 H.264, pyramids": plain("a.mp4", "libx264", {"bf": "7", "b-pyramid": "normal", "g": "20"}),
    "MP4 H.264, key frames only": plain("a.mp4", "libx264", {"g": "1"}),
    "MP4 H.264, 4:4:4, odd size": plain("a.mp4", "libx264", B, padding=1, pixels="yuv444p"),
    "MP4 H.264, ten bits": plain("a.mp4", "libx264", B, pixels="yuv420p10le"),
    "MP4 H.264, interlaced": plain("a.mp4", "libx264", B | {"x264-params": "interlaced=1"}),
    "MP4 H.264, refreshed bit by bit": plain(
        "a.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}
    ),
    "MP4 H.264, anamorphic": plain("a.mp4", "libx264", B, sample_aspect=Fraction(4, 3)),
    "MP4 H.264, cropped": plain("a.mp4", "libx264", B, padding=2),
    "MP4 HEVC": plain("a.mp4", "libx265", X265),
    "MP4 HEVC, closed groups": plain("a.mp4", "libx265", {"x265-params": X265["x265-params"] + ":open-gop=0"}),
    "MP4 VP9": plain("a.mp4", "libvpx-vp9", VPX),
    "MP4 MPEG-4": plain("a.mp4", "mpeg4", {"bf": "2", "g": "12"}),
    "MP4 MPEG-2": plain("a.mp4", "mpeg2video", {"bf": "2", "g": "12"}),
    "MP4 MJPEG": plain("a.mp4", "mjpeg", pixels="yuvj420p"),
    "MP4 PNG": plain("a.mp4", "png", pixels="rgb24"),
    "MP4 FFV1": plain("a.mp4", "ffv1", {"g": "5"}),
    "MOV ProRes": plain("a.mov", "prores", pixels="yuv422p10le"),
    "MOV QuickTime animation": plain("a.mov", "qtrle", pixels="rgb24"),
    "MOV Cinepak": plain("a.mov", "cinepak", pixels="rgb24"),
    "MOV Sorenson": plain("a.mov", "svq1", pixels="yuv410p"),
    "MOV GIF": plain("a.mov", "gif", pixels="rgb8"),
    "3GP H.263": sized("a.3gp", "h263", "yuv420p", (176, 144)),
    "Matroska H.264": plain("a.mkv", "libx264", B),
    "Matroska HEVC": plain("a.mkv", "libx265", X265),
    "Matroska VP8": plain("a.mkv", "libvpx", VPX),
    "Matroska MPEG-4": plain("a.mkv", "mpeg4", {"bf": "2", "g": "12"}),
    "Matroska MPEG-2": plain("a.mkv", "mpeg2video", {"bf": "2", "g": "12"}),
    "Matroska MJPEG": plain("a.mkv", "mjpeg", pixels="yuvj420p"),
    "Matroska FFV1": plain("a.mkv", "ffv1", {"g": "5"}),
    "WebM VP8": plain("a.webm", "libvpx", VPX),
    "WebM VP8, alternate references": plain(
        "a.webm", "libvpx", {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "12"}
    ),
    "WebM VP9": plain("a.webm", "libvpx-vp9", VPX, padding=1),
    "WebM VP9, alternate references": plain(
        "a.webm", "libvpx-vp9", {"g": "30", "lag-in-frames": "12", "cpu-used": "5"}
    ),
    "AVI MPEG-4": plain("a.avi", "mpeg4", P),
    "AVI MPEG-4, B-frames": plain("a.avi", "mpeg4", {"bf": "2", "g": "12"}),
    "AVI MPEG-4, packed B-frames": packed_b_frames,
    "AVI H.264": plain("a.avi", "libx264", B),
    "AVI H.264, P-frames": plain("a.avi", "libx264", P),
    "AVI MPEG-2": plain("a.avi", "mpeg2video", {"bf": "2", "g": "12"}),
    "AVI MS-MPEG-4": plain("a.avi", "msmpeg4", P),
    "AVI MJPEG": plain("a.avi", "mjpeg", pixels="yuvj420p"),
    "AVI HuffYUV": plain("a.avi", "huffyuv", pixels="yuv422p"),
    "AVI Ut Video": plain("a.avi", "utvideo"),
    "AVI uncompressed": plain("a.avi", "rawvideo"),
    "AVI MS Video 1": plain("a.avi", "msvideo1", pixels="rgb555le"),
    "AVI Cinepak": plain("a.avi", "cinepak", pixels="rgb24"),
    "AVI ZMBV": plain("a.avi", "zmbv", pixels="bgr0"),
    "transport stream H.264": H264_TS,
    "transport stream HEVC": plain("a.ts", "libx265", X265),
    "transport stream MPEG-2": plain("a.ts", "mpeg2video", {"bf": "2", "g": "12"}),
    "transport stream MPEG-4": plain("a.ts", "mpeg4", {"bf": "2", "g": "12"}),
    "program stream MPEG-1": plain("a.mpg", "mpeg1video", {"bf": "2", "g": "12"}),
    "program stream MPEG-2": plain("a.mpg", "mpeg2video", {"bf": "2", "g": "12"}),
    "program stream H.264": plain("a.mpg", "libx264", B),
    "VOB MPEG-2": plain("a.vob", "mpeg2video", {"bf": "2", "g": "12"}),
    "FLV H.264": plain("a.flv", "libx264", B),
    "FLV Sorenson": plain("a.flv", "flv", P),
    "FLV screen video": plain("a.flv", "flashsv", pixels="bgr24"),
    "Ogg VP8": plain("a.ogv", "libvpx", VPX),
    "ASF WMV1": plain("a.wmv", "wmv1", P),
    "ASF WMV2": plain("a.wmv", "wmv2", P),
    "ASF H.264": plain("a.asf", "libx264", B),
    "GIF": plain("a.gif", "gif", pixels="rgb8"),
    "Y4M": plain("a.y4m", "rawvideo"),
    "Y4M 4:4:4": plain("a.y4m", "rawvideo", pixels="yuv444p"),
    "MXF MPEG-2": plain("a.mxf", "mpeg2video", {"bf": "2", "g": "12"}),
    "MXF H.264": plain("a.mxf", "libx264", B),
    "DV": sized("a.dv", "dvvideo", "yuv420p", (720, 576)),
    "IVF VP9": plain("a.ivf", "libvpx-vp9", VPX),
    "raw H.264": plain("a.h264", "libx264", B),
    "raw HEVC": plain("a.hevc", "libx265", X265),
    "raw MPEG-1": plain("a.m1v", "mpeg1video", {"bf": "2", "g": "12"}),
    "raw MPEG-2": plain("a.m2v", "mpeg2video", {"bf": "2", "g": "12"}),
    "raw MPEG-4": plain("a.m4v", "mpeg4", {"bf": "2", "g": "12"}, form="m4v"),
    # oddities
    "MP4 in fragments": plain("a.mp4", "libx264", B, container={"movflags": "frag_keyframe+empty_moov"}),
    "MP4, index first": plain("a.mp4", "libx264", B, container={"movflags": "faststart"}),
    "MP4, variable rate": plain("a.mp4", "libx264", B, gaps=True),
    "MP4, edit list": edited,
    "MP4, raw H.264 without times": remuxed("unset.mp4", plain("raw.h264", "libx264", B)),
    "MP4, raw HEVC without times": remuxed("unset.mp4", plain("raw.hevc", "libx265", X265)),
    "MP4, times far from zero": later(3e6, H264, "far.mp4"),
    "MP4, sound first": with_sound_only_before,
    "MP4, cover first": with_cover,
    "MP4, headers in the packets": rewritten(H264_TS, "inband.mp4", lambda packet: None),
    "Matroska, live": live,
    "Matroska, equal times": rewritten(plain("b.mkv", "libx264", P), "equal.mkv", same_times),
    "Matroska, negative times": later(-0.4, plain("b.mkv", "libx264", B), "negative.mkv"),
    "Matroska, second stream the default": two_streams("two.mkv", 1),
    "MP4, second stream the default": two_streams("two.mp4", 1),
    "Matroska, does not begin with a key frame": without_first_packets("cut.mkv", plain("b.mkv", "libx264", B), 3),
    "transport stream, does not begin with a key frame": without_first_packets("cut.ts", H264_TS, 5),
    "transport stream MPEG-2, does not begin with a key frame": without_first_packets(
        "cut.ts", plain("b.ts", "mpeg2video", {"bf": "2", "g": "12"}), 4
    ),
    "Matroska HEVC, begins in an open group": from_key(
        "open.mkv", plain("b.mkv", "libx265", {"x265-params": X265["x265-params"] + ":open-gop=1:bframes=3:scenecut=0"})
    ),
    "Matroska H.264, begins in an open group": from_key(
        "open.mkv", plain("b.mkv", "libx264", B | {"x264-params": "open-gop=1:bframes=3:b-adapt=0"})
    ),
    "Matroska MPEG-2, begins in an open group": from_key(
        "open.mkv", plain("b.mkv", "mpeg2video", {"bf": "2", "g": "12"})
    ),
    "AVI H.264, begins in an open group": without_first_packets("cut.avi", plain("b.avi", "libx264", OPEN), 10),
    "raw H.264, begins in an open group": from_second_key("cut.h264", plain("b.h264", "libx264", OPEN)),
    "raw HEVC, begins in an open group": from_second_key("cut.hevc", plain("b.hevc", "libx265", OPEN_HEVC)),
    "raw MPEG-1, begins in an open group": from_second_key(
        "cut.m1v", plain("b.m1v", "mpeg1video", {"bf": "2", "g": "10"})
    ),
    "raw MPEG-1, groups of ten": plain("a.m1v", "mpeg1video", {"bf": "2", "g": "10"}),
    "Matroska, joined": joined("joined.mkv", plain("a.mkv", "libx264", B), plain("b.mkv", "libx264", B)),
    "transport stream, joined": joined("joined.ts", later(100, H264_TS, "late.ts"), H264_TS),
    "transport stream, joined with itself": joined("twice.ts", H264_TS, H264_TS),
    "transport stream, clock wraps": later((1 << 33) / 90000 - 2, H264_TS, "wraps.ts"),
    "AVI, empty chunks": empty_chunks,
    "AVI, no index": without_index,
    "AVI, palette": palette("palette.avi", "rawvideo", "pal8"),
    "AVI, palette that changes": palette("changes.avi", "rawvideo", "pal8", changes=True),
    "raw H.264, headers that change": headers_once,
    "MP4, headers that change": remuxed("changes.mp4", headers_once),
    "MP4, turned by a message sent once": remuxed("turned.mp4", turned_once),
    "MOV, grey palette": palette("grey.mov", "qtrle", "gray"),
}
if FFMPEG:
    TABLE |= {
        "AVI XviD, packed by its own encoder": by_ffmpeg("xvid.avi", "-c:v", "libxvid", "-bf", "2", "-g", "12"),
        "Matroska, begins with frames without times": leading_without_times,
        "Ogg Theora": by_ffmpeg("a.ogv", "-c:v", "libtheora", "-g", "12"),
        "AVI of two sizes of group": by_ffmpeg("a.avi", "-c:v", "libx264", "-bf", "3", "-g", "7"),
        "MP4 H.264 from raw, by the program": by_ffmpeg(
            "a.mov", "-c:v", "libx264", "-bf", "2", "-movflags", "+negative_cts_offsets"
        ),
    }

# A tenth of the table for `make test`: the kinds that have failed, and one of each way to number frames.
SHORT = {
    "MP4 H.264",
    "Matroska VP8",
    "AVI MPEG-4, packed B-frames",
    "AVI H.264",
    "AVI, palette",
    "MP4, raw HEVC without times",
    "MP4, second stream the default",
    "transport stream MPEG-2, does not begin with a key frame",
    "transport stream, joined",
    "GIF",
    "raw H.264",
    "raw HEVC",
    "raw MPEG-1, groups of ten",
    "raw HEVC, begins in an open group",
    "Matroska, joined",
}
