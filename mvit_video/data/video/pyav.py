"""Reads video files through PyAV, the default. Local files of known containers, one thread, every frame checked.

FFmpeg outputs damaged and stale frames without an error, and its seeking differs between containers. So nothing is left to
it: a scan over the packets (without decoding) numbers the frames; each packet is sent with its position as its timestamp, so
that each frame tells which packet it comes from; decoding starts at a packet that was identified, skips frames that are
neither requested nor referenced, and a frame is returned once all that it may refer to has been decoded intact.
"""

# A packet's "position" is its index in decoding order, a frame's "number" its index in display order.

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
from mvit_video.data.video.containers import FORMATS, Fault, describe_file, find_fault
from mvit_video.data.video.limits import MAX_PIXELS, Unreadable, check_hours, check_size, short_reason
from mvit_video.data.video.packets import NEVER, PacketTable

OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(MAX_PIXELS)}
SKIP_CODECS = ("h264", "hevc", "mpeg4", "mpeg2video")  # decoders that respect skip_frame per packet
SEEK_PACKETS = 32  # fewer packets are read faster than a container seeks
BROADCASTS = ("mpegts", "mpeg")  # with a frame at least every second
MAX_STEP_SECONDS = 10
ROTATION_TOLERANCE = 0.02  # of a display matrix, for rounding
LOOKAHEAD = 4  # frames decoded after a frame before it is returned
TAIL_SECONDS = 0.5  # that a header may exceed the last packet: headers round, and audio may end later


class OrderMismatch(Exception):
    """The decoder's output order, or its set of frames, differs from the scan's."""


class Damaged(Exception):
    """A packet that cannot be decoded correctly: its `position`, and `what` is wrong with its frame."""

    def __init__(self, position: int, what: str) -> None:
        super().__init__(position, what)
        self.position, self.what = position, what


class Converter(Protocol):
    """Converts a decoded frame to RGB: PyAV's VideoReformatter, or an instrumented one."""

    def reformat(self, frame: av.VideoFrame, *, format: str, threads: int) -> av.VideoFrame: ...


class PyAvBackend:
    """See VideoReader. `packets` is the result of the scan."""

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
        self._expected: set[int] = set()  # packets sent to the decoder whose frames are still to come
        self._last_skipped = -1  # the last packet skipped in decoding
        self._orientations: dict[int, Orientation] = {}  # by FFmpeg's angle, which does not include mirroring
        # One converter per video, without threads, which would not survive the fork of a loader worker.
        self._converter: Converter = converter or VideoReformatter()
        self._open()
        try:
            check_hours((self._container.duration or 0) / 1e6)
            self._scan(find_fault(self._file, self.container_name))
            if self.shortfall and (whole or not len(self.packets)):
                raise Unreadable(self.shortfall)
            self._number_frames()
            if whole and self.shortfall:
                raise Unreadable(self.shortfall)
        except BaseException:
            self.close()
            raise

    def _open(self, strict: bool = True) -> None:
        """Open the file at its first packet. A `strict` decoder raises errors that others only log."""
        try:
            self._container = av.open(str(self._file), options=OPTIONS)
        except (av.FFmpegError, ValueError, MemoryError) as reason:
            cause = describe_file(self._file)
            cause = f"it is {cause}" if cause else short_reason(reason)
            raise Unreadable(f"cannot be opened as a video ({cause})") from None
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
        self._has_decoded = self._has_seeked = False

    def _scan(self, fault: Fault | None) -> None:
        """Fill the packet table, up to the container's fault if there is one."""
        codec, self.shortfall = self._codec, fault.what if fault else ""
        max_step = round(MAX_STEP_SECONDS / self._time_base) if self.container_name in BROADCASTS else NEVER
        self.packets = PacketTable(
            self.codec_name, codec.extradata, codec.has_b_frames, codec.codec.intra_only, max_step
        )
        try:
            for packet in self._container.demux(self._stream):
                if fault and packet.pos is not None and packet.pos >= fault.at:
                    break
                if packet.size:
                    self.packets.add(packet)
        except av.FFmpegError as reason:
            raise Unreadable(f"its packets cannot be read ({short_reason(reason)})") from None
        self._next = len(self.packets) + 1  # after all of them
        if self.container_name in ("mov", "avi"):
            listed = self._stream.index_entries
            if len(listed) > len(self.packets) and (count := sum(entry.size > 0 for entry in listed)) > len(
                self.packets
            ):
                self.shortfall = f"is cut short: it lists {count} frames but contains {len(self.packets)}"

    def _number_frames(self) -> None:
        """Number the frames by timestamps, or by decoding everything if packets do not tell their number."""
        table, numbered = self.packets, False
        if table.one_each and not table.first_position:
            table.order_by_times()
            numbered = not table.may_miss_leading
        if not numbered:
            positions, damage = self._decoded_positions()
            if damage and not self.shortfall:
                self.shortfall = f"frame {len(positions)} {damage.what}"
            table.order_as_decoded(positions)
        self.num_frames, self.note = table.num_frames, _note(table)
        self.pixel_aspect = self._stream.sample_aspect_ratio or Fraction(1)
        self.fps = _mean_rate(table.times, self._stream)

    def _decoded_positions(self) -> tuple[list[int], Damaged | None]:
        """The positions of all frames in the decoder's output order up to the first damage, and that damage."""
        positions, first_position, damage = list[int](), self.packets.first_position, None
        try:
            for frame in self._decode(first_position, None, None):
                position = _position_of(frame)
                if not frame.is_corrupt:
                    positions.append(position)
                elif position == first_position or first_position in positions:
                    raise Damaged(position, "is damaged")  # other corrupt frames refer to ones that are not in the file
        except Damaged as reason:
            damage = reason
        if first_position in positions[1:]:
            positions = positions[positions.index(first_position) :]
        if len(set(positions)) < len(positions):
            raise Unreadable("its decoder returns several frames for one packet")
        return positions, damage

    def _renumber(self) -> None:
        """Number the frames in the decoder's output order after timestamps turned out to be wrong."""
        positions, damage = self._decoded_positions()
        if damage:
            raise self._unreadable(damage)
        if len(positions) != self.num_frames:
            missing = f"it has packets for {self.num_frames}, but the decoder returns {len(positions)}"
            raise Unreadable(f"frames are missing or duplicated: {missing}")
        self.packets.order_as_decoded(positions)

    @property
    def num_pixels(self) -> int:
        return max(self._codec.width * self._codec.height, 1)

    def times(self) -> list[Fraction]:
        return [time * self._time_base for time in self.packets.times.tolist()]

    @property
    def _time_base(self) -> Fraction:
        return self._stream.time_base or Fraction(1)

    def read(self, requested: list[int]) -> Iterator[np.ndarray]:
        """Frames by increasing, distinct numbers. If a start in mid-file fails, retry from the beginning."""
        table, use_starts = self.packets, True
        while requested:
            first, end = table.start_for(requested[0]) if use_starts else (table.first_position, self.num_frames)
            group, num_given = requested[: bisect_left(requested, end)], 0
            try:
                for frame in self._decode_numbers(group, first, use_starts and table.order_is_known(first, end)):
                    yield self._convert(frame)
                    num_given += 1
            except Damaged as damage:
                if first == table.first_position:
                    raise self._unreadable(damage) from None
                use_starts = False
            except OrderMismatch as reason:
                if not table.decoded:
                    self._renumber()
                elif use_starts:
                    use_starts = False
                else:
                    raise Unreadable(str(reason)) from None
            requested = requested[num_given:]

    def stream(self) -> Iterator[np.ndarray]:
        for frame in self._all():
            yield self._convert(frame)

    def check(self) -> Iterator[None]:
        """Decode everything; convert the first frame, and each whose size or format differs from the previous one."""
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
        """Check that some stream, be it audio, lasts until about the end stated in the header."""
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
        """The packets flagged as key frames."""
        return (packet for _, packet in self._packets_from(0, None) if packet.is_keyframe)

    def is_rotated(self) -> bool:
        """Whether the first frame is stored rotated or mirrored."""
        return self._orientation(next(self._decode_numbers([0], self.packets.first_position, False))) != (0, False)

    def _all(self) -> Iterator[av.VideoFrame]:
        num_given = 0
        while num_given < self.num_frames:
            try:
                for frame in self._decode_numbers(
                    range(num_given, self.num_frames), self.packets.first_position, False, to_end=True
                ):
                    yield frame
                    num_given += 1
            except Damaged as damage:
                raise self._unreadable(damage) from None
            except OrderMismatch as reason:
                if self.packets.decoded:
                    raise Unreadable(str(reason)) from None
                self._renumber()

    def _unreadable(self, damage: Damaged) -> Unreadable:
        return Unreadable(f"frame {max(self.packets.number_at(damage.position), 0)} of {self.num_frames} {damage.what}")

    def _decode_numbers(
        self, numbers: Sequence[int], first: int, order_is_known: bool, to_end: bool = False
    ) -> Iterator[av.VideoFrame]:
        """Frames of increasing numbers, decoded from the packet at position `first`.

        A frame is yielded once every frame that is stored before it, and that it may refer to, has been decoded intact. If the
        order is known, only requested and referenced frames are decoded, and each waits for LOOKAHEAD more frames in case an
        earlier one follows after all. With `to_end`, no frame may follow the last one.
        """
        table, held, upcoming, damage = self.packets, deque[tuple[int, av.VideoFrame]](), iter(numbers), None
        requested, lookahead = next(upcoming, None), LOOKAHEAD if order_is_known else 0
        outputs = enumerate(self._numbered(first, numbers if order_is_known else None))
        while requested is not None or held or to_end or order_is_known:
            try:
                count, (number, frame) = next(outputs)
            except StopIteration:
                break
            except Damaged as reason:
                damage = reason
                break
            if number == requested:
                held.append((count + lookahead, frame))
                requested = next(upcoming, None)
            while held and held[0][0] <= count and table.complete_up_to(_position_of(held[0][1])) <= number:
                yield self._checked_complete(held.popleft()[1])
        for _, frame in held:
            if damage is not None and self._may_be_damaged(_position_of(frame), damage.position):
                raise damage
            yield self._checked_complete(frame)
        if damage is not None and (requested is not None or table.number_at(damage.position) <= numbers[-1]):
            raise damage
        if requested is not None:
            raise OrderMismatch(f"frame {requested} of {self.num_frames} is missing: the decoder does not return it")

    def _may_be_damaged(self, position: int, damaged: int) -> bool:
        """Whether a frame may be damaged too: an error in an H.264 header may be reported one packet late.

        This happens where neighbouring frames are skipped, which would otherwise be output in the wrong order.
        """
        alone = (
            self._last_skipped > position - LOOKAHEAD
            and self.codec_name == "h264"
            and self.packets.is_reordered(position)
        )
        return position > damaged or (alone and position == damaged - 1)

    def _checked_complete(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame, if all unskipped frames stored before it have been output by the decoder."""
        missing = min(self._expected, default=NEVER)
        if missing < _position_of(frame):
            raise Damaged(missing, "is missing: the decoder does not return it")
        return frame

    def _numbered(self, first: int, requested: Sequence[int] | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decoded frames with their numbers. With `requested`, other frames are skipped if no frame refers to them.

        A damaged frame is an error even if it was not requested: frames that refer to it are damaged too, without a mark.
        """
        table = self.packets
        # Skipping a packed frame would skip the next one in its packet too.
        skipping = requested is not None and self._codec.name in SKIP_CODECS and table.one_each
        last = None if requested is None else table.last_place_for(requested[-1])
        earliest, started = table.number_at(first), first == table.first_position
        expected = 0 if started else earliest
        for frame in self._decode(first, last, set(requested or ()) if skipping else None):
            number = table.number_at(_position_of(frame))
            self._expected.discard(_position_of(frame))
            if number < 0 and (table.decoded or not started):
                continue  # skipped in numbering: it refers to frames that are not in the file, or leads the key frame
            if not started and number < earliest:
                continue  # leads the key frame and refers to earlier frames
            if not started and (number != earliest or not self._is_whole(frame)):
                table.distrust_keys()
                raise Damaged(first, "is marked as a key frame but is not one")
            if number < expected or (number > expected and not skipping):
                raise OrderMismatch(
                    f"frame {expected} of {self.num_frames} is missing or duplicated in the decoder's order"
                )
            started, expected = True, number + 1
            if frame.is_corrupt:
                raise Damaged(_position_of(frame), "is damaged")
            check_size(frame.width, frame.height)
            yield number, frame

    def _is_whole(self, frame: av.VideoFrame) -> bool:
        """Whether a frame refers to no other, according to the decoder."""
        return self._codec.codec.intra_only or frame.pict_type == av.video.frame.PictureType.I

    def _decode(self, first: int, last: int | None, requested: set[int] | None) -> Iterator[av.VideoFrame]:
        """The decoder's frames from packet `first` to `last` (default: the end), with their packets' positions as timestamps."""
        table = self.packets
        strict = table.is_clean_start(first)
        if table.headers_change or strict != self._strict:
            self.close()
            self._open(strict)
        if self._has_decoded:
            self._codec.flush_buffers()
        self._expected.clear()
        self._last_skipped = -1
        beyond = last if requested and last is not None and table.number_at(last) > max(requested) else -1
        for position, packet in self._packets_from(first, last):
            if position == first:
                _apply_side_data(table.changes, packet, position)
            if packet.is_corrupt and not table.is_join_after(position):
                raise Damaged(position, "is damaged")
            if requested is not None:
                leave = (
                    table.number_at(position) not in requested and table.is_droppable(position) and position != beyond
                )
                self._last_skipped = position if leave else self._last_skipped
                self._codec.skip_frame = "NONREF" if leave else "DEFAULT"
                if not leave and table.number_at(position) >= max(table.number_at(first), 0):
                    self._expected.add(position)
            else:
                self._codec.skip_frame = "DEFAULT"
            packet.pts = position
            yield from self._frames_of(packet, position)
        yield from self._frames_of(None, len(table) - 1 if last is None else last)

    def _frames_of(self, packet: av.Packet | None, position: int) -> Iterator[av.VideoFrame]:
        """The frames that the decoder outputs for a packet; for None, those it still holds back for reordering."""
        self._has_decoded = True
        try:
            frames = self._codec.decode(packet)
        except (av.FFmpegError, MemoryError) as reason:
            if isinstance(reason, av.EOFError):
                return
            message = short_reason(reason)
            if isinstance(reason, av.ArgumentError):  # FFmpeg's only error for a frame above max_pixels
                message += f", or a size above the limit of {MAX_PIXELS:,} pixels"
            if packet is not None and self.packets.order_is_known_at(position):  # earlier frames are intact
                yield from (frame for frame in self._frames_of(None, position) if _position_of(frame) < position)
            raise Damaged(position, f"cannot be decoded ({message})") from None
        self.num_decoded += len(frames)
        yield from frames

    def _packets_from(self, first: int, last: int | None) -> Iterator[tuple[int, av.Packet]]:
        """Packets with their positions. Short distances are skipped by reading, longer ones by seeking."""
        if self._next > first or first - self._next > SEEK_PACKETS:
            self._seek(first)
        end = len(self.packets) - 1 if last is None else last
        try:
            for packet in chain(self._demuxer, self._rest_after_seek()):
                if not packet.size:
                    continue
                position, self._next = self._next, self._next + 1
                if position >= first:
                    yield position, packet
                if position >= end:
                    return
        except av.FFmpegError as reason:
            raise Unreadable(f"its packets cannot be read ({short_reason(reason)})") from None

    def _rest_after_seek(self) -> Iterator[av.Packet]:
        """Packets that a demuxer does not reach after a seek: in joined Matroska files it stops after the first."""
        if self._has_seeked and self._next < len(self.packets):
            with av.open(str(self._file), options=OPTIONS) as reopened:
                packets = (packet for packet in reopened.demux(reopened.streams[self._stream.index]) if packet.size)
                yield from islice(packets, self._next, None)

    def _seek(self, first: int) -> None:
        """Move to an identified packet at or before position `first`; reopen the file if no seek finds one."""
        table = self.packets
        target = table.seek_time(first, by_decoding=self.container_name == "mov")
        try:
            if target is not None:
                self._container.seek(target, stream=self._stream)
                packets = iter(self._container.demux(self._stream))
                packet = next(packet for packet in packets if packet.size and table.find_position(packet) >= 0)
                if table.find_position(packet) <= first:
                    self._demuxer, self._next = chain([packet], packets), table.find_position(packet)
                    self._has_seeked = True
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
        """From the stream's headers, which FFmpeg applies only to single frames, else from the container."""
        stated = self.packets.orientation_at(_position_of(frame))
        if stated:
            return stated
        angle = frame.rotation
        if angle not in self._orientations:
            self._orientations[angle] = _orientation_of(frame)
        return self._orientations[angle]


def _note(table: PacketTable) -> str:
    """What a user may want to know about a readable video."""
    notes = []
    if table.first_position:
        notes.append(f"does not begin with a key frame: its first {table.first_position} packets are skipped")
    elif table.one_each and table.skipped:
        notes.append(f"begins in the middle of a group: {table.skipped} frames that refer to earlier ones are skipped")
    if table.joins:
        notes.append(
            f"its clock jumps before frame {table.joins[0]}, where recordings are joined: times are continued evenly"
        )
    return "; ".join(notes)


def _position_of(frame: av.VideoFrame) -> int:
    if frame.pts is None:
        raise Unreadable("its decoder does not report which packets its frames come from")
    return frame.pts


def _apply_side_data(changes, packet: av.Packet, position: int) -> None:
    """Give the first packet of a decode the side data of earlier packets that is still valid, such as a palette."""
    for at, data in reversed(changes):
        if at <= position and not packet.has_sidedata(data.data_type):
            packet.set_sidedata(data)


def _video_stream(container):
    """The default video stream, else the first, ignoring cover images; checks its frame size."""
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
    """From the frame's display matrix: x' = a·x + c·y, y' = b·x + d·y, with y downwards."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return Orientation(0, False)
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    along, across = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(abs(b), abs(c)) > ROTATION_TOLERANCE * along and max(abs(a), abs(d)) > ROTATION_TOLERANCE * across:
        raise Unreadable(f"its frames are rotated by {frame.rotation}°, and only multiples of 90° are supported")
    turns = (0 if a > 0 else 2) if along > across else (1 if b < 0 else 3) if across else 0
    return Orientation(turns, a * d < b * c)


def _mean_rate(times: np.ndarray, stream) -> float:
    """The header's rate if the timestamps agree to within a frame or a percent, else theirs; 30 without either."""
    declared = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    span = float(int(times[-1] - times[0]) * stream.time_base) if len(times) > 1 else 0.0
    if span <= 0:
        return declared[0] if declared else 30.0
    measured = (len(times) - 1) / span
    return next((rate for rate in declared if abs(rate / measured - 1) <= 1 / len(times) + 0.01), measured)
