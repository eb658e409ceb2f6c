"""What a scan over a video's packets tells, without decoding: how many frames, in which order, when, and where to start.

The decoder's order is the truth. Where the container's times can say it, they are sorted; whether they did is checked
while decoding (`sure` says how closely), and where they did not, `order_as_decoded` takes their place.
"""

# Packets are counted in decoding order ("places"), frames in the order in which they are shown ("numbers").

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
CHANGES = (
    "palette",
    "new_extradata",
)  # side data of packets that holds until the next of its kind
KEYS_TO_START_FROM = frozenset(
    {"h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "theora"}
    | {"h263", "flv1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1"}
)  # and all that have nothing but key frames; others mark frames that refer to earlier ones, and do not notice


class PacketTable:
    """Filled by `add` for each packet and one of the `order` methods after the last.

    Args:
        codec: FFmpeg's name of it.
        extradata: the headers that the container keeps.
        delays: whether the decoder may hold frames back, to show them in another order than they are stored in.
        alike: whether every frame stands alone.
        leap: ticks of the clock from one packet to the next that are no pause, but a jump of the clock.
    """

    def __init__(
        self,
        codec: str,
        extradata: bytes | None = None,
        delays: bool = False,
        alike: bool = False,
        leap: int = NEVER,
    ) -> None:
        self.codec, self._delays, self._lengths = codec, delays, length_bytes(codec, extradata)
        self._startable = alike or codec in KEYS_TO_START_FROM
        self._own = extradata_headers(codec, extradata)
        self.num_frames, self.hidden, self._leap = 0, 0, leap
        self.left_out = 0  # packets of frames that the decoder has not given
        self.joints: list[int] = []  # the frames before which the clock jumps
        self.timed, self.decoded, self.one_each = False, False, True
        self.times: np.ndarray = np.empty(0, np.int64)  # of the frames, rising; empty where the container states none
        self._time, self._decoding_time = array("q"), array("q")  # of each packet
        self._shown = bytearray()
        self.keys: list[int] = []  # places
        self._open_keys: set[int] = set()  # of H.264: behind them, what is marked in frames before is missed
        self._led_keys: set[int] = set()  # frames that are stored behind them may be shown before them
        self._place_of: dict[tuple, int] = {}  # identity of a key packet → place, -1 where several have one
        self._headers: list[tuple[int, Headers]] = []  # of key packets that carry any
        self.changes: list[tuple[int, PacketSideData]] = []
        self._numbers, self._places = array("q"), array("q")  # of each place, -1 where none is shown; of each number
        self._starts: list[tuple[int, int]] = []  # number, place: both rising
        self._reordered = array("q")  # how many frames up to a place are shown before one that is stored before them

    def __len__(self) -> int:
        return len(self._time)

    def add(self, packet: av.Packet) -> None:
        place, shown = len(self._time), not packet.is_discard
        check_count(place)
        pts, dts = packet.pts, packet.dts
        if not shown:
            self.hidden += 1
        elif self.codec == "vp8":  # images that only others refer to have packets of their own; show_frame is bit 4
            shown = bool(bytes(packet)[0] >> 4 & 1)
        elif self.codec == "mpeg4" and self.one_each:
            self.one_each = holds_one_picture(bytes(packet))
        self._time.append(NO_TIME if pts is None else pts)
        self._decoding_time.append(NO_TIME if dts is None else dts)
        self._shown.append(shown)
        if packet.is_keyframe:
            self._add_key(place, packet)
        for data in packet.iter_sidedata():
            if data.data_type in CHANGES:
                self.changes.append((place, data))

    def _add_key(self, place: int, packet: av.Packet) -> None:
        self.keys.append(place)
        identity = identity_of(packet)
        self._place_of[identity] = -1 if identity in self._place_of else place
        headers = headers_of(self.codec, bytes(packet), self._lengths)
        if not headers.refresh:
            self._open_keys.add(place)
        if headers.led:
            self._led_keys.add(place)
        if headers.sets or headers.orientation:
            self._headers.append((place, headers))

    def order_by_times(self) -> None:
        """Number the frames as the container's times say, or as they are stored where it states too few or equal ones."""
        places = np.flatnonzero(np.frombuffer(bytes(self._shown), np.uint8))
        order = self._read_clock(places)
        distinct = self.timed and not np.any(np.diff(self.times) == 0)
        self._set_order(places[order] if distinct else places)

    def order_as_decoded(self, places: Sequence[int]) -> None:
        """Number the frames as the decoder has given them, each by the place of its packet."""
        self.decoded, self.left_out = True, sum(self._shown) - len(places)
        self._read_clock(np.asarray(places, np.int64))
        self._set_order(np.asarray(places, np.int64))

    def _read_clock(self, places: np.ndarray) -> np.ndarray:
        """Set `times`, those of the frames in these packets, rising, and return the order in which they rise.

        Where the clock jumps, as where recordings are joined, it is taken to go on by the usual step.
        """
        if not len(places):
            raise Unreadable("no frames")
        stored = np.frombuffer(self._decoding_time, np.int64)
        known = (stored[1:] != NO_TIME) & (stored[:-1] != NO_TIME)
        ahead = np.diff(stored) if len(stored) > 1 else stored[:0]
        self._jumps = np.concatenate([[False], known & ((ahead < 0) | (ahead >= self._leap))])
        pieces, times = np.cumsum(self._jumps)[places], np.frombuffer(self._time, np.int64)[places]
        order = np.lexsort((times, pieces))
        self.timed = bool((times != NO_TIME).all())
        self.times = times[order] if self.timed else times[:0]
        joints = np.flatnonzero(np.diff(pieces[order]))
        if len(joints) and self.timed:
            steps = np.diff(self.times)
            steps[joints] = np.median(np.delete(steps, joints)) if len(steps) > len(joints) else 1
            self.times = self.times[0] + np.concatenate([[0], np.cumsum(steps)])
        self.joints = (joints + 1).tolist()
        return order

    def _set_order(self, places: np.ndarray) -> None:
        numbers = np.full(len(self), -1, np.int64)
        numbers[places] = np.arange(len(places))
        highest = np.maximum.accumulate(numbers)
        self.num_frames = len(places)
        self._numbers, self._places = _array(numbers), _array(places)
        self._highest, self._reach = _array(highest), _array(np.maximum.accumulate(places))
        self._reordered = _array(np.cumsum((numbers >= 0) & (numbers < highest)))
        self._starts = []
        if self._startable:
            self._find_starts()

    def _find_starts(self) -> None:
        """Key frames from which on a decoder has all headers that it would have had, decoding from the beginning."""
        carried, effective = dict(self._headers), dict(self._own.sets)
        for place in self.keys:
            sets = carried[place].sets if place in carried else {}
            effective.update(sets)
            number = self._numbers[place]
            behind = number > (self._starts[-1][0] if self._starts else -1)
            if behind and effective == {**self._own.sets, **sets} and not self._may_hide_leading(place):
                self._starts.append((number, place))

    @property
    def headers_change(self) -> bool:
        """Whether what a decoder knows depends on which packets it has seen, so that each start wants a new decoder."""
        seen = dict(self._own.sets)
        for _, headers in self._headers:
            for kind, units in headers.sets.items():
                if seen.setdefault(kind, units) != units:
                    return True
        return any(place for place, _ in self.changes)

    @property
    def may_lack_leading(self) -> bool:
        """Whether frames may be stored first that refer to earlier ones, which are gone, with times that do not show it."""
        return self.number_at(0) > 0 or self._may_hide_leading(0)

    def _may_hide_leading(self, key: int) -> bool:
        """Whether the frame behind a key frame may be shown before it, though their times are those of storing."""
        if key not in self._led_keys or not self._delays or self.decoded:
            return False
        return self._numbers[self._next_shown(key)] == self._numbers[key] + 1

    def _next_shown(self, place: int) -> int:
        """The next packet of a frame that is shown; the same where none follows."""
        return next((later for later in range(place + 1, len(self)) if self._numbers[later] >= 0), place)

    @property
    def begin(self) -> int:
        """The first packet that is decoded."""
        return self.keys[0] if self.keys else 0

    def number_at(self, place: int) -> int:
        """The number of the frame in a packet, -1 for one that is not shown."""
        return self._numbers[place]

    def place_at(self, number: int) -> int:
        return self._places[number]

    def settled_by(self, place: int) -> int:
        """The frame number by which all that was stored before this place has been given, and can be seen to be whole."""
        return self._highest[place - 1] if place else -1

    def start_of(self, number: int) -> tuple[int, int]:
        """The last packet from which a frame can be decoded, and the number up to which that is so (not included)."""
        behind = bisect_right(self._starts, number, key=lambda start: start[0])
        place = self._starts[behind - 1][1] if behind > 1 else self.begin
        return place, self._starts[behind][0] if behind < len(self._starts) else self.num_frames

    def refreshed(self, place: int) -> bool:
        """Whether a decoder that starts there lacks nothing of what was before, so that all its complaints count."""
        return place not in self._open_keys and (self.codec != "h264" or place in self.keys)

    def may_be_left_out(self, place: int) -> bool:
        """Whether no frame refers to this one, if it also says so: those that others refer to are seldom shown early."""
        return self._numbers[place] >= 0 and self.is_reordered(place)

    def sure(self, first: int, end: int) -> bool:
        """Whether the order of the frames from packet `first` up to number `end` needs no check by decoding all of them.

        Times that come in the order in which frames are stored may be made up, where a decoder may change the order.
        """
        return self.decoded or not self._delays or self._reordered[self._reach[end - 1]] > self._reordered[first]

    def sure_at(self, place: int) -> bool:
        """Whether that is so for the frames around a packet."""
        return self.num_frames > 0 and self.sure(*self.start_of(max(self._numbers[place], 0)))

    def last_of(self, number: int) -> int:
        """The last packet that frames up to this one come from.

        Behind one that is shown as it is stored, the next: where the times are made up, it may be shown before it. Behind
        one that is not, of H.264, the next too: what is wrong in its header may be seen only there.
        """
        last = self._reach[number]
        reordered = self.is_reordered(last)
        tells = self.codec == "h264" if reordered else not self.decoded and self._delays
        return self._next_shown(last) if tells else last

    def is_reordered(self, place: int) -> bool:
        """Whether its frame is shown before one that is stored before it."""
        return self._numbers[place] < self._highest[place]

    def distrust_keys(self) -> None:
        """From now on decode from the beginning: marks stand where the image is refreshed bit by bit."""
        self._starts = []

    def known_place(self, packet: av.Packet) -> int:
        """The place of a key packet that the scan has seen; -1 for others, and where several look like it."""
        return self._place_of.get(identity_of(packet), -1)

    def orientation_at(self, place: int) -> Orientation | None:
        """As the stream's own headers say; None where they do not."""
        found = self._own.orientation
        for at, headers in self._headers:
            if at > place:
                break
            found = headers.orientation or found
        return found

    def joined_behind(self, place: int) -> bool:
        """Whether another recording begins behind a packet, or the next one.

        A demuxer that counts takes what is before a joint for incomplete, and may say so one packet early.
        """
        return any(at < len(self) and self._jumps[at] and at in self.keys for at in (place + 1, place + 2))

    @property
    def closed(self) -> bool:
        """Whether no frame is shown before a key frame that it follows in the file, so that groups of pictures stand alone."""
        bounds = [*self.keys, len(self)]
        return bounds[0] == 0 and all(
            min((number for number in self._numbers[key:end] if number >= 0), default=-1) >= self._numbers[key]
            for key, end in pairwise(bounds)
        )

    def seek_time(self, place: int, by_decoding: bool) -> int | None:
        """What to ask the container for: its index is by decoding time in MP4, else by the time of showing."""
        shown, decoded = self._time[place], self._decoding_time[place]
        time = decoded if by_decoding and decoded != NO_TIME else shown
        return None if time == NO_TIME else time


def identity_of(packet: av.Packet) -> tuple:
    """What tells a packet when it is read again: where it lies in the file, or its times where that is not known."""
    return (packet.pos, packet.size) if packet.pos is not None else (packet.pts, packet.dts, packet.size)


def _array(values: np.ndarray) -> array:
    """An array of Python's, whose single elements are read much faster than NumPy's."""
    found = array("q")
    found.frombytes(np.ascontiguousarray(values, np.int64).tobytes())
    return found
