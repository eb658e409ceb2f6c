"""`train` and `evaluate` as programs call them, beside the same from the command line."""

import json

import pytest
from conftest import REPOSITORY
from run_records import numbers_of_steps

from mvit_video import api, cli
from mvit_video.config.load import load_config, with_overrides
from mvit_video.config.schema import Config
from mvit_video.errors import ConfigError

DEMO = REPOSITORY / "configs/demo/motion.yaml"
DATA = {"crop_size": 24, "short_side": 24, "workers": 0}
TRAIN = {"epochs": 1, "clips_per_step": 8, "warmup_epochs": 0, "ema_decay": 0.9}
MODEL = {"arguments": {"depths": [1, 1]}}


def words(tree):
    return [
        f"{section}.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for section, values in tree.items()
        for name, value in values.items()
    ]


@pytest.fixture(scope="module")
def result(few_videos, tmp_path_factory):
    run = tmp_path_factory.mktemp("api") / "run"
    more = {"evaluation.after_training": True, "evaluation.protocol": "2x1"}
    return api.train(DEMO, run, device="cpu", model=MODEL, data={"root": few_videos, **DATA}, train=TRAIN, **more)


@pytest.mark.integration
def test_a_run_from_python_is_the_one_of_the_command_line(result, few_videos, tmp_path):
    tree = {"model": MODEL, "data": {"root": str(few_videos), **DATA}, "train": TRAIN}
    more = ["evaluation.after_training=true", "evaluation.protocol=2x1"]
    command = ["train", str(DEMO), *words(tree), *more, "--device", "cpu", "--output", str(tmp_path / "run")]
    assert cli.main(command) == 0
    assert (result.folder / "config.yaml").read_text() == (tmp_path / "run/config.yaml").read_text()
    files = {
        path.relative_to(folder) for folder in (result.folder, tmp_path / "run") for path in folder.rglob("*.json*")
    }
    assert files and all((result.folder / file).exists() and (tmp_path / "run" / file).exists() for file in files)
    assert numbers_of_steps(result.folder / "metrics.jsonl") == numbers_of_steps(tmp_path / "run/metrics.jsonl")
    one, two = (
        (folder / "checkpoints/step_00000002/model.safetensors").read_bytes()
        for folder in (result.folder, tmp_path / "run")
    )
    assert one == two


def test_the_result_of_a_run_knows_its_files_and_numbers(result):
    assert result.weights.read_bytes() and result.averaged_weights.read_bytes()
    assert result.weights.parent == result.averaged_weights.parent == result.folder
    assert [record["step"] for record in result.steps] == [1, 2] and "loss" in result.steps[0]
    assert [record["step"] for record in result.validations] == [2] and "ema_top1" in result.validations[0]
    assert len(result.classes) == 8 and result.config == load_config(result.folder / "config.yaml")
    for found, folder in ((result.evaluation, "evaluation"), (result.averaged_evaluation, "evaluation_ema")):
        written = json.loads((result.folder / folder / "results.json").read_text())
        assert found.top1 == written["top1"] and found.num_videos == written["num_videos"] == 8
        assert found.intervals_95["top1"] == tuple(written["intervals_95"]["top1"])
        assert found.accuracies == {name: written[name] for name in ("top1", "top5", "mean_class_accuracy")}


@pytest.mark.integration
def test_an_evaluation_from_python_is_the_one_of_the_command_line_and_writes_only_where_asked(
    result, few_videos, tmp_path
):
    config, options = load_config(result.folder / "config.yaml"), dict(protocol="1x3", frames="reversed", device="cpu")
    found = api.evaluate(config, result.weights, **options)
    command = ["evaluate", str(result.folder / "config.yaml"), "--checkpoint", str(result.weights), "--protocol", "1x3"]
    command += ["--frames", "reversed", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert cli.main(command) == 0
    written = json.loads((tmp_path / "out/results.json").read_text())
    times = {"seconds", "clips_per_second", "views_per_second"}
    assert {key: value for key, value in json.loads(json.dumps(found.content)).items() if key not in times} == {
        key: value for key, value in written.items() if key not in times
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    again = api.evaluate(config, result.weights, tmp_path / "out", overwrite=True, **options)
    assert again.top1 == found.top1 and (tmp_path / "out/report.html").exists()
    with pytest.raises(ConfigError, match="already contains"):
        api.evaluate(config, result.weights, tmp_path / "out", **options)


def test_overrides_win_by_section_and_by_name_and_leave_the_rest_of_their_section_alone():
    config = with_overrides(DEMO, {"train": {"epochs": 3}, "train.seed": 5, "data": {"root": REPOSITORY}})
    plain = load_config(DEMO)
    assert (config.train.epochs, config.train.seed, config.data.root) == (3, 5, str(REPOSITORY))
    changed = {"epochs": 3, "seed": 5}
    assert config.train == plain.train.model_copy(update=changed) and config.model == plain.model
    assert with_overrides(plain, {"train": changed}).train == config.train
    assert with_overrides(Config(), {}) == Config()
    replaced = with_overrides(DEMO, {"model": {"arguments": {"depths": [1]}}})
    assert replaced.model.arguments == {"depths": [1]}, "a setting is replaced whole"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train": {"epoch": 3}}, r"motion.yaml: 'train.epoch' is not a setting \(did you mean 'train.epochs'"),
        ({"trian": {"epochs": 3}}, r"motion.yaml: 'trian' is not a setting"),
        ({"train": 3}, r"train = 3 is not a section: write train={'name': value}"),
        ({"epochs": 3}, r"epochs = 3 is not a section"),
        ({"train.epochs": 0}, r"motion.yaml: train.epochs = 0: input should be greater"),
    ],
)
def test_an_override_that_is_none_is_one_sentence(overrides, message):
    with pytest.raises(ConfigError, match=message):
        with_overrides(DEMO, overrides)


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="cannot be combined"):
        api.train(DEMO, tmp_path / "run", resume=True, overwrite=True)
    assert not list(tmp_path.iterdir())
