"""The generators behind every random draw on the data side: one for each purpose, so that no two uses share a stream."""

import hashlib

import numpy as np


def generator(purpose: str, *key: int | str) -> np.random.Generator:
    """Draws that follow from the purpose and its key alone: the same on any machine, in any process, in any order.

    All of it is hashed together. numpy's own seeding of a list would not do: it pads with zeros, so that [1, 2] and
    [1, 2, 0, 0] give one stream, and two uses with a different number of keys could get the same draws.
    """
    text = repr((purpose, *key)).encode("utf-8", "surrogateescape")
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))
