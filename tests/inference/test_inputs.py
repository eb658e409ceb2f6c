"""A predictor takes a video in any form; what is none is one sentence that says what is taken."""

import io
import pathlib

import numpy as np
import pytest
import torch
from numbered_video import write_numbered
from PIL import Image
from tiny_predictor import nano_predictor

from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError, InputError

TAKEN = "expected a path, the bytes of a file, a file opened with 'rb', frames as a uint8 array or tensor"


@pytest.fixture(scope="module")
def predictor():
    return nano_predictor()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("video") / "a b.mp4", 40)


@pytest.fixture(scope="module")
def frames(video):
    with VideoReader(video) as reader:
        return reader.frames(range(40))


def test_a_file_may_come_as_a_path_as_bytes_or_opened(predictor, video):
    [expected] = predictor(str(video))
    content = video.read_bytes()
    with open(video, "rb") as opened, open(video, "rb", buffering=0) as raw:
        files = [
            video,
            pathlib.PurePath(video),
            content,
            bytearray(content),
            memoryview(content),
            io.BytesIO(content),
            opened,
            raw,
        ]
        for file, name in zip(files, [str(video)] * 2 + ["bytes"] * 3 + ["file"] + [str(video)] * 2, strict=True):
            [actual] = predictor(file)
            assert (actual.path, actual.predictions) == (name, expected.predictions)


def test_a_file_that_was_opened_is_read_from_where_it_stands(predictor, video):
    behind = io.BytesIO(b"a header of another program" + video.read_bytes())
    behind.seek(27)
    assert predictor(behind)[0].predictions == predictor(video)[0].predictions


FORMS = {
    "array": lambda frames: frames,
    "array of channels first": lambda frames: np.moveaxis(frames, -1, 1),
    "array that may not be written": lambda frames: np.frombuffer(frames.tobytes(), np.uint8).reshape(frames.shape),
    "tensor": torch.from_numpy,
    "tensor of channels first": lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
    "list of arrays": list,
    "tuple of tensors": lambda frames: tuple(torch.from_numpy(frame) for frame in frames),
    "list of tensors of channels first": lambda frames: [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames],
    "list of images": lambda frames: [Image.fromarray(frame) for frame in frames],
    "list of images with alpha": lambda frames: [Image.fromarray(frame).convert("RGBA") for frame in frames],
}


@pytest.mark.parametrize("form", FORMS)
def test_frames_in_any_form_give_what_their_file_gives(predictor, video, frames, form):
    [expected], [actual] = predictor(video), predictor(FORMS[form](frames.copy()), fps=25.0)
    assert actual.predictions == expected.predictions
    assert actual.path == {"a": "array", "t": "tensor"}.get(form.split()[0][0], "frames") or form.startswith("tuple")


def test_several_videos_of_different_forms_come_in_their_order(predictor, video, frames):
    pictures = [Image.fromarray(frame) for frame in frames]
    videos = [str(video), video.read_bytes(), frames, torch.from_numpy(frames), pictures, list(frames)]
    [expected] = predictor(video)
    actual = predictor(videos, fps=25.0)
    assert [one.path for one in actual] == [str(video), "bytes", "array", "tensor", "frames", "frames"]
    assert all(one.label == expected.label and one.score == pytest.approx(expected.score) for one in actual)
    assert len(predictor(one for one in videos)) == 6 and predictor([]) == []


@pytest.mark.parametrize(
    "video",
    [
        np.zeros((4, 8, 8, 3)),
        np.zeros((4, 8, 8), np.uint8),
        np.zeros((4, 8, 8, 4), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 4, 8, 8, 3), np.uint8),
        torch.zeros(4, 8, 8, 3),
        torch.zeros(4, 8, 3, dtype=torch.uint8),
        np.array(["a.mp4", "b.mp4"]),
        None,
        7,
        {"a.mp4": 1},
        Image.new("RGB", (8, 8)),
        [None],
        [7, "a.mp4"],
        [[]],
        [np.zeros((8, 8, 3)), np.zeros((8, 8, 3))],
        [np.zeros((8, 8, 3), np.uint8), "a.mp4"],
        [Image.new("RGB", (8, 8)), None],
        io.StringIO("text"),
    ],
    ids=lambda video: f"{type(video).__name__} {getattr(video, 'shape', '')}",
)
def test_what_is_no_video_is_one_sentence_that_says_what_is_taken(predictor, video):
    with pytest.raises(InputError) as caught:
        predictor(video)
    said = str(caught.value)
    assert TAKEN in said or "expected a file opened with 'rb'" in said
    assert "\n" not in said and len(said) < 450


def test_frames_of_several_sizes_and_pictures_of_unusual_kinds_are_refused(predictor, tmp_path):
    with pytest.raises(InputError, match=r"frames 0 and 2 are 8×6 and 6×8 pixels: the frames of a video have one size"):
        predictor([Image.new("RGB", size) for size in ((8, 6), (8, 6), (6, 8))])
    with pytest.raises(InputError, match=r"frame 1 has PIL's mode I;16, expected 8 bits a channel, such as RGB"):
        predictor([Image.new("RGB", (8, 8)), Image.new("I;16", (8, 8))])
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2000])
    with pytest.raises(InputError, match="frame 0 cannot be read"):
        predictor([Image.open(tmp_path / "a.jpg")])


def test_a_file_that_cannot_be_read_is_one_sentence(predictor, video, tmp_path):
    with (
        open(video) as text,
        pytest.raises(InputError, match=r"a b.mp4: was opened as text, expected a file opened with 'rb'"),
    ):
        predictor(text)
    with open(video, "rb") as closed:
        pass
    with pytest.raises(InputError, match=r"a b.mp4: cannot be read \(read of closed file\): expected a path"):
        predictor(closed)
    with open(tmp_path / "new", "wb") as writing, pytest.raises(InputError, match=r"new: cannot be read \(.*read"):
        predictor(writing)


@pytest.mark.parametrize("content", [b"", b"a.mp4", b"no video" * 999])
def test_bytes_that_are_no_video_are_a_decode_error_by_their_name(predictor, content, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for video, name in ((content, "bytes"), (io.BytesIO(content), "file")):
        with pytest.raises(DecodeError, match=rf"^{name}: (the file is empty|cannot be opened as a video)"):
            predictor(video)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("top", [0, -1, 1.5, True, "3", None, float("nan")])
def test_top_is_a_whole_number_from_1(predictor, video, top):
    for ask in (predictor, predictor.each):
        with pytest.raises(
            InputError, match=f"top is {top}, expected the number of best classes, a whole number from 1"
        ):
            ask([video], top=top)
    assert len(predictor(video, top=np.int64(3))[0].predictions) == 3
    assert len(predictor(video, top=99)[0].predictions) == 8


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf"), "25", None, True])
def test_the_rate_of_frames_is_a_number_above_0(predictor, frames, fps):
    with pytest.raises(InputError, match=f"fps is {fps}, expected the frames per second of arrays and images, above 0"):
        predictor(frames, fps=fps)


def test_a_failed_prediction_says_why_it_has_no_label(predictor, video, tmp_path):
    (tmp_path / "bad.mp4").write_text("no")
    good, bad = predictor.each([video, tmp_path / "bad.mp4"])
    assert good.label and good.score
    for ask in ("label", "score"):
        with pytest.raises(DecodeError, match=r"bad.mp4: cannot be opened as a video"):
            getattr(bad, ask)
