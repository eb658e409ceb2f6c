"""The training step: loss, passes, precisions, frozen parts, and steps that are no numbers."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import relative_difference, tiny_video
from torch.utils._python_dispatch import TorchDispatchMode

from mvit_video.config.schema import TrainSettings
from mvit_video.data.mixing import mixer_from
from mvit_video.engine import trainer as engine
from mvit_video.engine.losses import objective_from
from mvit_video.engine.nonfinite import GuardedStep
from mvit_video.engine.schedule import learning_rate_from
from mvit_video.engine.trainer import learner_from, trainer_from
from mvit_video.errors import TrainingError
from mvit_video.model.precision import resolve_precision

CPU = torch.device("cpu")
CLIPS = torch.randn(6, 3, 8, 32, 32, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
BATCH = {
    "video": CLIPS,
    "label": LABELS,
    "video_name": [f"v{place}.mp4" for place in range(6)],
    "video_index": list(range(10, 16)),
    "clip_index": [0] * 6,
    "aug_index": [0, 1] * 3,
}


def trainer(model=None, mix=None, **changes):
    settings = TrainSettings(
        **({"clips_per_step": 6, "base_lr": 0.1, "warmup_epochs": 0, "clip_gradient": None} | changes)
    )
    rate = learning_rate_from(settings, 100, 10)
    learner = learner_from(
        settings,
        tiny_video(drop_path_rate=0.0, dropout_rate=0.0) if model is None else model,
        CPU,
        resolve_precision(settings.precision, CPU).name,
    )
    return trainer_from(
        settings,
        learner,
        rate,
        mix or mixer_from(settings, 5),
        objective_from(settings),
        CPU,
        resolve_precision(settings.precision, CPU).name,
    )


def halved(**changes):
    """fp16 with a loss scale that the large weights of these networks can bear."""
    machine = trainer(precision="fp16", **changes)
    machine.learner.scaler.load_state_dict(machine.learner.scaler.state_dict() | {"scale": 2.0**8})
    return machine


def guarded_step(machine, run, stop=True):
    return GuardedStep(machine.train_step, run, stop)


def step(machine, number=0, clips=CLIPS):
    return machine.train_step(number, clips, LABELS)


def weights(machine):
    return {name: tensor.clone() for name, tensor in machine.learner.model.state_dict().items()}


def largest_difference(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("clips_per_pass", [1, 2, 4, 6, 7])
def test_a_step_in_several_passes_is_the_step_in_one(clips_per_pass):
    """Also where the last pass is smaller, and where one is enough."""
    one = trainer(optimizer="sgd", clip_gradient=0.5)
    several = trainer(optimizer="sgd", clip_gradient=0.5, clips_per_pass=clips_per_pass)
    for number in range(2):
        first, second = step(one, number), step(several, number)
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
        assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-5)
        assert first["top1"] == second["top1"]
    assert largest_difference(weights(one), weights(several)) < 1e-6


def test_the_loss_is_the_soft_cross_entropy_of_a_loop():
    """Targets that are a mixture of two classes."""
    targets = 0.3 * F.one_hot(LABELS, 5) + 0.7 * F.one_hot(LABELS.flip(0), 5)
    machine = trainer(mix=lambda clips, labels, rng: (clips, targets))
    machine.learner.model.eval()
    logits = machine.learner.model(CLIPS).detach().double().numpy()
    total = 0.0
    for row, target in zip(logits, targets.double().numpy(), strict=True):
        total -= sum(share * (value - math.log(np.exp(row).sum())) for share, value in zip(target, row, strict=True))
    machine.learner.model.train()
    assert step(machine)["loss"] == pytest.approx(total / 6, rel=1e-5)


def test_mixing_sees_the_whole_step_and_draws_from_seed_and_step():
    seen = []

    def mix(clips, labels, rng):
        seen.append((len(clips), rng.random()))
        return clips, F.one_hot(labels, 5).float()

    machine = trainer(mix=mix, clips_per_pass=2)
    for number in (0, 1, 0):
        step(machine, number)
    assert [count for count, _ in seen] == [6, 6, 6]
    assert seen[0] == seen[2] != seen[1]


def test_the_rate_of_each_layer_is_its_share():
    machine = trainer(layer_decay=0.5)
    assert step(machine)["lr"] == pytest.approx(0.1 * 6 / 512)
    rates = sorted({group["lr"] for group in machine.learner.optimizer.param_groups}, reverse=True)
    assert rates == pytest.approx([0.1 * 6 / 512 * 2.0**-layer for layer in range(5)])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_follows_the_single_one(precision):
    half, full = halved() if precision == "fp16" else trainer(precision="bf16"), trainer(precision="fp32")
    for number in range(2):
        assert step(half, number)["loss"] == pytest.approx(step(full, number)["loss"], rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in weights(half).values())
    assert 0 < largest_difference(weights(half), weights(full)) < 0.01


def test_fp16_gradients_are_scaled_back_before_they_are_clipped():
    half, full = (make(clip_gradient=1e-3, optimizer="sgd", base_lr=100.0) for make in (halved, trainer))
    before = weights(half)
    norms = [step(machine)["gradient_norm"] for machine in (half, full)]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)
    moved = [weights(machine)["norm.weight"] - before["norm.weight"] for machine in (half, full)]
    assert relative_difference(*moved) < 0.1


def test_an_fp16_overflow_lowers_the_scale_and_is_no_fault(tmp_path):
    machine = trainer(precision="fp16")
    machine.learner.scaler.load_state_dict(machine.learner.scaler.state_dict() | {"scale": 2.0**18})
    before, guarded = weights(machine), guarded_step(machine, tmp_path)
    record = guarded(0, BATCH)
    assert record["skipped"] == 1 and record["gradient_norm"] is None and math.isfinite(record["loss"])
    assert machine.learner.scaler.get_scale() == 2.0**17
    assert equal(before, weights(machine)) and list(tmp_path.iterdir()) == []
    number = 1
    while "skipped" in guarded(number, BATCH):
        number += 1
    assert not equal(before, weights(machine))


def test_a_linear_probe_moves_the_head_alone_and_runs_the_rest_as_in_evaluation():
    """Drop path and dropout are off: the features, and so the loss, do not depend on the step's seed."""
    machine = trainer(tiny_video(drop_path_rate=0.5, dropout_rate=0.5), trainable="head", optimizer="sgd")
    before = weights(machine)
    assert step(trainer(tiny_video(), trainable="head"), 1)["loss"] == step(machine, 0)["loss"]
    after = weights(machine)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.projection.weight", "head.projection.bias"}
    machine.learner.model.train()
    machine.train_mode()
    assert not any(module.training for module in machine.learner.model.modules())


def test_a_linear_probe_leaves_the_statistics_of_batch_norms_alone():
    model = torch.nn.Sequential(torch.nn.BatchNorm3d(3), torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 32 * 32, 5))
    machine = trainer(model, trainable="head")
    step(machine)
    assert torch.equal(model[0].running_mean, torch.zeros(3)) and torch.equal(model[0].weight, torch.ones(3))


@pytest.mark.parametrize("changes", [{}, {"trainable": "head"}])
def test_training_everything_trains_everything(changes):
    machine = trainer(tiny_video(drop_path_rate=0.5), **changes)
    assert all(module.training for module in machine.learner.model.modules()) == (not changes)


def test_activation_checkpointing_changes_no_bit():
    plain, lean = trainer(tiny_video(drop_path_rate=0.3)), trainer(tiny_video(drop_path_rate=0.3))
    lean.learner.model.activation_checkpointing = True
    for number in range(2):
        assert step(plain, number) == step(lean, number)
    assert equal(weights(plain), weights(lean))


def test_compiling_wraps_the_network_and_leaves_the_saved_names(monkeypatch):
    """What compilation computes is tested with the model; here, that the switch uses it."""
    compiled = []
    monkeypatch.setattr(engine.torch, "compile", lambda model, dynamic: compiled.append((model, dynamic)) or model)
    machine = trainer(compile=True)
    assert compiled == [(machine.learner.model, None)]
    trainer(compile=False)
    assert len(compiled) == 1
    trainer(compile=True, resolutions=(16,))
    assert compiled[1][1] is False, "each size has a graph of its own"
    assert "cls_token" in weights(machine)


def planted(value):
    """A batch whose third clip holds `value`."""
    clips = CLIPS.clone()
    clips[2, 0, 0, 0, 0] = value
    return BATCH | {"video": clips}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_no_number_stops_with_the_ids_of_its_clips_on_disk(tmp_path, value):
    machine = trainer(ema_decay=0.9)
    before, averaged = weights(machine), machine.learner.average.model.state_dict()
    averaged = {name: tensor.clone() for name, tensor in averaged.items()}
    with pytest.raises(TrainingError) as caught:
        guarded_step(machine, tmp_path)(7, planted(value))
    report = tmp_path / "nonfinite_step_00000008.json"
    assert str(caught.value) == (
        "step 8: the loss is nan and the gradient's norm nan at learning rate "
        f"{machine.learning_rate(7):.3g}: its clips are in {report}; lower train.base_lr and resume from an earlier "
        "state, or set train.on_nonfinite=skip"
    )
    found = json.loads(report.read_text())
    assert found["step"] == 8 and found["lr"] == machine.learning_rate(7)
    assert found["loss"] == "nan" and found["gradient_norm"] == "nan"
    assert [clip["video_name"] for clip in found["clips"]] == BATCH["video_name"]
    assert found["clips"][2] == {
        "video_name": "v2.mp4", "video_index": 12, "clip_index": 0, "aug_index": 0, "label": 2, "loss": "nan",
    }  # fmt: skip
    assert [isinstance(clip["loss"], float) for clip in found["clips"]] == [True, True, False, True, True, True]
    assert equal(before, weights(machine)) and equal(averaged, machine.learner.average.model.state_dict())
    assert not machine.learner.optimizer.state_dict()["state"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_skipped_step_leaves_everything_as_it_was_and_the_next_goes_on(tmp_path, precision):
    machine, other = (trainer(precision=precision, ema_decay=0.9) for _ in range(2))
    guarded = guarded_step(machine, tmp_path, stop=False)
    record = guarded(0, planted(float("nan")))
    assert record == {
        "loss": None,
        "lr": machine.learning_rate(0),
        "gradient_norm": None,
        "top1": record["top1"],
        "skipped": 1,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["nonfinite_step_00000001.json"]
    other.learner.scaler.load_state_dict(machine.learner.scaler.state_dict())
    assert guarded(1, BATCH) == guarded_step(other, tmp_path, stop=False)(1, BATCH)
    assert equal(weights(machine), weights(other))


def test_a_skipped_step_leaves_the_statistics_of_batch_norms_as_they_were(tmp_path):
    model = torch.nn.Sequential(torch.nn.BatchNorm3d(3), torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 32 * 32, 5))
    guarded = guarded_step(trainer(model, clips_per_pass=2), tmp_path, stop=False)
    guarded(0, BATCH)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert before["0.num_batches_tracked"] == 3
    assert guarded(1, planted(float("nan")))["skipped"] == 1
    assert equal(dict(model.named_buffers()), before)


def test_a_run_that_only_skips_stops(tmp_path):
    guarded = guarded_step(trainer(), tmp_path, stop=False)
    for number in range(9):
        assert guarded(number, planted(float("nan")))["skipped"] == 1
    with pytest.raises(
        TrainingError, match=r"00000010.json; 10 consecutive steps failed: lower train.base_lr and resume"
    ):
        guarded(9, planted(float("nan")))
    assert len(list(tmp_path.iterdir())) == 10


class Waits(TorchDispatchMode):
    """Counts the operations that make a host wait for its device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.integration
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_number_is_read_but_those_of_the_record(precision):
    """The one `tolist` of a step is no operation of its own; `item`, `bool` and masks would be. Targets are given, since
    one_hot looks at its labels on a CPU."""
    targets = F.one_hot(LABELS, 5).float()
    settings = dict(precision=precision, ema_decay=0.9, clip_gradient=0.5, clips_per_pass=3)
    machine = trainer(mix=lambda clips, labels, rng: (clips, targets), **settings)
    step(machine)
    with Waits() as waits:
        step(machine, 1)
        assert waits.count == 0
        bool(torch.ones(1))
        assert waits.count == 1
