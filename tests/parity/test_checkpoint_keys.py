"""Names and shapes of the published files (../shared/reference/checkpoint_keys.json) against our networks."""

import json

import pytest
import torch
from shared_files import shared

from mvit_video import build_model
from mvit_video.model.weights.formats import convert_to_ours, to_pyslowfast, to_torchvision
from mvit_video.model.weights.load import Weights, fit_weights, recognise_model

PUBLISHED = {
    "pyslowfast_MViTv2_S_16x4_k400": ("PySlowFast", "mvitv2_s_16x4"),
    "pyslowfast_MViTv2_B_32x3_k400": ("PySlowFast", "mvitv2_b_32x3"),
    "pyslowfast_MViTv2_L_40x3_k400": ("PySlowFast", "mvitv2_l_40x3"),
    "torchvision_mvit_v2_s": ("torchvision", "mvitv2_s_16x4"),
    "timm_mvitv2_tiny": ("timm", "mvitv2_t_in1k"),
    "timm_mvitv2_small": ("timm", "mvitv2_s_in1k"),
    "timm_mvitv2_base": ("timm", "mvitv2_b_in1k"),
    "timm_mvitv2_large": ("timm", "mvitv2_l_in1k"),
    "timm_mvitv2_base_cls": ("timm", "mvitv2_b_in21k"),
}


def published() -> dict[str, dict[str, list[int]]]:
    return json.loads(shared("reference/checkpoint_keys.json").read_text())


def on_meta(shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def our_state(name: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build_model(name).state_dict()


def shapes_of(state) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}


def test_every_published_list_is_tested():
    assert published().keys() == PUBLISHED.keys()


@pytest.mark.parametrize("entry", PUBLISHED)
def test_a_published_file_fits_the_network_of_its_name_and_is_recognised(entry):
    kind, state = convert_to_ours(on_meta(published()[entry]), entry)
    assert (kind, recognise_model(Weights(entry, kind, state, ()))) == (PUBLISHED[entry][0], (PUBLISHED[entry][1], {}))
    expected = our_state(PUBLISHED[entry][1])
    fitted, report = fit_weights(Weights(entry, kind, state, ()), expected)
    assert set(report.copied) == set(expected) and shapes_of(fitted) == shapes_of(expected)


def test_exported_names_and_shapes_are_the_published_ones():
    lists = published()
    assert shapes_of(to_torchvision(our_state("mvitv2_s_16x4"))) == lists["torchvision_mvit_v2_s"]
    for entry in ("pyslowfast_MViTv2_S_16x4_k400", "pyslowfast_MViTv2_B_32x3_k400", "pyslowfast_MViTv2_L_40x3_k400"):
        assert shapes_of(to_pyslowfast(our_state(PUBLISHED[entry][1]))) == lists[entry]
