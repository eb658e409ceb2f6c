"""Errors that users can cause. Each message is one sentence: the thing, its value, what is allowed, what to do next.

The command line prints these without a traceback; any other error is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class MvitVideoError(Exception):
    """Base of all errors that users can cause and fix."""

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
    """A run that cannot continue, such as one whose loss is NaN."""


class Interrupted(MvitVideoError):
    """A run that was asked to stop and saved its state: run the same command with --resume auto to continue."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again


class InputError(MvitVideoError, ValueError):
    """A tensor or array of an unsupported shape or type."""


def clipped(text: str, most: int = 200) -> str:
    """Shorten a text to quote it in a message."""
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text):,} characters)"


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Suggest the nearest known word: `" (did you mean 'x'?)"`, with `prefix` before it, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{prefix}{near[0]}'?)" if near else ""
