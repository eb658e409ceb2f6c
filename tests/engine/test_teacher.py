"""What a teacher is shown and asked: its own values, size and classes."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import relative_difference, tiny_video

from mvit_video.config.schema import InputSettings
from mvit_video.data.lists.class_names import published_classes
from mvit_video.engine.teacher import Teacher, read_teacher
from mvit_video.errors import ConfigError
from mvit_video.model.mvit import MViT
from mvit_video.model.mvit_variants import MVIT
from mvit_video.model.registry import MODELS, build_model, register_model
from mvit_video.model.weights import zoo
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.files import save_checkpoint

CPU = torch.device("cpu")
INPUT = dict(num_frames=8, sampling_rate=3, short_side=40, crop_size=32)
CLASSES = ("run", "jump", "sit", "wave", "pick")
PIXELS = torch.rand(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(2))


def card(classes=CLASSES, **changes):
    return ModelCard(
        name="mvitv2_s_16x4", arguments={}, classes=classes, preprocessing=InputSettings(**(INPUT | changes))
    )


def normalised(pixels, preprocessing):
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (pixels - mean) / std


def test_a_teacher_of_the_same_input_answers_bit_for_bit_and_gets_no_gradient():
    model = tiny_video(drop_path_rate=0.5, dropout_rate=0.5).train()
    teacher = Teacher(model, card(), card(), "t")
    clips = PIXELS.clone().requires_grad_()
    answer = teacher(clips)
    assert torch.equal(answer, tiny_video()(PIXELS).detach()) and not answer.requires_grad
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_values_are_converted_to_the_teachers_mean_and_deviation():
    values = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    student, theirs = card(), card(**values)
    teacher = Teacher(tiny_video(), theirs, student, "t")
    answer = teacher(normalised(PIXELS, student.preprocessing))
    expected = tiny_video()(normalised(PIXELS, theirs.preprocessing)).detach()
    assert relative_difference(answer, expected) < 1e-5
    assert relative_difference(tiny_video()(normalised(PIXELS, student.preprocessing)).detach(), expected) > 1e-2


@pytest.mark.parametrize("size", [24, (40, 48)])
def test_pictures_are_resized_to_the_teachers(size):
    short, crop = max(np.atleast_1d(size)), size if isinstance(size, tuple) else (size, size)
    teacher = Teacher(tiny_video(), card(crop_size=size, short_side=int(short)), card(), "t")
    planes = [
        Image.fromarray(plane).resize(crop[::-1], Image.Resampling.BILINEAR) for plane in PIXELS.flatten(0, 2).numpy()
    ]
    expected = tiny_video()(torch.tensor(np.stack(planes)).view(2, 3, 8, *crop)).detach()
    assert relative_difference(teacher(PIXELS), expected) < 1e-4


def test_classes_in_another_order_are_matched_by_name():
    shuffled = ("pick", "sit", "run", "wave", "jump")
    answer = Teacher(tiny_video(), card(shuffled), card(), "t")(PIXELS)
    plain = tiny_video()(PIXELS).detach()
    for place, name in enumerate(CLASSES):
        assert torch.equal(answer[:, place], plain[:, shuffled.index(name)])


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (
            CLASSES[:4],
            r"t.pth: lacks the class 'pick' \(4 classes, the training list 5\): a teacher needs the same class",
        ),
        ((*CLASSES, "fly"), r"t.pth: has the extra class 'fly' \(6 classes, the training list 5\)"),
        ((*CLASSES[:4], "Pick"), r"lacks the class 'pick' \(5 classes"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(theirs, told):
    with pytest.raises(ConfigError, match=told):
        Teacher(tiny_video(), card(theirs), card(), "t.pth")


@pytest.mark.parametrize(
    "change",
    [{"num_frames": 16}, {"sampling": "segment"}, {"sampling_rate": 4}, {"dense_step": "stride"}, {"target_fps": 15.0}],
)
def test_a_teacher_of_other_frames_is_refused(change):
    ((name, value),) = change.items()
    with pytest.raises(ConfigError, match=rf"was trained with {name} {value}, but data.{name} is \S+: make them equal"):
        Teacher(tiny_video(), card(**change), card(), "t.pth")


def test_segments_have_no_rate_to_agree_on():
    teacher = Teacher(tiny_video(), card(sampling="segment", sampling_rate=4), card(sampling="segment"), "t")
    assert len(teacher(PIXELS)) == len(PIXELS)


def test_a_saved_checkpoint_is_a_teacher_with_its_digest(tmp_path):
    named = ModelCard(name="mvitv2_nano_8x3", arguments={}, classes=CLASSES, preprocessing=InputSettings(**INPUT))
    model = model_from_card(named).eval()
    save_checkpoint(tmp_path / "t.safetensors", model, named)
    teacher = read_teacher(str(tmp_path / "t.safetensors"), card(), CPU)
    assert torch.equal(teacher(PIXELS), model(PIXELS).detach()) and len(teacher.digest) == 64


def test_a_baseline_that_was_trained_here_is_a_teacher(tmp_path):
    named = ModelCard(name="pytorchvideo/x3d_s", arguments={}, classes=CLASSES, preprocessing=InputSettings(**INPUT))
    model = model_from_card(named).eval()
    save_checkpoint(tmp_path / "t.safetensors", model, named)
    assert torch.equal(read_teacher(str(tmp_path / "t.safetensors"), card(), CPU)(PIXELS), model(PIXELS).detach())


def test_a_public_file_is_a_teacher_by_the_zoos_facts(tmp_path, monkeypatch, request):
    """Its name decides what it is; a small network stands for the large one. Classes are the shipped list's."""
    entry = zoo.ZOO["mvitv2_s_16x4_ssv2"].model_copy(update={"model": "small", "url": "h/small.pyth"})
    monkeypatch.setitem(zoo.ZOO, "small", entry)
    register_model("small", MViT, dict(depths=(1, 1), embed_dim=16), MVIT)
    request.addfinalizer(lambda: MODELS.forget(__name__))
    model = build_model("small", num_classes=174).eval()
    torch.save({"model_state": model.state_dict()}, tmp_path / "small.pyth")
    student = card(tuple(reversed(published_classes("ssv2"))), sampling="segment", num_frames=16)
    teacher = read_teacher(str(tmp_path / "small.pyth"), student, CPU)
    pixels = torch.rand(1, 3, 16, 224, 224)
    assert torch.equal(teacher(pixels), model(pixels).detach().flip(1))
