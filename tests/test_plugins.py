"""Plugins: who may register what, and what is said about one that does not work."""

import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

from mvit_video import plugins
from mvit_video.config.load import load_config
from mvit_video.config.schema import Config, TrainSettings
from mvit_video.data.transform_registry import TRANSFORMS, AddedTransforms, register_transform
from mvit_video.engine.losses import LOSSES, objective_from, register_loss
from mvit_video.engine.trackers import TRACKERS, open_trackers, register_tracker, tracker_files
from mvit_video.errors import ConfigError, InputError
from mvit_video.inference.export import EXPORTERS, export_checkpoint
from mvit_video.plugins import Registry, load_plugins

RNG = np.random.default_rng([3, 1, 4, 1])


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    for registry in (TRANSFORMS, LOSSES, TRACKERS, EXPORTERS):
        registry.forget(__name__)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write modules that Python finds; what they register is forgotten, and they are too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    written = []

    def module(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return name

    yield module
    for name in written:
        plugins.unload_plugin(name)


NAMES = "from mvit_video import {0}\n{0}({1})\n"


def test_a_plugin_is_found_in_the_current_folder_and_its_names_are_known(write):
    load_plugins([write("one_loss", NAMES.format("register_loss", "'one', lambda logits, targets: logits.sum(1)"))])
    assert "one" in LOSSES.names() and LOSSES.plugin_of("one") == "one_loss"
    assert LOSSES.names()[0] == "cross_entropy"


def test_a_plugin_of_several_files_owns_what_all_of_them_register(write, tmp_path):
    (tmp_path / "many").mkdir()
    write("many/losses", NAMES.format("register_loss", "'two', max"))
    write("many/__init__", "from many import losses")
    load_plugins(["many"])
    assert LOSSES.plugin_of("two") == "many"
    plugins.unload_plugin("many")
    assert "two" not in LOSSES.names() and "many.losses" not in sys.modules


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_package\n", ["needs the module 'no_such_package'", "install it", "drop it"]),
        ("x = 1 / 0\n", ["cannot be imported", "ZeroDivisionError: division by zero", "--debug", "drop it"]),
        ("def f(:\n", ["cannot be imported", "SyntaxError"]),
        ("raise SystemExit(3)\n", ["cannot be imported", "SystemExit"]),
        (NAMES.format("register_loss", "'cross_entropy', max"), ["'cross_entropy'", "mvit_video itself", "another name"]),
        (NAMES.format("register_model", "'x3', object"), ["'x3'", "num_classes, num_frames, crop_size"]),
        (NAMES.format("register_exporter", "'pt2', max, max"), ["export format 'pt2'", "another name"]),
        (NAMES.format("register_tracker", "'tensorboard', max"), ["tracker 'tensorboard'", "another name"]),
        (NAMES.format("register_transform", "'', max"), ["transform ''", "name"]),
        (2 * NAMES.format("register_loss", "'same', max"), ["loss 'same' twice", "another name"]),
    ],
)  # fmt: skip
def test_a_plugin_that_does_not_work_is_one_sentence_and_leaves_nothing(write, text, says):
    good = NAMES.format("register_loss", "'before', max")
    name = write("faulty", good + text)
    with pytest.raises(ConfigError) as reason:
        load_plugins([name])
    assert all(part in str(reason.value) for part in ["faulty", *says]) and "\n" not in str(reason.value)
    assert "before" not in LOSSES.names() and "faulty" not in sys.modules
    write("faulty", good)
    sys.path_importer_cache.clear()
    load_plugins([name])
    assert "before" in LOSSES.names()


def test_two_plugins_cannot_share_a_name(write):
    load_plugins([write("first", NAMES.format("register_loss", "'shared', max"))])
    with pytest.raises(
        ConfigError, match=r"'second' registers the loss 'shared', a name that the plugin 'first' has taken"
    ):
        load_plugins([write("second", NAMES.format("register_loss", "'shared', max"))])
    assert LOSSES.plugin_of("shared") == "first"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere_to_be_found", ["there is no module 'nowhere_to_be_found'", "install"]),
        ("nowhere.to.be", ["there is no module 'nowhere'"]),
        ("here/mine.py", ["is a file", "--plugin mine"]),
    ],
)
def test_a_plugin_that_is_not_there_says_what_was_looked_for(name, says):
    with pytest.raises(ConfigError) as reason:
        load_plugins([name])
    assert all(part in str(reason.value) for part in [f"--plugin {name}", *says])


class Installed:
    """What importlib.metadata tells of an installed package."""

    name = "some-package"


def point(name, module):
    found = EntryPoint(name, module, plugins.GROUP)
    vars(found).update(dist=Installed())
    return found


def test_plugins_of_installed_packages_are_imported_at_the_first_look(write):
    registry: Registry[str] = Registry("thing")
    name = write("packaged", "import test_plugins\ntest_plugins.SEEN.append(__name__)\n")
    SEEN.clear()
    sys.modules.setdefault("test_plugins", sys.modules[__name__])
    sys.path.append("")
    plugins.load_installed([point("p", name)])
    plugins.load_installed([point("p", name)])
    assert SEEN == ["packaged"] and registry.names() == []


SEEN: list[str] = []


def test_an_installed_plugin_that_fails_names_its_package_and_fails_again_until_it_is_mended(write):
    name = write("broken_package", "import no_such_package\n")
    sys.path.append("")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"plugin 'p' of some-package: needs .* or uninstall some-package"):
            plugins.load_installed([point("p", name)])


def test_settings_that_need_a_plugin_name_it_and_load_nothing(write, tmp_path):
    name = write("needed", "SEEN = 1\n")
    (tmp_path / "config.yaml").write_text("plugins: [needed]\n")
    with pytest.raises(
        ConfigError, match=r"config.yaml: was made with the plugin 'needed', .*: add --plugin needed, or"
    ):
        load_config(tmp_path / "config.yaml")
    assert name not in sys.modules
    load_plugins([name])
    assert load_config(tmp_path / "config.yaml").plugins == ("needed",)


# transforms


def test_a_transform_draws_from_its_own_stream_by_its_name_alone():
    """The same draws whatever stands before it, others by another name, and none from the sample's own generator."""
    drawn = []
    for name in ("a", "b"):
        register_transform(name, lambda clip, rng: (drawn.append(float(rng.random())), clip)[1])
    clip = torch.zeros(3, 2, 4, 4)
    state = RNG.bit_generator.state
    for names in (("a", "b"), ("b",), ("b", "a")):
        AddedTransforms(names)(clip, RNG)
    assert drawn[0] == drawn[4] and drawn[1] == drawn[2] == drawn[3] and drawn[0] != drawn[1]
    assert RNG.bit_generator.state == state
    AddedTransforms(("a",))(clip, np.random.default_rng([3, 2, 4, 1]))
    assert drawn[5] != drawn[0]


@pytest.mark.parametrize("made", [torch.zeros(3, 2, 4, 5), torch.zeros(3, 2, 4, 4).double(), None])
def test_a_transform_that_changes_shape_or_type_is_named(made):
    register_transform("odd", lambda clip, rng: made)
    with pytest.raises(InputError, match=f"transform 'odd' of the plugin '{__name__}' turned .* must keep type"):
        AddedTransforms(("odd",))(torch.zeros(3, 2, 4, 4), RNG)


def test_an_unknown_transform_is_refused_before_any_sample_is_made():
    with pytest.raises(ConfigError, match=r"transform 'grey' is unknown.*--plugin MODULE"):
        AddedTransforms(("grey",))


# losses


def one_loss(name):
    objective = objective_from(TrainSettings(loss=name))
    logits, targets = torch.randn(4, 5), torch.eye(5)[:4]
    from contextlib import nullcontext

    [(losses, _)] = objective.parts(lambda clips: logits, nullcontext, torch.zeros(4, 3, 2, 4, 4), targets)
    return losses, logits, targets


def test_a_registered_loss_is_what_the_step_minimises():
    @register_loss("squares")
    def squares(logits, targets):
        return (logits - targets).square().sum(1)

    losses, logits, targets = one_loss("squares")
    assert torch.equal(losses, (logits - targets).square().sum(1))
    losses, logits, targets = one_loss("cross_entropy")
    torch.testing.assert_close(losses, -(logits.log_softmax(1) * targets).sum(1))


def test_a_loss_that_gives_one_number_for_all_clips_is_named():
    register_loss("mean", lambda logits, targets: logits.mean())
    with pytest.raises(ConfigError, match=rf"train.loss = mean: .* expected one loss per clip.*'{__name__}'"):
        one_loss("mean")


# trackers and exporters


class Notes:
    def __init__(self, run, config, first_step):
        self.run, self.first_step, self.written = run, first_step, []

    def write(self, step, values):
        self.written.append((step, dict(values)))

    def close(self):
        self.written.append("closed")


def test_a_registered_tracker_is_opened_by_its_name_and_owns_its_files(tmp_path):
    register_tracker("notes", Notes, files=["notes.txt"])
    config = Config(train=TrainSettings(trackers=("notes",)))
    [tracker] = open_trackers(tmp_path, config, 7)
    assert (tracker.run, tracker.first_step) == (tmp_path, 7)
    assert tracker_files() == ("tensorboard", "wandb", "wandb_id.txt", "notes.txt")


def test_an_unknown_export_format_names_those_that_there_are():
    with pytest.raises(
        ConfigError, match=r"export format 'onx' is unknown \(did you mean 'onnx'\?\): choose from onnx, pt2;"
    ):
        export_checkpoint("nowhere.safetensors", "onx", "out.onx", None)
