"""Two gloo processes against one: the same step, whatever is cut into parts."""

import json
import shutil

import parallel_program as program
import pytest
import torch
from safetensors.torch import load_file
from two_processes import torchrun

from mvit_video.engine import checkpoint as states

PARALLEL = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What one process and two have left, of the scenarios of parallel_program.py, going on from one process's state."""
    folder = tmp_path_factory.mktemp("parallel")
    before, one, two = (folder / name for name in ("before", "one", "two"))
    for path in (before, one, two):
        path.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    program.go_on(before, before)  # from nothing
    program.main(one, before / "ddp")
    torch.set_num_threads(threads)
    done = torchrun(program.__file__, two, before / "ddp")
    assert done.returncode == 0, done.stderr
    return one, two


@pytest.mark.integration
@pytest.mark.parametrize(("parallel", "name"), [(key, name) for key in PARALLEL for name in program.PARTS[key]])
def test_two_processes_make_the_step_of_one(folders, parallel, name):
    """Losses, norms, top-1, weights and averages; with mixing, passes, uneven parts, and a process without clips."""
    one, two = (folder / f"{name}_{parallel}" for folder in folders)
    records = [json.loads(path.with_suffix(".json").read_text()) for path in (one, two)]
    for expected, actual in zip(*records, strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert actual["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-5)
        assert (actual.get("top1"), actual["lr"]) == (expected.get("top1"), expected["lr"])
        assert ("top1" in actual) == (name != "masked")
    expected, actual = (load_file(path.with_suffix(".safetensors")) for path in (one, two))
    assert expected.keys() == actual.keys()
    assert any(key.startswith("average.") for key in actual) == ("ema_decay" in program.SCENARIOS[name][0])
    difference = torch.cat([(expected[key] - actual[key]).abs().flatten() for key in expected])
    if name == "adamw":  # divides by the size of each gradient, also of those that are rounding: 1 % may differ
        difference = difference.sort().values[: int(0.99 * len(difference))]
    assert difference.max() < (1e-5 if name == "adamw" else 1e-6)


@pytest.mark.integration
def test_mixing_made_a_difference(folders):
    records = [json.loads((folders[1] / f"{name}_ddp.json").read_text()) for name in ("plain", "mixed")]
    assert records[0][0]["loss"] != pytest.approx(records[1][0]["loss"], abs=1e-3)


@pytest.mark.integration
def test_a_step_that_is_no_number_in_one_process_is_none_in_all_and_reported_with_all_clips(folders):
    report = json.loads((folders[1] / "nonfinite_step_00000001.json").read_text())
    losses = {clip["video_index"]: clip["loss"] for clip in report["clips"]}
    assert sorted(losses) == list(range(8)) and report["loss"] == "nan"
    assert losses[0] == "nan" and all(isinstance(losses[place], float) for place in range(1, 8))


@pytest.mark.integration
@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_state_does_not_tell_how_many_processes_saved_it_or_read_it(folders, parallel, tmp_path):
    """Both went on from one process's state; here one process reads what two have saved."""
    one, two = (folder / parallel / "checkpoints/step_00000002" for folder in folders)
    for name in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        expected, actual = (load_file(folder / name) for folder in (one, two))
        assert {key: value.shape for key, value in expected.items()} == {
            key: value.shape for key, value in actual.items()
        }
        assert all(torch.allclose(expected[key], actual[key], atol=1e-6) for key in expected), name
    shutil.copytree(folders[1] / parallel, tmp_path / "run")
    state, problems = states.newest_state(tmp_path / "run")
    learner = program.trainer(optimizer="sgd", ema_decay=0.9).learner
    states.load_state(state, learner)
    assert problems == [] and state.step == 2
    saved = load_file(two / "model.safetensors")
    assert all(torch.equal(value, saved[key]) for key, value in learner.model.state_dict().items())
    moments = load_file(two / "optimizer.safetensors")
    for number, values in learner.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[f"{number}.{key}"]) for key, value in values.items())
