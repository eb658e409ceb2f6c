"""One door for every network: what it takes, what it refuses, and that nobody asks for names or classes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mvit_video
from mvit_video import Capabilities, build_model, list_models, load_weights, register_model
from mvit_video.config.schema import InputSettings
from mvit_video.engine.optimizer import freeze_all_but_head, layer_numbers
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.model.checkpoint_format import CheckpointFormat
from mvit_video.model.registry import MODELS, NETWORKS, capabilities_of, model_entry
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.convert import convert
from mvit_video.model.weights.files import save_checkpoint

PACKAGE = Path(mvit_video.__file__).parent


class Tiny(nn.Module):
    """A network with two stages of blocks and something between them."""

    def __init__(self, num_classes: int, num_frames: int = 4, crop_size: int = 16, width: int = 6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stem = nn.Linear(3, width)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.merge = nn.Linear(width, width)
        self.second = nn.ModuleList([nn.Linear(width, width)])
        self.head = nn.Linear(width, num_classes)
        self.last = nn.LayerNorm(num_classes)

    def forward(self, clips):
        x = self.stem(clips.mean((2, 3, 4))) * self.scale
        for block in (*self.first, self.merge, *self.second):
            x = block(x).relu()
        return self.last(self.head(x))


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    MODELS.forget(__name__)


def test_a_registered_network_is_built_by_its_name_with_its_arguments():
    register_model("tiny", Tiny, dict(num_classes=5, width=8))
    assert "tiny" in list_models()
    assert build_model("tiny").head.weight.shape == (5, 8)
    assert build_model("tiny", num_classes=3, width=4).head.weight.shape == (3, 4)
    assert model_entry("tiny").input_size == (4, 16, 16) and model_entry("tiny").plugin == __name__


def test_layers_are_numbered_by_the_blocks_that_the_entry_names():
    """Stem 0, blocks 1 to 3, what lies between two blocks goes with the first of them, the rest is behind all."""
    blocks = Capabilities(blocks=lambda network: [*network.first, *network.second])
    register_model("tiny", Tiny, dict(num_classes=5), blocks)
    found = {name.rpartition(".")[0]: number for name, number in layer_numbers(build_model("tiny")).items()}
    assert found == {"": 0, "stem": 0, "first.0": 1, "first.1": 2, "merge": 2, "second.0": 3, "head": 4, "last": 4}


def test_the_head_is_the_one_that_the_entry_names_or_else_the_last_linear_layer():
    register_model("tiny", Tiny, dict(num_classes=5), Capabilities(head="merge"))
    register_model("plain", Tiny, dict(num_classes=5))
    for name, head in (("tiny", "merge"), ("plain", "head")):
        model = build_model(name)
        freeze_all_but_head(model)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == {f"{head}.weight", f"{head}.bias"}


def test_a_network_that_was_built_by_its_class_has_what_the_class_is_registered_with():
    assert (
        capabilities_of(mvit_video.model.mvit.MViT(depths=(1,), embed_dim=8))
        is model_entry("mvitv2_s_16x4").capabilities
    )
    assert capabilities_of(Tiny(3)) == Capabilities()


def test_a_copy_of_a_network_can_do_what_the_network_can():
    import copy

    register_model("tiny", Tiny, dict(num_classes=5), Capabilities(head="merge"))
    register_model("other", Tiny, dict(num_classes=5))
    assert capabilities_of(copy.deepcopy(build_model("tiny"))).head == "merge"
    assert capabilities_of(build_model("other")).head is None


@pytest.mark.parametrize(
    ("name", "build", "arguments", "says"),
    [
        (
            "mvitv2_s_16x4",
            Tiny,
            dict(num_classes=5),
            ["'mvitv2_s_16x4'", "mvit_video itself has taken", "another name"],
        ),
        (" tiny", Tiny, dict(num_classes=5), ["' tiny'", "without spaces"]),
        ("tiny", Tiny, {}, ["'tiny'", "usual num_classes"]),
        ("tiny", Tiny, dict(num_classes=5, depth=3), ["'tiny'", "no argument 'depth'"]),
        ("tiny", lambda num_classes=3, num_frames=8: None, {}, ["'tiny'", "no argument 'crop_size'"]),
    ],
)
def test_what_cannot_be_registered_is_refused_in_a_sentence(name, build, arguments, says):
    with pytest.raises(ConfigError) as reason:
        register_model(name, build, arguments)
    assert all(part in str(reason.value) for part in [__name__, *says])
    assert "tiny" not in list_models()


@pytest.mark.parametrize(
    ("capabilities", "lacking"),
    [
        (Capabilities(feature=True), "with_feature"),
        (Capabilities(stage_maps=True), "forward_features"),
        (Capabilities(activation_checkpointing=True), "activation_checkpointing"),
    ],
)
def test_a_network_without_what_its_capabilities_promise_is_refused_when_it_is_built(capabilities, lacking):
    register_model("tiny", Tiny, dict(num_classes=5), capabilities)
    with pytest.raises(ConfigError, match=rf"'tiny' is registered as a network .*{lacking}"):
        build_model("tiny")


def test_an_unknown_name_says_what_is_near_and_how_a_plugin_is_named():
    with pytest.raises(
        ConfigError, match=r"'mvitv2_s_16x5' is unknown \(did you mean 'mvitv2_s_16x4'\?\).*--plugin MODULE"
    ):
        build_model("mvitv2_s_16x5")


def test_every_module_of_networks_is_registered_in_one_line():
    """A new first-class backbone is its own file and its line in NETWORKS: no other file of ours names one."""
    text = {file: file.read_text() for file in PACKAGE.rglob("*.py")}
    for module in NETWORKS:
        name = module.rpartition(".")[2]
        own = {"mvit_variants": ("mvit",)}.get(name, ())
        naming = [
            file.relative_to(PACKAGE).as_posix()
            for file, source in text.items()
            if re.search(rf"mvit_video\.model\.{name}\b", source) and file.stem not in (name, *own)
        ]
        assert naming == ["model/registry.py"]


def test_nobody_asks_for_the_class_or_an_attribute_of_a_network():
    """Capabilities, not names: `isinstance(model, MViT)` and `hasattr(model, ...)` are nowhere but in a family's own file."""
    own = {PACKAGE / "model" / f"{module.rpartition('.')[2]}.py" for module in NETWORKS}
    for file in {*PACKAGE.rglob("*.py")} - own:
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("isinstance", "hasattr"):
                of, what = map(ast.unparse, call.args[:2])
                asked = of.rpartition(".")[2] in ("model", "network") and what not in (
                    "DistributedDataParallel",
                    "DTensor",
                    "cls",  # a class that asks for itself
                )
                assert not asked, f"{file}: {ast.unparse(call)}"
                assert "MViT" not in what, file


def test_importing_the_package_imports_neither_torch_nor_a_network():
    code = "import sys, mvit_video; print([n for n in sys.modules if n == 'torch' or n.startswith('mvit_video.model')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# checkpoint formats


def _theirs(state):
    return {"network": {f"their.{name}": tensor for name, tensor in state.items()}}


THEIRS = CheckpointFormat(
    "Theirs",
    matches=lambda names: all(name.startswith("their.") for name in names),
    renamer=lambda state: lambda name: name.removeprefix("their."),
    write=_theirs,
)


def test_a_format_that_a_network_names_is_read_converted_and_written(tmp_path):
    """The head is not the last layer of this network, and not called as ours is."""
    register_model("tiny", Tiny, dict(num_classes=5), Capabilities(head="head", formats=(THEIRS,)))
    model = build_model("tiny")
    torch.save({f"their.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "theirs.pth")
    other = build_model("tiny")
    report = load_weights(other, tmp_path / "theirs.pth")
    assert report.format == "Theirs" and set(report.copied) == set(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    more = build_model("tiny", num_classes=7)
    with pytest.raises(CheckpointError, match="its head has 5 classes, the network's 7"):
        load_weights(more, tmp_path / "theirs.pth")
    convert(str(tmp_path / "theirs.pth"), "native", tmp_path / "ours.safetensors", classes=list("abcde"))
    convert(str(tmp_path / "ours.safetensors"), "theirs", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["network"]
    assert again.keys() == _theirs(model.state_dict())["network"].keys()
    with pytest.raises(ConfigError, match="is of tiny, which cannot be written --to pyslowfast"):
        convert(str(tmp_path / "ours.safetensors"), "pyslowfast", tmp_path / "no.pyth")
    with pytest.raises(ConfigError, match="format 'onx' is unknown: choose from native, "):
        convert(str(tmp_path / "ours.safetensors"), "onx", tmp_path / "no.pyth")


def test_a_head_that_starts_anew_is_the_one_that_the_entry_names(tmp_path):
    register_model("tiny", Tiny, dict(num_classes=5), Capabilities(head="head"))
    model, other = build_model("tiny"), build_model("tiny")
    card = ModelCard(
        name="tiny", arguments={}, classes=tuple("abcde"), preprocessing=InputSettings(num_frames=4, crop_size=16)
    )
    save_checkpoint(tmp_path / "tiny.safetensors", model, card)
    report = load_weights(other, tmp_path / "tiny.safetensors", reset_head=True)
    assert report.new == ("head.weight", "head.bias")
    assert torch.equal(other.stem.weight, model.stem.weight) and not torch.equal(other.head.weight, model.head.weight)


def test_weights_of_a_network_of_any_arguments_tell_one_that_only_their_card_has(tmp_path):
    def build(num_classes=2, num_frames=1, crop_size=4, **others):
        return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))

    register_model("of_any", build)
    settings = InputSettings(num_frames=1, crop_size=4, short_side=4)
    card = ModelCard(name="of_any", arguments={"slope": 2}, classes=("a", "b"), preprocessing=settings)
    save_checkpoint(tmp_path / "a.safetensors", model_from_card(card), card)
    report = load_weights(build_model("of_any"), tmp_path / "a.safetensors")
    assert report.otherwise == ("slope=2 where this one has None",)
