"""The list of public checkpoints, and the verb that prints it."""

from pathlib import Path

import numpy as np
import pytest
from shared_files import shared

import mvit_video
from mvit_video import list_models
from mvit_video.cli import main
from mvit_video.config.load import load_config
from mvit_video.data.lists.class_names import published_classes
from mvit_video.data.transforms import ViewTransform
from mvit_video.model.registry import model_entry
from mvit_video.model.weights.zoo import ZOO, ZooEntry, model_rows, model_zoo_page, zoo_entry

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.integration
def test_the_committed_page_is_the_generated_one(capsys):
    assert main(["models", "--markdown"]) == 0
    page = capsys.readouterr().out
    assert page == model_zoo_page() == (REPOSITORY / "MODEL_ZOO.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ZOO)
def test_an_entry_is_valid_and_feeds_its_network_what_it_was_made_for(name):
    entry = ZooEntry.model_validate(ZOO[name].model_dump())
    usual = model_entry(entry.model).defaults
    inflated = name.startswith("swin_")  # images' weights for a video network
    assert entry.preprocessing.num_frames == (1 if inflated else usual["num_frames"])
    assert entry.preprocessing.crop_size == usual["crop_size"]
    others = {"maskfeat_s_16x4_k400": 0, "maskfeat_l_16x4_k400": 0, "maskfeat_s_16x4_k400_mmselfsup": 0}  # no head
    others["mvitv1_b_32x3_k600"] = 600
    classes = 1000 if inflated else others.get(name, usual["num_classes"])
    assert entry.num_classes == (len(published_classes(entry.classes)) if entry.classes else classes)
    assert (entry.top1 is None) == (entry.published_by == "")
    assert entry.licence in ("Apache-2.0", "BSD-3-Clause", "MIT")


# One pixel of red 200, green 100, blue 50 as each row's network is shown it, by hand: (value / 255 − mean) / std.
PLAIN = [(value / 255 - 0.45) / 0.225 for value in (200, 100, 50)]
IMAGENET = [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (50 / 255 - 0.406) / 0.225]
# PySlowFast reads Something-Something with OpenCV: blue comes first, and is what .485 and .229 are for.
IMAGENET_BGR = [(200 / 255 - 0.406) / 0.225, (100 / 255 - 0.456) / 0.224, (50 / 255 - 0.485) / 0.229]
PIXELS = {
    "mvitv2_s_16x4_k400": PLAIN,
    "mvitv2_b_32x3_k400": PLAIN,
    "mvitv2_l_40x3_k400": IMAGENET,
    "mvitv2_s_16x4_ssv2": PLAIN,
    "mvitv2_b_32x3_ssv2": PLAIN,
    "mvitv2_l_40x3_ssv2": IMAGENET_BGR,
    "mvitv2_s_16x4_k400_torchvision": PLAIN,
    "mvitv1_b_16x4_k400_torchvision": PLAIN,
    **dict.fromkeys(("mvitv2_t_in1k", "mvitv2_s_in1k", "mvitv2_b_in1k", "mvitv2_l_in1k"), IMAGENET),
    **dict.fromkeys(("mvitv2_b_in21k", "mvitv2_l_in21k", "mvitv2_h_in21k"), IMAGENET),
}


@pytest.mark.parametrize("name", ZOO)
def test_a_pixel_is_normalised_as_the_published_code_does(name):
    inputs = ZOO[name].preprocessing
    frames = np.broadcast_to(np.array([200, 100, 50], np.uint8), (1, *inputs.crop_hw, 3)).copy()
    plain = name.startswith(("maskfeat", "mvitv1_b_32x3")) or "mmaction2" in name  # .45 and .225 in all of theirs
    expected = PLAIN if plain else PIXELS.get(name, IMAGENET)  # Swin's and the image networks' are ImageNet's
    view = ViewTransform(inputs.crop_hw, inputs.mean, inputs.std, inputs.short_side, 1)(frames)
    assert view[0, :, 0, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_recipe_normalises_as_the_public_weights_of_its_network_and_dataset():
    for dataset, short in (("kinetics400", "k400"), ("ssv2", "ssv2")):
        for file in sorted((REPOSITORY / "configs" / dataset).glob("*.yaml")):
            data, entry = load_config(file).data, ZOO.get(f"{file.stem}_{short}")
            if entry is not None:
                assert (data.mean, data.std) == (entry.preprocessing.mean, entry.preprocessing.std), file


def test_names_file_names_and_addresses_find_the_entry():
    entry = ZOO["mvitv2_s_16x4_ssv2"]
    for source in ("mvitv2_s_16x4_ssv2", "folder/MViTv2_S_16x4_ssv2_f308341823.pyth", entry.url):
        assert zoo_entry(source) is entry
    for source in ("x.pyth", "", "folder/", "runs/mine/model.safetensors", "model.safetensors", "my/k400.pyth"):
        assert zoo_entry(source) is None
    for name, entry in ZOO.items():
        assert zoo_entry(name) is zoo_entry(entry.url) is entry


def test_the_list_is_there_in_the_package():
    entry = mvit_video.zoo.ZOO["mvitv2_b_32x3_k400"]
    assert (entry.preprocessing.sampling_rate, entry.protocol, entry.top1) == (3, "5x1", 82.9)
    assert entry.url.startswith("https://") and entry.url.endswith("MViTv2_B_32x3_k400_f304025456.pyth")


@pytest.mark.parametrize("dataset", ["kinetics400", "ssv2"])
def test_shipped_class_lists_are_the_given_ones(dataset):
    given = shared(f"reference/{dataset}_classes.txt").read_text().splitlines()
    assert list(published_classes(dataset)) == given


def test_kinetics_classes_are_in_alphabetical_order():
    assert published_classes("kinetics400") == tuple(sorted(published_classes("kinetics400")))


@pytest.mark.integration
def test_the_verb_lists_networks_with_parameters_and_checkpoints_with_published_numbers(capsys):
    assert main(["models"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    cells = {line[1]: [cell for cell in line[2:] if cell != "│"] for line in lines if len(line) > 3}
    assert cells["mvitv2_s_16x4"] == ["34,537,744", "16×224×224", "arXiv", "2112.01526"]
    assert cells["mvitv2_l_40x3"] == ["213,390,112", "40×312×312", "arXiv", "2112.01526"]
    assert cells["cswin_t_16x4"] == ["25,239,888", "16×224×224", "arXiv", "2107.00652"]
    assert cells["torchvision/swin3d_t"] == ["32×224×224", "arXiv", "2106.13230,", "torchvision"]
    assert cells["mvitv2_l_40x3_k400"] == ["5x3", "86.1", "97.0", "MViTv2", "paper"]
    assert set(list_models()) | set(ZOO) <= set(cells)


def test_networks_are_counted_without_drawing_their_weights(monkeypatch):
    def refuse(*_args, **_names):
        raise AssertionError("drawn")

    monkeypatch.setattr("mvit_video.model.weights.zoo.list_models", lambda: ["maxvit_t_16x4"])
    monkeypatch.setattr("torch.nn.init._no_grad_normal_", refuse)
    [(name, count, *_)] = model_rows()
    assert f"| {name} | {count} |" in (REPOSITORY / "MODEL_ZOO.md").read_text(encoding="utf-8")
