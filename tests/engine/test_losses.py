"""Several resolutions and distillation: losses and gradients against plain float64 arithmetic."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import tiny_video

from mvit_video.config.load import load_config
from mvit_video.config.schema import Config, TrainSettings
from mvit_video.data.mixing import mixer_from
from mvit_video.engine.losses import (
    check_resolutions,
    feature_distance,
    objective_from,
    resized,
    soft_distillation,
)
from mvit_video.engine.schedule import learning_rate_from
from mvit_video.engine.trainer import learner_from, trainer_from
from mvit_video.errors import ConfigError
from mvit_video.model.precision import resolve_precision

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(5)
CLIPS = torch.randn(6, 3, 8, 32, 32, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
TAUGHT = 3 * torch.randn(6, 5, generator=GENERATOR)
SIZES = ((24, 24), (16, 16))


def trainer(teacher=None, mix=None, **changes):
    settings = TrainSettings(
        **({"clips_per_step": 6, "base_lr": 0.1, "warmup_epochs": 0, "clip_gradient": None} | changes)
    )
    model = tiny_video(drop_path_rate=0.0, dropout_rate=0.0)
    learner, rate = (
        learner_from(settings, model, CPU, resolve_precision(settings.precision, CPU).name),
        learning_rate_from(settings, 100, 10),
    )
    return trainer_from(
        settings,
        learner,
        rate,
        mix or mixer_from(settings, 5),
        objective_from(settings, teacher),
        CPU,
        resolve_precision(settings.precision, CPU).name,
    )


def weights(machine):
    return {name: tensor.clone() for name, tensor in machine.learner.model.state_dict().items()}


def gradients(machine):
    return {name: parameter.grad for name, parameter in machine.learner.model.named_parameters()}


def cross_entropy_by_hand(logits, targets):
    """Mean over the rows, in plain numbers."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(value) for value in row))
        total += sum(share * (normaliser - value) for share, value in zip(target, row, strict=True))
    return total / len(logits)


def distance_by_hand(features, others):
    """Half the square where the difference is below 1, else the difference less a half; the mean of all."""
    differences = (features - others).abs().flatten().tolist()
    return sum(d * d / 2 if d < 1 else d - 0.5 for d in differences) / len(differences)


def shrunk_by_hand(clips, size):
    """Each frame alone, by Pillow's bilinear filter, which is anti-aliased and shares nothing with torch's."""
    planes = clips.flatten(0, 2).numpy()
    small = [np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR)) for plane in planes]
    return torch.tensor(np.stack(small)).view(*clips.shape[:3], *size)


def targets_by_hand(smoothing=0.1):
    return F.one_hot(LABELS, 5).double() * (1 - smoothing) + smoothing / 5


def answers_by_hand(sizes=SIZES):
    """Logits and features of each size in float64."""
    model = tiny_video().double()
    clips = [CLIPS, *(shrunk_by_hand(CLIPS, size) for size in sizes)]
    features = [model.pooled(part.double()) for part in clips]
    return [model.head(feature) for feature in features], features


def test_resizing_is_that_of_another_implementation_and_leaves_the_frames_alone():
    for size in ((24, 24), (10, 20), (40, 48)):
        found = resized(CLIPS, *size)
        assert found.shape == (6, 3, 8, *size)
        assert torch.allclose(found, shrunk_by_hand(CLIPS, size), atol=1e-5)


def test_the_loss_at_several_resolutions_is_the_mean_of_all_plus_the_distances_to_the_next_larger():
    """Features lie on both sides of the bend of the smooth L1."""
    logits, features = answers_by_hand()
    total = sum(cross_entropy_by_hand(answer, targets_by_hand()) for answer in logits)
    total += distance_by_hand(features[1], features[0]) + distance_by_hand(features[2], features[1])
    differences = (features[2] - features[1]).abs()
    assert (differences < 1).any() and (differences > 1).any()
    record = trainer(resolutions=SIZES).train_step(0, CLIPS, LABELS)
    assert record["loss"] == pytest.approx(total / 3, rel=1e-5)
    assert record["top1"] == pytest.approx(100 * (logits[0].argmax(1) == LABELS).double().mean().item())


def test_the_gradient_at_several_resolutions_is_that_of_one_sum_in_double_precision():
    """Also of the features: the larger one's is not pulled towards the smaller one's."""
    model = tiny_video().double()
    clips = [CLIPS, *(shrunk_by_hand(CLIPS, size) for size in SIZES)]
    features = [model.pooled(part.double()) for part in clips]
    loss = sum(F.cross_entropy(model.head(feature), targets_by_hand()) for feature in features)
    loss += sum(F.smooth_l1_loss(features[i], features[i - 1].detach()) for i in (1, 2))
    (loss / 3).backward()
    machine = trainer(resolutions=SIZES)
    record = machine.train_step(0, CLIPS, LABELS)
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients(machine)[name].double(), parameter.grad, rtol=1e-3, atol=1e-6), name
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_features_draw_the_smaller_resolution_only():
    """A network of one number per size: logits do not depend on it, so all of its gradient is the distance's."""
    numbers = {32: torch.tensor(2.0, requires_grad=True), 16: torch.tensor(2.5, requires_grad=True)}

    def network(clips, with_feature):
        return torch.zeros(6, 5), numbers[clips.shape[-1]].expand(6, 4)

    objective = objective_from(TrainSettings(resolutions=(16,)))
    for losses, _ in objective.parts(network, nullcontext, CLIPS, targets_by_hand().float()):
        if losses.requires_grad:
            losses.mean().backward()
    assert numbers[32].grad is None
    assert numbers[16].grad.item() == pytest.approx(0.5 / 2)


def test_one_resolution_is_in_memory_at_a_time():
    """The gradient of a part is taken before the next one is computed."""
    machine, order = trainer(resolutions=SIZES), []
    machine.learner.model.register_forward_hook(lambda module, clips, answer: order.append(clips[0].shape[-1]))
    machine.learner.model.cls_token.register_hook(lambda gradient: order.append("gradient"))
    machine.train_step(0, CLIPS, LABELS)
    assert order == [32, "gradient", 24, "gradient", 16, "gradient"]


@pytest.mark.parametrize(
    "changes", [{"resolutions": SIZES}, {"distillation": "hard"}, {"resolutions": (20,), "mixup": 0.8}]
)
def test_passes_give_the_step_in_one(changes):
    teacher = Small() if "distillation" in changes else None
    one = trainer(teacher, optimizer="sgd", **changes)
    several = trainer(teacher, optimizer="sgd", clips_per_pass=4, **changes)
    for number in range(2):
        first, second = (machine.train_step(number, CLIPS, LABELS) for machine in (one, several))
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
        assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-5)
    ours, theirs = weights(one), weights(several)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-6


def test_activation_checkpointing_changes_no_bit_at_several_resolutions():
    plain, lean = trainer(resolutions=SIZES), trainer(resolutions=SIZES)
    lean.learner.model.activation_checkpointing = True
    for number in range(2):
        assert plain.train_step(number, CLIPS, LABELS) == lean.train_step(number, CLIPS, LABELS)


def test_several_resolutions_in_bf16_follow_the_single_precision():
    half, full = (trainer(resolutions=SIZES, precision=name, ema_decay=0.9) for name in ("bf16", "fp32"))
    for number in range(2):
        losses = [machine.train_step(number, CLIPS, LABELS)["loss"] for machine in (half, full)]
        assert losses[0] == pytest.approx(losses[1], rel=0.03) and losses[0] != losses[1]
    assert not torch.equal(full.learner.average.model.norm.weight, full.learner.model.norm.weight)


class Small(torch.nn.Module):
    """A teacher that looks at the mean colours."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(20 * torch.randn(3, 5, generator=torch.Generator().manual_seed(8)))

    def forward(self, clips):
        return clips.mean((2, 3, 4)) @ self.weight.detach()


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_the_divergence_at_a_temperature(share, temperature):
    (logits,), _ = answers_by_hand(())
    total = 0.0
    for mine, theirs in zip(logits.tolist(), TAUGHT.double().tolist(), strict=True):
        p, q = ([math.exp(value / temperature) for value in row] for row in (theirs, mine))
        p, q = ([value / sum(row) for value in row] for row in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * temperature**2 / 6
    expected = (1 - share) * cross_entropy_by_hand(logits, targets_by_hand()) + share * total
    settings = dict(distillation_weight=share, distillation_temperature=temperature)
    assert trainer(lambda clips: TAUGHT, **settings).train_step(0, CLIPS, LABELS)["loss"] == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_hard_distillation_is_the_cross_entropy_of_the_teachers_best_class(share):
    (logits,), _ = answers_by_hand(())
    best = F.one_hot(TAUGHT.argmax(1), 5).double()
    assert (TAUGHT.argmax(1) != LABELS).any()
    expected = (1 - share) * cross_entropy_by_hand(logits, targets_by_hand()) + share * cross_entropy_by_hand(
        logits, best
    )
    machine = trainer(
        lambda clips: TAUGHT, distillation="hard", distillation_weight=share, distillation_temperature=9.0
    )
    assert machine.train_step(0, CLIPS, LABELS)["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_teacher_that_agrees_costs_nothing_and_draws_nothing():
    logits = torch.randn(4, 7, requires_grad=True)
    losses = soft_distillation(logits, logits.detach(), 2.0)
    losses.sum().backward()
    assert losses.abs().max() < 1e-6 and logits.grad.abs().max() < 1e-6
    assert torch.equal(feature_distance(logits.detach(), logits.detach()), torch.zeros(4))


def test_the_teacher_sees_the_mixed_clips_of_each_pass_at_full_size():
    seen = []

    def teacher(clips):
        seen.append(clips.clone())
        return torch.zeros(len(clips), 5)

    def mix(clips, labels, rng):
        return clips.flip(0) * 0.5, F.one_hot(labels, 5).float()

    trainer(teacher, mix, clips_per_pass=4, resolutions=(16,)).train_step(0, CLIPS, LABELS)
    assert [len(clips) for clips in seen] == [4, 2]
    assert torch.equal(torch.cat(seen), CLIPS.flip(0) * 0.5)


def test_distillation_at_several_resolutions_teaches_each_of_them():
    logits, features = answers_by_hand(((16, 16),))
    total = sum(
        0.5 * cross_entropy_by_hand(answer, targets_by_hand())
        + 0.5 * cross_entropy_by_hand(answer, F.one_hot(TAUGHT.argmax(1), 5).double())
        for answer in logits
    )
    total += distance_by_hand(features[1], features[0])
    machine = trainer(lambda clips: TAUGHT, distillation="hard", resolutions=(16,))
    assert machine.train_step(0, CLIPS, LABELS)["loss"] == pytest.approx(total / 2, rel=1e-5)


def test_a_network_without_a_feature_is_refused():
    settings = TrainSettings(resolutions=(16,))
    with pytest.raises(
        ConfigError, match=r"^'pytorchvideo/x3d_s' does not return the feature before its head, which train."
    ):
        check_resolutions("pytorchvideo/x3d_s", settings)
    check_resolutions("pytorchvideo/x3d_s", TrainSettings())
    check_resolutions("mvitv2_s_16x4", settings)


@pytest.mark.parametrize("sizes", ["[72]", "[56, 60]", "[80]", "[[56, 72]]"])
def test_resolutions_must_fall_from_the_crop(tmp_path, sizes):
    (tmp_path / "c.yaml").write_text("data: {crop_size: 72, short_side: 80}")
    with pytest.raises(
        ConfigError, match=r"^command line, .*: train.resolutions .* is not smaller than \S+: name sizes"
    ):
        load_config(tmp_path / "c.yaml", [f"train.resolutions={sizes}"])
    config = load_config(tmp_path / "c.yaml", ["train.resolutions=[64, 40]"])
    assert config.train.resolutions == (64, 40) and Config().train.resolutions == ()
