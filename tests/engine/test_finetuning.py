"""Fine-tuning in one command, from a folder of class folders to labels."""

import json
import shutil

import pytest
from class_folders import class_folders
from conftest import REPOSITORY
from safetensors.torch import load_file
from tiny_models import randomise

from mvit_video import build_model, cli
from mvit_video.config.schema import InputSettings
from mvit_video.evaluation.results import NAMES
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.files import read_checkpoint, save_checkpoint

CONFIG = REPOSITORY / "configs/custom/finetune.yaml"
SHORT = (
    "train.epochs=1",
    "train.clips_per_step=4",
    "train.clips_per_pass=null",
    "data.workers=0",
    "evaluation.protocol=1x1",
)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A tiny checkpoint of other classes, which says what its input is."""
    arguments = dict(depths=[1, 1])
    card = ModelCard(
        name="mvitv2_nano_8x3",
        arguments=arguments,
        classes=("one", "two"),
        preprocessing=InputSettings(num_frames=4, sampling_rate=2, target_fps=15, short_side=36, crop_size=32),
    )
    model = randomise(build_model(card.name, num_classes=2, num_frames=4, crop_size=32, **arguments), 0)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(file, model, card)
    return file


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.mark.integration
def test_one_command_splits_trains_evaluates_and_leaves_weights_that_predict_takes(
    capsys, few_videos, pretrained, tmp_path
):
    folder, out = class_folders(few_videos, tmp_path / "videos"), tmp_path / "run"
    words = [f"data.root={folder}", f"model.weights={pretrained}", *SHORT]
    code, _, err = run(capsys, "train", CONFIG, *words, "--output", out, "--device", "cpu")
    assert code == 0, err
    assert "each class was split by a hash of path:" in err
    assert (
        "the classification head is re-initialised for your classes:" in err
        and "has 2 classes, such as 'one', the training list 8, such as" in err
    )
    assert "checked: 3 videos decoded, one forward and backward pass," in err
    parts = [
        {line.split("\t")[0] for line in (out / f"{name}.csv").read_text().splitlines()} for name in ("train", "val")
    ]
    assert len(parts[0]) + len(parts[1]) == 24 and not parts[0] & parts[1] and parts[1]

    state, card = read_checkpoint(out / "model.safetensors")
    assert card.preprocessing.num_frames == 4 and card.preprocessing.crop_size == 32 and len(card.classes) == 8
    result = json.loads((out / "evaluation/results.json").read_text())
    assert card.measured.percent == {name: result[name] for name in NAMES if name in result}
    assert (card.measured.protocol, card.measured.num_videos) == ("1x1", len(parts[1]))
    assert json.loads((out / "evaluation_ema/results.json").read_text())["num_videos"] == len(parts[1])
    assert (
        "top-1 {:.2f} % ({:.1f} to {:.1f} with 95 %), top-5".format(result["top1"], *result["intervals_95"]["top1"])
        in err
        and f"with 95 %) of {len(parts[1])} held-out videos, 1x1; details in" in err
    )

    video = next(iter(folder.rglob("*.mp4")))
    code, answer, _ = run(capsys, "predict", video, "--checkpoint", out / "model.safetensors", "--json")
    assert code == 0 and json.loads(answer)["predictions"][0]["label"] in card.classes
    configs = [[CONFIG, *words], [out / "config.yaml"]]  # both find the same videos and the same input
    for config in configs:
        where = ["--checkpoint", out / "model.safetensors", "--output", tmp_path / "again", "--overwrite"]
        code, _, err = run(capsys, "evaluate", *config, *where)
        again = json.loads((tmp_path / "again/results.json").read_text())
        assert code == 0 and (again["top1"], again["num_videos"]) == (result["top1"], result["num_videos"]), err

    for place, name in enumerate(sorted(path.name for path in folder.iterdir())):  # new videos would be split anew
        for number in range(place):
            shutil.copy(video, folder / name / f"new_{number}.mp4")
    code, _, err = run(capsys, "evaluate", *configs[1], *where)
    again = json.loads((tmp_path / "again/results.json").read_text())
    assert code == 0 and (again["top1"], again["num_videos"]) == (result["top1"], result["num_videos"]), err
    resume = ["train", CONFIG, *words, "--device", "cpu", "--resume", "auto", "--output"]
    moved = out.rename(tmp_path / "moved")
    code, _, err = run(capsys, *resume, moved)
    assert code == 0 and f"of {len(parts[1])} held-out videos" in err, err
    video.rename(video.with_name(f"other_{video.name}"))
    code, _, err = run(capsys, *resume, moved)
    assert code == 1 and video.name in err
    assert load_file(moved / "model.safetensors").keys() == state.keys()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.weights=null"], "model.name = auto needs model.weights, whose network it then is"),
        (["model.weights=mvitv2_s_in1k"], "mvitv2_s_in1k is a network for images: name one for videos"),
        (["evaluation.protocol=9x9"], "evaluation.protocol = '9x9'"),
        (["train.clips_per_step=64"], "train.clips_per_step = 64 is more than the"),
        (["data.crop_size=64"], "crop_size 64 is larger than short_side 36"),
    ],
)
def test_what_cannot_work_ends_in_one_sentence_before_anything_is_written(
    capsys, few_videos, pretrained, tmp_path, words, sentence
):
    folder = class_folders(few_videos, tmp_path / "videos")
    all_words = [f"data.root={folder}", f"model.weights={pretrained}", *SHORT, *words]
    code, _, err = run(capsys, "train", CONFIG, *all_words, "--output", tmp_path / "run", "--device", "cpu")
    assert code == 1 and sentence in err, err
    assert not (tmp_path / "run").exists()
