"""Pre-training without labels, from folders and lists to weights that start a training."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, silent
from matplotlib.image import imread
from run_records import numbers_of_steps
from safetensors.torch import load_file
from shared_files import shared

from mvit_video import api, cli, load_weights
from mvit_video.config.load import load_config
from mvit_video.config.schema import InputSettings, PretrainSettings
from mvit_video.data.dataset import SampleKey, clip_dataset_from
from mvit_video.data.lists.selection import unlabelled_lists
from mvit_video.data.masking import mask_from
from mvit_video.engine.hooks.masked import STROKES, strokes
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.schedule import CLIPS_OF_BASE_LR, learning_rate_from
from mvit_video.errors import AnnotationError, CheckpointError, ConfigError
from mvit_video.model.maskfeat import hog_target
from mvit_video.model.registry import build_masked, build_model
from mvit_video.model.weights.auto import resolve_model_name
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.convert import load_network
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import load_checkpoint

FORM = "model.arguments={width_growth: mlp, q_stride: [[1, 2, 2], [1, 1, 1]], drop_path_rate: 0.2, dropout_rate: 0.0}"


def config_for(folder, *words):
    settings = ["train.epochs=3", "train.clips_per_step=4", "train.checkpoint_every_steps=5", "data.workers=0"]
    words = (FORM, *settings, "pretrain.mask_cell=16", *words)
    return load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={folder}", *words])


def pretrain(config, run, say=silent, **how):
    return api.pretrain(config, run, device="cpu", say=say, **how)


@pytest.fixture(scope="module")
def whole_run(few_videos, tmp_path_factory):
    """12 steps without interruption, and averaged weights."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(config_for(few_videos, "train.ema_decay=0.9", "pretrain.predict_from=[1,3]"), run)
    return run


@pytest.fixture(scope="module")
def short_run(few_videos, tmp_path_factory):
    """One step on a folder of videos, which is no class folder."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for file in sorted((few_videos / "train").glob("*.mp4"))[:4]:
        (folder / "videos" / "deeper").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / "videos" / ("deeper" if file.stem.endswith("1") else "") / file.name)
    words = ("data.train=auto", "data.val=null", "train.epochs=1", "data.decode_timeout=0")
    said = []
    pretrain(config_for(folder / "videos", *words), folder / "run", say=said.append)
    return folder / "run", said


def test_a_folder_of_videos_is_pre_trained_on_without_labels(short_run):
    run, said = short_run
    assert "training videos: 4, without labels" in said
    assert any("pre-training without labels; 4 training videos, 1 epoch of 1 step" in text for text in said)
    assert any("grid of 4×3×3 cells" in text for text in said)
    assert (
        said[-1]
        == f"pre-trained: fine-tune with `mvit-video train CONFIG model.weights={run / 'model.safetensors'} --output DIR`"
    )
    [record] = read_metrics(run / "metrics.jsonl")
    assert 0 < record["loss"] < 1 and "top1" not in record
    assert imread(run / "masked.png").shape[1] > 900


def test_pre_trained_weights_start_a_training_and_every_tensor_has_a_fate(short_run):
    file = short_run[0] / "model.safetensors"
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", ["model.name=auto", f"model.weights={file}"])
    model = resolve_model_name(config).model
    assert model.name == "mvitv2_nano_8x3"
    assert model.arguments["pooling"] == "mean_without_cls" and model.arguments["q_stride"] == [[1, 2, 2], [1, 2, 2]]
    network = build_model(model.name, num_classes=8, num_frames=8, crop_size=48, **model.arguments)
    report, state = load_weights(network, file), load_file(file)
    assert set(report.new) == {"norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias"}
    assert {name.partition(".")[0] for name in report.ignored} == {"mask_token", "pred_head"}
    assert all(torch.equal(network.state_dict()[name], state[name]) for name in report.copied)
    fates = [name for names in report.fates().values() for name in names]
    assert sorted(fates) == sorted({*network.state_dict(), *state})


def test_tables_of_a_last_stage_that_strides_again_are_interpolated(tmp_path):
    """Rows for a grid of 14 become those for 7: of the last block of two, since the one before strides."""
    form = dict(depths=(1, 1, 1, 2), num_frames=4, crop_size=224, embed_dim=8, width_growth="mlp")
    source = build_masked("mvitv2_s_16x4", **form, q_stride=((1, 2, 2), (1, 2, 2), (1, 1, 1)))
    inputs = InputSettings(num_frames=4)
    arguments = {name: form[name] for name in ("depths", "embed_dim", "width_growth")}
    arguments |= {"q_stride": ((1, 2, 2), (1, 2, 2), (1, 1, 1))}
    card = ModelCard(
        name="mvitv2_s_16x4", arguments=arguments, classes=(), preprocessing=inputs, pretraining=PretrainSettings()
    )
    save_checkpoint(tmp_path / "file.safetensors", source, card)
    target = build_model("mvitv2_s_16x4", **form, pooling="mean_without_cls")
    report = load_weights(target, tmp_path / "file.safetensors")
    tables = tuple(f"blocks.4.attn.rel_pos_{axis}" for axis in "hw")
    assert report.interpolated == tables
    rows = [(len(source.state_dict()[name]), len(target.state_dict()[name])) for name in tables]
    assert rows == [(27, 13)] * 2


@pytest.mark.parametrize("own", [True, False])
def test_a_classifier_of_another_form_is_named_where_pre_training_starts_from_it(few_videos, tmp_path, own):
    """Whether a card or its tensors tell the form."""
    inputs, file = InputSettings(num_frames=8, crop_size=48, short_side=48), tmp_path / "file.pth"
    classifier = build_model("mvitv2_nano_8x3", num_frames=8, crop_size=48)
    if own:
        names = tuple(map(str, range(400)))
        card = ModelCard(name="mvitv2_nano_8x3", arguments={}, classes=names, preprocessing=inputs)
        save_checkpoint(file.with_suffix(".safetensors"), classifier, card)
        file = file.with_suffix(".safetensors")
    else:
        torch.save(classifier.state_dict(), file)
    with pytest.raises(CheckpointError, match=r"lacks .*these are weights of mvitv2_nano_8x3 with its usual arguments"):
        pretrain(config_for(few_videos, f"model.weights={file}"), tmp_path / "run")


@pytest.mark.parametrize("verb", ["evaluate", "predict", "convert"])
def test_a_pre_trained_file_given_as_a_classifier_is_one_sentence_with_the_command(short_run, tmp_path, capsys, verb):
    file = short_run[0] / "model.safetensors"
    words = {
        "evaluate": ["evaluate", "motion", "--checkpoint", str(file), "--output", str(tmp_path / "out")],
        "predict": ["predict", "video.mp4", "--checkpoint", str(file)],
        "convert": ["convert", str(file), "--to", "native", "--output", str(tmp_path / "out.safetensors")],
    }[verb]
    assert cli.main(words) == 1
    told = capsys.readouterr().err
    assert (
        told.count("\n") == 1 and "is pre-trained without labels and has no head, so it cannot predict labels" in told
    )
    assert f"`mvit-video train finetune data.root=FOLDER model.weights={file} --output DIR`" in told
    with pytest.raises(CheckpointError, match=r"has no head"):
        load_network(file)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["pretrain.mask_cell=32"],
            r"cells of 32 pixels do not fit data.crop_size = 48 and tokens of 8 pixels: set it to 8 or 16",
        ),
        (["pretrain.mask_cell=12", "data.crop_size=36"], r"tokens of 8 pixels: let data.crop_size be a multiple of 8"),
        (["pretrain.mask_cell=48"], r"hide nothing of 4×1×1 cells \(times×rows×columns\) .*: lower pretrain.mask_cell"),
        (["pretrain.mask_ratio=0.01"], r"mask = cube: masks of pretrain.mask_ratio = 0.01 hide nothing"),
        (
            ["pretrain.mask=frames", "pretrain.mask_ratio=0.1"],
            r"hide nothing .*: raise pretrain.mask_ratio or data.num_frames",
        ),
        (["pretrain.mask=frames", "pretrain.mask_ratio=0.9"], r"hide all .*: lower pretrain.mask_ratio, or raise data"),
        (["pretrain.gaussian_window=20"], r"gaussian_window = 20: does not divide data.crop_size = 48"),
        (
            ["pretrain.predict_from=[1]"],
            r"predict_from = \[1\]: expected blocks in rising order up to the last one, which is 3",
        ),
        (["pretrain.predict_from=[0,3]"], r"tokens behind block 0 are 4 pixels wide, but a histogram needs 8"),
        (["train.mixup=0.8"], r"train.mixup = 0.8: needs labels, which pre-training does not use: set train.mixup=0"),
        (
            ["train.mixup=0.8", "train.cutmix=1", "evaluation.after_training=true"],
            r"mixup = 0.8, train.cutmix = 1.0, evaluation.after_training = True: need labels, .*: set train.mixup=0 "
            r"train.cutmix=0 evaluation.after_training=false",
        ),
        (["data.sampling_balance=sqrt"], r"data.sampling_balance = sqrt: needs labels.*set data.sampling_balance=none"),
        (["train.teacher=t.safetensors"], r"train.teacher = t.safetensors: needs labels.*set train.teacher=null"),
        (["train.base_lr=auto"], r"train.base_lr = auto: its values were chosen for training with labels: set a value"),
        (["model.name=swin_t", "model.arguments={}"], r"model 'swin_t' is unknown"),
        (["model.name=torchvision/mvit_v2_s"], r"cannot be pre-trained by masked prediction"),
    ],
)
def test_what_cannot_be_pre_trained_is_one_sentence_before_the_folder_is_touched(few_videos, tmp_path, words, told):
    with pytest.raises(ConfigError, match=told):
        pretrain(config_for(few_videos, *words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_labels_where_they_are_needed_are_told_with_the_verb_that_needs_none(few_videos, tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4\nb.mp4\n")
    for train in ("list.txt", "."):
        with pytest.raises(AnnotationError, match=r"mvit-video pretrain"):
            api.train(config_for(tmp_path, f"data.train={train}", "data.val=null"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"pre-trains without labels: run `mvit-video pretrain`"):
        api.train(config_for(few_videos, "train.objective=masked"), tmp_path / "run")
    with pytest.raises(AnnotationError, match=r"contains no videos, expected files such as VIDEO.mp4"):
        (tmp_path / "empty").mkdir()
        pretrain(config_for(tmp_path / "empty", "data.train=auto", "data.val=null"), tmp_path / "run")


@pytest.mark.parametrize("train", ["train.csv", "paths.txt", "train", "."])
def test_labels_of_a_list_are_not_used(few_videos, tmp_path, train):
    """Nor missed: a bare list of paths, and folders at any depth, hold the same videos."""
    shutil.copytree(few_videos, tmp_path / "data", ignore=shutil.ignore_patterns("val", "long*"))
    paths = [line.split()[0] for line in (few_videos / "train.csv").read_text().splitlines()]
    (tmp_path / "data/paths.txt").write_text("\n".join(paths))
    videos, val = unlabelled_lists(config_for(tmp_path / "data", f"data.train={train}", "data.val=null").data)
    assert sorted(record.path for record in videos.records) == sorted(paths)
    assert videos.classes == () and val is None and not any(record.labels for record in videos.records)


def test_a_folder_of_videos_can_be_verified_before(short_run, capsys):
    """Which needs no labels either."""
    folder = short_run[0].parent / "videos"
    assert cli.main(["verify", "custom/pretrain", f"data.root={folder}", "--workers", "1"]) == 0
    (flat := short_run[0].parent / "flat").mkdir()
    for file in folder.rglob("*.mp4"):
        shutil.copy(file, flat)
    assert cli.main(["verify", "--annotations", ".", "--root", str(flat), "--workers", "1"]) == 0
    assert "0 bad videos of 4" in capsys.readouterr().err


def test_a_mask_follows_from_seed_epoch_and_video(few_videos):
    config = config_for(few_videos, "data.decode_timeout=0", "data.repeated_aug=2")
    videos, mask = unlabelled_lists(config.data)[0], mask_from(config.pretrain, (4, 3, 3))

    def drawn(seed, epoch, video):
        dataset = clip_dataset_from(config.data, videos, seed, mask=mask)
        return [sample["mask"].tobytes() for sample in dataset[SampleKey(epoch, video)]]

    first = drawn(0, 0, 0)
    assert drawn(0, 0, 0) == first and first[0] != first[1], "one for each repeat"
    others = [drawn(1, 0, 0), drawn(0, 1, 0), drawn(0, 0, 1)]
    assert len({tuple(masks) for masks in (first, *others)}) == 4


def test_strokes_run_along_edges():
    """A bright square: its histograms' brightest pixels lie on the line of the edge, up and down at its left side."""
    picture = torch.zeros(1, 3, 2, 32, 32)
    picture[..., 4:] = 1.0
    drawn = strokes(hog_target(picture, 2, 16)[0], 2)[0, ..., 0]
    cell = drawn[STROKES : 2 * STROKES, :STROKES]  # the edge is at its middle
    assert cell.mean(0).max() > 3 * cell.mean(1).max(), "a vertical edge is a vertical stroke"
    assert not drawn[:, 2 * STROKES :].any(), "nothing where there is no edge"


@pytest.mark.parametrize("size", "sl")
@pytest.mark.parametrize("part", ["pretrain", "finetune"])
def test_learning_rates_of_the_recipes_are_the_public_codes(size, part):
    """Recorded for the clips of the public yaml; L's fine-tuning has half the rate and twice the clips there."""
    name = f"k400_MVITv2_{size.upper()}_16x4_{'MaskFeat_PT' if part == 'pretrain' else 'FT'}"
    recorded = json.loads(shared("reference/maskfeat/lr_schedule.json").read_text())[name]
    settings = load_config(f"kinetics400/maskfeat_{size}_16x4_{part}").train
    assert settings.epochs == recorded["epochs"]
    rate = learning_rate_from(settings, settings.epochs * 1000, 1000)
    clips = 32 / CLIPS_OF_BASE_LR * 512 / settings.clips_per_step
    for epoch, expected in recorded["lr_by_epoch"].items():
        assert rate(round(float(epoch) * 1000)) * clips == pytest.approx(expected, rel=1e-4), epoch


@pytest.mark.integration
def test_a_run_leaves_its_picture_and_the_loss_of_validation(whole_run):
    assert {path.name for path in whole_run.iterdir()} == {
        "model.safetensors", "model_ema.safetensors", "config.yaml", "metrics.jsonl", "validation.jsonl", "events.jsonl", "checkpoints",
        "masked.png", "curves.png", "tensorboard",
    }  # fmt: skip
    [record] = read_metrics(whole_run / "validation.jsonl")
    assert set(record) == {"step", "epoch", "loss", "ema_loss"} and record["step"] == 12
    network, card = load_checkpoint(whole_run / "model.safetensors")
    assert card.classes == () and card.pretraining.predict_from == network.predict_from == (1, 3)


@pytest.mark.integration
@pytest.mark.parametrize("changed", ["data.workers=0", "data.workers=2", "data.cache=FOLDER"])
def test_a_resumed_run_is_bit_for_bit_the_one_that_was_not_stopped(whole_run, few_videos, tmp_path, changed):
    run, changed = tmp_path / "run", changed.replace("FOLDER", str(tmp_path / "frames"))
    shutil.copytree(whole_run, run)
    shutil.rmtree(run / "checkpoints/step_00000012")
    words = ("train.ema_decay=0.9", "pretrain.predict_from=[1,3]", changed)
    said = []
    pretrain(config_for(few_videos, *words), run, resume=True, say=said.append)
    assert any("resuming after step 10" in text for text in said)
    assert numbers_of_steps(run / "metrics.jsonl") == numbers_of_steps(whole_run / "metrics.jsonl")
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (run / name).read_bytes() == (whole_run / name).read_bytes(), name
    assert (tmp_path / "frames").exists() == changed.startswith("data.cache")
    with pytest.raises(ConfigError, match=r"was trained with train.objective = masked, but is now resumed with labels"):
        api.train(config_for(few_videos, *words), run, resume=True)


@pytest.mark.integration
@pytest.mark.parametrize(
    "words",
    [
        ["train.precision=bf16"],
        ["train.clips_per_pass=3", "model.arguments={}", "pretrain.target=pixels", "pretrain.mask=tube"],
    ],
)
def test_pre_training_runs_in_bf16_and_in_passes_on_pixels(few_videos, tmp_path, words):
    """Passes change rounding alone."""
    pretrain(config_for(few_videos, "train.epochs=1", "data.val=null", *words), tmp_path / "run")
    plain = [word for word in words if "pretrain" in word or "model" in word]
    pretrain(config_for(few_videos, "train.epochs=1", "data.val=null", *plain), tmp_path / "plain")
    losses = [[record["loss"] for record in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("run", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2 if "bf16" in words[0] else 1e-5)
    assert losses[0] != losses[1] or "bf16" not in words[0]


@pytest.mark.integration
def test_pre_training_goes_on_from_a_classifier_and_from_pre_training(whole_run, few_videos, tmp_path):
    said = []
    words = ("train.epochs=1", "data.val=null", "train.clips_per_step=8")
    pretrain(
        config_for(few_videos, *words, f"model.weights={whole_run}/model.safetensors"),
        tmp_path / "again",
        say=said.append,
    )
    [told] = [text for text in said if text.startswith("weights from")]
    assert "new (mask_token, pred_head." in told
    finetune = ["model.arguments={}", "model.name=auto", f"model.weights={whole_run}/model_ema.safetensors"]
    api.train(config_for(few_videos, *words, *finetune), tmp_path / "classifier", device="cpu", say=said.append)
    before = load_file(whole_run / "model_ema.safetensors")["blocks.0.attn.qkv.weight"]
    after = load_file(tmp_path / "classifier/model.safetensors")["blocks.0.attn.qkv.weight"]
    assert 0 < (after - before).abs().max() < 0.05, "it started there"
    source = f"model.weights={tmp_path}/classifier/model.safetensors"
    pretrain(config_for(few_videos, *words, source), tmp_path / "third", say=said.append)
    assert np.isfinite(read_metrics(tmp_path / "third/metrics.jsonl")[-1]["loss"])
