"""Which containers are read, what a file is that is none of them, and whether one is all there by its own bookkeeping.

Demuxers jump over what they cannot make out and end where the file does, both without an error. Containers that state
how long their parts are tell more: these are walked here, part by part, which reads a few bytes of each.
"""

import os
from collections.abc import Callable
from pathlib import Path

FORMATS = "mov,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,ogg,asf,gif,yuv4mpegpipe,mxf,dv,ivf"  # FFmpeg's names
READ = (
    "MP4/MOV, Matroska/WebM, AVI, MPEG program and transport streams, FLV, Ogg, ASF/WMV, GIF, MXF, DV, Y4M, IVF, "
    "and raw H.264, HEVC, MPEG-1, -2 and -4"
)
FOREIGN = {  # how files begin that are taken for videos now and then
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
    b"\xb7\xd8\x00\x20\x37\x49\xda\x11": "a recording of Windows Media Center (WTV)",
    b"\0\0\0\0\x01\xbc": "the container GXF",
    b"ID3": "sound alone (MP3)",
    b"fLaC": "sound alone (FLAC)",
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


def what_it_is(file: Path) -> str:
    """What a file that cannot be opened is, by how it begins, as a sentence's end; empty where that tells nothing."""
    try:
        with file.open("rb") as content:
            head = content.read(HEAD_BYTES)
    except OSError:
        return ""
    if head[4:8] == b"ftyp":
        return "an MP4 file without its index (moov), as left by a download or a recording that broke off"
    if head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"WAVE"):
        return "a WebP image" if head[8:12] == b"WEBP" else "sound alone (WAV)"
    if head[257:262] == b"ustar":
        return "a tar archive"
    name = next((name for start, name in FOREIGN.items() if head.lstrip(b"\xef\xbb\xbf \r\n").startswith(start)), "")
    return f"{name}, and read are {READ}" if name else ""


class Fault(Exception):
    """What is wrong, and at which byte."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what, at)
        self.what, self.at = what, at


def fault_of(file: Path, container: str) -> Fault | None:
    """The first place at which a container's parts do not follow each other as they state; None where all is there.

    Also None for containers that state too little, or differ too much from writer to writer, for an answer.
    """
    walk = WALKS.get(container)
    if walk is None:
        return None
    with _Window(file) as window:
        try:
            walk(window)
        except Fault as fault:
            return fault
    return None


class _Window:
    """The bytes of a file, read in blocks as they are asked for."""

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
        """Fewer at the end of the file."""
        offset = at - self._start
        if offset < 0 or offset + count > len(self._block):
            self._block, self._start, offset = os.pread(self._handle, max(self.BLOCK, count), at), at, 0
        return self._block[offset : offset + count]

    def number(self, at: int, count: int, order: str = "big") -> int:
        return int.from_bytes(self.read(at, count), "big" if order == "big" else "little")

    def find(self, what: bytes, at: int) -> int:
        """Where these bytes come next, -1 where they do not."""
        while at < self.size:
            block = self.read(at, 1 << 20)
            found = block.find(what)
            if found >= 0:
                return at + found
            at += max(len(block) - len(what) + 1, 1)
        return -1

    def only_zeros_from(self, at: int) -> bool:
        """Whether nothing follows but padding."""
        return all(not any(self.read(place, self.BLOCK)) for place in range(at, self.size, self.BLOCK))


def _cut(window: _Window, end: int) -> None:
    """A part that is to end beyond the file."""
    if end > window.size:
        raise Fault(f"is cut short: a part of it ends at byte {end:,} and the file at {window.size:,}", window.size)


def _garbled(at: int) -> Fault:
    return Fault(f"is damaged at byte {at:,}: what comes there is no part of such a file", at)


def _boxes(window: _Window) -> None:
    """MP4 and MOV: boxes of a length and a name."""
    at = 0
    while at + 8 <= window.size:
        size, header = window.number(at, 4), 8
        if size == 1:
            size, header = window.number(at + 8, 8), 16
        if size == 0:  # up to the end of the file
            return
        if size < header:
            return  # padding, which some cameras leave
        if window.read(at + 4, 4) in (b"moov", b"moof", b"mdat"):  # some append what is no box
            _cut(window, at + size)
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
}  # of those with an identity of one byte, which all writers use
LENGTH_BYTES = [0] + [9 - first.bit_length() for first in range(1, 256)]  # by the first byte of a length
MOST_AT_ONCE = 1 << 26


def _matroska(window: _Window) -> None:
    """Matroska and WebM: elements of an identity and a length, nested; a live recording may leave lengths open."""
    _, at, length = _element(window, 0)
    identity, at, length = _element(window, at + max(length, 0))
    if identity != SEGMENT:
        return
    if length == UNKNOWN:
        _walk_live(window, at)
        return
    end = at + length
    _cut(window, end)
    while at < end:
        identity, content, length = _element(window, at)
        if identity not in IN_SEGMENT or content + length > end:
            raise _garbled(at)
        if identity == CLUSTER and 0 <= length <= MOST_AT_ONCE:
            _walk_cluster(window.read(content, length), content)
        at = content + max(length, 0)


def _walk_live(window: _Window, at: int) -> None:
    """A recording that states no length may end anywhere, and its clusters where the next begins."""
    while at < window.size:
        identity, content, length = _element(window, at)
        if identity not in IN_SEGMENT | IN_CLUSTER:
            raise _garbled(at)
        at = content if identity == CLUSTER else content + max(length, 0)


def _walk_cluster(data: bytes, begin: int) -> None:
    at = 0
    while at + 2 <= len(data):
        wide = LENGTH_BYTES[data[at + 1]]
        if data[at] not in IN_CLUSTER or not wide:
            raise _garbled(begin + at)
        at += 1 + wide + (int.from_bytes(data[at + 1 : at + 1 + wide], "big") & ((1 << 7 * wide) - 1))
    if at != len(data):
        raise _garbled(begin + len(data))


def _element(window: _Window, at: int) -> tuple[int, int, int]:
    """Identity, where the content begins, and its length."""
    head = window.read(at, 12)
    width = LENGTH_BYTES[head[0]] if head else 0
    if not 0 < width <= 4 or len(head) <= width or not head[width]:
        raise _garbled(at)
    wide = LENGTH_BYTES[head[width]]
    length = int.from_bytes(head[width : width + wide], "big") & ((1 << 7 * wide) - 1)
    unknown = length == (1 << 7 * wide) - 1
    return int.from_bytes(head[:width], "big"), at + width + wide, UNKNOWN if unknown else length


def _riff(window: _Window) -> None:
    """AVI: that the list of frames ends within the file. Chunks in it are padded in too many ways to be walked."""
    at = 12
    while at + 12 <= window.size:
        name, size = window.read(at, 4), window.number(at + 4, 4, "little")
        if name == b"LIST" and window.read(at + 8, 4) == b"movi":
            if size not in (0, 0xFFFFFFFF):  # a recorder that broke off leaves these
                _cut(window, at + size)
            return
        at += 8 + size + size % 2


def _flash(window: _Window) -> None:
    """FLV: tags of a kind and a length."""
    at = window.number(5, 4) + 4
    while at + 11 <= window.size:
        if window.number(at, 1) & 0x1F not in (8, 9, 18):
            if window.only_zeros_from(at):
                return
            raise _garbled(at)
        end = at + 11 + window.number(at + 1, 3)
        _cut(window, end)
        at = end + 4
    if at < window.size and not window.only_zeros_from(at):
        _cut(window, at + 11)


def _ogg(window: _Window) -> None:
    """Ogg: pages with a table of lengths, numbered for each stream."""
    at, numbers = 0, dict[int, int]()
    while at < window.size:
        if window.read(at, 4) != b"OggS":
            raise _garbled(at)
        _cut(window, at + 27)
        stream, number, segments = (
            window.number(at + 14, 4),
            window.number(at + 18, 4, "little"),
            window.number(at + 26, 1),
        )
        if number != numbers.get(stream, number - 1) + 1:
            raise Fault(f"is damaged at byte {at:,}: page {number} follows page {numbers[stream]}", at)
        numbers[stream] = number
        end = at + 27 + segments + sum(window.read(at + 27, segments))
        _cut(window, end)
        at = end


ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _asf(window: _Window) -> None:
    """ASF/WMV: the header states the file's size, but for broadcasts."""
    at, end = 30, min(window.number(16, 8, "little"), window.size)
    while at + 24 <= end:
        size = window.number(at + 16, 8, "little")
        if window.read(at, 16) == ASF_FILE_PROPERTIES and not window.number(at + 88, 4, "little") & 1:
            _cut(window, window.number(at + 40, 8, "little"))
            return
        at += max(size, 24)


def _gif(window: _Window) -> None:
    """GIF: images and extensions, each a chain of short blocks, then a byte that says that this is all."""
    flags = window.number(10, 1)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < window.size:
        kind = window.number(at, 1)
        if kind == 0x3B:
            return
        if kind not in (0x21, 0x2C):
            raise _garbled(at)
        colours = window.number(at + 9, 1)
        at += 2 if kind == 0x21 else 11 + (3 << (colours & 7) + 1 if colours & 0x80 else 0)
        while size := window.number(at, 1):
            at += 1 + size
        at += 1
    raise Fault("is cut short: the end that such a file has is missing", window.size)


def _program(window: _Window) -> None:
    """MPEG program streams: packs and packets with their lengths, with nothing but zeros between them."""
    at, ended = 0, False
    while at + 6 <= window.size:
        if window.read(at, 3) != b"\0\0\1":
            following = window.find(b"\0\0\1\xba", at)
            if following < 0 and (ended or window.only_zeros_from(at)):
                return  # what someone has appended
            if following < 0 or any(window.read(at, min(following - at, MOST_AT_ONCE))):
                raise _garbled(at)
            at = following
            continue
        kind = window.number(at + 3, 1)
        if kind == 0xBA:  # a pack's header, of MPEG-2 or MPEG-1
            at += 14 + (window.number(at + 13, 1) & 7) if window.number(at + 4, 1) >> 6 == 1 else 12
        elif kind > 0xBA:
            at += 6 + window.number(at + 4, 2)
        elif kind == 0xB9:  # the end, behind which another stream may be joined
            at, ended = at + 4, True
        else:
            raise _garbled(at)
        _cut(window, at)


DV_FRAMES = {0: 120_000, 1: 144_000}  # bytes of a frame with 525 and with 625 lines


def _dv(window: _Window) -> None:
    """DV: frames of one size."""
    size = DV_FRAMES[window.number(3, 1) >> 7]
    if window.size % size:
        _cut(window, window.size // size * size + size)


def _ivf(window: _Window) -> None:
    """IVF: frames with a length before each."""
    at = window.number(6, 2, "little")
    while at + 12 <= window.size:
        at += 12 + window.number(at, 4, "little")
        _cut(window, at)


CHROMA = {"mono": 0, "420": 2, "411": 2, "422": 4, "444": 8}  # bytes of colour for four pixels, by how the name begins


def _y4m(window: _Window) -> None:
    """Y4M: a line of text, then frames of one size, each with a line before it."""
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
            raise _garbled(at)
        at += len(line) + 1 + size
        _cut(window, at)


def _mxf(window: _Window) -> None:
    """MXF: the first partition states where the last one lies, unless it was left open."""
    first = window.number(16, 1)
    at = 17 + (first & 0x7F if first & 0x80 else 0)
    footer = window.number(at + 24, 8)
    if footer:
        _cut(window, footer + 16)


WALKS: dict[str, Callable[[_Window], None]] = {
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
