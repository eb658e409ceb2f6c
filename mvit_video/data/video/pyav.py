"""Video files through PyAV, the default. Local files of known containers, one thread, every frame checked.

FFmpeg hands out damaged and stale frames without an error, and seeks by rules that differ between containers. So nothing
is left to it: a scan over the packets (no decoding) numbers the frames; each packet is sent with its place in the file as
its time, so that each frame tells which packet it comes from; decoding starts at a packet that was recognised, skips
frames that nobody wants or refers to, and hands out a frame when all that it may refer to has come out whole.
"""

# Packets are counted in decoding order ("places"), frames in the order in which they are shown ("numbers").

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from mvit_video.data.video.bitstream import Orientation
from mvit_video.data.video.containers import FORMATS, Fault, fault_of, what_it_is
from mvit_video.data.video.limits import MAX_PIXELS, Unreadable, check_hours, check_size, short_reason
from mvit_video.data.video.packets import NEVER, PacketTable

OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(MAX_PIXELS)}
SKIPPING = ("h264", "hevc", "mpeg4", "mpeg2video")  # decoders that heed skip_frame packet by packet
SEEK_PACKETS = 32  # fewer packets than these are passed over faster than a container seeks
STREAMS = ("mpegts", "mpeg")  # broadcasts, which send an image at least every second
LEAP_SECONDS = 10
ASKEW = 0.02  # of a turn: what rounding may leave
LAG = 4  # frames that are looked at behind one before it is given
TAIL_SECONDS = 0.5  # what a header may state beyond the last packet: players round, and sound may end later


class Disorder(Exception):
    """The decoder gives frames in another order than the scan has found, or others."""


class Damaged(Exception):
    """A packet that cannot be decoded as it should be: `place`, and `what` is wrong with its frame."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(place, what)
        self.place, self.what = place, what


class Converter(Protocol):
    """What turns a decoded frame into an RGB image: PyAV's VideoReformatter, or one that is watched."""

    def reformat(self, frame: av.VideoFrame, *, format: str, threads: int) -> av.VideoFrame: ...


class PyAvBackend:
    """See VideoReader. `packets` is what the scan found."""

    num_frames: int
    fps: float

    def __init__(
        self,
        file: Path,
        root: str | Path | None = None,
        whole: bool = True,
        converter: Converter | None = None,
    ) -> None:
        self._file, self.num_decoded, self.shortfall, self.note = file, 0, "", ""
        self._owed: set[int] = set()  # packets that were sent to the decoder and are to come out as frames
        self._left_out = -1  # the last packet that was left out of decoding
        self._orientations: dict[int, Orientation] = {}  # by FFmpeg's angle, which leaves out mirroring
        # One converter per video, without threads of its own: a loader's fork would leave them behind and wait for ever.
        self._converter: Converter = converter or VideoReformatter()
        self._open()
        try:
            check_hours((self._container.duration or 0) / 1e6)
            self._scan(fault_of(self._file, self.container_name))
            if self.shortfall and (whole or not len(self.packets)):
                raise Unreadable(self.shortfall)
            self._number_frames()
            if whole and self.shortfall:
                raise Unreadable(self.shortfall)
        except BaseException:
            self.close()
            raise

    def _open(self, strict: bool = True) -> None:
        """Open the file, at its first packet. A strict decoder takes for an error what others only log."""
        try:
            self._container = av.open(str(self._file), options=OPTIONS)
        except (av.FFmpegError, ValueError, MemoryError) as reason:
            found = what_it_is(self._file)
            found = f"it is {found}" if found else short_reason(reason)
            raise Unreadable(f"cannot be opened as a video ({found})") from None
        try:
            self._stream = _video_stream(self._container)
        except BaseException:
            self.close()
            raise
        self._codec = self._stream.codec_context
        self._codec.thread_count = 1
        self._codec.options = {"max_pixels": str(MAX_PIXELS)} | ({"err_detect": "explode"} if strict else {})
        self._strict = strict
        self._demuxer, self._next = iter(self._container.demux(self._stream)), 0
        self._used = self._sought = False

    def _scan(self, fault: Fault | None) -> None:
        """Fill the table of packets, up to where the container is at fault."""
        codec, self.shortfall = self._codec, fault.what if fault else ""
        leap = round(LEAP_SECONDS / self._time_base) if self.container_name in STREAMS else NEVER
        self.packets = PacketTable(self.codec_name, codec.extradata, codec.has_b_frames, codec.codec.intra_only, leap)
        try:
            for packet in self._container.demux(self._stream):
                if fault and packet.pos is not None and packet.pos >= fault.at:
                    break
                if packet.size:
                    self.packets.add(packet)
        except av.FFmpegError as reason:
            raise Unreadable(f"its packets cannot be read ({short_reason(reason)})") from None
        self._next = len(self.packets) + 1  # behind all of them
        if self.container_name in ("mov", "avi"):
            listed = self._stream.index_entries
            if len(listed) > len(self.packets) and (count := sum(entry.size > 0 for entry in listed)) > len(
                self.packets
            ):
                self.shortfall = f"is cut short: it lists {count} frames but contains {len(self.packets)}"

    def _number_frames(self) -> None:
        """By the times of the packets; by decoding all of them where these cannot tell the number of frames."""
        table, numbered = self.packets, False
        if table.one_each and not table.begin:
            table.order_by_times()
            numbered = not table.may_lack_leading
        if not numbered:
            places, damage = self._decoded_places()
            if damage and not self.shortfall:
                self.shortfall = f"frame {len(places)} {damage.what}"
            table.order_as_decoded(places)
        self.num_frames, self.note = table.num_frames, _note(table)
        self.pixel_aspect = self._stream.sample_aspect_ratio or Fraction(1)
        self.fps = _mean_rate(table.times, self._stream)

    def _decoded_places(self) -> tuple[list[int], Damaged | None]:
        """The packets of all frames in the decoder's order, up to the first damage, and that."""
        places, begin, damage = list[int](), self.packets.begin, None
        try:
            for frame in self._decode(begin, None, None):
                place = _place_of(frame)
                if not frame.is_corrupt:
                    places.append(place)
                elif place == begin or begin in places:
                    raise Damaged(place, "is damaged")  # others refer to what is not in the file
        except Damaged as reason:
            damage = reason
        if begin in places[1:]:
            places = places[places.index(begin) :]
        if len(set(places)) < len(places):
            raise Unreadable("its decoder returns several frames for one packet")
        return places, damage

    def _count_again(self) -> None:
        """Number the frames as the decoder gives them, where the times of their packets have not told their order."""
        places, damage = self._decoded_places()
        if damage:
            raise self._unreadable(damage)
        if len(places) != self.num_frames:
            missing = f"it has packets for {self.num_frames}, but the decoder returns {len(places)}"
            raise Unreadable(f"frames are missing or duplicated: {missing}")
        self.packets.order_as_decoded(places)

    def times(self) -> list[Fraction]:
        return [time * self._time_base for time in self.packets.times.tolist()]

    @property
    def _time_base(self) -> Fraction:
        return self._stream.time_base or Fraction(1)

    def read(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """Frames by rising, distinct numbers. Where a start in mid-file leads astray, once more from the beginning."""
        table, trusting = self.packets, True
        while wanted:
            first, end = table.start_of(wanted[0]) if trusting else (table.begin, self.num_frames)
            group, given = wanted[: bisect_left(wanted, end)], 0
            try:
                for frame in self._run(group, first, trusting and table.sure(first, end)):
                    yield self._convert(frame)
                    given += 1
            except Damaged as damage:
                if first == table.begin:
                    raise self._unreadable(damage) from None
                trusting = False
            except Disorder as reason:
                if not table.decoded:
                    self._count_again()
                elif trusting:
                    trusting = False
                else:
                    raise Unreadable(str(reason)) from None
            wanted = wanted[given:]

    def stream(self) -> Iterator[np.ndarray]:
        for frame in self._all():
            yield self._convert(frame)

    def check(self) -> Iterator[None]:
        """Decode everything; convert the first frame, and each that has another form than the one before."""
        form = None
        for frame in self._all():
            if form != (frame.width, frame.height, frame.format.name):
                if form and form[:2] != (frame.width, frame.height):
                    raise Unreadable(f"the frame size changes within the video, to {frame.width}×{frame.height}")
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
            raise Unreadable(f"is cut short: it states a length of {stated:.1f} s but ends after {ends:.1f} s")

    def close(self) -> None:
        self._container.close()

    @property
    def container_name(self) -> str:
        return self._container.format.name.partition(",")[0]

    @property
    def codec_name(self) -> str:
        return self._codec.codec.canonical_name

    @property
    def pixel_format(self) -> str:
        return self._codec.pix_fmt or "unknown"

    @property
    def num_video_streams(self) -> int:
        return len(self._container.streams.video)

    def key_packets(self) -> Iterator[av.Packet]:
        """The packets that are marked as places to start from."""
        return (packet for _, packet in self._packets_from(0, None) if packet.is_keyframe)

    def is_turned(self) -> bool:
        """Whether the first frame is stored turned or mirrored."""
        return self._orientation(next(self._run([0], self.packets.begin, False))) != (0, False)

    def _all(self) -> Iterator[av.VideoFrame]:
        given = 0
        while given < self.num_frames:
            try:
                for frame in self._run(range(given, self.num_frames), self.packets.begin, False, to_end=True):
                    yield frame
                    given += 1
            except Damaged as damage:
                raise self._unreadable(damage) from None
            except Disorder as reason:
                if self.packets.decoded:
                    raise Unreadable(str(reason)) from None
                self._count_again()

    def _unreadable(self, damage: Damaged) -> Unreadable:
        return Unreadable(f"frame {max(self.packets.number_at(damage.place), 0)} of {self.num_frames} {damage.what}")

    def _run(self, numbers: Sequence[int], first: int, sure: bool, to_end: bool = False) -> Iterator[av.VideoFrame]:
        """Frames of rising numbers, decoded from the packet at place `first` on.

        A frame is given once all that is stored before it, and may be referred to, has come out undamaged. Where the order
        is sure, no more is decoded than is wanted or referred to, and a frame waits whether an earlier one follows it all
        the same. With `to_end`, no frame may follow the last one.
        """
        table, held, upcoming, damage = self.packets, deque[tuple[int, av.VideoFrame]](), iter(numbers), None
        wanted, lag = next(upcoming, None), LAG if sure else 0
        outputs = enumerate(self._numbered(first, numbers if sure else None))
        while wanted is not None or held or to_end or sure:
            try:
                count, (number, frame) = next(outputs)
            except StopIteration:
                break
            except Damaged as reason:
                damage = reason
                break
            if number == wanted:
                held.append((count + lag, frame))
                wanted = next(upcoming, None)
            while held and held[0][0] <= count and table.settled_by(_place_of(held[0][1])) <= number:
                yield self._complete(held.popleft()[1])
        for _, frame in held:
            if damage is not None and self._is_in_doubt(_place_of(frame), damage.place):
                raise damage
            yield self._complete(frame)
        if damage is not None and (wanted is not None or table.number_at(damage.place) <= numbers[-1]):
            raise damage
        if wanted is not None:
            raise Disorder(f"frame {wanted} of {self.num_frames} is missing: the decoder does not return it")

    def _is_in_doubt(self, place: int, damaged: int) -> bool:
        """Whether a frame may be damaged too: of H.264, what is wrong in a header may be noticed one packet later.

        So it is where frames next to it are left out, which would else come out in a wrong order.
        """
        alone = self._left_out > place - LAG and self.codec_name == "h264" and self.packets.is_reordered(place)
        return place > damaged or (alone and place == damaged - 1)

    def _complete(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A frame, if all that is stored before it and was not left out has come out of the decoder."""
        missing = min(self._owed, default=NEVER)
        if missing < _place_of(frame):
            raise Damaged(missing, "is missing: the decoder does not return it")
        return frame

    def _numbered(self, first: int, wanted: Sequence[int] | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decoded frames with their numbers. With `wanted`, others are left out of decoding where no frame refers to them.

        A damaged frame is an error even where it is not wanted: what refers to it is damaged too, and not marked.
        """
        table = self.packets
        # Of packed images, one that is left out takes the next one in its packet with it.
        skipping = wanted is not None and self._codec.name in SKIPPING and table.one_each
        last = None if wanted is None else table.last_of(wanted[-1])
        earliest, started = table.number_at(first), first == table.begin
        expected = 0 if started else earliest
        for frame in self._decode(first, last, set(wanted or ()) if skipping else None):
            number = table.number_at(_place_of(frame))
            self._owed.discard(_place_of(frame))
            if number < 0 and (table.decoded or not started):
                continue  # left out, as it refers to what is not in the file, or it leads the key frame
            if not started and number < earliest:
                continue  # leads the key frame and refers to frames before
            if not started and (number != earliest or not self._is_whole(frame)):
                table.distrust_keys()
                raise Damaged(first, "is marked as a key frame but is not one")
            if number < expected or (number > expected and not skipping):
                raise Disorder(f"frame {expected} of {self.num_frames} is missing or duplicated in the decoder's order")
            started, expected = True, number + 1
            if frame.is_corrupt:
                raise Damaged(_place_of(frame), "is damaged")
            check_size(frame.width, frame.height)
            yield number, frame

    def _is_whole(self, frame: av.VideoFrame) -> bool:
        """Whether an image refers to no other, as far as the decoder says."""
        return self._codec.codec.intra_only or frame.pict_type == av.video.frame.PictureType.I

    def _decode(self, first: int, last: int | None, wanted: set[int] | None) -> Iterator[av.VideoFrame]:
        """The decoder's frames from packet `first` to `last`, to the end without it, each with its packet's place as its time."""
        table = self.packets
        strict = table.refreshed(first)
        if table.headers_change or strict != self._strict:
            self.close()
            self._open(strict)
        if self._used:
            self._codec.flush_buffers()
        self._owed.clear()
        self._left_out = -1
        beyond = last if wanted and last is not None and table.number_at(last) > max(wanted) else -1
        for place, packet in self._packets_from(first, last):
            if place == first:
                _hand_on(table.changes, packet, place)
            if packet.is_corrupt and not table.joined_behind(place):
                raise Damaged(place, "is damaged")
            if wanted is not None:
                leave = table.number_at(place) not in wanted and table.may_be_left_out(place) and place != beyond
                self._left_out = place if leave else self._left_out
                self._codec.skip_frame = "NONREF" if leave else "DEFAULT"
                if not leave and table.number_at(place) >= max(table.number_at(first), 0):
                    self._owed.add(place)
            else:
                self._codec.skip_frame = "DEFAULT"
            packet.pts = place
            yield from self._frames_of(packet, place)
        yield from self._frames_of(None, len(table) - 1 if last is None else last)

    def _frames_of(self, packet: av.Packet | None, place: int) -> Iterator[av.VideoFrame]:
        """What the decoder gives for a packet; at the end, for None, all that it held back to bring it into order."""
        self._used = True
        try:
            frames = self._codec.decode(packet)
        except (av.FFmpegError, MemoryError) as reason:
            if isinstance(reason, av.EOFError):
                return
            why = short_reason(reason)
            if isinstance(reason, av.ArgumentError):  # FFmpeg's only word for an image above max_pixels
                why += f", or a size above the limit of {MAX_PIXELS:,} pixels"
            if packet is not None and self.packets.sure_at(place):  # what was decoded before is whole
                yield from (frame for frame in self._frames_of(None, place) if _place_of(frame) < place)
            raise Damaged(place, f"cannot be decoded ({why})") from None
        self.num_decoded += len(frames)
        yield from frames

    def _packets_from(self, first: int, last: int | None) -> Iterator[tuple[int, av.Packet]]:
        """Packets with their places. A few are passed over, over more the container seeks."""
        if self._next > first or first - self._next > SEEK_PACKETS:
            self._seek(first)
        end = len(self.packets) - 1 if last is None else last
        try:
            for packet in chain(self._demuxer, self._left_by_seek()):
                if not packet.size:
                    continue
                place, self._next = self._next, self._next + 1
                if place >= first:
                    yield place, packet
                if place >= end:
                    return
        except av.FFmpegError as reason:
            raise Unreadable(f"its packets cannot be read ({short_reason(reason)})") from None

    def _left_by_seek(self) -> Iterator[av.Packet]:
        """What a demuxer that has sought does not come to, as of Matroska files that are joined: it ends with the first."""
        if self._sought and self._next < len(self.packets):
            with av.open(str(self._file), options=OPTIONS) as again:
                packets = (packet for packet in again.demux(again.streams[self._stream.index]) if packet.size)
                yield from islice(packets, self._next, None)

    def _seek(self, first: int) -> None:
        """Stand at a packet that is known and not behind place `first`; the file is opened again where no seek finds one."""
        table = self.packets
        target = table.seek_time(first, by_decoding=self.container_name == "mov")
        try:
            if target is not None:
                self._container.seek(target, stream=self._stream)
                packets = iter(self._container.demux(self._stream))
                packet = next(packet for packet in packets if packet.size and table.known_place(packet) >= 0)
                if table.known_place(packet) <= first:
                    self._demuxer, self._next = chain([packet], packets), table.known_place(packet)
                    self._sought = True
                    return
        except (av.FFmpegError, StopIteration):
            pass
        self.close()
        self._open(self._strict)

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        picture = self._converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns, mirrored = self._orientation(frame)
        if turns % 2:
            self.pixel_aspect = 1 / (self._stream.sample_aspect_ratio or Fraction(1))
        if not turns and not mirrored:
            return picture
        return np.ascontiguousarray(np.rot90(picture[::-1] if mirrored else picture, turns))

    def _orientation(self, frame: av.VideoFrame) -> Orientation:
        """As the stream's headers say, which FFmpeg puts only on single frames, else as the container does."""
        stated = self.packets.orientation_at(_place_of(frame))
        if stated:
            return stated
        angle = frame.rotation
        if angle not in self._orientations:
            self._orientations[angle] = _orientation_of(frame)
        return self._orientations[angle]


def _note(table: PacketTable) -> str:
    """What whoever asked for a video may want to know of it."""
    notes = []
    if table.begin:
        notes.append(f"does not begin with a key frame: its first {table.begin} packets are skipped")
    elif table.one_each and table.left_out:
        notes.append(f"begins in the middle of a group: {table.left_out} frames that refer to earlier ones are skipped")
    if table.joints:
        notes.append(
            f"its clock jumps before frame {table.joints[0]}, where recordings are joined: times are continued evenly"
        )
    return "; ".join(notes)


def _place_of(frame: av.VideoFrame) -> int:
    if frame.pts is None:
        raise Unreadable("its decoder does not report which packets its frames come from")
    return frame.pts


def _hand_on(changes, packet: av.Packet, place: int) -> None:
    """Give a packet that decoding starts with what an earlier packet has brought for all behind it, such as a palette."""
    for at, data in reversed(changes):
        if at <= place and not packet.has_sidedata(data.data_type):
            packet.set_sidedata(data)


def _video_stream(container):
    """The default video stream, else the first, with sizes checked: a cover image does not count."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise Unreadable("no video stream")
    chosen = next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
    codec = chosen.codec_context
    if codec is None:
        raise Unreadable("no decoder for its video stream")
    check_size(codec.width, codec.height)
    return chosen


def _end_of(packet: av.Packet) -> float:
    if not packet.size or packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _orientation_of(frame: av.VideoFrame) -> Orientation:
    """By the frame's display matrix: x' = a·x + c·y, y' = b·x + d·y, with y downwards."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return Orientation(0, False)
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    along, across = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(abs(b), abs(c)) > ASKEW * along and max(abs(a), abs(d)) > ASKEW * across:
        raise Unreadable(f"its frames are rotated by {frame.rotation}°, and only quarter turns are read")
    turns = (0 if a > 0 else 2) if along > across else (1 if b < 0 else 3) if across else 0
    return Orientation(turns, a * d < b * c)


def _mean_rate(times: np.ndarray, stream) -> float:
    """The header's rate where the times agree with it to a frame or a percent, else that of the times; 30 without both."""
    declared = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    span = float(int(times[-1] - times[0]) * stream.time_base) if len(times) > 1 else 0.0
    if span <= 0:
        return declared[0] if declared else 30.0
    measured = (len(times) - 1) / span
    return next((rate for rate in declared if abs(rate / measured - 1) <= 1 / len(times) + 0.01), measured)
