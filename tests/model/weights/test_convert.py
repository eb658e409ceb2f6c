"""`mvit-video convert`, from file to file."""

import pytest
import torch
from tiny_models import randomise

from mvit_video import build_model
from mvit_video.cli import main
from mvit_video.config.schema import InputSettings
from mvit_video.errors import ConfigError
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.convert import convert, load_network
from mvit_video.model.weights.files import read_checkpoint, save_checkpoint
from mvit_video.model.weights.formats import to_pyslowfast, to_torchvision
from mvit_video.model.weights.load import load_checkpoint, read_weights

CLASSES = [f"action {number}" for number in range(6)]


@pytest.fixture
def model():
    return randomise(build_model("mvitv2_nano_8x3", num_classes=6), seed=1)


@pytest.fixture
def pyslowfast(model, tmp_path):
    torch.save({"model_state": to_pyslowfast(model.state_dict()), "epoch": 7, "cfg": "TRAIN:\n"}, tmp_path / "x.pyth")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return str(tmp_path / "x.pyth")


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_pyslowfast_file_becomes_a_checkpoint_that_is_enough_to_predict(pyslowfast, model, tmp_path, capsys):
    output = tmp_path / "new/native.safetensors"
    words = ["convert", pyslowfast, "--to", "native", "--output", str(output)]
    assert main([*words, "--classes", str(tmp_path / "classes.txt")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(f"weights from {pyslowfast} (PySlowFast): 107 copied, 2 ignored; written to")
    loaded, card = load_checkpoint(output)
    assert card.name == "mvitv2_nano_8x3" and list(card.classes) == CLASSES
    assert (card.preprocessing.num_frames, card.preprocessing.sampling_rate, card.preprocessing.crop_size) == (8, 3, 48)
    clips = torch.randn(1, 3, 8, 48, 48)
    assert torch.equal(loaded(clips), model(clips))


def test_from_ours_to_torchvision_to_pyslowfast_and_back_is_bit_equal(pyslowfast, model, tmp_path):
    names = [tmp_path / name for name in ("a.safetensors", "b.pth", "c.pyth", "d.safetensors")]
    convert(pyslowfast, "native", names[0], classes=CLASSES)
    convert(str(names[0]), "torchvision", names[1])
    convert(str(names[1]), "pyslowfast", names[2])
    convert(str(names[2]), "native", names[3], classes=CLASSES)
    for name in names:
        assert same_weights(read_weights(name).state, model.state_dict())
    assert same_weights(torch.load(names[1], weights_only=True), to_torchvision(model.state_dict()))
    assert same_weights(torch.load(names[2], weights_only=True)["model_state"], model.state_dict())
    assert names[0].read_bytes() == names[3].read_bytes()


@pytest.mark.integration
def test_what_the_zoo_knows_of_a_file_goes_into_its_card(tmp_path):
    """A file of S's shapes, all zeros, under the published name."""
    with torch.device("meta"):
        shapes = build_model("mvitv2_s_16x4", num_classes=174).state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}
    source = tmp_path / "MViTv2_S_16x4_ssv2_f308341823.pyth"
    torch.save({"model_state": state}, source)
    convert(str(source), "native", tmp_path / "s.safetensors")
    _, card = read_checkpoint(tmp_path / "s.safetensors")
    assert (card.name, card.protocol, card.preprocessing.sampling, card.preprocessing.short_side) == (
        "mvitv2_s_16x4",
        "1x3",
        "segment",
        224,
    )
    assert len(card.classes) == 174 and card.classes[0] == "Approaching something with your camera"


def test_what_cannot_be_converted_is_one_line(pyslowfast, model, tmp_path, capsys):
    output = tmp_path / "out.pyth"
    words = ["convert", pyslowfast, "--output", str(output)]

    def error_of(*more):
        assert main([*words, *more]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and not output.exists()
        return lines[0]

    assert error_of("--to", "native").endswith(
        "no class names are known for its 6 classes: pass them with --classes FILE"
    )
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    assert "2 class names for its 6 classes" in error_of("--to", "native", "--classes", str(tmp_path / "classes.txt"))
    assert "these are weights of mvitv2_nano_8x3" in error_of("--to", "torchvision", "--model", "mvitv2_t_16x4")
    torch.save({k: v for k, v in model.state_dict().items() if not k.startswith("head.")}, pyslowfast)
    assert "has no head, so it cannot predict labels" in error_of("--to", "torchvision")
    torch.save(build_model("mvitv2_nano_8x3", embed_dim=48).state_dict(), pyslowfast)
    assert "match no network of `mvit-video models`: name one with --model" in error_of("--to", "pyslowfast")


def test_a_checkpoint_of_ours_keeps_its_network_and_takes_other_class_names(pyslowfast, tmp_path):
    card = ModelCard(
        name="mvitv2_nano_8x3",
        arguments={"depths": (1, 1)},
        classes=tuple(CLASSES),
        preprocessing=InputSettings(num_frames=4, crop_size=32, short_side=32),
    )
    source, output = tmp_path / "ours.safetensors", tmp_path / "new.safetensors"
    save_checkpoint(source, model_from_card(card), card)
    names = [f"name {number}" for number in range(6)]
    convert(str(source), "native", output, name=card.name, classes=names)
    network, found = load_checkpoint(output)
    assert found.classes == tuple(names) and found.preprocessing == card.preprocessing
    assert same_weights(network.state_dict(), read_weights(source).state)
    with pytest.raises(
        ConfigError, match=r"ours.safetensors: 2 class names for its 6 classes: pass them with --classes"
    ):
        convert(str(source), "native", output, classes=names[:2], overwrite=True)
    with pytest.raises(ConfigError, match=r"is of mvitv2_nano_8x3 by its card, not of mvitv2_s_16x4: drop --model$"):
        convert(str(source), "native", output, name="mvitv2_s_16x4", overwrite=True)
    for to in ("pyslowfast", "torchvision"):
        with pytest.raises(ConfigError, match=f"--classes: a file --to {to} contains no class names: drop them"):
            convert(str(source), to, tmp_path / "x.pth", classes=names)


def test_an_output_that_cannot_be_written_is_named(pyslowfast, tmp_path):
    with pytest.raises(ConfigError, match=f"^{tmp_path}: is a folder, expected a file to write$"):
        convert(pyslowfast, "pyslowfast", tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match=f"^{pyslowfast}/new.pth: its folder {pyslowfast} does not exist"):
        convert(pyslowfast, "pyslowfast", f"{pyslowfast}/new.pth")


def test_an_output_that_exists_is_kept_unless_overwrite_is_said(pyslowfast, tmp_path, capsys):
    output = tmp_path / "out.pyth"
    output.write_text("mine")
    words = ["convert", pyslowfast, "--to", "pyslowfast", "--output", str(output)]
    assert main(words) == 1 and output.read_text() == "mine"
    assert "out.pyth: exists: choose another --output, or pass --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0 and read_weights(output).num_classes == 6


def test_the_input_that_is_assumed_is_printed_and_words_change_it(pyslowfast, model, tmp_path, capsys):
    classes, output = tmp_path / "classes.txt", tmp_path / "native.safetensors"
    words = ["convert", pyslowfast, "--to", "native", "--output", str(output), "--overwrite", "--classes", str(classes)]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assumed = "assumed input, which data.KEY=VALUE changes: 8 frames, 1 in 3 at 30/s, short side 55, crop 48, mean 0.45, std 0.225"
    assert said.endswith(f"{assumed}; views: 1x1")
    more = ["data.sampling=segment", "data.mean=[0.4, 0.5, 0.6]", "data.short_side=48", "evaluation.protocol=1x3"]
    assert main([*words, *more]) == 0
    loaded, card = load_checkpoint(output)
    assert (card.preprocessing.sampling, card.preprocessing.mean, card.protocol) == ("segment", (0.4, 0.5, 0.6), "1x3")
    assert card.preprocessing.short_side == 48 and card.preprocessing.num_frames == 8
    assert same_weights(loaded.state_dict(), model.state_dict())
    assert main([*words, "data.num_frames=4", "data.crop_size=32", "data.short_side=32"]) == 0
    assert load_checkpoint(output)[0](torch.zeros(1, 3, 4, 32, 32)).shape == (1, 6)
    assert "interpolated" in capsys.readouterr().err, "position tables are read at another size"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.frames=4"], "'data.frames=4': a checkpoint does not know 'data.frames' (did you mean"),
        (["data.root=x"], "'data.root=x': a checkpoint does not know 'data.root'"),
        (["data.num_frames=0"], "command line, 'data.num_frames=0': data.num_frames = '0': input should be"),
        (
            ["data.crop_size=900"],
            "command line, 'data.crop_size=900': data: crop_size 900 is larger than short_side 55",
        ),
        (["evaluation.protocol=3"], "command line, 'evaluation.protocol=3': evaluation.protocol = '3'"),
        (["train.epochs=3"], "a checkpoint does not know 'train.epochs'"),
    ],
)
def test_words_that_say_nothing_of_the_input_are_one_line(pyslowfast, tmp_path, capsys, more, message):
    output = tmp_path / "native.safetensors"
    words = ["convert", pyslowfast, "--output", str(output), *more]
    assert main([*words, "--to", "native", "--classes", str(tmp_path / "classes.txt")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and not output.exists()
    assert main([*words, "--to", "torchvision"]) == 1
    assert f"{more[0]}: a file --to torchvision does not record its input" in capsys.readouterr().err


def test_shipped_class_names_are_given_by_their_dataset(tmp_path, capsys):
    torch.save(build_model("mvitv2_nano_8x3", num_classes=174).state_dict(), tmp_path / "x.pyth")
    words = ["convert", str(tmp_path / "x.pyth"), "--to", "native", "--output", str(tmp_path / "x.safetensors")]
    assert main(words) == 1
    assert "no class names are known for its 174 classes: pass them with --classes FILE" in capsys.readouterr().err
    assert main([*words, "--classes", "ssv2"]) == 0
    assert load_checkpoint(tmp_path / "x.safetensors")[1].classes[0] == "Approaching something with your camera"


def test_a_public_file_with_another_head_has_no_names(tmp_path, caplog):
    """Fine-tuned weights often keep the name of the file that they came from."""
    with torch.device("meta"):
        shapes = build_model("mvitv2_nano_8x3", num_classes=7).state_dict()
    file = tmp_path / "MViTv2_S_16x4_ssv2_f308341823.pyth"
    torch.save({name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}, file)
    _, card = load_network(file)
    assert card.classes == tuple(f"class {number}" for number in range(7)) and card.preprocessing.sampling == "dense"
