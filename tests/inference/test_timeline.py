import json

import numpy as np
import pytest

from mvit_video.data.decode import VideoReader
from mvit_video.errors import ConfigError
from mvit_video.evaluation.evaluate import Protocol
from mvit_video.inference.predictor import Predictor
from mvit_video.inference.render import timeline_figure
from mvit_video.inference.timeline import Segment, label_timeline, merge_segments


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.from_checkpoint(trained.weights, device="cpu")


@pytest.fixture(scope="module")
def timeline(predictor, motion_data):
    return label_timeline(predictor, motion_data / "long.mp4")


def test_segments_cover_the_video_without_gaps(timeline):
    borders = [segment.start for segment in timeline.segments] + [timeline.segments[-1].end]
    assert borders[0] == 0 and borders[-1] == timeline.seconds and borders == sorted(borders)
    assert [segment.end for segment in timeline.segments] == borders[1:]


def test_the_actions_of_the_long_video_are_found_at_their_times(timeline, motion_data):
    truth = json.loads((motion_data / "long.json").read_text())
    moments = np.arange(0.05, timeline.seconds, 0.1)
    right = 0
    for moment in moments:
        said = next(s.label for s in timeline.segments if s.start <= moment <= s.end)
        right += said == next(s["label"] for s in truth if s["start"] <= moment <= s["end"])
    assert right / len(moments) > 0.5  # by a half-trained network; chance is 1/8


def test_windows_are_scored_as_the_predictor_scores_the_same_frames(timeline, predictor, motion_data):
    """Each window cut out as a video of its own, one centre view."""
    single = Predictor(predictor.model, predictor.card, predictor.device, Protocol(1, 1))
    reader = VideoReader(motion_data / "long.mp4")
    for place in (0, 5, len(timeline.times) - 1):
        first = round(timeline.times[place] * reader.fps - 12)
        wanted = single(reader.frames(range(first, first + 24)), top=8, fps=reader.fps)
        for label, score in wanted.predictions:
            assert timeline.scores[place, predictor.card.classes.index(label)] == pytest.approx(score, abs=1e-5)
    assert timeline.times[0] == pytest.approx(12 / 15) and timeline.times[-1] == pytest.approx(
        timeline.seconds - 12 / 15
    )


def test_a_video_shorter_than_a_clip_is_one_segment(predictor, tmp_path):
    from mvit_video.data.synthetic import write_video

    write_video(tmp_path / "short.mp4", np.zeros((5, 48, 48, 3), np.uint8), 15)
    timeline = label_timeline(predictor, tmp_path / "short.mp4")
    assert len(timeline.segments) == 1 and timeline.segments[0].end == pytest.approx(5 / 15)


def test_a_model_that_samples_whole_videos_has_no_timeline(predictor, motion_data):
    settings = predictor.card.preprocessing.model_copy(update={"sampling": "segment"})
    other = Predictor(predictor.model, predictor.card.model_copy(update={"preprocessing": settings}), predictor.device)
    with pytest.raises(ConfigError, match="a timeline needs a model with dense sampling"):
        label_timeline(other, motion_data / "long.mp4")


def scores_of(text):
    """Each letter's class scores .8, the others share the rest."""
    return np.array([[0.8 if letter == name else 0.1 for name in "abc"] for letter in text])


def segments_of(text, shortest):
    times = np.arange(len(text)) + 0.5
    return [
        (s.start, s.end, s.label)
        for s in merge_segments(times, scores_of(text), ("a", "b", "c"), float(len(text)), shortest)
    ]


@pytest.mark.parametrize(
    ("text", "shortest", "wanted"),
    [
        ("aaabbb", 0, [(0, 3, "a"), (3, 6, "b")]),
        ("aabaa", 0, [(0, 2, "a"), (2, 3, "b"), (3, 5, "a")]),
        ("aabaa", 2, [(0, 5, "a")]),
        ("aaacbbb", 2, [(0, 4, "a"), (4, 7, "b")]),
        ("c", 5, [(0, 1, "c")]),
        ("abcabc", 10, [(0, 6, "a")]),
    ],
)
def test_short_runs_go_to_a_neighbour(text, shortest, wanted):
    assert segments_of(text, shortest) == wanted


def test_a_segments_score_is_the_mean_of_its_label():
    scores = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    first, second = merge_segments(np.array([1.0, 2.0, 3.0]), scores, ("a", "b"), 4.0)
    assert (first.score, second.score) == (pytest.approx(0.8), pytest.approx(0.8))
    assert first == Segment(0.0, 2.5, "a", first.score)


def test_the_picture_names_long_segments_and_has_a_lane_for_the_truth(timeline, predictor):
    frames = np.zeros((4, 10, 12, 3), np.uint8)
    figure = timeline_figure(timeline, predictor.card.classes, frames, truth=timeline.segments)
    film, lane, curve = figure.axes
    assert len(film.images) == 4
    assert [label.get_text() for label in lane.get_yticklabels()] == ["predicted", "true"]
    assert len(lane.patches) == 2 * len(timeline.segments)
    assert {line.get_label() for line in curve.lines} == {segment.label for segment in timeline.segments}
