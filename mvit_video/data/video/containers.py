"""Supported containers, how to describe other files, and whether a container is complete by its own bookkeeping.

Demuxers skip what they do not understand and stop at the end of the file, both without an error. Containers that state the
lengths of their elements are checked here element by element, reading a few bytes of each.
"""

import os
from collections.abc import Callable
from pathlib import Path

FORMATS = "mov,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,ogg,asf,gif,yuv4mpegpipe,mxf,dv,ivf"  # FFmpeg's names
SUPPORTED = (
    "MP4/MOV, Matroska/WebM, AVI, MPEG program and transport streams, FLV, Ogg, ASF/WMV, GIF, MXF, DV, Y4M, IVF, "
    "and raw H.264, HEVC, MPEG-1, -2 and -4"
)
SIGNATURES = {  # first bytes of files that are sometimes mistaken for videos
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "compressed with gzip",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"FWS": "Flash (SWF)",
    b"CWS": "Flash (SWF)",
    b"ZWS": "Flash (SWF)",
    b".RMF": "RealMedia",
    b"nut/multimedia": "the container NUT",
    b"\xb7\xd8\x00\x20\x37\x49\xda\x11": "a Windows Media Center recording (WTV)",
    b"\0\0\0\0\x01\xbc": "the container GXF",
    b"ID3": "an audio file (MP3)",
    b"fLaC": "an audio file (FLAC)",
    b"#EXTM3U": "a playlist (HLS)",
    b"ffconcat": "a list of other files (ffconcat)",
    b"v=0\r": "a session description (SDP)",
    b"v=0\n": "a session description (SDP)",
    b"<?xml": "XML text",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"<asx": "a playlist (ASX)",
    b"rtsptext": "an address (RTSP)",
}
HEAD_BYTES = 4096


def describe_file(file: Path) -> str:
    """What kind of file cannot be opened, by its first bytes, as the end of a sentence; empty if unknown."""
    try:
        with file.open("rb") as content:
            head = content.read(HEAD_BYTES)
    except OSError:
        return ""
    if head[4:8] == b"ftyp":
        return "an MP4 file without its index (moov), as left by an interrupted download or recording"
    if head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"WAVE"):
        return "a WebP image" if head[8:12] == b"WEBP" else "an audio file (WAV)"
    if head[257:262] == b"ustar":
        return "a tar archive"
    name = next((name for start, name in SIGNATURES.items() if head.lstrip(b"\xef\xbb\xbf \r\n").startswith(start)), "")
    return f"{name}; supported are {SUPPORTED}" if name else ""


class Fault(Exception):
    """What is wrong with a container, and the byte offset."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what, at)
        self.what, self.at = what, at


def find_fault(file: Path, container: str) -> Fault | None:
    """The first offset at which a container contradicts its own element lengths; None if it is complete.

    Also None for containers that state too little, or vary too much between writers, to be checked.
    """
    check = CHECKS.get(container)
    if check is None:
        return None
    with _Window(file) as window:
        try:
            check(window)
        except Fault as fault:
            return fault
    return None


class _Window:
    """Random access to a file's bytes, read in blocks."""

    BLOCK = 4096

    def __init__(self, file: Path) -> None:
        self._handle = os.open(file, os.O_RDONLY)
        self.size = os.fstat(self._handle).st_size
        self._start, self._block = 0, b""

    def __enter__(self) -> "_Window":
        return self

    def __exit__(self, *_) -> None:
        os.close(self._handle)

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes, fewer at the end of the file."""
        offset = at - self._start
        if offset < 0 or offset + count > len(self._block):
            self._block, self._start, offset = os.pread(self._handle, max(self.BLOCK, count), at), at, 0
        return self._block[offset : offset + count]

    def number(self, at: int, count: int, order: str = "big") -> int:
        return int.from_bytes(self.read(at, count), "big" if order == "big" else "little")

    def find(self, what: bytes, at: int) -> int:
        """The next offset of these bytes, or -1."""
        while at < self.size:
            block = self.read(at, 1 << 20)
            found = block.find(what)
            if found >= 0:
                return at + found
            at += max(len(block) - len(what) + 1, 1)
        return -1

    def is_padding(self, at: int) -> bool:
        """Whether only zeros follow."""
        return all(not any(self.read(place, self.BLOCK)) for place in range(at, self.size, self.BLOCK))


def _check_end(window: _Window, end: int) -> None:
    """Raise Fault if an element ends beyond the file."""
    if end > window.size:
        raise Fault(f"is cut short: an element ends at byte {end:,}, but the file at {window.size:,}", window.size)


def _damaged(at: int) -> Fault:
    return Fault(f"is damaged at byte {at:,}: unexpected data for its container", at)


def _boxes(window: _Window) -> None:
    """MP4 and MOV: boxes with a length and a name."""
    at = 0
    while at + 8 <= window.size:
        size, header = window.number(at, 4), 8
        if size == 1:
            size, header = window.number(at + 8, 8), 16
        if size == 0:  # up to the end of the file
            return
        if size < header:
            return  # padding, which some cameras leave
        if window.read(at + 4, 4) in (b"moov", b"moof", b"mdat"):  # some files have other data appended
            _check_end(window, at + size)
        at += size


SEGMENT, CLUSTER, UNKNOWN = 0x18538067, 0x1F43B675, -1
IN_SEGMENT = {0x114D9B74, 0x1549A966, 0x1654AE6B, CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF}
IN_CLUSTER = {
    0xE7,
    0xA7,
    0xAB,
    0xA3,
    0xA0,
    0xAF,
    0xEC,
    0xBF,
}  # element ids of one byte, which all writers use
LENGTH_BYTES = [0] + [9 - first.bit_length() for first in range(1, 256)]  # by the first byte of a length
MAX_READ = 1 << 26


def _matroska(window: _Window) -> None:
    """Matroska and WebM: nested elements with an id and a length; live recordings may leave lengths open."""
    _, at, length = _element(window, 0)
    identity, at, length = _element(window, at + max(length, 0))
    if identity != SEGMENT:
        return
    if length == UNKNOWN:
        _check_live(window, at)
        return
    end = at + length
    _check_end(window, end)
    while at < end:
        identity, content, length = _element(window, at)
        if identity not in IN_SEGMENT or content + length > end:
            raise _damaged(at)
        if identity == CLUSTER and 0 <= length <= MAX_READ:
            _check_cluster(window.read(content, length), content)
        at = content + max(length, 0)


def _check_live(window: _Window, at: int) -> None:
    """A recording without a stated length may end anywhere, and each cluster where the next begins."""
    while at < window.size:
        identity, content, length = _element(window, at)
        if identity not in IN_SEGMENT | IN_CLUSTER:
            raise _damaged(at)
        at = content if identity == CLUSTER else content + max(length, 0)


def _check_cluster(data: bytes, begin: int) -> None:
    at = 0
    while at + 2 <= len(data):
        wide = LENGTH_BYTES[data[at + 1]]
        if data[at] not in IN_CLUSTER or not wide:
            raise _damaged(begin + at)
        at += 1 + wide + (int.from_bytes(data[at + 1 : at + 1 + wide], "big") & ((1 << 7 * wide) - 1))
    if at != len(data):
        raise _damaged(begin + len(data))


def _element(window: _Window, at: int) -> tuple[int, int, int]:
    """Id, offset of the content, and its length."""
    head = window.read(at, 12)
    width = LENGTH_BYTES[head[0]] if head else 0
    if not 0 < width <= 4 or len(head) <= width or not head[width]:
        raise _damaged(at)
    wide = LENGTH_BYTES[head[width]]
    length = int.from_bytes(head[width : width + wide], "big") & ((1 << 7 * wide) - 1)
    unknown = length == (1 << 7 * wide) - 1
    return int.from_bytes(head[:width], "big"), at + width + wide, UNKNOWN if unknown else length


def _riff(window: _Window) -> None:
    """AVI: checks that the list of frames ends within the file. Writers pad its chunks too differently to check each."""
    at = 12
    while at + 12 <= window.size:
        name, size = window.read(at, 4), window.number(at + 4, 4, "little")
        if name == b"LIST" and window.read(at + 8, 4) == b"movi":
            if size not in (0, 0xFFFFFFFF):  # as left by an interrupted recorder
                _check_end(window, at + size)
            return
        at += 8 + size + size % 2


def _flash(window: _Window) -> None:
    """FLV: tags with a type and a length."""
    at = window.number(5, 4) + 4
    while at + 11 <= window.size:
        if window.number(at, 1) & 0x1F not in (8, 9, 18):
            if window.is_padding(at):
                return
            raise _damaged(at)
        end = at + 11 + window.number(at + 1, 3)
        _check_end(window, end)
        at = end + 4
    if at < window.size and not window.is_padding(at):
        _check_end(window, at + 11)


def _ogg(window: _Window) -> None:
    """Ogg: pages with a table of lengths, numbered per stream."""
    at, numbers = 0, dict[int, int]()
    while at < window.size:
        if window.read(at, 4) != b"OggS":
            raise _damaged(at)
        _check_end(window, at + 27)
        stream, number, segments = (
            window.number(at + 14, 4),
            window.number(at + 18, 4, "little"),
            window.number(at + 26, 1),
        )
        if number != numbers.get(stream, number - 1) + 1:
            raise Fault(f"is damaged at byte {at:,}: page {number} follows page {numbers[stream]}", at)
        numbers[stream] = number
        end = at + 27 + segments + sum(window.read(at + 27, segments))
        _check_end(window, end)
        at = end


ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _asf(window: _Window) -> None:
    """ASF/WMV: the header states the file's size, except for broadcasts."""
    at, end = 30, min(window.number(16, 8, "little"), window.size)
    while at + 24 <= end:
        size = window.number(at + 16, 8, "little")
        if window.read(at, 16) == ASF_FILE_PROPERTIES and not window.number(at + 88, 4, "little") & 1:
            _check_end(window, window.number(at + 40, 8, "little"))
            return
        at += max(size, 24)


def _gif(window: _Window) -> None:
    """GIF: images and extensions, each a chain of short blocks, then an end marker."""
    flags = window.number(10, 1)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < window.size:
        kind = window.number(at, 1)
        if kind == 0x3B:
            return
        if kind not in (0x21, 0x2C):
            raise _damaged(at)
        colours = window.number(at + 9, 1)
        at += 2 if kind == 0x21 else 11 + (3 << (colours & 7) + 1 if colours & 0x80 else 0)
        while size := window.number(at, 1):
            at += 1 + size
        at += 1
    raise Fault("is cut short: its end marker is missing", window.size)


def _program(window: _Window) -> None:
    """MPEG program streams: packs and packets with lengths, separated by nothing but zeros."""
    at, ended = 0, False
    while at + 6 <= window.size:
        if window.read(at, 3) != b"\0\0\1":
            following = window.find(b"\0\0\1\xba", at)
            if following < 0 and (ended or window.is_padding(at)):
                return  # appended data
            if following < 0 or any(window.read(at, min(following - at, MAX_READ))):
                raise _damaged(at)
            at = following
            continue
        kind = window.number(at + 3, 1)
        if kind == 0xBA:  # pack header of MPEG-2 or MPEG-1
            at += 14 + (window.number(at + 13, 1) & 7) if window.number(at + 4, 1) >> 6 == 1 else 12
        elif kind > 0xBA:
            at += 6 + window.number(at + 4, 2)
        elif kind == 0xB9:  # end code; another stream may be appended
            at, ended = at + 4, True
        else:
            raise _damaged(at)
        _check_end(window, at)


DV_FRAMES = {0: 120_000, 1: 144_000}  # bytes of a frame with 525 and with 625 lines


def _dv(window: _Window) -> None:
    """DV: frames of constant size."""
    size = DV_FRAMES[window.number(3, 1) >> 7]
    if window.size % size:
        _check_end(window, window.size // size * size + size)


def _ivf(window: _Window) -> None:
    """IVF: frames preceded by their length."""
    at = window.number(6, 2, "little")
    while at + 12 <= window.size:
        at += 12 + window.number(at, 4, "little")
        _check_end(window, at)


CHROMA = {"mono": 0, "420": 2, "411": 2, "422": 4, "444": 8}  # chroma bytes per four pixels, by prefix of the name


def _y4m(window: _Window) -> None:
    """Y4M: a header line, then frames of constant size, each after a line of its own."""
    header = window.read(0, 256).partition(b"\n")[0].decode("ascii", "replace")
    fields = {field[0]: field[1:] for field in header.split()[1:]}
    name = fields.get("C", "420")
    chroma = next((bytes_ for start, bytes_ in CHROMA.items() if name.startswith(start)), None)
    if chroma is None or "alpha" in name or not fields.get("W", "").isdigit() or not fields.get("H", "").isdigit():
        return
    width, height = int(fields["W"]), int(fields["H"])
    across = -(-width // 4) if name.startswith("411") else -(-width // 2) if chroma in (2, 4) else width
    down = -(-height // 2) if name.startswith("420") else height
    deep = 1 if "p1" not in name and name != "mono16" and not name.startswith("mono1") else 2
    size = deep * (width * height + (2 * across * down if chroma else 0))
    at = len(header) + 1
    while at < window.size:
        line = window.read(at, 80).partition(b"\n")[0]
        if not line.startswith(b"FRAME"):
            raise _damaged(at)
        at += len(line) + 1 + size
        _check_end(window, at)


def _mxf(window: _Window) -> None:
    """MXF: the first partition states the offset of the last one, unless it was left open."""
    first = window.number(16, 1)
    at = 17 + (first & 0x7F if first & 0x80 else 0)
    footer = window.number(at + 24, 8)
    if footer:
        _check_end(window, footer + 16)


CHECKS: dict[str, Callable[[_Window], None]] = {
    "mov": _boxes,
    "matroska": _matroska,
    "avi": _riff,
    "flv": _flash,
    "ogg": _ogg,
    "asf": _asf,
    "gif": _gif,
    "mpeg": _program,
    "dv": _dv,
    "ivf": _ivf,
    "yuv4mpegpipe": _y4m,
    "mxf": _mxf,
}
