"""Files that name other files or addresses instead of holding a video: recognised by how they begin, whatever they are called."""

from pathlib import Path

BEGINNINGS = (b"#extm3u", b"ffconcat", b"[playlist]", b"[reference]", b"v=0\n", b"v=0\r", b"rtsptext", b"smi://")
ELEMENTS = (b"<mpd", b"<asx", b"<smil", b"<compositionplaylist", b"<playlist", b"<isma", b"<smoothstreamingmedia")
HEAD_BYTES = 1024


def is_playlist(file: Path) -> bool:
    with file.open("rb") as content:
        head = content.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return head.startswith(BEGINNINGS) or (head.startswith(b"<") and any(element in head for element in ELEMENTS))
