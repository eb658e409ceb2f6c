"""The table of a video's packets: how many frames it has, in which order, when they are shown, and where decoding can start.

It is filled by a scan over the packets, without decoding. The decoder's output order is the truth. Frames are sorted by the
container's timestamps where these are usable; the order is checked while decoding (`order_is_known` says how closely), and
`order_as_decoded` replaces it where the timestamps are wrong.
"""

# A packet's "position" is its index in decoding order, a frame's "number" its index in display order.

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import av
import numpy as np
from av.packet import PacketSideData

from mvit_video.data.video.bitstream import (
    Headers,
    Orientation,
    extradata_headers,
    headers_of,
    holds_one_picture,
    length_bytes,
)
from mvit_video.data.video.limits import Unreadable, check_count

NO_TIME, NEVER = -1 << 63, (1 << 63) - 1
PERSISTENT_SIDE_DATA = (
    "palette",
    "new_extradata",
)  # valid for all packets up to the next side data of its kind
RELIABLE_KEYS = frozenset(
    {"h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "theora"}
    | {"h263", "flv1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1"}
)  # and intra-only codecs; others flag frames as keys that refer to earlier ones, without an error


class PacketTable:
    """Filled by `add` for each packet, then one of the `order` methods.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: the headers stored in the container.
        reorders: whether the decoder may output frames in another order than they are stored.
        intra_only: whether all frames are independent.
        max_step: clock ticks between packets from which on a step is a jump of the clock, not a pause.
    """

    def __init__(
        self,
        codec: str,
        extradata: bytes | None = None,
        reorders: bool = False,
        intra_only: bool = False,
        max_step: int = NEVER,
    ) -> None:
        self.codec, self._reorders, self._lengths = codec, reorders, length_bytes(codec, extradata)
        self._has_reliable_keys = intra_only or codec in RELIABLE_KEYS
        self._extradata = extradata_headers(codec, extradata)
        self.num_frames, self.hidden, self._max_step = 0, 0, max_step
        self.skipped = 0  # packets whose frames the decoder did not output
        self.joins: list[int] = []  # frames before which the clock jumps
        self.timed, self.decoded, self.one_each = False, False, True
        self.times: np.ndarray = np.empty(0, np.int64)  # of the frames, increasing; empty without timestamps
        self._time, self._decoding_time = array("q"), array("q")  # of each packet
        self._shown = bytearray()
        self.keys: list[int] = []  # positions
        self._open_keys: set[int] = set()  # of H.264: not a full refresh, later frames may refer to earlier ones
        self._keys_with_leading: set[int] = set()  # frames stored after them may be shown before them
        self._key_positions: dict[tuple, int] = {}  # identity of a key packet → position, -1 if ambiguous
        self._headers: list[tuple[int, Headers]] = []  # of key packets that carry any
        self.changes: list[tuple[int, PacketSideData]] = []
        self._numbers, self._positions = array("q"), array("q")  # by position, -1 if not shown; by number
        self._starts: list[tuple[int, int]] = []  # number, position: both increasing
        self._reordered = array("q")  # cumulative count of reordered frames by position

    def __len__(self) -> int:
        return len(self._time)

    def add(self, packet: av.Packet) -> None:
        position, shown = len(self._time), not packet.is_discard
        check_count(position)
        pts, dts = packet.pts, packet.dts
        if not shown:
            self.hidden += 1
        elif self.codec == "vp8":  # has packets of hidden reference frames; show_frame is bit 4
            shown = bool(bytes(packet)[0] >> 4 & 1)
        elif self.codec == "mpeg4" and self.one_each:
            self.one_each = holds_one_picture(bytes(packet))
        self._time.append(NO_TIME if pts is None else pts)
        self._decoding_time.append(NO_TIME if dts is None else dts)
        self._shown.append(shown)
        if packet.is_keyframe:
            self._add_key(position, packet)
        for data in packet.iter_sidedata():
            if data.data_type in PERSISTENT_SIDE_DATA:
                self.changes.append((position, data))

    def _add_key(self, position: int, packet: av.Packet) -> None:
        self.keys.append(position)
        identity = identity_of(packet)
        self._key_positions[identity] = -1 if identity in self._key_positions else position
        headers = headers_of(self.codec, bytes(packet), self._lengths)
        if not headers.refresh:
            self._open_keys.add(position)
        if headers.has_leading:
            self._keys_with_leading.add(position)
        if headers.sets or headers.orientation:
            self._headers.append((position, headers))

    def order_by_times(self) -> None:
        """Number the frames by their timestamps, or in storage order if timestamps are missing or not distinct."""
        positions = np.flatnonzero(np.frombuffer(bytes(self._shown), np.uint8))
        order = self._read_clock(positions)
        distinct = self.timed and not np.any(np.diff(self.times) == 0)
        self._set_order(positions[order] if distinct else positions)

    def order_as_decoded(self, positions: Sequence[int]) -> None:
        """Number the frames in the decoder's output order, each given by the position of its packet."""
        self.decoded, self.skipped = True, sum(self._shown) - len(positions)
        self._read_clock(np.asarray(positions, np.int64))
        self._set_order(np.asarray(positions, np.int64))

    def _read_clock(self, positions: np.ndarray) -> np.ndarray:
        """Set `times`, the sorted times of the frames in these packets, and return the sorting permutation.

        After a jump of the clock, as where recordings are joined, times continue with the usual step.
        """
        if not len(positions):
            raise Unreadable("no frames")
        stored = np.frombuffer(self._decoding_time, np.int64)
        known = (stored[1:] != NO_TIME) & (stored[:-1] != NO_TIME)
        ahead = np.diff(stored) if len(stored) > 1 else stored[:0]
        self._jumps = np.concatenate([[False], known & ((ahead < 0) | (ahead >= self._max_step))])
        pieces, times = np.cumsum(self._jumps)[positions], np.frombuffer(self._time, np.int64)[positions]
        order = np.lexsort((times, pieces))
        self.timed = bool((times != NO_TIME).all())
        self.times = times[order] if self.timed else times[:0]
        joins = np.flatnonzero(np.diff(pieces[order]))
        if len(joins) and self.timed:
            steps = np.diff(self.times)
            steps[joins] = np.median(np.delete(steps, joins)) if len(steps) > len(joins) else 1
            self.times = self.times[0] + np.concatenate([[0], np.cumsum(steps)])
        self.joins = (joins + 1).tolist()
        return order

    def _set_order(self, positions: np.ndarray) -> None:
        numbers = np.full(len(self), -1, np.int64)
        numbers[positions] = np.arange(len(positions))
        highest = np.maximum.accumulate(numbers)
        self.num_frames = len(positions)
        self._numbers, self._positions = _array(numbers), _array(positions)
        self._highest, self._last_positions = _array(highest), _array(np.maximum.accumulate(positions))
        self._reordered = _array(np.cumsum((numbers >= 0) & (numbers < highest)))
        self._starts = []
        if self._has_reliable_keys:
            self._find_starts()

    def _find_starts(self) -> None:
        """Find the key frames at which a decoder has the same headers as when decoding from the beginning."""
        carried, effective = dict(self._headers), dict(self._extradata.sets)
        for position in self.keys:
            sets = carried[position].sets if position in carried else {}
            effective.update(sets)
            number = self._numbers[position]
            behind = number > (self._starts[-1][0] if self._starts else -1)
            if behind and effective == {**self._extradata.sets, **sets} and not self._hides_leading(position):
                self._starts.append((number, position))

    @property
    def headers_change(self) -> bool:
        """Whether the decoder's state depends on the packets it has seen, so that each start needs a new decoder."""
        seen = dict(self._extradata.sets)
        for _, headers in self._headers:
            for kind, units in headers.sets.items():
                if seen.setdefault(kind, units) != units:
                    return True
        return any(position for position, _ in self.changes)

    @property
    def may_miss_leading(self) -> bool:
        """Whether the first stored frames may refer to earlier ones that are not in the file, which their times do not show."""
        return self.number_at(0) > 0 or self._hides_leading(0)

    def _hides_leading(self, key: int) -> bool:
        """Whether the frame after a key frame may be shown before it, although timestamps are in storage order."""
        if key not in self._keys_with_leading or not self._reorders or self.decoded:
            return False
        return self._numbers[self._next_shown(key)] == self._numbers[key] + 1

    def _next_shown(self, position: int) -> int:
        """The next packet with a visible frame; the same packet if there is none."""
        return next((later for later in range(position + 1, len(self)) if self._numbers[later] >= 0), position)

    @property
    def first_position(self) -> int:
        """The first packet to decode."""
        return self.keys[0] if self.keys else 0

    def number_at(self, position: int) -> int:
        """The number of a packet's frame, -1 if it is not shown."""
        return self._numbers[position]

    def place_at(self, number: int) -> int:
        return self._positions[number]

    def complete_up_to(self, position: int) -> int:
        """The frame number at whose output all frames stored before this position have been output and can be checked."""
        return self._highest[position - 1] if position else -1

    def start_for(self, number: int) -> tuple[int, int]:
        """The last packet from which a frame can be decoded, and the end (exclusive) of the numbers for which it is that packet."""
        behind = bisect_right(self._starts, number, key=lambda start: start[0])
        position = self._starts[behind - 1][1] if behind > 1 else self.first_position
        return position, self._starts[behind][0] if behind < len(self._starts) else self.num_frames

    def is_clean_start(self, position: int) -> bool:
        """Whether a decoder started here needs nothing from before, so that all its errors count."""
        return position not in self._open_keys and (self.codec != "h264" or position in self.keys)

    def is_droppable(self, position: int) -> bool:
        """Whether this frame may be unreferenced, to be confirmed by its own header: referenced frames are seldom shown early."""
        return self._numbers[position] >= 0 and self.is_reordered(position)

    def order_is_known(self, first: int, end: int) -> bool:
        """Whether the order of the frames from packet `first` up to number `end` needs no check by decoding all of them.

        Timestamps in storage order may be made up if the codec can reorder frames.
        """
        return (
            self.decoded
            or not self._reorders
            or self._reordered[self._last_positions[end - 1]] > self._reordered[first]
        )

    def order_is_known_at(self, position: int) -> bool:
        """Whether that holds for the frames around a packet."""
        return self.num_frames > 0 and self.order_is_known(*self.start_for(max(self._numbers[position], 0)))

    def last_place_for(self, number: int) -> int:
        """The last packet to decode for frames up to this number.

        If its frame is shown in storage order, includes the next packet, which might be shown earlier if timestamps are made up.
        If it is reordered H.264, includes the next packet too, which may reveal an error in its header.
        """
        last = self._last_positions[number]
        reordered = self.is_reordered(last)
        tells = self.codec == "h264" if reordered else not self.decoded and self._reorders
        return self._next_shown(last) if tells else last

    def is_reordered(self, position: int) -> bool:
        """Whether its frame is shown before one that is stored earlier."""
        return self._numbers[position] < self._highest[position]

    def distrust_keys(self) -> None:
        """From now on decode from the beginning: key frame flags mark gradual refreshes."""
        self._starts = []

    def find_position(self, packet: av.Packet) -> int:
        """The position of a key packet seen in the scan; -1 for others and for ambiguous ones."""
        return self._key_positions.get(identity_of(packet), -1)

    def orientation_at(self, position: int) -> Orientation | None:
        """The orientation given by the stream's own headers, or None."""
        found = self._extradata.orientation
        for at, headers in self._headers:
            if at > position:
                break
            found = headers.orientation or found
        return found

    def is_join_after(self, position: int) -> bool:
        """Whether another recording begins after a packet, or after the next one.

        A demuxer with continuity counters takes what precedes a join for incomplete, and may report it one packet early.
        """
        return any(at < len(self) and self._jumps[at] and at in self.keys for at in (position + 1, position + 2))

    @property
    def closed(self) -> bool:
        """Whether all groups of pictures are closed: no frame is shown before the key frame that precedes it in the file."""
        bounds = [*self.keys, len(self)]
        return bounds[0] == 0 and all(
            min((number for number in self._numbers[key:end] if number >= 0), default=-1) >= self._numbers[key]
            for key, end in pairwise(bounds)
        )

    def seek_time(self, position: int, by_decoding: bool) -> int | None:
        """The timestamp to seek to: MP4 indexes decoding times, other containers presentation times."""
        shown, decoded = self._time[position], self._decoding_time[position]
        time = decoded if by_decoding and decoded != NO_TIME else shown
        return None if time == NO_TIME else time


def identity_of(packet: av.Packet) -> tuple:
    """Identifies a packet that is read again: its position in the file, or its timestamps if that is unknown."""
    return (packet.pos, packet.size) if packet.pos is not None else (packet.pts, packet.dts, packet.size)


def _array(values: np.ndarray) -> array:
    """A Python array, whose single elements are read much faster than NumPy's."""
    found = array("q")
    found.frombytes(np.ascontiguousarray(values, np.int64).tobytes())
    return found
