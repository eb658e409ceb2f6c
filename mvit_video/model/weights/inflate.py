"""Image weights to video weights: what a video network gets from a network trained on images.

Filters of patches and of pooling get a time axis, temporal position tables start at zero, spatial tables are read at the
rows that the video network has (a first block of stage 3 has 55 rows in the image network and 27 in the video one, because
their keys are strided differently). With `center` and equal strides a clip of identical frames then gives the image's
logits. Source: arXiv 2112.01526, video experiments, for `center`; arXiv 1705.07750 for `mean`.
"""

# C channels out, I channels in per group, T/H/W taps of a filter, d head dim

from collections.abc import Mapping

from torch import Tensor

from mvit_video.errors import ConfigError

INFLATIONS = ("center", "mean")
TEMPORAL_TABLE = "rel_pos_t"
VALUE_FILTER = "attn.lepe.weight"
BIAS_TABLE, INDEX_TABLE = "relative_position_bias_table", "relative_position_index"


def inflate_filter(weight: Tensor, taps: int, inflation: str = "center") -> Tensor:
    """A 2D filter (C, I, H, W), or (C, I, 1, H, W), with a time axis: (C, I, taps, H, W).

    `center`: the 2D filter in the middle tap (of an even number the one before it), zeros in the others. `mean`: the 2D
    filter / taps in every tap.
    """
    check_inflation(inflation)
    flat = weight if weight.ndim == 4 else weight.squeeze(2)
    if inflation == "mean":
        return (flat / taps).unsqueeze(2).repeat(1, 1, taps, 1, 1)
    filters = flat.new_zeros(*flat.shape[:2], taps, *flat.shape[2:])
    filters[:, :, (taps - 1) // 2] = flat
    return filters


def check_inflation(inflation: str) -> None:
    """ConfigError for a name that is not in INFLATIONS."""
    if inflation not in INFLATIONS:
        raise ConfigError(f"inflation '{inflation}' is unknown: choose from {' and '.join(INFLATIONS)}")


def is_image(state: Mapping[str, Tensor]) -> bool:
    """Whether weights (under our names) know no time: one tap in every filter, no temporal positions."""
    if any(name.endswith((TEMPORAL_TABLE, "pos_embed_temporal")) for name in state):
        return False
    return all(tensor.shape[2] == 1 for tensor in state.values() if tensor.ndim == 5)


def inflate(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], inflation: str = "center"
) -> tuple[dict[str, Tensor], list[str]]:
    """Image weights with what the video network `wanted` has besides, and the names that were made here.

    Filters get its taps, temporal tables are zeros of its shape, tables of window positions are repeated for each distance in
    time, and index tables, which follow from sizes alone, are its own; every other tensor is passed on as it is.
    """
    made = {}
    for name, target in wanted.items():
        source = state.get(name)
        if source is None and name.endswith(TEMPORAL_TABLE):
            made[name] = target.new_zeros(target.shape)
        elif name.endswith(INDEX_TABLE) and (source is None or source.shape != target.shape):
            made[name] = target
        elif source is None:
            continue
        elif source.ndim == target.ndim == 5 and target.shape[2] > 1:
            made[name] = inflate_filter(source, target.shape[2], inflation)
        elif name.endswith(BIAS_TABLE) and source.shape != target.shape:
            made[name] = _repeated_in_time(source, target)
    return dict(state) | made, list(made)


def _repeated_in_time(table: Tensor, target: Tensor) -> Tensor:
    """A table of window positions, heads first (h, H, W) or last (H·W, h), for a window of several frames."""
    if table.ndim == 3 and target.ndim == 4:
        return table.unsqueeze(1).repeat(1, target.shape[1], 1, 1)
    if table.ndim == 2 and target.shape[0] % table.shape[0] == 0:
        return table.repeat(target.shape[0] // table.shape[0], 1)
    return table
