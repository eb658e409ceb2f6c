import hashlib
import json
import multiprocessing
import shutil
import time
from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY, silent
from run_records import numbers_of_steps
from safetensors.torch import load_file
from tiny_models import tiny_video
from torch import nn

from mvit_video import build_model
from mvit_video.config.load import load_config
from mvit_video.config.schema import InputSettings, TrainSettings
from mvit_video.data.lists.selection import training_lists
from mvit_video.data.mixing import mixer_from
from mvit_video.engine import checkpoint as states
from mvit_video.engine.determinism import seed_step
from mvit_video.engine.losses import objective_from
from mvit_video.engine.metrics_log import MetricsLog, read_metrics
from mvit_video.engine.nonfinite import NonFiniteStep
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run
from mvit_video.engine.trainer import Trainer, learner_from, trainer_from
from mvit_video.errors import CheckpointError, ConfigError, DecodeError, TrainingError
from mvit_video.evaluation.evaluate import validator
from mvit_video.model.ops.convolution import Conv3d
from mvit_video.model.precision import resolve_precision
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.load import load_checkpoint

CPU = torch.device("cpu")


def config_for(folder, *words):
    settings = ["train.epochs=3", "train.clips_per_step=4", "train.checkpoint_every_steps=5", "data.workers=0"]
    dropout = "model.arguments={drop_path_rate: 0.2, dropout_rate: 0.3}"
    return load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={folder}", dropout, *settings, *words])


def train(config, run, say=silent, **how):
    train_run(resolve(config, run, CPU, say, **how), lambda videos: validator(videos, config, CPU), say)


@pytest.fixture(scope="module")
def whole_run(few_videos, tmp_path_factory):
    """12 steps without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(config_for(few_videos), run)
    return run


@pytest.mark.integration
def test_a_run_leaves_weights_settings_and_a_record_per_step(whole_run, few_videos):
    assert {path.name for path in whole_run.iterdir()} == {
        "model.safetensors", "config.yaml", "metrics.jsonl", "validation.jsonl", "events.jsonl", "checkpoints", "best.json",
        "first_batch.png", "curves.png", "tensorboard",
    }  # fmt: skip
    assert load_config(whole_run / "config.yaml") == config_for(few_videos)
    records = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["epoch"] for record in records] == [step / 4 for step in range(1, 13)]
    assert all({"loss", "lr", "gradient_norm", "top1"} <= record.keys() for record in records)
    assert sorted(path.name for path in (whole_run / "checkpoints").iterdir()) == ["step_00000010", "step_00000012"]
    assert [record["step"] for record in read_metrics(whole_run / "validation.jsonl")] == [12]


@pytest.mark.integration
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_is_bit_for_bit_the_one_that_was_not_stopped(whole_run, few_videos, tmp_path, workers):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    shutil.rmtree(run / "checkpoints/step_00000012")
    (run / "model.safetensors").unlink()
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 13, "lo')  # cut short by the crash
    said = []
    train(config_for(few_videos, f"data.workers={workers}"), run, resume=True, say=said.append)
    assert any("resuming after step 10" in text for text in said)
    assert numbers_of_steps(run / "metrics.jsonl") == numbers_of_steps(whole_run / "metrics.jsonl")
    before, after = (load_file(folder / "model.safetensors") for folder in (whole_run, run))
    assert all(torch.equal(before[name], after[name]) for name in before)


SMALLER = ("data.crop_size=24", "data.short_side=24", "model.arguments={depths: [1, 1], drop_path_rate: 0.2}")
SWITCHES = (
    ("train.optimizer=sgd", "train.ema_decay=0.9", "train.clips_per_pass=3", "train.layer_decay=0.8"),
    ("train.precision=fp16", "train.ema_decay=0.99", "train.activation_checkpointing=true"),
    ("train.resolutions=[16]", "train.ema_decay=0.9", "train.mixup=0.8", "train.teacher=TEACHER"),
    ("data.sampling_balance=class", "train.class_weights=balanced", "train.loss=logit_adjusted", "train.ema_decay=0.9"),
)


@pytest.mark.integration
@pytest.mark.parametrize("switches", SWITCHES, ids=["sgd", "fp16", "taught at two resolutions", "balanced"])
def test_a_resumed_run_with_averaged_weights_is_bit_for_bit_the_one_that_was_not_stopped(
    few_videos, tmp_path, switches, whole_run
):
    switches = [word.replace("TEACHER", str(whole_run / "model.safetensors")) for word in switches]
    config = config_for(few_videos, "train.epochs=2", "data.val=null", *SMALLER, *switches)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000008")
    train(config, tmp_path / "run", resume=True)
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    steps = [numbers_of_steps(tmp_path / run / "metrics.jsonl") for run in ("whole", "run")]
    assert steps[0] == steps[1]
    last = "checkpoints/step_00000008/state.json"
    states = [json.loads((tmp_path / run / last).read_text()) for run in ("whole", "run")]
    assert states[0] == states[1]
    assert set(states[0]["sha256"]) == {"model.safetensors", "optimizer.safetensors", "ema.safetensors"}
    assert states[0]["schedule"] == {"last_step": 8, "steps_per_epoch": 4}
    assert ("scale" in states[0]["scaler"]) == ("train.precision=fp16" in switches)
    raw, averaged = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("model", "model_ema"))
    assert raw.keys() == averaged.keys() and not torch.equal(
        raw["head.projection.weight"], averaged["head.projection.weight"]
    )


@pytest.mark.integration
def test_averaged_weights_are_validated_beside_the_others(few_videos, tmp_path):
    train(config_for(few_videos, "train.epochs=1", "train.ema_decay=0.9"), tmp_path / "run")
    record = read_metrics(tmp_path / "run/validation.jsonl")[0]
    config = config_for(few_videos)
    validate = validator(training_lists(config.data)[1], config, CPU)
    for name, prefix in (("model", ""), ("model_ema", "ema_")):
        numbers = validate(load_checkpoint(tmp_path / f"run/{name}.safetensors")[0])
        assert {f"{prefix}{key}": value for key, value in numbers.items()}.items() <= record.items()


@pytest.mark.integration
def test_resuming_with_another_teacher_is_refused_and_with_the_same_one_elsewhere_is_not(
    whole_run, few_videos, tmp_path
):
    """The digest decides, not the name."""
    first, other = tmp_path / "first.safetensors", tmp_path / "other.safetensors"
    shutil.copy(whole_run / "model.safetensors", first)
    shutil.copy(whole_run / "checkpoints/step_00000010/model.safetensors", other)
    words = ("train.epochs=1", "data.val=null", "train.label_smoothing=0", *SMALLER)
    taught = [config_for(few_videos, *words, f"train.teacher={teacher}") for teacher in (first, other)]
    train(taught[0], tmp_path / "run")
    state = json.loads((tmp_path / "run/checkpoints/step_00000004/state.json").read_text())
    assert state["teacher"] == hashlib.sha256(first.read_bytes()).hexdigest()
    assert "teacher" not in " ".join(state["sha256"])
    refused = r"step_00000004: was trained with a teacher of sha256 \w{12}…, but train.teacher is now "
    with pytest.raises(CheckpointError, match=refused + "a teacher of sha256"):
        train(taught[1], tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match=refused + "no teacher: pass the same file, or start over"):
        train(config_for(few_videos, *words), tmp_path / "run", resume=True)
    shutil.move(first, tmp_path / "moved.safetensors")
    moved = config_for(few_videos, *words, f"train.teacher={tmp_path / 'moved.safetensors'}")
    train(moved, tmp_path / "run", resume=True)  # nothing left to do


def test_a_teacher_that_does_not_fit_is_told_before_the_folder_is_touched(whole_run, few_videos, tmp_path):
    teacher = whole_run / "model.safetensors"
    with pytest.raises(
        ConfigError, match=r"model.safetensors: was trained with num_frames 8, but data.num_frames is 4"
    ):
        train(config_for(few_videos, "data.num_frames=4", f"train.teacher={teacher}"), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"nowhere.pth: no such file"):
        train(config_for(few_videos, "train.teacher=nowhere.pth"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_resolutions_of_a_network_without_a_feature_are_refused(few_videos, tmp_path):
    words = ("model.name=pytorchvideo/slow_r50", "model.arguments={}", "train.resolutions=[32]")
    with pytest.raises(ConfigError, match=r"pytorchvideo/slow_r50' does not return the feature before its head"):
        train(config_for(few_videos, *words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def shorter(rows):
    return rows[:12]


def reversed_order(rows):
    return rows[::-1]


def other_labels(rows):
    return [row.replace(" 1", " 2") for row in rows]


@pytest.mark.parametrize(
    ("file", "change", "counts"),
    [
        ("train.csv", shorter, "16 videos then, 12 now"),
        ("train.csv", reversed_order, "16 videos then, 16 now"),
        ("val.csv", other_labels, "8 videos then, 8 now"),
        ("classes.txt", reversed_order, "16 videos then, 16 now"),
    ],
)
def test_resuming_with_another_list_is_refused_and_changes_nothing(
    whole_run, few_videos, tmp_path, file, change, counts
):
    """data.root may change, not what is listed in it."""
    run = tmp_path / "run"
    shutil.copytree(few_videos, tmp_path / "data")
    shutil.copytree(whole_run, run)
    train(config_for(tmp_path / "data"), run, resume=True)  # nothing left to do
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    rows = (tmp_path / "data" / file).read_text().splitlines()
    (tmp_path / "data" / file).write_text("\n".join(change(rows)) + "\n")
    told = rf"step_00000012: was trained on another version of .*{'val' if 'val' in file else 'train'}.csv \({counts}, 0 missing; paths,"
    with pytest.raises(ConfigError, match=told):
        train(config_for(tmp_path / "data"), run, resume=True)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_state_of_before_that_does_not_tell_its_lists_resumes_with_as_many_steps(whole_run, few_videos, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    state = tmp_path / "run/checkpoints/step_00000012/state.json"
    content = json.loads(state.read_text())
    assert [of["videos"] for of in content.pop("lists")] == [16, 8]
    del content["digest"]
    state.write_text(json.dumps(content))
    train(config_for(few_videos), tmp_path / "run", resume=True)
    shutil.copytree(few_videos, tmp_path / "data")
    rows = (tmp_path / "data/train.csv").read_text().splitlines()
    (tmp_path / "data/train.csv").write_text("\n".join(shorter(rows)))
    with pytest.raises(ConfigError, match=r"of a run with 4 steps per epoch, but data.train now gives 3: resume with"):
        train(config_for(tmp_path / "data"), tmp_path / "run", resume=True)


def test_a_linear_probe_trains_from_the_command_of_a_run(whole_run, few_videos, tmp_path):
    weights = whole_run / "model.safetensors"
    said = []
    words = ("train.trainable=head", "train.epochs=1", f"model.weights={weights}", "data.val=null")
    train(config_for(few_videos, *words), tmp_path / "run", say=said.append)
    before, after = (load_file(folder / "model.safetensors") for folder in (whole_run, tmp_path / "run"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.projection.weight", "head.projection.bias"}
    trained = before["head.projection.weight"].numel() + 8
    assert any(f"network: {trained:,} of 321,544 parameters trained" in text for text in said)


def test_activation_checkpointing_of_a_network_without_it_is_refused(few_videos, tmp_path):
    words = ("model.name=pytorchvideo/slow_r50", "model.arguments={}", "train.activation_checkpointing=true")
    with pytest.raises(ConfigError, match=r"pytorchvideo/slow_r50' has no activation checkpointing: unset train.activ"):
        train(config_for(few_videos, *words), tmp_path / "run")


@pytest.mark.integration
def test_a_run_that_meets_nan_stops_with_a_report_and_no_state_of_it(few_videos, tmp_path, monkeypatch):
    """From the loader to the disk: the report names the videos of the batch, as the list does."""
    words = (*SMALLER, "data.val=null", "train.epochs=2", "train.checkpoint_every_steps=1")
    config = config_for(few_videos, *words)
    sound = Trainer.train_step

    def broken(self, step, clips, labels):
        return sound(self, step, clips * float("nan") if step == 2 else clips, labels)

    monkeypatch.setattr(Trainer, "train_step", broken)
    with pytest.raises(
        TrainingError, match=r"step 3: the loss is nan .* its clips are in .*nonfinite_step_00000003.json"
    ):
        train(config, tmp_path / "run")
    report = json.loads((tmp_path / "run/nonfinite_step_00000003.json").read_text())
    listed = {row.split(" ")[0] for row in (few_videos / "train.csv").read_text().splitlines()}
    assert len(report["clips"]) == 4 and {clip["video_name"] for clip in report["clips"]} <= listed
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").iterdir())] == [
        "step_00000001",
        "step_00000002",
    ]
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 2

    config = config_for(few_videos, *words, "train.on_nonfinite=skip")
    train(config, tmp_path / "run", resume=True)
    records = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [record["step"] for record in records if "skipped" in record] == [3] and records[2]["loss"] is None
    monkeypatch.undo()
    train(config, tmp_path / "run", overwrite=True)
    assert not list((tmp_path / "run").glob("nonfinite*"))


@pytest.mark.parametrize("part", ["model", "average", "optimizer"])
def test_a_state_with_nan_is_never_written(tmp_path, part):
    model = tiny_video()
    learner = learner_from(TrainSettings(ema_decay=0.9), model, CPU, "fp32")
    model(torch.zeros(1, 3, 8, 32, 32)).sum().backward()
    learner.optimizer.step()
    card = ModelCard(name="mvitv2_s_16x4", arguments={}, classes=("a",), preprocessing=InputSettings())
    states.save_state(tmp_path, 1, learner, card, {}, keep=1)
    planted = {
        "model": model.norm.bias,
        "average": learner.average.model.norm.bias,
        "optimizer": learner.optimizer.state[model.norm.bias]["exp_avg"],
    }[part]
    planted.data[3] = float("nan")
    with pytest.raises(CheckpointError, match=r"not written, because '.*' contains NaN or Inf \(1 tensors do\)"):
        states.save_state(tmp_path, 2, learner, card, {}, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_of_others_train_in_bf16_on_a_cpu_with_gradients_that_are_right(precision):
    """Their convolutions become ours, which have the same parameters, names and outputs."""
    model = build_model("pytorchvideo/x3d_s", num_classes=3, num_frames=4, crop_size=32)
    names = list(model.state_dict())
    learner_from(TrainSettings(), model, CPU, precision)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Conv3d)}
    assert kinds == ({Conv3d} if precision == "bf16" else {nn.Conv3d}) and list(model.state_dict()) == names


def test_a_changed_state_is_told_and_the_one_before_it_is_used(whole_run, few_videos, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    for name in ("model.safetensors", "optimizer.safetensors"):
        file = run / "checkpoints/step_00000012" / name
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        state, problems = states.newest_state(run)
        assert state.step == 10
        assert "was changed after it was written (its sha256 differs): this state is ignored" in problems[0]
    (run / "checkpoints/step_00000010/state.json").write_text("{")
    state, problems = states.newest_state(run)
    assert state is None and len(problems) == 2 and "cannot be read" in problems[1]


@pytest.mark.integration
def test_resuming_where_there_is_nothing_starts_anew(whole_run, few_videos, tmp_path):
    train(config_for(few_videos), tmp_path / "run", resume=True)
    assert numbers_of_steps(tmp_path / "run/metrics.jsonl") == numbers_of_steps(whole_run / "metrics.jsonl")


def test_a_run_is_not_overwritten_unless_told(whole_run, few_videos, tmp_path):
    run, config = tmp_path / "run", config_for(few_videos, "train.epochs=1")
    shutil.copytree(whole_run, run)
    (run / "notes.txt").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"already contains config.yaml of another run: choose another --output, or pass --over"
    ):
        train(config, run)
    assert (run / "model.safetensors").read_bytes() == (whole_run / "model.safetensors").read_bytes()
    train(config, run, overwrite=True)
    assert len(read_metrics(run / "metrics.jsonl")) == 4 and (run / "notes.txt").read_text() == "mine"


def test_a_run_that_cannot_start_leaves_no_trace_and_deletes_nothing(whole_run, few_videos, tmp_path):
    wrong = config_for(few_videos, "model.arguments={depths: [0]}")
    with pytest.raises(ConfigError, match=r"depths=\[0\]: expected a list of whole numbers"):
        train(wrong, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    shutil.copytree(whole_run, tmp_path / "old")
    with pytest.raises(ConfigError, match=r"depths=\[0\]: expected a list of whole numbers"):
        train(wrong, tmp_path / "old", overwrite=True)
    assert (tmp_path / "old/model.safetensors").exists()


def test_resuming_with_other_settings_is_refused_and_names_both(whole_run, few_videos):
    with pytest.raises(ConfigError, match=r"was trained with train.base_lr = 0.024, but is now resumed with 0.1"):
        train(config_for(few_videos, "train.base_lr=0.1"), whole_run, resume=True)
    said = []
    words = ["train.checkpoint_every_steps=7", "data.decode_timeout=90", "train.clips_per_pass=3"]
    train(config_for(few_videos, *words), whole_run, resume=True, say=said.append)  # nothing left to do
    assert (
        "the environment has changed (clips_per_pass 3, was None): results will be similar, but not bit-exact" in said
    )


def test_the_settings_of_a_run_that_goes_on_are_those_in_effect(few_videos, tmp_path):
    train(config_for(few_videos, "train.epochs=1", *SMALLER), tmp_path / "run")
    now = config_for(few_videos, "train.epochs=1", *SMALLER, "train.keep_checkpoints=5", "data.decode_timeout=90")
    train(now, tmp_path / "run", resume=True)
    assert load_config(tmp_path / "run/config.yaml") == now


@pytest.mark.integration
def test_a_run_goes_on_without_the_weights_that_it_started_from(whole_run, few_videos, tmp_path):
    shutil.copy(whole_run / "model.safetensors", tmp_path / "start.safetensors")
    config = config_for(few_videos, "train.epochs=1", f"model.weights={tmp_path / 'start.safetensors'}")
    train(config, tmp_path / "run")
    weights = (tmp_path / "run/model.safetensors").read_bytes()
    (tmp_path / "start.safetensors").unlink()
    (tmp_path / "run/model.safetensors").unlink()
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run/model.safetensors").read_bytes() == weights
    with pytest.raises(CheckpointError, match=r"start.safetensors: no such file"):
        train(config, tmp_path / "new")


@pytest.mark.integration
def test_broken_states_are_set_aside_and_take_no_newer_ones_place(whole_run, few_videos, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    (run / "checkpoints/step_00000012/model.safetensors").write_bytes(b"cut short")
    (run / "checkpoints/broken1_step_00000012").mkdir()
    said = []
    words = ["train.checkpoint_every_steps=1", "train.keep_checkpoints=1"]
    train(config_for(few_videos, *words), run, resume=True, say=said.append)
    told = "step_00000012: is broken and was renamed to broken2_step_00000012: delete it if you do not need it"
    assert [text for text in said if text.endswith(told)] and states.newest_state(run)[0].step == 12
    assert (run / "checkpoints/broken2_step_00000012/model.safetensors").read_bytes() == b"cut short"
    for state in (run / "checkpoints").glob("step_*"):
        (state / "model.safetensors").write_bytes(b"")
    train(config_for(few_videos, *words), run, resume=True, say=said.append)
    assert numbers_of_steps(run / "metrics.jsonl") == numbers_of_steps(whole_run / "metrics.jsonl")
    assert len(list((run / "checkpoints").glob("broken*"))) >= 3


@pytest.mark.integration
def test_a_list_or_weights_that_a_run_reads_are_never_its_output(whole_run, few_videos, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(few_videos, data)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    found = config_for(data, "data.train=auto", "data.val=null", "train.epochs=1")
    for overwrite in (False, True):
        with pytest.raises(
            ConfigError, match=r"data: contains train.csv, which data.train reads and this run would ov"
        ):
            train(found, data, overwrite=overwrite)
    shutil.copytree(whole_run, tmp_path / "run")
    for name in ("model.safetensors", "checkpoints/step_00000012/model.safetensors"):
        held = name.partition("/")[0]
        for setting in ("model.weights", "train.teacher"):
            config = config_for(few_videos, f"{setting}={tmp_path / 'run' / name}")
            with pytest.raises(ConfigError, match=rf"run: contains {held}, which {setting} reads and this run would"):
                train(config, tmp_path / "run", overwrite=True)
    shutil.copytree(data, tmp_path / "run/evaluation")
    with pytest.raises(
        ConfigError, match=r"run: contains evaluation, which data.train reads and this run would overwrite"
    ):
        train(config_for(tmp_path / "run/evaluation"), tmp_path / "run", overwrite=True)
    train(config_for(data, "train.epochs=1", *SMALLER), data)
    train(config_for(data, "train.epochs=1", *SMALLER), data, overwrite=True)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_class_called_evaluation_is_not_deleted(few_videos, tmp_path):
    for name in ("evaluation", "other"):
        (tmp_path / name).mkdir()
    for number in range(4):
        shutil.copy(few_videos / "train/00000.mp4", tmp_path / ("evaluation", "other")[number % 2] / f"{number}.mp4")
    config = config_for(tmp_path, "data.train=.", "data.val=null", "data.classes=null", "train.epochs=1", *SMALLER)
    with pytest.raises(ConfigError, match=r": contains evaluation with videos of the lists: choose another --output"):
        train(config, tmp_path, overwrite=True)
    assert len(list(tmp_path.rglob("*.mp4"))) == 4


@pytest.mark.integration
def test_another_seed_gives_another_run(whole_run, few_videos, tmp_path):
    train(config_for(few_videos, "train.seed=1", "train.epochs=1"), tmp_path / "run")
    ours, other = (read_metrics(folder / "metrics.jsonl")[0]["loss"] for folder in (whole_run, tmp_path / "run"))
    assert ours != other


def test_training_starts_from_given_weights(whole_run, few_videos, tmp_path):
    weights = whole_run / "model.safetensors"
    train(
        config_for(
            few_videos,
            "train.epochs=1",
            f"model.weights={weights}",
            "train.base_lr=1e-12",
            "train.warmup_lr=0",
            "train.end_lr=0",
        ),
        tmp_path / "run",
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (whole_run, tmp_path / "run"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_a_bad_training_video_stops_the_run_with_its_row(few_videos, tmp_path):
    shutil.copytree(few_videos, tmp_path / "data")
    (tmp_path / "data/train/00007.mp4").write_text("not a video")
    with pytest.raises(DecodeError, match=r"00007.mp4: cannot be opened .* \(row 8 of train.csv\): remove it from"):
        train(config_for(tmp_path / "data"), tmp_path / "run")


def test_a_lost_loader_process_is_one_sentence(few_videos, tmp_path, monkeypatch):
    """As where the system kills it for memory."""

    def kill_them(*_):
        for worker in multiprocessing.active_children():
            worker.kill()
        time.sleep(1)  # PyTorch notices by a signal

    monkeypatch.setattr(Trainer, "_pass", kill_them)
    told = r"a loader worker died \(DataLoader worker \(pid \d+\) is killed by signal: Killed. ?\): if memory"
    with pytest.raises(DecodeError, match=told):
        train(config_for(few_videos, "data.workers=1"), tmp_path / "run")
    assert read_metrics(tmp_path / "run/metrics.jsonl") == []


def test_a_missing_training_video_stops_before_the_first_step(few_videos, tmp_path):
    shutil.copytree(few_videos, tmp_path / "data")
    (tmp_path / "data/val/00003.mp4").unlink()
    with pytest.raises(
        Exception, match=r"1 of 8 videos are missing, the first is 'val/00003.mp4' \(row 4 of val.csv\)"
    ):
        train(config_for(tmp_path / "data"), tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()


def with_missing_videos(few_videos, folder, *names):
    shutil.copytree(few_videos, folder)
    for name in names:
        (folder / name).unlink()
    return config_for(folder, "data.allow_missing=true", "train.epochs=1")


def test_allowed_missing_videos_leave_training_stay_in_validation_and_are_listed(few_videos, tmp_path):
    config = with_missing_videos(few_videos, tmp_path / "data", "train/00002.mp4", "val/00003.mp4")
    train_list, val_list = training_lists(config.data)
    assert (len(train_list), len(val_list)) == (15, 8)
    assert "train/00002.mp4" not in {record.path for record in train_list.records}
    said = []
    train(config, tmp_path / "run", said.append)
    listed = "train/00002.mp4\trow 3 of train.csv\nval/00003.mp4\trow 4 of val.csv\n"
    assert (tmp_path / "run/missing.txt").read_text() == listed
    notes = [line for line in said if line.startswith("note: ")]
    assert ["1 of 16 videos are missing" in notes[0], "1 of 8 videos are missing" in notes[1]] == [True, True]
    assert notes[0].endswith("they are left out, see missing.txt") and notes[1].endswith(
        "count as wrong, see missing.txt"
    )


@pytest.mark.integration
def test_a_run_does_not_resume_with_other_missing_videos(few_videos, tmp_path):
    config = with_missing_videos(few_videos, tmp_path / "data", "train/00002.mp4")
    train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    (tmp_path / "data/train/00004.mp4").unlink()
    with pytest.raises(
        ConfigError, match=r"was trained on another version of .*train.csv \(15 videos then, 14 now, 2 missing; paths,"
    ):
        train(config, tmp_path / "run", resume=True)
    assert len((tmp_path / "run/missing.txt").read_text().splitlines()) == 1
    train(config, tmp_path / "run", overwrite=True)
    assert len((tmp_path / "run/missing.txt").read_text().splitlines()) == 2


def test_videos_in_both_lists_are_noted(few_videos, tmp_path):
    shutil.copytree(few_videos, tmp_path / "data")
    with open(tmp_path / "data/val.csv", "a") as file:
        file.write("train/00001.mp4 1\n")
    notes = training_lists(config_for(tmp_path / "data").data)[1].notes
    assert len(notes) == 1 and "1 of the 9 videos of" in notes[0] and "'train/00001.mp4' (row 9 of val.csv" in notes[0]


def test_a_run_without_a_training_list_is_refused(few_videos):
    with pytest.raises(ConfigError, match=r"data.train is not set: name a list"):
        training_lists(config_for(few_videos, "data.train=null").data)


@pytest.mark.integration
def test_validation_may_be_left_out(few_videos, tmp_path):
    train(config_for(few_videos, "data.val=null", "train.epochs=1"), tmp_path / "run")
    assert read_metrics(tmp_path / "run/validation.jsonl") == []


class Linear(torch.nn.Module):
    """logits = clips·W, for arithmetic by hand."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.2, -0.1], [0.4, 0.3]]))

    def forward(self, clips):
        return clips.flatten(1) @ self.weight


def trainer(**changes):
    """Plain gradient descent at the rate 0.5."""
    settings = TrainSettings(clips_per_step=2, **changes)
    model = Linear()
    descent = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=1.0)
    learner = replace(
        learner_from(settings, model, CPU, resolve_precision(settings.precision, CPU).name), optimizer=descent
    )
    return trainer_from(
        settings,
        learner,
        lambda step: 0.5,
        mixer_from(settings, 2),
        objective_from(settings),
        CPU,
        resolve_precision(settings.precision, CPU).name,
    )


CLIPS, LABELS = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).view(2, 2, 1, 1, 1), torch.tensor([0, 1])


def loss_by_hand(weight, smoothing):
    probabilities = (CLIPS.flatten(1) @ weight).softmax(1)
    target = torch.nn.functional.one_hot(LABELS, 2) * (1 - smoothing) + smoothing / 2
    return -(target * probabilities.log()).sum(1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("limit", [None, 0.01, 1000.0])
def test_a_step_is_gradient_descent_on_the_smoothed_cross_entropy(smoothing, limit):
    engine = trainer(label_smoothing=smoothing, clip_gradient=limit)
    weight = engine.learner.model.weight.detach().clone().requires_grad_()
    loss = loss_by_hand(weight, smoothing)
    loss.backward()
    norm = weight.grad.norm().item()
    record = engine.train_step(0, CLIPS, LABELS)
    scale = 1.0 if limit is None else min(1.0, limit / norm)
    assert record["loss"] == pytest.approx(loss.item()) and record["gradient_norm"] == pytest.approx(norm)
    assert record["lr"] == 0.5
    assert torch.allclose(engine.learner.model.weight, weight - 0.5 * scale * weight.grad, atol=1e-5)


def test_bf16_runs_the_network_in_bf16_and_keeps_the_weights_in_fp32():
    engine, plain = trainer(precision="bf16"), trainer()
    record, expected = engine.train_step(0, CLIPS, LABELS), plain.train_step(0, CLIPS, LABELS)
    assert record["loss"] != expected["loss"] and record["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert engine.learner.model.weight.dtype == torch.float32


def test_a_loss_that_is_not_a_number_stops_the_run_and_changes_nothing():
    engine = trainer()
    before = engine.learner.model.weight.detach().clone()
    with pytest.raises(
        NonFiniteStep, match=r"^step 8: the loss is nan and the gradient's norm nan at learning rate 0.5$"
    ):
        engine.train_step(7, CLIPS * float("nan"), LABELS)
    assert torch.equal(engine.learner.model.weight, before)


def test_randomness_of_a_step_follows_from_seed_and_step():
    draws = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        seed_step(seed, step)
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[3] and len(set(draws)) == 3


def test_resuming_drops_the_records_of_steps_that_will_be_made_again(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for step in range(1, 6):
        log.write(step=step, loss=1 / 3 * step)
    log.close()
    MetricsLog(tmp_path / "m.jsonl", after=3).close()
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": step, "loss": 1 / 3 * step} for step in (1, 2, 3)]


def test_a_state_that_cannot_be_written_leaves_the_ones_before_it(whole_run, few_videos, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states, "write_whole", full)
    learner = learner_from(TrainSettings(), torch.nn.Linear(1, 1), CPU, "fp32")
    card = states.read_checkpoint(run / "model.safetensors")[1]
    with pytest.raises(CheckpointError, match=r"step_00000099: cannot be written \(No space left on device\)"):
        states.save_state(run, 99, learner, card, {}, keep=1)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000010", "step_00000012"]
