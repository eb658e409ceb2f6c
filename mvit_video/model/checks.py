"""Checks of a network's arguments: each raises a ConfigError of one sentence that names the argument and its value."""

from collections.abc import Iterable, Sequence
from math import inf

from mvit_video.errors import ConfigError


def check_counts(**counts: object) -> None:
    for name, value in counts.items():
        if not _is_count(value):
            raise ConfigError(f"{name}={value!r}: expected a whole number from 1")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_lists(**lists: tuple[object, int | None]) -> None:
    """ConfigError for one that is not a list of whole numbers from 1, as many as are said beside it."""
    for name, (values, count) in lists.items():
        given = values if isinstance(values, Sequence) else ()
        right = len(given) == (count or len(given) or 1)
        if not right or not all(map(_is_count, given)):
            wanted = f"{count} whole numbers" if count else "a list of whole numbers, blocks of each stage,"
            raise ConfigError(f"{name}={values!r}: expected {wanted} from 1")


def is_nested(values: object) -> bool:
    """Whether this is a list of lists."""
    return isinstance(values, Sequence) and any(isinstance(value, Sequence) for value in values)


def check_strides(name: str, value: object, starts: int) -> None:
    """ConfigError for what is neither three whole numbers from 1 nor three for each of so many stage starts."""
    triples, wanted = (value, starts) if isinstance(value, Sequence) and is_nested(value) else ([value], 1)
    counted = [each for each in triples if isinstance(each, Sequence) and len(each) == 3 and all(map(_is_count, each))]
    if not len(counted) == len(triples) == wanted:
        raise ConfigError(
            f"{name}={value!r}: expected 3 whole numbers from 1, or a list of 3 for each of the {starts} stage starts"
        )


def check_rates(**rates: object) -> None:
    for name, value in rates.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ConfigError(f"{name}={value!r}: expected a number from 0 to below 1")


def check_ratios(**ratios: object) -> None:
    for name, value in ratios.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
            raise ConfigError(f"{name}={value!r}: expected a number above 0")


def check_switches(**switches: object) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r}: expected true or false")


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    if value not in list(allowed):
        raise ConfigError(f"{name}='{value}': choose from {', '.join(allowed)}")
