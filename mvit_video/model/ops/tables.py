"""Tensors that depend on sizes alone: computed once and cached."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any

from torch import Tensor

MAX_TABLES = 1024  # of each function

_holders: list[list[Tensor]] = []


def cached_table(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A decorator: an `lru_cache` of tensors, which `held_tables` can keep alive."""
    cached = lru_cache(maxsize=MAX_TABLES)(make)

    @wraps(cached)
    def table(*sizes: Any) -> Tensor:
        found: Tensor = cached(*sizes)
        for holder in _holders:
            holder.append(found)
        return found

    return table


@contextmanager
def held_tables() -> Iterator[list[Tensor]]:
    """Collect the tables that are read meanwhile: a captured graph reads their memory, so they must outlive the cache."""
    holder: list[Tensor] = []
    _holders.append(holder)
    try:
        yield holder
    finally:
        _holders[:] = [each for each in _holders if each is not holder]
