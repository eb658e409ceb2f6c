"""Names of MViTs and the plain arguments they stand for (RECIPES of the paper, Table 8 and PySlowFast's configs)."""

import re
from collections.abc import Mapping, Sequence
from itertools import count, groupby, takewhile
from typing import Any

from torch import Tensor, nn

from mvit_video.model.evidence import entering
from mvit_video.model.maskfeat import MaskedMViT
from mvit_video.model.mvit import MViT
from mvit_video.model.registry import Capabilities, register_model
from mvit_video.model.weights.formats import MVIT_FORMATS

# Paper Tables 8 and 9: blocks per stage, and what else tells the sizes apart.
_SIZES: dict[str, dict[str, Any]] = {
    "t": dict(depths=(1, 2, 5, 2)),
    "s": dict(depths=(1, 2, 11, 2)),
    "b": dict(depths=(2, 3, 16, 3)),
    "l": dict(depths=(2, 6, 36, 4), embed_dim=144, num_heads=2),
    "h": dict(depths=(4, 8, 60, 8), embed_dim=192, num_heads=3),
}
_IMAGE: dict[str, Any] = dict(
    num_frames=1,
    patch_kernel=(1, 7, 7),
    patch_stride=(1, 4, 4),
    pool_kernel=(1, 3, 3),
    kv_stride=(1, 4, 4),
    dropout_rate=0.0,
)
_MVITV1_B: dict[str, Any] = dict(
    depths=(1, 2, 11, 2), positions="absolute", residual_pooling=False, pool_all_queries=False, width_growth="mlp"
)

VARIANTS: dict[str, dict[str, Any]] = {
    "mvitv2_t_16x4": _SIZES["t"] | dict(drop_path_rate=0.1),
    "mvitv2_s_16x4": _SIZES["s"] | dict(drop_path_rate=0.2),
    "mvitv2_b_32x3": _SIZES["b"] | dict(num_frames=32, drop_path_rate=0.3),
    "mvitv2_l_16x4": _SIZES["l"] | dict(drop_path_rate=0.75),
    "mvitv2_l_40x3": _SIZES["l"] | dict(num_frames=40, crop_size=312, drop_path_rate=0.75),
    "mvitv2_h_16x4": _SIZES["h"],  # no published drop path
    "mvitv1_b_16x4": _MVITV1_B | dict(drop_path_rate=0.2),
    "mvitv1_b_32x3": _MVITV1_B | dict(num_frames=32, drop_path_rate=0.3),
    # Ours, not the paper's: three stages for the demonstration, small videos and tests.
    "mvitv2_nano_8x3": dict(
        depths=(1, 2, 1), embed_dim=32, num_frames=8, crop_size=48, kv_stride=(1, 4, 4), dropout_rate=0.0
    ),
}
for _size, _arguments in _SIZES.items():
    VARIANTS[f"mvitv2_{_size}_in1k"] = _arguments | _IMAGE | dict(cls_token=False, num_classes=1000)
    VARIANTS[f"mvitv2_{_size}_in21k"] = _arguments | _IMAGE | dict(cls_token=True, num_classes=19168)
VARIANTS["mvitv2_l_in1k"]["width_growth"] = "mlp"  # as published; every other MViTv2 grows in the attention


MOST_BLOCKS = 100  # of a file whose form is looked for; the largest network here has 80


def _blocks(network: nn.Module) -> Sequence[nn.Module]:
    return list(network.get_submodule("blocks").children())


def _last_stage(network: nn.Module) -> Sequence[nn.Module]:
    ends: Any = network.stage_ends
    return _blocks(network)[ends[-2] + 1 if len(ends) > 1 else 0 :]


def _form(state: Mapping[str, Tensor], kind: str, usual: Mapping[str, Any]) -> dict[str, Any] | None:
    """What tells the MViT of these tensors from `usual`, where that is a matter of depths, growth, filters and pooling only."""
    blocks = list(takewhile(lambda block: f"{block}.attn.proj.weight" in state, map("blocks.{}".format, count())))
    widths, outputs, pools = (
        [state[f"{block}.{part}.weight"].shape if f"{block}.{part}.weight" in state else () for block in blocks]
        for part in ("attn.proj", "mlp.fc2", "attn.pool_k")
    )
    depths = tuple(len(list(same)) for _, same in groupby(widths))
    if len(depths) != len(usual["depths"]) or len(blocks) > MOST_BLOCKS:
        return None
    grows = any(width[:1] != output[:1] for width, output in zip(widths, outputs, strict=True))
    growth = usual["width_growth"] if len(depths) == 1 else "mlp" if grows else "attention"
    kernel = usual["pool_kernel"] if {shape[2:] for shape in pools} == {usual["pool_kernel"]} else "stride"
    masked = growth == "mlp" and {"cls_token", "blocks.0.attn.rel_pos_t"} <= state.keys()
    # No tensor tells: with this growth PySlowFast has published MaskFeat only. MMAction2's classifies the class token.
    pooling = "mean_without_cls" if masked and "PySlowFast" in kind else usual["pooling"]
    told = dict(depths=depths, width_growth=growth, pool_kernel=kernel, pooling=pooling)
    return {name: value for name, value in told.items() if usual[name] != value}


MVIT = Capabilities(
    head="head.projection",
    blocks=_blocks,
    feature=True,
    stage_maps=True,
    evidence=entering(_last_stage),
    activation_checkpointing=True,
    formats=MVIT_FORMATS,
    form=_form,
    plain={"attention": "reference"},
    graphs=True,
    masked=MaskedMViT,
    meta=True,
)
for _name, _arguments in VARIANTS.items():
    _rate = re.search(r"_\d+x(\d+)$", _name)  # 16x4 is every 4th of 16 frames
    _source = "ours" if "nano" in _name else "arXiv 2104.11227" if _name.startswith("mvitv1") else "arXiv 2112.01526"
    register_model(_name, MViT, _arguments, MVIT, int(_rate[1]) if _rate else 1, source=_source)
