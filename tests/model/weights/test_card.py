import json
import re
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvit_video.config.schema import InputSettings
from mvit_video.errors import CheckpointError
from mvit_video.model.weights.card import CARD_KEY, ModelCard, model_from_card
from mvit_video.model.weights.convert import convert, load_network
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import load_checkpoint, read_weights

CARD = ModelCard(
    name="mvitv2_nano_8x3",
    arguments={"depths": [1, 1]},
    classes=("größer", "kleiner"),
    preprocessing=InputSettings(num_frames=4, crop_size=(32, 48), short_side=48),
    protocol="3x1",
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = model_from_card(CARD).eval()
    save_checkpoint(tmp_path / "m.safetensors", model, CARD)
    return tmp_path / "m.safetensors", model


def test_a_checkpoint_is_enough_to_build_the_same_network(saved):
    path, model = saved
    loaded, card = load_checkpoint(path)
    assert card == CARD and not loaded.training
    clips = torch.randn(1, 3, 4, 32, 48)
    assert torch.equal(loaded(clips), model(clips))


def test_weights_that_are_not_numbers_are_never_written(saved, tmp_path):
    _, model = saved
    with torch.no_grad():
        model.head.projection.weight[0, 0] = float("inf")
    with pytest.raises(CheckpointError, match=r"not written, because 'head.projection.weight' contains NaN or Inf"):
        save_checkpoint(tmp_path / "broken.safetensors", model, CARD)
    assert not (tmp_path / "broken.safetensors").exists()


def rewrite(path, change_state=lambda state: state, change_card=lambda card: card):
    state, card = load_file(path), json.loads(CARD.model_dump_json())
    save_file(change_state(state), path, metadata={CARD_KEY: json.dumps(change_card(card))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {k: v for k, v in state.items() if k != "norm.bias"},
            r"lacks 'norm.bias' \(1 missing, 0 unknown\)",
        ),
        (lambda state: state | {"extra": torch.ones(1)}, "contains 'extra', which the network does not have"),
        (
            lambda state: state | {"head.projection.bias": torch.ones(3)},
            r"'head.projection.bias' has shape \(3,\), expected \(2,\): is it a checkpoint of another network or class list",
        ),
        (lambda state: state | {"norm.bias": state["norm.bias"] * float("nan")}, "'norm.bias' contains NaN or Inf"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, change, message):
    rewrite(saved[0], change_state=change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card | {"name": "mvitv9"}, "describes no network that can be built .*model 'mvitv9' is unknown"),
        (lambda card: card | {"arguments": {"depht": 1}}, "model argument 'depht' is unknown"),
        (
            lambda card: card | {"arguments": {"cls_token": "no"}},
            "no network that can be built .*cls_token='no': expected",
        ),
        (lambda card: card | {"arguments": {"mlp_ratio": -1}}, "no network that can be built .*mlp_ratio=-1: expected"),
        (
            lambda card: card | {"arguments": {"embed_dim": 10**12}},
            "card cannot be read .*arguments: .* above a million",
        ),
        (lambda card: card | {"arguments": {"num_classes": 2}}, "no network that can be built .*num_classes"),
        (lambda card: {}, "its card cannot be read"),
    ],
)
def test_a_card_that_does_not_describe_a_network_is_an_error(saved, change, message):
    rewrite(saved[0], change_card=change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved[0])
    with pytest.raises(CheckpointError):
        convert(str(saved[0]), "native", saved[0].with_name("new.safetensors"))


def of_input(**changes):
    return lambda card: card | {"preprocessing": card["preprocessing"] | changes}


def of_card(**changes):
    return lambda card: card | changes


def text_of(card, **values):
    """The card's JSON with values that no JSON writer writes."""
    text = json.dumps(card)
    for name, value in values.items():
        text = re.sub(rf'"{name}": [^,}}]*', f'"{name}": {value}', text)
    return text


HOSTILE = {
    "a short side of a billion": (of_input(short_side=10**9), "preprocessing.short_side: .* 8192"),
    "a clip of gigabytes": (of_input(short_side=8000, num_frames=16), "make clips of 1,024,000,000 pixels"),
    "a crop of gigabytes": (of_input(crop_size=[48, 8192], num_frames=64), "make clips of"),
    "a number of 400 digits": (of_input(sampling_rate=10**400), "preprocessing.sampling_rate"),
    "frames": (of_input(num_frames=10**8), "preprocessing.num_frames"),
    "a rate of 1e38": (of_input(target_fps=1e38), "preprocessing.target_fps"),
    "a rate of 1e-38": (of_input(target_fps=1e-38), "preprocessing.target_fps"),
    "a mean of 1e38": (of_input(mean=[1e38] * 3), "preprocessing.mean"),
    "a deviation that makes infinity": (of_input(std=[1e-45] * 3), "std .* at least 0.0001"),
    "NaN": (of_input(std=[float("nan")] * 3), "preprocessing.std"),
    "infinity": (of_input(target_fps=float("inf")), "preprocessing.target_fps"),
    "a hundred million views": (of_card(protocol="100000000x3"), "protocol: "),
    "views of 5000 digits": (of_card(protocol="9" * 5000 + "x3"), "protocol: "),
    "no views": (of_card(protocol="0x1"), "protocol: "),
    "views in other digits": (of_card(protocol="٣x1"), "protocol: "),
    "a million blocks": (of_card(arguments={"depths": [10**6]}), "depths of 1000000 blocks"),
    "a million blocks, and as many fewer": (of_card(arguments={"depths": [10**6, -(10**6) + 1]}), "depths of"),
    "many stages": (of_card(arguments={"depths": [1] * 5000}), "depths of 5000 blocks"),
    "many arguments": (of_card(arguments={"depths": [[0] * 20_000]}), "more than 10000 values"),
    "an argument that is no number": (of_card(arguments={"drop_path_rate": float("nan")}), "no argument of a network"),
    "an argument of 1e38": (of_card(arguments={"mlp_ratio": 1e38}), "above a million"),
    "an argument of many digits": (of_card(arguments={"embed_dim": 10**400}), "arguments: |embed_dim"),
    "a long word": (of_card(arguments={"positions": "x" * 10**6}), "more than 200 characters"),
    "a network of terabytes": (of_card(arguments={"depths": [1, 1], "embed_dim": 960_000}), "would be 1,920,000 wide"),
    "a network of gigabytes": (of_card(arguments={"depths": [1, 1], "embed_dim": 9_600}), "has shape .*, expected"),
    "equal names": (of_card(classes=["same", "same"]), "classes: .*2 classes are called 'same'"),
    "another number of classes": (of_card(classes=[str(label) for label in range(10**5)]), "has shape .*, expected"),
    "a name of a megabyte": (of_card(classes=["x" * 10**6, "y"]), "classes.0: "),
    "a network's name of a megabyte": (of_card(name="x" * 10**6), "name: "),
    "accuracy above 100 %": (
        of_card(measured={"protocol": "1x1", "num_videos": 1, "list": "x", "percent": {"top1": 1e38}}),
        "measured.percent.top1",
    ),
    "videos": (
        of_card(measured={"protocol": "1x1", "num_videos": 10**40, "list": "x", "percent": {}}),
        "measured.num_videos",
    ),
    "a card of 20 MB": (of_card(classes=[f"{label:09d}" for label in range(1_700_000)]), "at most 16,777,216 are read"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=list(HOSTILE))
@pytest.mark.parametrize("load", [load_checkpoint, load_network, read_weights], ids=lambda load: load.__name__)
def test_a_card_without_bounds_is_one_sentence_at_once(saved, change, message, load):
    """Before memory is taken for a network or a video, and before a number becomes NaN."""
    rewrite(saved[0], change_card=change)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as told:
        load(saved[0])
    assert time.process_time() - start < 2 and len(str(told.value)) < 1500 and "\n" not in str(told.value)


@pytest.mark.parametrize("value", ["1e400", "9" * 5000, "-1", "0", "1.5", '"8"x', "NaN", "[" * 500, "{}"])
def test_no_number_of_a_card_is_read_as_another_one(saved, value):
    state = load_file(saved[0])
    save_file(state, saved[0], metadata={CARD_KEY: text_of(json.loads(CARD.model_dump_json()), sampling_rate=value)})
    with pytest.raises(CheckpointError, match="its card cannot be read"):
        load_checkpoint(saved[0])


def test_files_that_are_no_checkpoints_are_named(saved, tmp_path):
    path, _ = saved
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"x": torch.ones(1)}, tmp_path / "foreign.safetensors")
    for name, message in (
        ("cut", "is not a complete safetensors file"),
        ("text", "is not a complete safetensors file"),
        ("foreign", "is a safetensors file without our card"),
        ("nowhere", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}.safetensors: {message}"):
            load_checkpoint(tmp_path / f"{name}.safetensors")


def test_converting_to_other_class_names_takes_the_thresholds_along(saved, tmp_path):
    several = {"multi_label": True, "thresholds": {"kleiner": 0.3, "größer": 0.7}}
    save_checkpoint(tmp_path / "several.safetensors", saved[1], CARD.model_copy(update=several))
    convert(tmp_path / "several.safetensors", "native", tmp_path / "english.safetensors", classes=["larger", "smaller"])
    assert load_checkpoint(tmp_path / "english.safetensors")[1].thresholds == {"larger": 0.7, "smaller": 0.3}
