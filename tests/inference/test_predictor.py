import numpy as np
import pytest
import torch

from mvit_video.data.decode import VideoReader
from mvit_video.errors import ConfigError, DecodeError, InputError
from mvit_video.evaluation.evaluate import Evaluator, Protocol
from mvit_video.inference.predictor import Predictor, choose_device, find_videos


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.from_checkpoint(trained.weights, device="cpu")


def test_predictions_are_the_evaluators_scores(predictor, trained, motion_data, validation_list):
    judge = Evaluator(
        validation_list, trained.config, trained.config.data.preprocessing(), Protocol.parse("2x3"), torch.device("cpu")
    )
    scores = judge.scores(predictor.model).scores
    for row in (0, 3, 6):
        prediction = predictor(motion_data / validation_list.records[row].path, top=8)
        for label, score in prediction.predictions:
            assert score == pytest.approx(scores[row, predictor.card.classes.index(label)], abs=1e-5)
        values = [score for _, score in prediction.predictions]
        assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-5)


def test_an_array_of_frames_gives_what_its_file_gives(predictor, motion_data):
    path = motion_data / "val/00002.mp4"
    reader = VideoReader(path)
    array = reader.frames(range(len(reader)))
    from_array, from_file = predictor(array, fps=reader.fps), predictor(path)
    assert dict(from_array.predictions) == pytest.approx(dict(from_file.predictions))
    assert from_array.path == "array"


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 8, 8, 3)),
        np.zeros((4, 8, 8), np.uint8),
        np.zeros((4, 8, 8, 4), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(predictor, array):
    with pytest.raises(InputError, match=r"wanted uint8 \(frames, height, width, 3\), RGB"):
        predictor(array)


def test_the_protocol_is_the_checkpoints_unless_another_is_named(predictor, trained):
    assert str(predictor.protocol) == "2x3"
    assert str(Predictor.from_checkpoint(trained.weights, "cpu", "4x1").protocol) == "4x1"


def test_a_bad_file_is_a_decode_error(predictor, tmp_path):
    (tmp_path / "a.mp4").write_text("no")
    with pytest.raises(DecodeError, match=r"a.mp4: cannot be opened as a video"):
        predictor(tmp_path / "a.mp4")


def test_folders_stand_for_their_videos(tmp_path):
    for name in ("b.mp4", "a/c.WEBM", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list(find_videos(["x.mp4", str(tmp_path)]))
    assert found == ["x.mp4", str(tmp_path / "a/c.WEBM"), str(tmp_path / "b.mp4")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: no videos in this folder, wanted files such as"):
        list(find_videos([str(tmp_path / "empty")]))


def test_a_device_that_is_not_there_is_named():
    assert choose_device("cpu").type == "cpu"
    for name in ("cuda:99", "gpu"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here .*: try auto or cpu"):
            choose_device(name)
