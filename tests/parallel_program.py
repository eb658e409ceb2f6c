"""What test_parallel.py compares between one process and two: `python parallel_program.py FOLDER`, alone or by torchrun."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_models import tiny_masked, tiny_video

from mvit_video.config.schema import InputSettings, PretrainSettings, TrainSettings
from mvit_video.data.loader import StepSampler
from mvit_video.data.mixing import mixer_from
from mvit_video.engine.checkpoint import load_state, newest_state, save_state
from mvit_video.engine.distributed import is_rank_zero, process_group, rank, world_size
from mvit_video.engine.hooks.averaging import AverageWeights
from mvit_video.engine.loop import Hook, Loop, Steps
from mvit_video.engine.losses import objective_from
from mvit_video.engine.masked import MaskedObjective, hidden_weights, masked_objective_from
from mvit_video.engine.nonfinite import NonFiniteStep, write_report
from mvit_video.engine.parallel import full_tensors
from mvit_video.engine.trainer import learner_from, trainer_from
from mvit_video.model.precision import resolve_precision
from mvit_video.model.weights.card import ModelCard

CPU = torch.device("cpu")
CLIPS = torch.randn(8, 3, 8, 32, 32, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
MASKS = (
    torch.rand(8, 4, 2, 2, generator=torch.Generator().manual_seed(4))
    < torch.linspace(0.1, 0.9, 8)[:, None, None, None]
).byte()
CARD = ModelCard(name="mvitv2_s_16x4", arguments={}, classes=tuple("abcde"), preprocessing=InputSettings())
MIXED = {"mixup": 0.8, "cutmix": 1.0}
SCENARIOS = {  # settings, then how many of the step's first clips the first process has, or None for its share
    "plain": ({"optimizer": "sgd"}, None),
    "mixed": ({"optimizer": "sgd", "clips_per_pass": 3, "ema_decay": 0.9, "clip_gradient": 0.5, **MIXED}, None),
    "adamw": ({"ema_decay": 0.9, "activation_checkpointing": True, "clips_per_pass": 2}, None),
    "resolutions": ({"optimizer": "sgd", "clips_per_pass": 2, "ema_decay": 0.9, "resolutions": (24, 16)}, 3),
    "uneven": ({"optimizer": "sgd", "clips_per_pass": 2}, 1),
    "empty": ({"optimizer": "sgd", "clips_per_pass": 3, "ema_decay": 0.9}, 0),
    "masked": ({"optimizer": "sgd", "clips_per_pass": 2, "ema_decay": 0.9, "objective": "masked"}, 3),
}
PARTS = {
    "ddp": ("plain", "mixed", "resolutions", "uneven", "empty", "masked"),
    "fsdp": ("mixed", "adamw", "resolutions", "empty", "masked"),
}


def trainer(parallel="ddp", **changes):
    settings = TrainSettings(**{"clips_per_step": 8, "clip_gradient": None, "parallel": parallel, **changes})
    masked = settings.objective == "masked"
    model = tiny_masked(drop_path_rate=0.0) if masked else tiny_video(drop_path_rate=0.0, dropout_rate=0.0)
    model.activation_checkpointing = settings.activation_checkpointing
    learner = learner_from(settings, model, CPU, resolve_precision(settings.precision, CPU).name)
    return trainer_from(
        settings,
        learner,
        lambda step: 0.01,
        hidden_weights if masked else mixer_from(settings, 5),
        masked_objective_from(PretrainSettings(), model) if masked else objective_from(settings),
        CPU,
        resolve_precision(settings.precision, CPU).name,
    )


def places(first):
    """Which of the step's clips are this process's."""
    if world_size() == 1:
        return np.arange(8)
    if first is not None:
        return np.arange(first) if rank() == 0 else np.arange(first, 8)
    return StepSampler(8, 8, 0, 0, 1, 1, rank(), world_size()).places


class Keep(Hook):
    """The records of all steps."""

    def __init__(self):
        self.records = []

    def after_step(self, loop):
        self.records.append(loop.record)


def train(machine, mine, steps):
    """Some steps on this process's clips, as a run makes them; their records."""
    kept, average = Keep(), machine.learner.average
    hooks = [kept] if average is None else [kept, AverageWeights(average, machine.learner.model)]
    answers = MASKS if isinstance(machine.objective, MaskedObjective) else LABELS
    batch = {"video": CLIPS[mine], "label": answers[mine]}
    Loop(
        lambda number, batch: machine.train_step(number, batch["video"], batch["label"]), Steps(0, steps, steps), hooks
    ).run([batch] * steps)
    return kept.records


def run_scenario(name, parallel, folder):
    changes, first = SCENARIOS[name]
    machine, mine = trainer(parallel, **changes), places(first)
    records = train(machine, mine, 2)
    tensors = {f"model.{key}": value for key, value in full_tensors(machine.learner.model.state_dict()).items()}
    if machine.learner.average is not None:
        average = full_tensors(machine.learner.average.model.state_dict())
        tensors |= {f"average.{key}": value for key, value in average.items()}
    if is_rank_zero():
        save_file(tensors, folder / f"{name}_{parallel}.safetensors")
        (folder / f"{name}_{parallel}.json").write_text(json.dumps(records))


def meet_nan(parallel, folder):
    """In the first clip of the step only; every process must say the same and keep its weights."""
    machine, mine = trainer(parallel), places(None)
    clips = CLIPS[mine].clone()
    clips[mine == 0] = float("nan")
    before = full_tensors(machine.learner.model.state_dict())
    batch = {
        "label": LABELS[mine],
        **dict.fromkeys(("video_name", "video_index", "clip_index", "aug_index"), mine.tolist()),
    }
    try:
        machine.train_step(0, clips, LABELS[mine])
    except NonFiniteStep as failure:
        write_report(folder, failure, batch)
        after = full_tensors(machine.learner.model.state_dict())
        assert all(torch.equal(before[name], after[name]) for name in before)
        return
    raise AssertionError("no process may go on")


def go_on(folder, states):
    """Two steps more from the state in `states`, saved again in `folder`; with averaged weights."""
    for parallel in ("ddp", "fsdp"):
        machine = trainer(parallel, optimizer="sgd", ema_decay=0.9)
        state, _ = newest_state(states)
        if state is not None:
            load_state(state, machine.learner)
        train(machine, places(None), 2)
        if is_rank_zero():
            (folder / parallel).mkdir(exist_ok=True)
        save_state(folder / parallel, 2, machine.learner, CARD, {}, keep=1)


def main(folder, states):
    with process_group():
        for parallel in ("ddp", "fsdp"):
            for name in PARTS[parallel]:
                run_scenario(name, parallel, folder)
            if world_size() > 1:
                meet_nan(parallel, folder)
        go_on(folder, states)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
