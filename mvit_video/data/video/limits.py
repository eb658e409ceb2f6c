"""Limits of all decoders, checked before memory is allocated, and the exception that states why a file is refused.

The limits are far above those of real videos; they protect against files with false headers.
"""

MAX_PIXELS = 36_000_000  # a frame of 8K video has 33 million
MAX_FRAMES = 5_000_000  # 46 hours at 30 frames per second
MAX_HOURS = 48
MAX_CLIP_BYTES = 4 << 30  # 40 frames of 8K video have 4.0 GB


class Unreadable(Exception):
    """The reason why a file is refused; the reader adds the file's name."""


def check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unreadable(f"its frames of {width}×{height} pixels are above the limit of {MAX_PIXELS:,} pixels")


def check_hours(seconds: float) -> None:
    if seconds > MAX_HOURS * 3600:
        raise Unreadable(f"its length of {seconds / 3600:.0f} hours is above the limit of {MAX_HOURS}")


def check_count(num_frames: int) -> None:
    if num_frames > MAX_FRAMES:
        raise Unreadable(f"its {num_frames:,} frames or more are above the limit of {MAX_FRAMES:,}")


def check_clip(num_frames: int, height: int, width: int) -> None:
    """Check before memory for `num_frames` frames at once is allocated."""
    if num_frames * height * width * 3 > MAX_CLIP_BYTES:
        raise Unreadable(
            f"{num_frames} frames of {width}×{height} pixels at once need {num_frames * height * width * 3 / 1e9:.1f} GB, "
            f"above the limit of {MAX_CLIP_BYTES / 1e9:.1f} GB: request fewer frames"
        )


def short_reason(reason: BaseException) -> str:
    """A short reason: FFmpeg's message, or the last line of a longer text."""
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return " ".join(line.split())[:160]
