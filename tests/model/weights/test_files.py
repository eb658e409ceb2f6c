"""Files as training programs leave them, and files that look like weights: what is read, and that nothing in them runs."""

import argparse
import os
import pickle
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_checkpoint import write_tiny
from tiny_models import tiny_video

from mvit_video import load_weights
from mvit_video.errors import CheckpointError
from mvit_video.model.weights.convert import load_network
from mvit_video.model.weights.files import IGNORED_GLOBALS, Ignored, check_file, read_tensors
from mvit_video.model.weights.formats import to_torchvision, without_wrappers
from mvit_video.model.weights.load import load_checkpoint


def trained_state():
    return tiny_video(seed=1).state_dict()


def load(content, path, **options):
    """What becomes of a file with this content: the network it was put into, and the report."""
    torch.save(content, path, **options)
    model = tiny_video(seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model, load_weights(model, path)


FROM_TRAINING = {
    "PySlowFast, settings as text": lambda state: {"model_state": state, "epoch": 199, "cfg": "MVIT:\n  DEPTH: 16\n"},
    "PySlowFast, settings as a dict": lambda state: {
        "model_state": state,
        "cfg": {"MVIT": {"DEPTH": 16, "DROP": None}},
    },
    "numbers of numpy": lambda state: {
        "model_state": state,
        "epoch": np.int64(199),
        "metric": np.float32(81.0),
        "optimizer_state": {"param_groups": [{"lr": np.float64(1e-4), "amsgrad": np.bool_(False)}]},
    },
    "torchvision's reference scripts": lambda state: {
        "model": to_torchvision(state),
        "epoch": 3,
        "lr_scheduler": {"_last_lr": [0.1]},
        "args": argparse.Namespace(lr=0.1, amp=False),
    },
    "timm's script": lambda state: {
        "state_dict": state,
        "arch": "mvitv2",
        "version": 2,
        "amp_scaler": {"scale": 65536.0},
        "args": argparse.Namespace(opt="adamw"),
        "metric": 83.6,
    },
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("program", FROM_TRAINING)
def test_the_weights_of_a_training_state_are_loaded_and_what_lies_beside_them_is_listed(program, zipped, tmp_path):
    state = trained_state()
    content = FROM_TRAINING[program](state)
    model, report = load(content, tmp_path / "x.pyth", _use_new_zipfile_serialization=zipped)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert report.ignored == tuple(sorted(content.keys() - {"model_state", "model", "state_dict"}))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("names", [dict, to_torchvision])
def test_names_that_data_parallel_and_compile_have_put_a_word_before_are_read_without_it(prefix, names, tmp_path):
    state = trained_state()
    model, report = load({prefix + name: tensor for name, tensor in names(state).items()}, tmp_path / "x.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert set(report.copied) == set(state)


def test_the_names_are_those_that_the_wrappers_write():
    model = tiny_video()
    for wrapped in (torch.nn.DataParallel(model), torch.compile(model), torch.nn.DataParallel(torch.compile(model))):
        assert not model.state_dict().keys() & wrapped.state_dict().keys()
        assert without_wrappers(wrapped.state_dict()).keys() == model.state_dict().keys()


def test_a_prefix_that_only_some_names_have_stays_unexplained(tmp_path):
    state = trained_state()
    with pytest.raises(CheckpointError, match=r"contains 'module.extra', which the network does not have"):
        load(state | {"module.extra": torch.ones(1)}, tmp_path / "x.pth")


def packed(path, entry, head, block, count):
    """`path` with its `entry` packed, unpacking to `head` and `count` times `block`."""
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            with archive.open(name, "w", force_zip64=True) as file:
                if name.endswith(entry):
                    file.write(head)
                    for _ in range(count):
                        file.write(block)
                else:
                    file.write(content)


@pytest.mark.parametrize(
    ("entry", "head", "block"),
    [("data.pkl", b"\x80\x02", b"N0" * (1 << 19)), ("/data/0", b"", b"\0" * (1 << 20))],
    ids=["pickle", "values"],
)
def test_a_small_file_that_unpacks_to_a_large_one_is_refused_before_it_is_unpacked(tmp_path, entry, head, block):
    packed(tmp_path / "bomb.pth", entry, head, block, count=200)
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 20
    for read in (load_network, lambda path: load_weights(tiny_video(), path), check_whole_of):
        tracemalloc.start()
        with pytest.raises(
            CheckpointError, match=r"bomb.pth: has [\d,]+ bytes and unpacks to 2\d\d,\d{3},\d{3}, and at most 8"
        ):
            read(tmp_path / "bomb.pth")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()


def check_whole_of(path):
    check_file(path, path)


@pytest.mark.integration
def test_a_pickle_that_alone_is_larger_than_weights_have_is_refused(tmp_path):
    random = np.random.default_rng(0).bytes(1 << 20)
    packed(tmp_path / "x.pth", "data.pkl", b"\x80\x02", random, count=70)
    with pytest.raises(
        CheckpointError, match=r"x.pth: has 73,\d{3},\d{3} bytes beside the tensors, and at most 67,108,864"
    ):
        load_network(tmp_path / "x.pth")


def test_tensors_that_share_one_storage_many_times_over_are_refused_before_each_is_read(tmp_path):
    one = torch.zeros(1 << 18)
    torch.save({f"blocks.{number}": one for number in range(2000)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth: has 1,[\d,]+ bytes and unpacks to 2,097,152,000"):
        load_network(tmp_path / "x.pth")


@pytest.mark.parametrize("head", [b"\x80\x02", b"PK\x03\x04", b"\x10\0\0\0\0\0\0\0{"])
def test_a_file_that_says_it_is_larger_than_any_weights_is_refused(tmp_path, head):
    """A file with a hole takes no room on the disk."""
    with (tmp_path / "x.pth").open("wb") as file:
        file.write(head)
        file.truncate(1 << 40)
    with pytest.raises(
        CheckpointError, match=r"x.pth: has 1,099,511,627,776 bytes, and at most 68,719,476,736 are read"
    ):
        load_network(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False, None], ids=["zip", "pickle", "safetensors"])
@pytest.mark.parametrize("seed", range(25))
def test_damaged_bytes_are_one_sentence_or_the_same_weights(tmp_path, zipped, seed):
    state, path = {"blocks.0.w": torch.arange(300.0)}, tmp_path / "x.pth"
    if zipped is None:
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
    draw, content = np.random.default_rng(seed), bytearray(path.read_bytes())
    places = [*range(400), *range(len(content) - 400, len(content))]  # where the structure is
    for place in draw.choice(places, 3):
        content[place] ^= 1 << int(draw.integers(8))
    path.write_bytes(content)
    try:
        tensors, _ = read_tensors(path, path)
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    except CheckpointError as told:
        assert str(told).startswith(f"{path}: ") and "\n" not in str(told)


class Runs:
    def __reduce__(self):
        return os.system, ("touch code_was_run",)


class Impostor:
    """Pickles as a call of whatever it is told."""

    def __init__(self, function, *words):
        self.call = function, words

    def __reduce__(self):
        return self.call


def plain_pickle(content, path, protocol):
    path.write_bytes(pickle.dumps(content, protocol=protocol))


CODE = "which is code and is never run here: save the weights alone, torch.save(model.state_dict(), FILE), where"
DAMAGED = "is not a complete PyTorch file (truncated or damaged): download it again"
MORE = "is damaged, or a pickle with more in it than torch.save writes for tensors: download it again, or save the weights alone"
NOT_WEIGHTS = (
    "is a zip file, but not of weights by torch.save (a TorchScript or exported program?): pass the state dict"
)
FOREIGN = {
    "code, new form": (lambda path: torch.save({"a": Runs()}, path), f"contains 'posix.system', {CODE}"),
    "code, old form": (
        lambda path: torch.save({"a": Runs()}, path, _use_new_zipfile_serialization=False),
        f"contains 'posix.system', {CODE}",
    ),
    "code, protocol 4": (lambda path: torch.save({"a": Runs()}, path, pickle_protocol=4), MORE),
    "code, plain pickle": (lambda path: plain_pickle(Runs(), path, 2), f"contains 'posix.system', {CODE}"),
    "code, plain pickle of protocol 4": (lambda path: plain_pickle(Runs(), path, 4), MORE),
    "a whole network": (lambda path: torch.save(tiny_video(), path), f"contains 'mvit_video.model.mvit.MViT', {CODE}"),
    "a builtin": (lambda path: torch.save(Impostor(exec, "1"), path), f"contains 'exec', {CODE}"),
    "arrays of numpy": (
        lambda path: plain_pickle({"conv1_w": np.ones(3)}, path, 2),
        "contains 'numpy",
    ),
    "TorchScript": (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path), NOT_WEIGHTS),
    "another zip file": (lambda path: zipfile.ZipFile(path, "w").writestr("notes.txt", "hello"), NOT_WEIGHTS),
    "a zip file with a broken list": (
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(60) + b"PK\x05\x06" + bytes(8) + b"\xff" * 8 + bytes(2)),
        DAMAGED,
    ),
    "a page of a server": (
        lambda path: path.write_text("<!DOCTYPE html><title>404</title>"),
        "is neither a PyTorch nor a safetensors file: give a .pth, .pyth or .safetensors of weights",
    ),
    "a number of numpy as a weight": (
        lambda path: torch.save({"model_state": trained_state() | {"epoch": np.int64(3)}}, path),
        "'epoch' is of type Ignored, expected tensors by name, alone or under 'model_state'",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_that_holds_something_else_is_one_sentence_and_nothing_of_it_runs(what, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    write, message = FOREIGN[what]
    write(tmp_path / "x.pyth")
    with pytest.raises(CheckpointError) as caught:
        load_weights(tiny_video(), tmp_path / "x.pyth")
    assert str(caught.value).startswith(f"{tmp_path}/x.pyth: {message}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "code_was_run").exists()
    assert not [warning for warning in recwarn if "pickle" in str(warning.message) or "zip" in str(warning.message)]


def test_a_stand_in_keeps_nothing_of_what_it_stands_for(tmp_path):
    torch.save({"x": np.float64(3), "y": argparse.Namespace(a=1)}, tmp_path / "x.pth")
    with torch.serialization.safe_globals([(Ignored, name) for name in IGNORED_GLOBALS]):
        content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert all(type(value) is Ignored and not vars(value) for value in content.values())


NO_KIND = ", expected dense weights of float16, bfloat16, float32, float64"
NOT_WHOLE = "but the file does not hold that many values: save all of them, where the file was made"
STRANGE = {
    "8 bits": (lambda value: value.to(torch.float8_e4m3fn), f"'norm.bias' contains float8_e4m3fn, strided{NO_KIND}"),
    "32-bit integers": (lambda value: value.int(), f"'norm.bias' contains int32, strided{NO_KIND}"),
    "complex": (lambda value: value.to(torch.complex64), f"'norm.bias' contains complex64, strided{NO_KIND}"),
    "counts": (lambda value: value.long(), "'norm.bias' contains torch.int64, expected floating point weights"),
    "no numbers": (lambda value: value / 0, "'norm.bias' contains NaN or Inf: these weights are unusable"),
    "no storage": (lambda value: value.to("meta"), f"'norm.bias' has shape (32,), {NOT_WHOLE}"),
    "one value, spread": (
        lambda value: torch.zeros(1).expand(10**13),
        f"'norm.bias' has shape (10000000000000,), {NOT_WHOLE}",
    ),
}


@pytest.mark.parametrize("what", STRANGE)
def test_weights_that_are_no_plain_numbers_are_one_sentence(what, tmp_path):
    change, message = STRANGE[what]
    state = trained_state()
    with pytest.raises(CheckpointError) as caught:
        load(state | {"norm.bias": change(state["norm.bias"])}, tmp_path / "x.pth")
    assert str(caught.value) == f"{tmp_path}/x.pth: {message}"


@pytest.mark.parametrize("what", ["8 bits", "32-bit integers", "counts", "no numbers"])
def test_a_checkpoint_of_ours_is_held_to_the_same(what, tmp_path):
    change, message = STRANGE[what]
    path = write_tiny(tmp_path / "x.safetensors")
    with safe_open(path, framework="pt") as content:
        state, metadata = {name: content.get_tensor(name) for name in content.keys()}, content.metadata()  # noqa: SIM118
    save_file(state | {"norm.bias": change(state["norm.bias"])}, path, metadata)
    for read in (load_checkpoint, load_network, lambda path: load_weights(tiny_video(), path)):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_every_floating_point_type_are_loaded(dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in trained_state().items()}
    model, _ = load(state, tmp_path / "x.pth")
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in model.state_dict().items())
