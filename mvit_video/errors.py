"""What a user can cause. Each message is one sentence: the thing, its value, what is allowed, what to do next.

The command line prints these without a traceback; everything else is our own mistake and keeps one.
"""

import difflib
from collections.abc import Iterable


class MvitVideoError(Exception):
    """Base of every error that a user can cause and can cure."""

    exit_code = 1


class ConfigError(MvitVideoError):
    """A setting, an argument or an output folder that cannot be used."""


class AnnotationError(MvitVideoError):
    """A list of videos that cannot be read; names the file and the row."""


class DecodeError(MvitVideoError):
    """A video that cannot be decoded; names the file and the reason."""


class CheckpointError(MvitVideoError):
    """Weights that cannot be read or do not fit."""


class TrainingError(MvitVideoError):
    """A run that cannot go on, such as one whose loss is no longer a number."""


class Interrupted(MvitVideoError):
    """A run that was asked to stop and has saved its state: the same command with --resume auto goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again


class InputError(MvitVideoError, ValueError):
    """A tensor or array of a shape or type that a function does not take."""


def clipped(text: str, most: int = 200) -> str:
    """A text that a message quotes, short enough to be read."""
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text):,} characters)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
