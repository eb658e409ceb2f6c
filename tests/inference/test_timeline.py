import json
from fractions import Fraction
from itertools import pairwise, product
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from tiny_predictor import nano_card, nano_model, nano_predictor

from mvit_video.config.schema import InputSettings
from mvit_video.data.synthetic import write_video
from mvit_video.data.video.guard import Guard
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError
from mvit_video.evaluation.protocols import Protocol
from mvit_video.inference.predictor import Predictor
from mvit_video.inference.timeline import Segment, Timeline, label_timeline, merge_segments, segments_csv, segments_srt
from mvit_video.inference.windows import SlidingClips, shown_at
from mvit_video.report.render import clock, timeline_figure


@pytest.fixture(scope="module")
def predictor(small_run):
    return Predictor.from_checkpoint(small_run.weights, device="cpu")


@pytest.fixture(scope="module")
def timeline(predictor, few_videos):
    return label_timeline(predictor, few_videos / "long.mp4")


def test_segments_cover_the_video_without_gaps(timeline):
    borders = [segment.start for segment in timeline.segments] + [timeline.segments[-1].end]
    assert borders[0] == 0 and borders[-1] == timeline.seconds and borders == sorted(borders)
    assert [segment.end for segment in timeline.segments] == borders[1:]


@pytest.mark.integration
def test_the_actions_of_the_long_video_are_found_at_their_times(trained, motion_data):
    timeline = label_timeline(Predictor.from_checkpoint(trained.weights, device="cpu"), motion_data / "long.mp4")
    truth = json.loads((motion_data / "long.json").read_text())
    moments = np.arange(0.05, timeline.seconds, 0.1)
    right = 0
    for moment in moments:
        said = next(s.label for s in timeline.segments if s.start <= moment <= s.end)
        right += said == next(s["label"] for s in truth if s["start"] <= moment <= s["end"])
    assert right / len(moments) > 0.5  # by a half-trained network; chance is 1/8


def test_windows_are_scored_as_the_predictor_scores_the_same_frames(timeline, predictor, few_videos):
    """Each window cut out as a video of its own, one centre view."""
    single = Predictor(predictor.model, predictor.card, predictor.device, Protocol(1, 1))
    reader = VideoReader(few_videos / "long.mp4")
    for place in (0, 5, len(timeline.times) - 1):
        first = round(timeline.times[place] * reader.fps - 12)
        [expected] = single(reader.frames(range(first, first + 24)), top=8, fps=reader.fps)
        for label, score in expected.predictions:
            assert timeline.scores[place, predictor.card.classes.index(label)] == pytest.approx(score, abs=1e-5)
    assert timeline.times[0] == pytest.approx(12 / 15) and timeline.times[-1] == pytest.approx(
        timeline.seconds - 12 / 15
    )


def test_a_video_shorter_than_a_clip_is_one_segment(tmp_path):
    write_video(tmp_path / "short.mp4", np.zeros((5, 48, 48, 3), np.uint8), 15)
    timeline = label_timeline(nano_predictor(), tmp_path / "short.mp4")
    assert len(timeline.segments) == 1 and timeline.segments[0].end == pytest.approx(5 / 15)


def test_a_model_that_samples_whole_videos_sees_windows_of_four_seconds(few_videos):
    """Each window cut out as a video of its own."""
    predictor = nano_predictor(sampling="segment")
    timeline = label_timeline(predictor, few_videos / "long.mp4", step_seconds=2.0)
    assert timeline.times.tolist() == pytest.approx([2, 4, 6, 8, 10, 12, 12.4])
    reader = VideoReader(few_videos / "long.mp4")
    for start, row in zip((0, 30, 60), timeline.scores, strict=False):
        [expected] = predictor(reader.frames(range(start, start + 60)), top=8)
        actual = dict(zip(predictor.card.classes, row.tolist(), strict=True))
        assert actual == pytest.approx(dict(expected.predictions), abs=1e-6)


class Counted(VideoReader):
    """Gives frames in a stream only, and counts them."""

    frames = None

    def __init__(self, *words, **more):
        super().__init__(*words, **more)
        self.given = 0

    def stream(self):
        for frame in super().stream():
            self.given += 1
            yield frame


def test_every_frame_is_decoded_once(few_videos):
    told, opened, predictor = [], [], nano_predictor()

    def open_counted(path, whole):
        opened.append(Counted(path, whole=whole))
        return opened[-1]

    predictor = predictor.with_guard(SimpleNamespace(open=open_counted))
    label_timeline(predictor, few_videos / "long.mp4", on_frame=lambda done, total: told.append((done, total)))
    assert [reader.given for reader in opened] == [216] and told == [(number, 216) for number in range(1, 217)]


def test_a_guarded_timeline_is_that_of_decoding_in_this_process(few_videos):
    predictor = nano_predictor()
    actual, expected = (
        label_timeline(predictor.with_guard(guard), few_videos / "long.mp4") for guard in (Guard(), Guard(timeout=0))
    )
    assert np.array_equal(actual.scores, expected.scores) and actual.segments == expected.segments
    assert all(np.array_equal(*pair) for pair in zip(actual.thumbnails, expected.thumbnails, strict=True))


def test_times_are_the_files_own_where_the_frame_rate_varies(tmp_path):
    from numbered_video import write_numbered

    write_numbered(tmp_path / "gaps.mp4", 100, gaps=True)
    reader = VideoReader(tmp_path / "gaps.mp4")
    shown = np.cumsum([0] + [8 if number % 3 == 0 else 4 for number in range(99)]) / 100
    assert shown_at(reader)[:-1] == pytest.approx(shown)
    timeline = label_timeline(nano_predictor(), tmp_path / "gaps.mp4")
    length = round(1.6 * reader.fps)
    assert timeline.times[0] == pytest.approx(shown[length] / 2)
    assert timeline.seconds == pytest.approx(shown[-1] + 1 / reader.fps)


class BareReader:
    """What a timeline asks of a reader, of a video that is not there; decoding stops after `whole` frames."""

    path, shortfall, note = "bare.mp4", "", ""

    def __init__(self, count, fps, whole):
        self.count, self.fps, self.whole = count, fps, whole

    def __len__(self):
        return self.count

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def times(self):
        return [number / self.fps for number in range(self.count)]

    def stream(self):
        yield from (np.zeros((4, 4, 3), np.uint8) for _ in range(self.whole))
        if self.whole < self.count:
            raise DecodeError("bare.mp4: damaged")


class BarePredictor:
    """Draws the scores of three classes."""

    views_at_once = 4

    def __init__(self, reader, **settings):
        self.guard = SimpleNamespace(open=lambda path, whole: reader)
        self.card = SimpleNamespace(preprocessing=InputSettings(**settings), classes=("a", "b", "c"), multi_label=False)
        self.rng = np.random.default_rng(0)

    def scores_of(self, parts):
        return self.rng.dirichlet(np.ones(3), len(parts))


@pytest.mark.parametrize(
    "settings",
    [{}, {"dense_step": "stride"}, {"sampling": "segment"}, {"num_frames": 8, "sampling_rate": 8}, {"num_frames": 1}],
    ids=str,
)
def test_windows_and_segments_lie_within_videos_of_any_length_and_rate(settings, monkeypatch):
    """303 frames at 29.97 a second are one of them; also where decoding stops before the end."""
    monkeypatch.setattr(SlidingClips, "_scaled", lambda clips, frame: torch.zeros(1, 1, 1))
    rng = np.random.default_rng(1)
    lengths = [303, 1, 2, *rng.integers(3, 500, 12).tolist()]
    for fps, count, stops in product((1.0, 23.976, 25.0, 30_000 / 1001, 30.0, 50.0, 59.94), lengths, (False, True)):
        whole = -(-count * 2 // 3) if stops else count
        found = label_timeline(BarePredictor(BareReader(count, fps, whole), **settings), "bare.mp4")
        end = whole / fps
        assert found.seconds == pytest.approx(end) and (found.error is not None) == (whole < count)
        assert (np.diff(found.times) > 0).all() and found.times[0] > 0 and found.times[-1] <= end + 1e-9
        borders = [0.0, *(segment.end for segment in found.segments)]
        assert [segment.start for segment in found.segments] == borders[:-1] and borders[-1] == found.seconds
        lengths_of = np.diff(borders)
        assert (lengths_of > 0).all()
        assert len(lengths_of) == 1 or lengths_of.min() >= found.window_seconds / 2 - 1e-9
        if not stops:
            assert found.times[-1] == pytest.approx(end - found.window_seconds / 2), (
                "the last window ends with the video"
            )


def test_a_video_of_29_97_frames_a_second_has_a_timeline(tmp_path):
    write_video(tmp_path / "ntsc.mp4", np.zeros((303, 48, 64, 3), np.uint8), Fraction(30_000, 1001))
    shown = InputSettings(num_frames=8, sampling_rate=8, short_side=48, crop_size=48)
    card = nano_card().model_copy(update={"preprocessing": shown})
    timeline = label_timeline(Predictor(nano_model(), card, torch.device("cpu")), tmp_path / "ntsc.mp4")
    assert timeline.seconds == pytest.approx(303 * 1001 / 30_000)
    assert timeline.times[-1] == pytest.approx(timeline.seconds - timeline.window_seconds / 2, abs=1e-3)


def overwritten(path, long_video):
    """The long video with its packets' bytes zeroed from two thirds on."""
    content = bytearray(long_video.read_bytes())
    begin, end = content.index(b"mdat") + 4, content.rindex(b"moov") - 4
    assert begin < end
    place = begin + (end - begin) * 2 // 3
    content[place:end] = bytes(end - place)
    path.with_suffix(".mp4").write_bytes(content)
    return path.with_suffix(".mp4")


def cut_off(path, long_video, suffix=".mp4"):
    """The first two thirds of the long video's bytes, with its index, where there is one, at the start."""
    path = path.with_suffix(suffix)
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    with av.open(str(long_video)) as source, av.open(str(path), "w", options=options) as copy:
        track = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = track
                copy.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def cut_off_matroska(path, long_video):
    return cut_off(path, long_video, ".mkv")


@pytest.mark.parametrize("damage", [overwritten, cut_off])
def test_a_video_that_cannot_be_decoded_to_its_end_keeps_what_was_seen(few_videos, tmp_path, damage):
    whole, cut = few_videos / "long.mp4", damage(tmp_path / "cut", few_videos / "long.mp4")
    predictor = nano_predictor()
    full, part = label_timeline(predictor, whole), label_timeline(predictor, cut)
    assert full.error is None and part.error.startswith(f"{cut}: ")
    check_part(full, part)


def test_a_file_that_does_not_say_that_it_is_cut_short_has_a_timeline_as_long_as_it_goes(few_videos, tmp_path):
    cut = cut_off_matroska(tmp_path / "cut", few_videos / "long.mp4")
    predictor = nano_predictor()
    check_part(label_timeline(predictor, few_videos / "long.mp4"), label_timeline(predictor, cut))


def check_part(full, part):
    """All windows but the last, which ends with the video, are those of the whole."""
    assert 1 < part.seconds < full.seconds and part.segments[-1].end == part.seconds
    count = len(part.times) - 1
    assert 3 < count < len(full.times)
    assert part.times[:count].tolist() == pytest.approx(full.times[:count].tolist(), abs=1e-3)
    assert part.scores[:count] == pytest.approx(full.scores[:count], abs=1e-5)


def test_a_video_of_which_nothing_can_be_decoded_has_no_timeline(tmp_path):
    (tmp_path / "none.mp4").write_bytes(b"")
    with pytest.raises(DecodeError, match="is empty"):
        label_timeline(nano_predictor(), tmp_path / "none.mp4")


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
    ("text", "shortest", "expected"),
    [
        ("aaabbb", 0, [(0, 3, "a"), (3, 6, "b")]),
        ("aabaa", 0, [(0, 2, "a"), (2, 3, "b"), (3, 5, "a")]),
        ("aabaa", 2, [(0, 5, "a")]),
        ("aaacbbb", 2, [(0, 4, "a"), (4, 7, "b")]),
        ("c", 5, [(0, 1, "c")]),
        ("abcabc", 10, [(0, 6, "a")]),
    ],
)
def test_short_runs_go_to_a_neighbour(text, shortest, expected):
    assert segments_of(text, shortest) == expected


def merged_by_a_plain_loop(times, scores, seconds, shortest):
    """One run at a time, the shortest first, everything counted anew after each."""
    labels = scores.argmax(1).tolist()
    while True:
        changes = [0] + [place for place in range(1, len(labels)) if labels[place] != labels[place - 1]] + [len(labels)]
        borders = [0.0] + [(times[place - 1] + times[place]) / 2 for place in changes[1:-1]] + [seconds]
        lengths = [end - start for start, end in pairwise(borders)]
        place = lengths.index(min(lengths))
        if len(lengths) == 1 or lengths[place] >= shortest:
            runs = zip(borders[:-1], borders[1:], changes[:-1], strict=True)
            return [(start, end, labels[first]) for start, end, first in runs]
        first, last = changes[place], changes[place + 1]
        around = {labels[other] for other in (first - 1, last) if 0 <= other < len(labels)}
        labels[first:last] = [max(sorted(around), key=lambda label: scores[first:last, label].mean())] * (last - first)


def test_merging_is_what_a_plain_loop_does():
    rng = np.random.default_rng(0)
    for _ in range(100):
        count = int(rng.integers(1, 60))
        scores, times = rng.random((count, int(rng.integers(2, 5)))), np.cumsum(rng.random(count)) + 0.1
        seconds, shortest = float(times[-1] + 0.5), float(rng.uniform(0, 6))
        actual = merge_segments(times, scores, tuple("abcde"), seconds, shortest)
        expected = merged_by_a_plain_loop(times, scores, seconds, shortest)
        assert [(s.start, s.end, "abcde".index(s.label)) for s in actual] == expected


def test_a_segments_score_is_the_mean_of_its_label():
    scores = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    first, second = merge_segments(np.array([1.0, 2.0, 3.0]), scores, ("a", "b"), 4.0)
    assert (first.score, second.score) == (pytest.approx(0.8), pytest.approx(0.8))
    assert first == Segment(0.0, 2.5, "a", first.score)


def test_the_picture_names_long_segments_and_has_a_lane_for_the_truth(timeline, predictor):
    frames = np.zeros((4, 10, 12, 3), np.uint8)
    figure = timeline_figure(timeline, predictor.card.classes, frames, truth=timeline.segments)
    strip, lane, curve = figure.axes
    assert len(strip.images) == 4
    assert [label.get_text() for label in lane.get_yticklabels()] == ["predicted", "true"]
    assert len(lane.patches) == 2 * len(timeline.segments)
    assert {line.get_label() for line in curve.lines} == {segment.label for segment in timeline.segments}


SEGMENTS = (Segment(0.0, 2.5, "jumping, high", 0.91234), Segment(2.5, 3661.5, "größer werden", 0.5))


def test_segments_as_a_table():
    expected = 'start,end,label,score\n0.000,2.500,"jumping, high",0.9123\n2.500,3661.500,größer werden,0.5000\n'
    assert segments_csv(SEGMENTS) == expected


def test_segments_as_subtitles():
    assert segments_srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:02,500\njumping, high (0.91)\n\n"
        "2\n00:00:02,500 --> 01:01:01,500\ngrößer werden (0.50)\n"
    )


def test_a_label_of_two_lines_is_one_line_of_a_subtitle():
    cue = segments_srt((Segment(0.0, 1.0, "new\n\nline", 0.5),))
    assert cue == "1\n00:00:00,000 --> 00:00:01,000\nnew line (0.50)\n"


def test_the_segment_of_a_moment_is_the_one_that_has_begun():
    timeline = Timeline(np.zeros(1), np.zeros((1, 2)), SEGMENTS, 3661.5, 1.0)
    assert [timeline.segment_at(at).label[0] for at in (-1, 0, 2.4, 2.5, 5000)] == ["j", "j", "j", "g", "g"]


def test_in_the_picture_of_many_labels_the_longest_have_colours_and_the_rest_is_grey():
    classes = tuple(f"class {number} costs $5 and $6" for number in range(30))
    segments = tuple(
        Segment(start, start + 10 + number, classes[number], 0.5)
        for number, start in enumerate(np.cumsum([0] + [10 + n for n in range(29)]).tolist())
    )
    seconds = segments[-1].end
    timeline = Timeline(np.array([1.0, seconds]), np.full((2, 30), 1 / 30), segments, seconds, 2.0)
    figure = timeline_figure(timeline, classes)
    figure.canvas.draw()  # a dollar sign is no formula
    legend = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert legend == [*classes[21:], "others"]
    assert len({patch.get_facecolor() for patch in figure.axes[1].patches}) == 10


def test_the_picture_names_labels_that_begin_with_an_underscore():
    segments = (Segment(0, 2, "_background", 0.9), Segment(2, 4, "walk", 0.9))
    timeline = Timeline(np.array([1.0, 3.0]), np.array([[0.9, 0.1], [0.1, 0.9]]), segments, 4.0, 1.0)
    figure = timeline_figure(timeline, ("_background", "walk"))
    figure.canvas.draw()
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["_background", "walk"]


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3605.2, "1:00:05")])
def test_times_of_long_videos_are_clocks(seconds, text):
    assert clock(seconds) == text


def test_names_stand_out_from_the_colours_of_their_segments():
    classes = tuple("abcdefghij")
    segments = tuple(
        Segment(10.0 * place, 10.0 * place + 10 - place / 10, name, 0.5) for place, name in enumerate(classes)
    )
    timeline = Timeline(np.array([1.0, 99.0]), np.full((2, 10), 0.1), segments, 100.0, 2.0)
    lane = timeline_figure(timeline, classes).axes[1]
    assert len(lane.texts) == len(lane.patches) == 10

    def light(colour):
        parts = np.array(to_rgb(colour))
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for name, bar in zip(lane.texts, lane.patches, strict=True):
        dark, bright = sorted([light(name.get_color()), light(bar.get_facecolor())])
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, "the least that WCAG asks for"


@pytest.mark.parametrize("count, size", [(12, (64, 80)), (12, (90, 30)), (2, (64, 80)), (1, (64, 80)), (30, (40, 90))])
def test_frames_above_a_timeline_keep_their_shape(count, size):
    timeline = Timeline(np.array([1.0, 9.0]), np.ones((2, 1)), (Segment(0.0, 10.0, "walk", 1.0),), 10.0, 2.0)
    film = timeline_figure(timeline, ("walk",), [np.zeros((*size, 3), np.uint8)] * count).axes[0]
    box = film.get_window_extent()
    assert 1 <= len(film.images) <= count
    for image in film.images:
        left, right, _, _ = image.get_extent()
        rows, columns = image.get_array().shape[:2]
        drawn = (right - left) / 10.0 * box.width / box.height
        assert drawn == pytest.approx(columns / rows, rel=0.05)
        assert rows == size[0] or columns == size[1]
        assert rows * columns >= 0.6 * size[0] * size[1]
