"""Checks of a network's arguments: each raises a ConfigError of one sentence that names the argument and its value."""

from collections.abc import Iterable, Mapping, Sequence
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


def check_sizes(**sizes: object) -> None:
    """ConfigError for what is neither a whole number from 1 nor two of them."""
    for name, value in sizes.items():
        pair = isinstance(value, Sequence) and len(value) == 2 and all(map(_is_count, value))
        if not (_is_count(value) or pair):
            raise ConfigError(f"{name}={value!r}: expected a whole number from 1, or two: height and width")


def check_stages(depths: object, ratios: Mapping[str, object] | None = None, **counts: object) -> None:
    """ConfigError unless `depths` are whole numbers from 1 and each of the others has one per stage; `ratios` are any above 0."""
    check_lists(depths=(depths, None))
    assert isinstance(depths, Sequence)
    for names, right, what in (
        (counts, _is_count, "whole numbers from 1"),
        (ratios or {}, _is_ratio, "numbers above 0"),
    ):
        for name, values in names.items():
            if not (isinstance(values, Sequence) and len(values) == len(depths) and all(map(right, values))):
                stages = f"one for each stage of depths={tuple(depths)}"
                raise ConfigError(f"{name}={values!r}: expected {len(depths)} {what}, {stages}")


def check_head_widths(*, embed_dims: Sequence[int], num_heads: Sequence[int]) -> None:
    """ConfigError if a stage's width is not a multiple of its heads."""
    for stage, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True), start=1):
        if dim % heads:
            raise ConfigError(f"num_heads={heads} in stage {stage}: expected a divisor of its width {dim}")


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
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise ConfigError(f"{name}={value!r}: expected a number from 0 to below 1")


def check_ratios(**ratios: object) -> None:
    for name, value in ratios.items():
        if not _is_ratio(value):
            raise ConfigError(f"{name}={value!r}: expected a number above 0")


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf


def check_switches(**switches: object) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r}: expected true or false")


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    if value not in list(allowed):
        raise ConfigError(f"{name}='{value}': choose from {', '.join(allowed)}")
