"""Heat maps: that they lie on what moves, that the decision rests on them, and that they are the network's own."""

import json

import numpy as np
import pytest
import torch
from numbered_video import write_numbered
from tiny_models import randomise, tiny_video
from tiny_predictor import nano_predictor
from torch import nn

from mvit_video.config.schema import InputSettings
from mvit_video.data.synthetic import (
    CLASSES,
    FPS,
    HEIGHT,
    VIDEO_FRAMES,
    WIDTH,
    Scene,
    draw_pose,
    draw_scene,
    draw_velocity,
    move,
    render,
    write_video,
)
from mvit_video.data.transforms import ViewTransform, crop_at, scale_for_crop, to_clip
from mvit_video.errors import ConfigError
from mvit_video.inference.explain import HeatClip, _spread, class_heat, crop_box, explain_video
from mvit_video.inference.predictor import Predictor
from mvit_video.report.outputs import explain_outputs
from mvit_video.report.render import heat_figure, heated

NUMBERS = np.linspace(6, 29, 8).astype(int)  # a clip from the middle


def scene_with_object(seed):
    """Frames of a demonstration video, (T, H, W, 3), and where its object is, (T, H, W)."""
    rng = np.random.default_rng([7, seed])
    scene, pose, velocity = draw_scene(rng), draw_pose(rng), draw_velocity(rng, seed % 8)
    poses = [move(pose, velocity, number / FPS) for number in range(VIDEO_FRAMES)]
    bare = Scene(scene.radii, np.ones((8, 8, 3)), np.zeros((HEIGHT, WIDTH, 3)))
    return np.stack([render(scene, pose) for pose in poses]), np.stack(
        [render(bare, pose)[..., 0] > 127 for pose in poses]
    )


@pytest.fixture(scope="module")
def predictor(small_run):
    return Predictor.from_checkpoint(small_run.weights, device="cpu")


@pytest.fixture(scope="module")
def trained_predictor(trained):
    return Predictor.from_checkpoint(trained.weights, device="cpu")


@pytest.fixture(scope="module")
def clips(predictor):
    """32 clips (C, T, H, W), four of each class, with their objects (T, H, W)."""
    settings, found = predictor.card.preprocessing, []
    view = ViewTransform(settings.crop_hw, settings.mean, settings.std, settings.short_side, 1)
    for seed in range(32):
        frames, covered = scene_with_object(seed)
        picture = to_clip(covered[NUMBERS, ..., None].repeat(3, 3).astype(np.uint8) * 255)
        seen = crop_at(scale_for_crop(picture, settings.short_side, settings.crop_hw), settings.crop_hw, 1)[0] > 0.5
        found.append((view(frames[NUMBERS])[0], seen))
    return found


def heat_at_pixels(model, clip, label):
    heat, _ = class_heat(model, clip[None], label)
    return torch.nn.functional.interpolate(heat[:, None], size=clip.shape[1:], mode="trilinear")[0, 0]


@pytest.mark.integration
def test_heat_lies_on_the_moving_object(trained_predictor, clips):
    """Times the heat that chance would put there; 2.3 on the mean over 96 clips when it was measured."""
    ratios = []
    for seed, (clip, covered) in enumerate(clips):
        heat = heat_at_pixels(trained_predictor.model, clip, seed % 8)
        ratios.append(float((heat * covered).sum() / heat.sum() / covered.float().mean()))
    assert np.mean(ratios) > 1.6 and np.mean(np.array(ratios) > 1) > 0.85


@pytest.mark.integration
def test_the_decision_rests_on_the_hottest_places(trained_predictor, clips):
    """They are replaced by what stands there most of the time; elsewhere the same does far less."""
    losses = {"hottest": [], "coldest": []}
    for seed, (clip, _) in enumerate(clips):
        heat = heat_at_pixels(trained_predictor.model, clip, seed % 8)
        still = clip.median(1, keepdim=True).values
        masks = {"hottest": heat > heat.quantile(0.85), "coldest": heat < heat.quantile(0.15)}
        with torch.no_grad():
            before = trained_predictor.model(clip[None]).softmax(1)[0, seed % 8]
            for name, mask in masks.items():
                after = trained_predictor.model(torch.where(mask, still, clip)[None]).softmax(1)[0, seed % 8]
                losses[name].append(float(before - after))
    assert np.mean(losses["hottest"]) > 0.06 and np.mean(losses["hottest"]) > 4 * abs(np.mean(losses["coldest"]))


def ranks(values):
    return values.flatten().argsort().argsort().float()


def similarity(one, other):
    """Rank correlation."""
    return float(torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1])


@pytest.mark.integration
def test_heat_depends_on_the_weights_from_the_head_down(trained_predictor, clips):
    """Cascading randomisation (arXiv 1810.03292): with each further part made random, the maps go further away."""
    model = Predictor(nano_predictor().model, trained_predictor.card, torch.device("cpu")).model
    chosen = [(clip, seed % 8) for seed, (clip, _) in enumerate(clips[:16])]
    expected = [class_heat(trained_predictor.model, clip[None], label)[0] for clip, label in chosen]
    noise = randomise(nano_predictor().model, seed=5).state_dict()
    actual = []
    for parts in ((), ("head.", "norm."), ("head.", "norm.", "blocks.3."), ("",)):
        mixed = {
            name: noise[name] if any(name.startswith(part) for part in parts) else value
            for name, value in trained_predictor.model.state_dict().items()
        }
        model.load_state_dict(mixed)
        heats = [class_heat(model, clip[None], label)[0] for clip, label in chosen]
        actual.append(float(np.mean([similarity(a, b) for a, b in zip(heats, expected, strict=True)])))
    assert actual[0] == pytest.approx(1, abs=1e-6)
    assert actual[1] < 0.97 and actual[3] < 0.75 and actual[3] < actual[1]


def test_heat_is_gradient_times_difference_from_the_mean_of_what_speaks_for_the_class():
    """By finite differences in double precision, on a network with two blocks in its last stage."""
    model = tiny_video().double()
    clip = torch.randn(1, 3, 8, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    entered = {}
    first = model.stage_ends[-2] + 1
    hook = model.blocks[first].register_forward_pre_hook(lambda block, arguments: entered.update(first=arguments))
    model(clip)
    hook.remove()
    tokens, thw = entered["first"]
    rest = model.blocks[first:]

    def logit(changed):
        x, grid = changed, thw
        for block in rest:
            x, grid = block(x, grid)
        return model.head(model.norm(x[:, :1]).mean(1))[0, 2]

    place, sums = 5, 0.0
    mean = tokens[:, 1:].mean(1)
    with torch.no_grad():
        for channel in range(tokens.shape[2]):
            step = torch.zeros_like(tokens)
            step[0, 1 + place, channel] = 1e-5
            slope = (logit(tokens + step) - logit(tokens - step)) / 2e-5
            sums += max(float(slope * (tokens[0, 1 + place, channel] - mean[0, channel])), 0.0)
    heat, logits = class_heat(model, clip, 2)
    second = class_heat_of_block(model, clip, 2, first + 1)
    assert float((heat - _spread(second, heat.shape[1:])).flatten()[place]) == pytest.approx(sums, rel=1e-5)
    assert torch.equal(logits, model(clip).detach())


def class_heat_of_block(model, clip, label, number):
    """The part of one block's input, by autograd over the whole network."""
    entered = {}

    def catch(block, arguments):
        arguments[0].retain_grad()
        entered["tokens"], entered["thw"] = arguments

    hook = model.blocks[number].register_forward_pre_hook(catch)
    model(clip)[0, label].backward()
    hook.remove()
    tokens = entered["tokens"]
    grid, gradient = tokens[:, 1:].detach(), tokens.grad[:, 1:]
    return ((grid - grid.mean(1, keepdim=True)) * gradient).clamp(min=0).sum(2).unflatten(1, entered["thw"])


def test_making_heat_leaves_the_network_as_it_was(clips, predictor):
    model = predictor.model
    needed = [parameter.requires_grad for parameter in model.parameters()]
    class_heat(model, clips[0][0][None], 0)
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(block._forward_pre_hooks for block in model.blocks)


def test_heat_between_frames_is_interpolated():
    clip = HeatClip(np.array([10, 20, 30, 40]), np.array([0.0, 1.0]).reshape(2, 1, 1), 0.5)
    found = [float(clip.at(number)[0, 0]) for number in (0, 10, 15, 20, 25, 30, 35, 40, 99)]
    assert found == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


@pytest.mark.parametrize("sampling", ["dense", "segment"])
def test_every_frame_of_a_video_has_its_clip(few_videos, sampling):
    predictor = nano_predictor(sampling=sampling)
    explanation = explain_video(predictor, few_videos / "long.mp4")
    assert len(explanation.clips) == (9 if sampling == "dense" else 1)
    for number in range(216):
        clip = explanation.clip_at(number)
        assert clip.numbers[-1] >= number or clip is explanation.clips[-1]
        assert clip.at(number).min() >= 0 and clip.at(number).max() <= 1
    for clip in explanation.clips:  # the best clip is never outshone by one in which the class is not seen
        assert clip.heat.max() == pytest.approx(clip.score / explanation.best.score)
    [prediction] = predictor(few_videos / "long.mp4")
    assert explanation.label == prediction.label and explanation.prediction == prediction


def test_scores_of_clips_are_the_predictors(few_videos):
    predictor = nano_predictor()
    explanation = explain_video(predictor, few_videos / "val/00000.mp4", CLASSES[3])
    from mvit_video.data.video.reader import VideoReader

    frames = VideoReader(few_videos / "val/00000.mp4").frames(range(24))
    [expected] = predictor(frames, top=8, fps=15)
    assert explanation.label == CLASSES[3]
    assert explanation.clips[0].score == pytest.approx(dict(expected.predictions)[CLASSES[3]], abs=1e-5)


def test_what_cannot_be_explained_is_one_sentence(few_videos):
    video = few_videos / "val/00000.mp4"
    with pytest.raises(
        ConfigError,
        match=r"label 'moving lift' is not one of the checkpoint's 8 classes \(did you mean 'moving left'\?\)",
    ):
        explain_video(nano_predictor(), video, "moving lift")
    with pytest.raises(
        ConfigError, match=r"cannot be explained: .* use one of our own networks, such as mvitv2_s_16x4$"
    ):
        explain_video(nano_predictor(model=nn.Flatten()), video)


@pytest.mark.integration
def test_times_are_the_files_own_where_the_frame_rate_varies(tmp_path):
    write_numbered(tmp_path / "gaps.mp4", 100, gaps=True)
    explain_outputs(nano_predictor(), str(tmp_path / "gaps.mp4"), tmp_path, None, lambda text: None)
    written = json.loads((tmp_path / "explain.json").read_text())
    shown = np.cumsum([0] + [8 if number % 3 == 0 else 4 for number in range(100)]) / 100
    explanation = explain_video(nano_predictor(), tmp_path / "gaps.mp4")
    assert len(written["clips"]) > 2
    for found, clip in zip(written["clips"], explanation.clips, strict=True):
        assert found["start"] == pytest.approx(shown[clip.numbers[0]])
        assert found["end"] == pytest.approx(shown[clip.numbers[-1] + 1], abs=0.05)
    figure = heat_figure(explanation, [1, 50], [np.zeros((48, 144, 3), np.uint8)] * 2)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["0.08 s", f"{shown[50]:.2f} s"]


@pytest.mark.parametrize("crop", [(40, 40), (40, 70), (70, 40)])
@pytest.mark.parametrize(("height", "width"), [(64, 80), (80, 64), (48, 48), (240, 1000)])
def test_the_box_is_what_the_network_sees(height, width, crop):
    settings = InputSettings(short_side=48, crop_size=crop)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    ramp = np.stack([rows, columns, np.zeros_like(rows)], 2)
    clip = crop_at(scale_for_crop(torch.from_numpy(ramp).float().permute(2, 0, 1)[:, None], 48, crop), crop, 1)
    top, left, tall, wide = crop_box(settings, height, width)
    edges = [clip[0].min(), clip[0].max(), clip[1].min(), clip[1].max()]
    expected = [top * height, (top + tall) * height, left * width, (left + wide) * width]
    assert [float(edge) for edge in edges] == pytest.approx(expected, abs=1.1 * min(height, width) / 48 + 0.5)


def test_heat_colours_only_what_was_seen():
    frame = np.full((60, 100, 3), 100, np.uint8)
    heat = np.zeros((6, 6))
    heat[:, 3:] = 1
    found = heated(frame, heat, (0.0, 0.2, 1.0, 0.6)).astype(int)
    assert (found[:, :20] == 35).all() and (found[:, 80:] == 35).all()
    assert (np.ptp(found[:, 22:40], axis=2) < 12).all(), "cold places stay grey"
    assert (found[:, 60:78, 0] > found[:, 60:78, 2] + 80).all(), "hot places are red"
    assert (frame == 100).all()


def test_the_picture_has_the_frames_above_their_heat(few_videos, tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((30, 64, 80, 3), np.uint8), 15)
    explanation = explain_video(nano_predictor(), tmp_path / "a.mp4")
    frames = [np.zeros((64, 80, 3), np.uint8)] * 4
    figure = heat_figure(explanation, [0, 5, 10, 15], frames)
    pictures = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in pictures[:4]] == ["0.00 s", "0.33 s", "0.67 s", "1.00 s"] and len(
        pictures
    ) >= 8
    assert f"'{explanation.label}'" in figure.get_suptitle()
