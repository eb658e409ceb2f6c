import json
import shutil

import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from mvit_video.config.load import load_config
from mvit_video.data.dataset import ViewDataset
from mvit_video.data.lists.read import read_videos
from mvit_video.data.video.source import VideoFiles
from mvit_video.errors import ConfigError
from mvit_video.evaluation.evaluate import EvaluationTask, check_agreement, evaluator_from, validator
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.results import accuracies
from mvit_video.evaluation.views import frame_order, reversed_frames, shuffled_frames
from mvit_video.model.precision import Precision
from mvit_video.model.weights.load import load_checkpoint

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)


@pytest.fixture(scope="module")
def model(small_run):
    return load_checkpoint(small_run.weights)[0]


def evaluator(small_run, videos, protocol="2x3", **changes):
    config = small_run.config.model_copy(update=changes)
    return evaluator_from(config, videos, config.data.input, Protocol.parse(protocol), FP32)


@pytest.mark.parametrize("views_per_batch", [1, 5, 64])
@pytest.mark.parametrize("protocol", ["1x1", "3x2"])
def test_scores_are_the_mean_softmax_of_the_views(small_run, model, few_videos, views_per_batch, protocol):
    """Against one view at a time, in numpy."""
    config = load_config(
        REPOSITORY / "configs/demo/motion.yaml",
        [f"data.root={few_videos}", f"evaluation.views_per_batch={views_per_batch}", "data.workers=0"],
    )
    videos, parsed = read_videos("val.csv", str(few_videos)), Protocol.parse(protocol)
    ours = evaluator_from(config, videos, config.data.input, parsed, FP32).scores(model)
    dataset = ViewDataset(videos, VideoFiles(str(few_videos)), config.data, parsed.clips, parsed.crops, "return")
    for row in range(len(videos)):
        total = np.zeros(8)
        for view in dataset[row]["video"]:
            with torch.inference_mode():
                logits = model(view[None])[0].double().numpy()
            total += np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert np.allclose(ours.scores[row], total / (parsed.clips * parsed.crops), atol=1e-5)
    assert ours.names == [record.path for record in videos.records] and ours.decoded.all()


def test_undecodable_videos_are_wrong_listed_and_counted(small_run, model, few_videos, tmp_path):
    shutil.copytree(few_videos, tmp_path / "data")
    (tmp_path / "data/val/00000.mp4").write_text("not a video")
    (tmp_path / "data/val/00005.mp4").unlink()
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={tmp_path / 'data'}"])
    videos = read_videos("val.csv", config.data.root)
    card = load_checkpoint(small_run.weights)[1]
    found = EvaluationTask(str(small_run.weights), model, card, videos, config, Protocol(1, 1), FP32).run()
    scores, result = found.scores, found.content
    assert result["num_videos"] == 8 and result["num_classes"] == 8 and result["protocol"] == "1x1"
    assert [bad["where"] for bad in result["undecodable"]] == ["row 1 of val.csv", "row 6 of val.csv"]
    assert result["undecodable"][1]["reason"] == "val/00005.mp4: no such file"
    assert scores.labels.tolist() == list(range(8)) and not scores.scores[[0, 5]].any()
    right = sum(scores.scores[row].argmax() == row for row in range(8) if row not in (0, 5))
    assert result["top1"] == 100 * right / 8


def test_shuffling_keeps_the_frames_and_follows_from_the_seed():
    views = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(2, 3, 16, 1, 1)
    one, same, other = (shuffled_frames(seed)(views, 4) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one, views)
    assert torch.equal(one.sort(2).values, views)
    assert torch.equal(one[0], one[1])
    assert torch.equal(reversed_frames(views, 0)[0, 0, :, 0, 0], torch.arange(15.0, -1, -1))


def test_orders_of_frames_have_names():
    views = torch.randn(2, 3, 8, 2, 2)
    assert frame_order("in-order") is None
    assert torch.equal(frame_order("reversed")(views, 5), views.flip(2))
    for word, seed in (("shuffled", 0), ("shuffled:0", 0), ("shuffled:12", 12)):
        assert torch.equal(frame_order(word)(views, 5), shuffled_frames(seed)(views, 5))
    for word in ("shuffled:", "shuffled:x", "shuffled:-1", "backwards", ""):
        with pytest.raises(
            ConfigError, match=r"is not an order: choose from in-order, reversed, shuffled and shuffled:SEED"
        ):
            frame_order(word)


def test_validation_is_the_evaluator_with_one_centre_view(small_run, model, few_validation_videos):
    expected = accuracies(evaluator(small_run, few_validation_videos, "1x1").scores(model))
    assert validator(few_validation_videos, small_run.config, CPU)(model) == expected
    last = json.loads((small_run.folder / "validation.jsonl").read_text().splitlines()[-1])
    assert {"top1": last["top1"], "top5": last["top5"]} == expected


def test_a_checkpoint_and_a_config_that_disagree_are_both_named(small_run, few_validation_videos):
    card = load_checkpoint(small_run.weights)[1]
    data = small_run.config.data.model_copy(update={"sampling_rate": 2})
    with pytest.raises(
        ConfigError, match=r"data.sampling_rate is 2 in the config, but the checkpoint was trained with 3"
    ):
        check_agreement(card, small_run.config.model_copy(update={"data": data}), few_validation_videos, Protocol(1, 1))
    other = card.model_copy(update={"classes": (*card.classes[:3], "jumping", *card.classes[4:])})
    with pytest.raises(ConfigError, match="class 3 is 'moving down' there but 'jumping' in the checkpoint"):
        check_agreement(other, small_run.config, few_validation_videos, Protocol(1, 1))
    fewer = card.model_copy(update={"classes": card.classes[:7]})
    with pytest.raises(
        ConfigError, match=r"class 7 is 'turning counter-clockwise' there but 'nothing' .*\(8 and 7 classes\)"
    ):
        check_agreement(fewer, small_run.config, few_validation_videos, Protocol(1, 1))
