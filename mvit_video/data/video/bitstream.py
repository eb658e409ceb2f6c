"""Parses packets without decoding them: headers that a stream may send only once, and the orientation of frames."""

# Units are delimited by start codes 00 00 01 or preceded by their length.

from collections.abc import Iterator
from typing import NamedTuple

H264_SETS, HEVC_SETS = {7: "SPS", 8: "PPS"}, {32: "VPS", 33: "SPS", 34: "PPS"}
H264_REFRESH, H264_SEI, HEVC_SEI, DISPLAY_ORIENTATION = 5, 6, 39, 47
MPEG4_LAYERS, MPEG4_PICTURE = range(0x20, 0x30), b"\0\0\1\xb6"
MPEG2_SEQUENCE, MPEG2_GROUP, CLOSED_GROUP = 0xB3, 0xB8, 0x40
HEVC_OPEN = (16, 17, 18, 21)  # BLA and CRA
START = b"\0\0\1"


class Orientation(NamedTuple):
    """How to show a stored frame: flip it vertically if `mirrored`, then rotate by `turns` quarter turns to the left."""

    turns: int
    mirrored: bool


class Headers(NamedTuple):
    """What a packet holds besides its picture: `sets` are the units required for decoding, by kind."""

    sets: dict[str, tuple[bytes, ...]]
    orientation: Orientation | None = None
    refresh: bool = True  # of a key frame: no later frame refers to an earlier one
    has_leading: bool = False  # of a key frame: later packets may hold frames shown before it


def length_bytes(codec: str, extradata: bytes | None) -> int:
    """Number of bytes of a unit's length in this stream's packets; 0 if units are delimited by start codes."""
    if not extradata or extradata[0] != 1:
        return 0
    if codec == "h264" and len(extradata) > 6:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) > 22:
        return (extradata[21] & 3) + 1
    return 0


def headers_of(codec: str, content: bytes, lengths: int) -> Headers:
    """The headers in a packet of H.264, HEVC, MPEG-4, MPEG-1 or MPEG-2; other codecs' key frames contain all they need."""
    sets: dict[str, tuple[bytes, ...]] = {}
    orientation, refresh, has_leading = None, codec != "h264", False
    if codec not in ("h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video"):
        return Headers(sets)
    for unit in _units(content, lengths):
        kind = _set_kind(codec, unit)
        if kind:
            sets[kind] = (*sets.get(kind, ()), unit.rstrip(b"\0"))
        elif codec == "h264" and unit[0] & 31 == H264_REFRESH:
            refresh = True
        elif (codec == "h264" and unit[0] & 31 == H264_SEI) or (codec == "hevc" and unit[0] >> 1 & 63 == HEVC_SEI):
            orientation = _orientation_in(unit[1 if codec == "h264" else 2 :]) or orientation
        else:
            has_leading = has_leading or _is_open_group(codec, unit)
    return Headers(sets, orientation, refresh, has_leading or not refresh)


def _is_open_group(codec: str, unit: bytes) -> bool:
    """Whether frames stored after this key frame of HEVC, MPEG-1 or MPEG-2 may be shown before it."""
    if codec == "hevc":
        return unit[0] >> 1 & 63 in HEVC_OPEN
    return (
        codec in ("mpeg1video", "mpeg2video")
        and unit[0] == MPEG2_GROUP
        and len(unit) > 4
        and not unit[4] & CLOSED_GROUP
    )


def extradata_headers(codec: str, extradata: bytes | None) -> Headers:
    """The headers stored in the container for the whole stream."""
    if not extradata:
        return Headers({})
    return headers_of(
        codec, extradata if not length_bytes(codec, extradata) else _configuration_sets(codec, extradata), 0
    )


def holds_one_picture(content: bytes) -> bool:
    """Whether an MPEG-4 packet is one coded picture; not if it is packed, empty, or a skipped picture."""
    return len(content) > SKIPPED_BYTES and content.count(MPEG4_PICTURE) == 1


SKIPPED_BYTES = 20  # a picture that is not coded is smaller


def _units(content: bytes, lengths: int) -> Iterator[bytes]:
    """The non-empty units of a packet."""
    if lengths:
        at = 0
        while at + lengths < len(content):
            size = int.from_bytes(content[at : at + lengths], "big")
            if size:
                yield content[at + lengths : at + lengths + size]
            at += lengths + size
        return
    at = content.find(START)
    while at >= 0:
        end = content.find(START, at + 3)
        unit = content[at + 3 : end if end >= 0 else len(content)]
        if unit:
            yield unit
        at = end


def _set_kind(codec: str, unit: bytes) -> str:
    if codec == "h264":
        return H264_SETS.get(unit[0] & 31, "")
    if codec == "hevc":
        return HEVC_SETS.get(unit[0] >> 1 & 63, "")
    if codec == "mpeg4":
        return "layer" if unit[0] in MPEG4_LAYERS else ""
    return "sequence" if unit[0] == MPEG2_SEQUENCE else ""


def _configuration_sets(codec: str, record: bytes) -> bytes:
    """The parameter sets of an MP4's decoder configuration record, with start codes."""
    found, at = b"", 5 if codec == "h264" else 23
    for _ in range(2 if codec == "h264" else record[22]):
        if codec == "h264":
            count, at = int.from_bytes(record[at : at + 1], "big") & 31, at + 1
        else:  # a byte for the kind, then two for the count
            count, at = int.from_bytes(record[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(record[at : at + 2], "big")
            found += START + record[at + 2 : at + 2 + size]
            at += 2 + size
    return found


def _orientation_in(message: bytes) -> Orientation | None:
    """The display orientation message of an SEI unit (H.264 and HEVC, annex D), or None."""
    message, at = message.replace(b"\0\0\3", b"\0\0"), 0
    while at + 2 < len(message):
        kind, at = _read_sei_number(message, at)
        size, at = _read_sei_number(message, at)
        if kind == DISPLAY_ORIENTATION and size >= 3:
            bits = int.from_bytes(message[at : at + 3], "big")
            if bits >> 23:  # cancels an earlier one
                return Orientation(0, False)
            across, down, angle = bits >> 22 & 1, bits >> 21 & 1, bits >> 5 & 0xFFFF
            return Orientation((round(angle / 0x4000) + 2 * across) % 4, bool(across ^ down))
        at += size
    return None


def _read_sei_number(message: bytes, at: int) -> tuple[int, int]:
    """A number coded as a sum of bytes up to the first that is not 255, and the offset after it."""
    total = 0
    while at < len(message) and message[at] == 255:
        total, at = total + 255, at + 1
    return (total + message[at], at + 1) if at < len(message) else (total, at)
