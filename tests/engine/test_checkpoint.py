"""Saved states on a disk that damages, renames or mixes them: one that is not as it was written is never used."""

import json
import random
import shutil

import pytest
import torch
from torch import nn

from mvit_video.config.schema import InputSettings
from mvit_video.engine.checkpoint import Learner, load_state, newest_state, save_state
from mvit_video.engine.ema import WeightAverage
from mvit_video.errors import CheckpointError
from mvit_video.model.weights.card import ModelCard

CARD = ModelCard(name="mvitv2_nano_8x3", arguments={}, classes=("a", "größer"), preprocessing=InputSettings())
SCHEDULE = {"last_step": 40, "steps_per_epoch": 8}
ABOUT = {
    "seed": 0,
    "config": {"data": {"root": "\udcff/größer"}},
    "environment": {"torch": "2"},
    "lists": [{"videos": 3}],
}


def learner(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return Learner(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), WeightAverage(model, 0.9))


@pytest.fixture
def run(tmp_path):
    """A folder with the states after steps 20 and 30."""
    (tmp_path / "run").mkdir()
    for step in (20, 30):
        save_state(tmp_path / "run", step, learner(step), CARD, SCHEDULE, keep=5, about=ABOUT)
    return tmp_path / "run"


def state_of(run, step):
    return run / f"checkpoints/step_{step:08d}"


def falls_back(run, *reasons):
    """Whether step 20's state is used, and step 30's refused with one sentence that has these words."""
    state, problems = newest_state(run)
    assert state is not None and state.step == 20 and len(problems) == 1
    assert problems[0].startswith(f"{state_of(run, 30)}: ") and problems[0].endswith(": this state is ignored")
    assert all(reason in problems[0] for reason in reasons), problems
    return True


def test_a_state_is_found_as_it_was_written(run):
    state, problems = newest_state(run)
    assert (state.step, state.schedule, state.environment, state.lists) == (
        30,
        SCHEDULE,
        {"torch": "2"},
        [{"videos": 3}],
    )
    assert problems == []
    other, written = learner(7), learner(30)
    load_state(state, other)
    for ours, theirs in ((other.model, written.model), (other.average.model, written.average.model)):
        assert all(
            torch.equal(*pair) for pair in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("seed", range(150))
def test_one_flipped_bit_in_state_json_is_never_used(run, seed):
    draw, file = random.Random(seed), state_of(run, 30) / "state.json"
    content = bytearray(file.read_bytes())
    before = json.loads(content)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    state, _ = newest_state(run)
    try:
        same = json.loads(content.decode()) == before  # such as a space that is now a tab
    except ValueError:
        same = False
    assert state.step == (30 if same else 20)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"step": 30', '"step": 31'),
        ('"step": 30', '"step": 20'),
        ('"scaler"', '"rcaler"'),
        ('"digest"', '"dagest"'),
        ('"last_step": 40', '"last_step": 48'),
        ('"steps_per_epoch": 8', '"steps_per_epoch": 9'),
        ('"seed": 0', '"seed": 1'),
    ],
)
def test_an_edited_state_is_not_used(run, before, after):
    file = state_of(run, 30) / "state.json"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    assert falls_back(run, "state.json was changed after it was written")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}", b"\0" * 4096],
)
def test_anything_else_in_state_json_is_one_sentence(run, content):
    (state_of(run, 30) / "state.json").write_bytes(content)
    assert falls_back(run, "state.json")


def test_a_state_under_another_steps_name_is_not_used(run):
    shutil.copytree(state_of(run, 30), state_of(run, 40))
    state, problems = newest_state(run)
    assert state.step == 30 and problems == [
        f"{state_of(run, 40)}: state.json is of step 30, but its folder is not: this state is ignored"
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors"])
def test_files_of_another_state_are_not_used(run, name):
    shutil.copy(state_of(run, 20) / name, state_of(run, 30) / name)
    assert falls_back(run, f"{name} was changed after it was written (its sha256 differs)")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_not_used(run, name, share):
    file = state_of(run, 30) / name
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert falls_back(run, name)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
def test_a_state_that_lacks_a_file_is_not_used(run, name):
    (state_of(run, 30) / name).unlink()
    assert falls_back(run, f"{name} is missing")


def test_a_file_in_a_states_place_is_not_used(run):
    shutil.rmtree(state_of(run, 30))
    state_of(run, 30).touch()
    assert falls_back(run, "state.json is missing")


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_state_that_cannot_be_looked_at_is_an_error_and_not_passed_over(run, name):
    """Rights, a network that is away: the state may be whole. (Root may read all; a link to itself nobody can.)"""
    file = state_of(run, 30) / name
    file.unlink()
    file.symlink_to(file)
    told = (
        rf"{name}: cannot be read \(Too many levels of symbolic links\): make it readable, or move .*step_00000030 away"
    )
    with pytest.raises(CheckpointError, match=told):
        newest_state(run)


def of_before(run, **changes):
    """Step 30's state as versions without a digest wrote it."""
    file = state_of(run, 30) / "state.json"
    content = json.loads(file.read_text()) | changes
    del content["digest"]
    file.write_text(json.dumps(content))


def test_a_state_of_before_without_a_digest_is_used(run):
    of_before(run)
    state, problems = newest_state(run)
    assert state.step == 30 and problems == []
    load_state(state, learner())


@pytest.mark.parametrize(
    "changes",
    [{"step": 31}, {"step": "30"}, {"step": 30.0}, {"scaler": 1}, {"sha256": "x"}, {"rcaler": {}}, {"sha256": {}}],
)
def test_a_state_of_before_that_does_not_agree_with_itself_is_not_used(run, changes):
    of_before(run, **changes)
    assert falls_back(run)


def test_states_are_ordered_by_their_steps_and_not_by_their_names(run):
    state_of(run, 20).rename(run / "checkpoints/step_20")
    state, _ = newest_state(run)
    assert state.step == 30


def test_a_state_that_changes_after_it_was_found_is_not_loaded(run):
    state, _ = newest_state(run)
    file = state.folder / "state.json"
    file.write_text(file.read_text().replace('"step": 30', '"step": 31'))
    with pytest.raises(CheckpointError, match="was changed while it was being read"):
        load_state(state, learner())


def test_a_run_whose_folder_is_gone_gets_no_new_one_for_a_state(tmp_path):
    with pytest.raises(CheckpointError, match=r"step_00000001: cannot be written \(No such file or directory\)"):
        save_state(tmp_path / "gone", 1, learner(), CARD, SCHEDULE, keep=2)
    assert not (tmp_path / "gone").exists()
