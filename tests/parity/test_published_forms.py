"""Names and shapes of the files of MaskFeat, MViTv1-B 32x3 and MMAction2 (../shared/reference/maskfeat) against our networks."""

import json

import pytest
import torch
from shared_files import shared

from mvit_video import build_model
from mvit_video.errors import CheckpointError
from mvit_video.model.weights.formats import convert_to_ours, unused_names
from mvit_video.model.weights.load import Weights, fit_weights, recognise_model
from mvit_video.model.weights.zoo import ZOO

MASKED = {"width_growth": "mlp", "pooling": "mean_without_cls"}
YAML = {"depths": (2, 3, 16, 3), "pool_kernel": "stride"}
PUBLISHED = {
    "maskfeat_s_16x4_pretrained": ("PySlowFast MaskFeat", "mvitv2_s_16x4", MASKED, "maskfeat_s_16x4_k400"),
    "maskfeat_l_16x4_pretrained": ("PySlowFast MaskFeat", "mvitv2_l_16x4", MASKED, "maskfeat_l_16x4_k400"),
    "maskfeat_s_16x4_finetuned": ("PySlowFast", "mvitv2_s_16x4", MASKED, None),
    "maskfeat_l_16x4_finetuned": ("PySlowFast", "mvitv2_l_16x4", MASKED, None),
    "mvitv1_b_32x3_as_in_public_yaml": ("PySlowFast", "mvitv1_b_32x3", YAML, None),
    "mvitv1_b_16x4": ("PySlowFast", "mvitv1_b_16x4", {}, None),
    "mmaction2_mvit_small_k400": ("MMAction2", "mvitv2_s_16x4", {}, "mvitv2_s_16x4_k400_mmaction2"),
    "mmaction2_mvit_base_32x3_k400": ("MMAction2", "mvitv2_b_32x3", {}, "mvitv2_b_32x3_k400_mmaction2"),
    "mmaction2_mvit_large_40x3_k400": ("MMAction2", "mvitv2_l_40x3", {}, "mvitv2_l_40x3_k400_mmaction2"),
    "mmaction2_mvit_small_maskfeat_ft_k400": (
        "MMAction2", "mvitv2_s_16x4", {"width_growth": "mlp"}, "maskfeat_s_16x4_k400_ft_mmaction2",
    ),
}  # fmt: skip
PLAIN_VITS = ("vit_b_16x4_mae_pretrained", "vit_b_16x4_mae_finetuned")


def published() -> dict[str, dict[str, list[int]]]:
    lists = [
        json.loads(shared(f"reference/maskfeat/checkpoint_keys_{of}.json").read_text()) for of in ("ssl", "mmaction2")
    ]
    return {name: entry["keys"] for each in lists for name, entry in each.items()}


def on_meta(shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_every_list_is_tested():
    assert published().keys() == PUBLISHED.keys() | set(PLAIN_VITS)


@pytest.mark.parametrize("entry", PUBLISHED)
def test_every_key_of_a_list_has_one_fate_in_the_network_that_it_tells(entry):
    keys, (project, name, arguments, row) = published()[entry], PUBLISHED[entry]
    kind, state = convert_to_ours(on_meta(keys), entry)
    weights = Weights(entry, kind, state, unused_names(keys, entry))
    assert (kind, recognise_model(weights)) == (project, (name, arguments))
    if row is not None:
        assert (ZOO[row].model, ZOO[row].arguments) == (name, arguments)
    with torch.device("meta"):
        expected = build_model(name, **arguments).state_dict()
    fitted, report = fit_weights(weights, expected)
    assert len(keys) == len(report.copied) + len(report.interpolated) + len(report.ignored)
    assert {*report.copied, *report.interpolated, *report.new} == expected.keys()
    assert all(fitted[key].shape == expected[key].shape for key in fitted)
    if "pretrained" in entry:
        depth, later = (16, 1) if "_s_" in entry else (48, 3)
        tables = {f"blocks.{block}.attn.rel_pos_{axis}" for block in range(depth - later, depth) for axis in "hw"}
        assert set(report.interpolated) == tables
        assert set(report.new) == {"norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias"}
        assert {each.partition(".")[0] for each in report.ignored} == {"mask_token", "hogs", "pred_head"}
    else:
        assert set(report.copied) == expected.keys()


def test_mmselfsups_pretrained_names_are_maskfeats():
    """Its names are those of MMAction2's network and of its own neck and targets (MASKFEAT.md §8)."""
    theirs = {"mask_token": "backbone.mask_token", "norm": "backbone.norm2.", "neck": "neck.fc."}
    keys = {}
    for name, shape in published()["maskfeat_s_16x4_pretrained"].items():
        if name.startswith("hogs."):
            name = name.replace("hogs.0.", "target_generator.")
        elif name.startswith("pred_head.transforms.0.0."):
            name = name.replace("pred_head.transforms.0.0.", theirs["norm"])
        elif name.startswith("pred_head.projections.0."):
            name = name.replace("pred_head.projections.0.", theirs["neck"])
        else:
            name = "backbone." + name.replace("patch_embed.proj.", "patch_embed.projection.")
        keys[name] = shape
    kind, state = convert_to_ours(on_meta(keys), "x")
    weights = Weights("x", kind, state, unused_names(keys, "x"))
    row = ZOO["maskfeat_s_16x4_k400_mmselfsup"]
    assert (kind, recognise_model(weights)) == ("MMSelfSup MaskFeat", (row.model, row.arguments))
    with torch.device("meta"):
        expected = build_model(row.model, **row.arguments).state_dict()
    _, report = fit_weights(weights, expected)
    assert len(keys) == len(report.copied) + len(report.interpolated) + len(report.ignored)
    assert len(report.new) == 4 and len(report.ignored) == 7


@pytest.mark.parametrize("entry", PLAIN_VITS)
def test_a_plain_vit_is_refused_in_one_sentence(entry):
    with pytest.raises(
        CheckpointError, match=rf"^{entry}: contains a transformer whose blocks do not pool, such as the plain ViT"
    ):
        convert_to_ours(on_meta(published()[entry]), entry)
