"""The plan in words: every shipped configuration without its data, and numbers against plain arithmetic."""

import pytest
import torch
from conftest import REPOSITORY

from mvit_video import cli
from mvit_video.config.load import load_config
from mvit_video.config.schema import InputSettings
from mvit_video.engine import dry_run as dry_run_module
from mvit_video.engine.automatic import resolve_auto
from mvit_video.engine.dry_run import dry_run
from mvit_video.engine.plan import RunPlan, giga_multiply_adds, meta_model
from mvit_video.errors import CheckpointError
from mvit_video.evaluation.protocols import Protocol
from mvit_video.model.weights.auto import resolve_model_name
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.files import save_checkpoint

CPU = torch.device("cpu")
CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.yaml") if path.parent.name != "_base_")


def plan(recipe, *words, num_videos=240_000, num_classes=400):
    """Subject -> text."""
    config = resolve_model_name(load_config(REPOSITORY / f"configs/{recipe}.yaml", words))
    config = resolve_auto(config, num_videos, num_classes)
    lines = RunPlan(config, CPU, meta_model(config, num_classes), num_classes, num_videos).text().splitlines()
    return {"summary": lines[0]} | dict(line.strip().split(": ", 1) for line in lines[1:])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_config_goes_through_dry_run(capsys, monkeypatch, config):
    """Without data, without output, with all of its lines. Multiply-adds, which take seconds, have their own test."""
    monkeypatch.setattr(dry_run_module, "giga_multiply_adds", lambda config: 1234.56)
    masked = load_config(config).train.objective == "masked"
    verb, classes = ("pretrain", []) if masked else ("train", ["--num-classes", "10"])
    assert cli.main([verb, str(config), "--dry-run", "--num-videos", "5000", *classes, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    what = "pre-training without labels" if masked else "10 classes"
    assert f"parameters, {what}; 5,000 training videos" in lines[0]
    subjects = [line.strip().partition(":")[0] for line in lines[1:] if not line.startswith("  auto for 5000")]
    assert subjects == [
        "network", "clips", "augmentation", "mask" if masked else "mixing",
        "loss", "optimiser", "learning rate", "steps", "precision", "memory", "evaluation",
    ]  # fmt: skip
    assert "1,234.6 G multiply-adds per clip" in lines[1]


@pytest.mark.parametrize(
    ("recipe", "videos", "steps"),
    [
        ("kinetics400/mvitv2_s_16x4", "400 classes; 240,000 training videos, 200 epochs of 937 steps", "95,948,800"),
        ("kinetics400/mvitv2_b_32x3", "400 classes; 240,000 training videos, 200 epochs of 937 steps", "95,948,800"),
        ("kinetics400/mvitv2_l_40x3", "400 classes; 240,000 training videos, 30 epochs of 3750 steps", "14,400,000"),
        ("ssv2/mvitv2_s_16x4", "174 classes; 168,913 training videos, 100 epochs of 329 steps", "16,844,800"),
        ("ssv2/mvitv2_l_40x3", "174 classes; 168,913 training videos, 40 epochs of 329 steps", "6,737,920"),
        ("kinetics400/maskfeat_s_16x4_pretrain", "without labels; 240,000 training videos, 300 epochs of 468 steps", "71,884,800"),
        ("kinetics400/maskfeat_l_16x4_finetune", "400 classes; 240,000 training videos, 75 epochs of 937 steps", "35,980,800"),
        ("demo/motion", "8 classes; 768 training videos, 12 epochs of 24 steps", "9,216"),
    ],
)  # fmt: skip
def test_a_published_recipe_has_its_whole_plan_without_its_data(monkeypatch, recipe, videos, steps):
    monkeypatch.setattr(dry_run_module, "giga_multiply_adds", lambda config: None)
    text = dry_run(load_config(REPOSITORY / f"configs/{recipe}.yaml", ["data.root=nowhere"]), CPU)
    assert videos in text.splitlines()[0] and f"{steps} clips in total" in text
    assert ": assuming " in text.splitlines()[-1] and "data.train cannot be read (nowhere/" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_config_evaluates_with_views_that_its_sampling_has(path):
    config = resolve_model_name(load_config(path))
    Protocol.parse(config.evaluation.protocol).check(config.data.input)


def test_the_plan_of_the_kinetics_recipe_is_in_effective_numbers():
    """240,000 videos twice each make 937 steps of 512 clips an epoch."""
    found = plan("kinetics400/mvitv2_s_16x4", "train.clips_per_step=256")
    assert found["summary"] == (
        "mvitv2_s_16x4: 34,537,744 parameters, 400 classes; 240,000 training videos, 200 epochs of 1875 steps of 256 clips"
    )
    assert found["learning rate"] == (
        "5e-07 at the start, 0.0008 after 30 epochs of warm-up (56,250 steps), 5e-07 at the end, "
        "that is base_lr 0.0016 × 256 / 512 clips"
    )
    assert found["steps"] == "1 to 375,000, 96,000,000 clips in total, state saved every 500"
    assert found["clips"] == "16 frames from 2.1 s (4 apart at 30 fps), 224×224 pixels, mean 0.45, std 0.225"
    assert found["augmentation"] == (
        "2 clips per video, a box of 8% to 100% of the frame, half of them flipped, "
        "RandAugment rand-m7-n4-mstd0.5-inc1, a box erased in 25%"
    )
    assert found["mixing"] == "mixup 0.8 or CutMix 1 in 100% of the steps, CutMix in 50% of these, label smoothing 0.1"
    assert found["memory"] == "16 clips at once in 16 passes per step, no activation checkpointing"
    views = "5x1 views (clips × crops) at a short side of 256"
    assert found["evaluation"] == f"every 10 epochs with one view per video, {views} by mvit-video evaluate"
    found = plan("kinetics400/mvitv2_s_16x4", "data.val=null", "data.test=t.csv", "evaluation.after_training=true")
    assert found["evaluation"] == f"none during training (no data.val), {views} at the end"


def test_the_plan_of_the_something_recipe_is_in_effective_numbers():
    found = plan("ssv2/mvitv2_l_40x3", num_classes=174, num_videos=168_913)
    assert found["learning rate"].startswith(
        "1e-06 at the start, 0.02 after 3 epochs of warm-up (987 steps), 1e-06 at the end"
    )
    assert found["optimiser"] == (
        "SGD with Nesterov momentum 0.9, weight decay 0.0001 (except biases and norms), gradient clipped to norm 2"
    )
    assert found["clips"].startswith(
        "40 frames, one from each equal part of the video, 312×312 pixels, mean 0.406 0.456 0.485"
    )
    assert "a crop at a short side of 356 to 446, none flipped" in found["augmentation"]
    assert found["mixing"] == "none, label smoothing 0.1"
    assert found["memory"] == "2 clips at once in 256 passes per step, activation checkpointing"
    assert "starting from mvitv2_l_40x3_k400, drop_path_rate 0.75" in found["network"]


def test_the_published_fine_tuning_of_l_has_its_rate_at_128_clips():
    found = plan("kinetics400/mvitv2_l_40x3")
    assert found["learning rate"].startswith("1.6e-05 at the start, no warm-up, 2.5e-07 at the end")
    assert "weight decay 1e-08" in found["optimiser"] and "gradient not clipped" in found["optimiser"]


def test_what_is_learnt_shows_in_the_plan():
    assert plan("custom/finetune")["loss"] == "cross-entropy at 224×224 pixels"
    words = ["train.resolutions=[160, 128]", "train.teacher=t.safetensors", "train.distillation_temperature=3"]
    assert plan("custom/finetune", *words)["loss"] == (
        "cross-entropy at 224×224 and 160×160 and 128×128 pixels, smooth L1 between the feature of each and the next larger "
        "one's, 50% of it distilled from t.safetensors (soft at temperature 3)"
    )
    words = ["train.teacher=t.safetensors", "train.distillation=hard", "train.distillation_weight=0.3"]
    assert plan("custom/finetune", *words)["loss"].endswith("30% of it distilled from t.safetensors (hard)")


def test_a_dry_run_refuses_several_resolutions_of_a_network_without_a_feature(capsys):
    words = ["--dry-run", "--num-videos", "50", "--num-classes", "5", "model.name=pytorchvideo/x3d_s"]
    assert cli.main(["train", str(REPOSITORY / "configs/custom/multi_resolution.yaml"), *words]) == 1
    assert (
        "'pytorchvideo/x3d_s' does not return the feature before its head, which train.res" in capsys.readouterr().err
    )


def test_switches_show_in_the_plan():
    words = ["train.ema_decay=0.999", "train.precision=fp16", "train.compile=true", "train.deterministic=true"]
    words += ["train.clips_per_pass=null", "train.trainable=head", "data.color_jitter=0.4", "data.randaugment=null"]
    found = plan("custom/finetune", *words)
    assert found["memory"] == ("32 clips at once, no activation checkpointing, averaged weights (decay 0.999)")
    assert found["precision"] == "fp16, deterministic algorithms, compiled"
    assert "layer decay 0.75" in found["optimiser"]
    assert "colour jitter 0.4" in found["augmentation"] and "RandAugment" not in found["augmentation"]
    assert found["network"].startswith(f"{768 * 400 + 400:,} of 34,537,744 parameters trained")


@pytest.mark.parametrize(
    ("recipe", "published"),
    [
        ("kinetics400/mvitv2_s_16x4", 64.5),
        pytest.param("kinetics400/mvitv2_b_32x3", 225, marks=pytest.mark.long),
        pytest.param("kinetics400/mvitv2_l_40x3", 2828, marks=pytest.mark.long),
    ],
)
def test_multiply_adds_are_the_published_ones_but_for_the_norms(recipe, published):
    """fvcore, which the paper counts with, adds an estimate for layer norms: less than half a percent."""
    found = giga_multiply_adds(load_config(REPOSITORY / f"configs/{recipe}.yaml"))
    assert 0.995 * published < found < published


def test_multiply_adds_of_baselines_are_left_to_the_benchmark():
    config = load_config(REPOSITORY / "configs/kinetics400/mvitv2_s_16x4.yaml", ["model.name=pytorchvideo/x3d_s"])
    assert giga_multiply_adds(config) is None


def test_a_list_that_is_there_is_counted(few_videos):
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={few_videos}", "train.clips_per_step=4"])
    text = dry_run(config, CPU)
    assert text.startswith(
        "mvitv2_nano_8x3: 321,544 parameters, 8 classes; 16 training videos, 12 epochs of 4 steps of 4 clips"
    )
    assert "not read" not in text and "starting from random weights of seed 0" in text


def test_weights_that_are_there_are_tried_and_ones_that_do_not_fit_are_refused(few_videos, tmp_path):
    def of(name: str, **arguments) -> str:
        file = tmp_path / f"{name}.safetensors"
        settings = InputSettings(num_frames=8, sampling_rate=3, short_side=32, crop_size=32)
        card = ModelCard(name=name, arguments=arguments, classes=("a", "b", "c"), preprocessing=settings)
        save_checkpoint(file, model_from_card(card), card)
        return f"model.weights={file}"

    words = [f"data.root={few_videos}", "train.clips_per_step=4"]
    fitting = of("mvitv2_nano_8x3", residual_pooling=False)
    text = dry_run(load_config(REPOSITORY / "configs/demo/motion.yaml", [*words, fitting]), CPU)
    assert "2 new (head.projection.weight, head.projection.bias)" in text
    assert "residual_pooling=False where this one has True" in text
    other = of("pvt_v2_b0_16x4", embed_dims=[16, 32, 40, 64])
    with pytest.raises(
        CheckpointError, match=r"these are weights of pvt_v2_b0_16x4 with embed_dims=.*, so build that one"
    ):
        dry_run(load_config(REPOSITORY / "configs/demo/motion.yaml", [*words, other]), CPU)


def test_a_list_that_is_not_there_is_said_and_nothing_is_made_up():
    words = ["data.root=nowhere", "data.planned_videos=null", "data.planned_classes=null"]
    text = dry_run(load_config(REPOSITORY / "configs/ssv2/mvitv2_s_16x4.yaml", words), CPU)
    assert "400 classes; unknown number of training videos, 100 epochs in steps of 512 clips" in text
    assert "0.02 after 3 epochs of warm-up, 1e-06 at the end" in text
    assert "steps: 100 epochs, each video once" in text and "in total" not in text
    assert text.endswith(
        "data.train cannot be read (nowhere/something-something-v2-train.json: no such file): assuming an unknown number of videos "
        "and the network's default classes; set --num-videos N and --num-classes N"
    )


@pytest.mark.integration
def test_dry_run_needs_no_output_and_seed_is_train_seed(capsys, few_videos, tmp_path):
    words = ["train", str(REPOSITORY / "configs/demo/motion.yaml"), f"data.root={few_videos}", "train.clips_per_step=8"]
    assert cli.main([*words, "--dry-run", "--seed", "5"]) == 0
    assert "starting from random weights of seed 5" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*words, "--seed", "x", "--dry-run"])
    assert "'x' is not a whole number from 0" in capsys.readouterr().err
    assert cli.main([*words, "train.epochs=1", "data.val=null", "--seed", "7", "--output", str(tmp_path / "run")]) == 0
    assert load_config(tmp_path / "run/config.yaml").train.seed == 7
