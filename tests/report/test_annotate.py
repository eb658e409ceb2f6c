"""Annotated copies: their frames, times, sound and rotation, and that the source is never touched."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from numbered_video import read_number, write_numbered

from mvit_video.data.synthetic import write_video
from mvit_video.data.video.guard import Guard
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import ConfigError
from mvit_video.inference.timeline import Segment, Timeline
from mvit_video.inference.windows import shown_at
from mvit_video.report.annotate import enlarged, put_caption, write_annotated, write_copy


def unchanged(number, frame):
    return frame


def with_sound(path, video, codec="aac"):
    """The video of a file with a tone of 2 s."""
    with av.open(str(video)) as source, av.open(str(path), "w") as copy:
        picture = copy.add_stream_from_template(source.streams.video[0])
        sound = copy.add_stream(codec, rate=48000, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = picture
                copy.mux(packet)
        for start in range(0, 96000, 1024):
            tone = np.sin(np.arange(start, start + 1024) / 20)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            copy.mux(sound.encode(frame))
        copy.mux(sound.encode())
    return path


def heard(path):
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_a_copy_has_every_frame_at_its_time(tmp_path):
    source, copy = write_numbered(tmp_path / "a.mp4", 60, gaps=True), tmp_path / "b.mp4"
    write_copy(source, copy, unchanged, Guard())
    expected, actual = VideoReader(source), VideoReader(copy)
    assert len(actual) == 60 and shown_at(actual) == pytest.approx(shown_at(expected), abs=1e-3)
    frames = actual.frames(range(60))
    assert frames.shape[1:3] == (240, 720)  # five times 48x144
    assert [read_number(frame[::5, ::5]) for frame in frames] == list(range(60))
    with av.open(str(copy)) as container:
        assert container.streams.video[0].codec_context.name == "h264"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_is_copied_as_it_is(tmp_path, name):
    write_numbered(tmp_path / "v.mp4", 50)
    source = with_sound(tmp_path / name, tmp_path / "v.mp4")
    write_copy(source, tmp_path / "b.mp4", unchanged, Guard())
    packets = heard(source)
    assert len(packets) > 80 and set(heard(tmp_path / "b.mp4")) <= set(packets)
    assert len(heard(tmp_path / "b.mp4")) >= len(packets) - 3  # what was said before the first frame is left out


def test_sound_that_mp4_cannot_hold_is_left_out(tmp_path):
    write_numbered(tmp_path / "v.mp4", 50)
    source = with_sound(tmp_path / "a.mkv", tmp_path / "v.mp4", codec="pcm_f32le")
    write_copy(source, tmp_path / "b.mp4", unchanged, Guard())
    assert heard(tmp_path / "b.mp4") is None and len(VideoReader(tmp_path / "b.mp4")) == 50


def test_odd_sizes_and_other_containers_are_copied(tmp_path):
    with av.open(str(tmp_path / "odd.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 331, 245, "yuvj444p"
        for number in range(5):
            picture = np.full((245, 331, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    write_copy(tmp_path / "odd.avi", tmp_path / "b.mp4", unchanged, Guard())
    frames = VideoReader(tmp_path / "b.mp4").frames(range(5))
    assert frames.shape == (5, 246, 332, 3)
    assert frames[:, 100, 100].mean(1) == pytest.approx([0, 40, 80, 120, 160], abs=3)


def test_the_copy_of_a_turned_video_is_upright(tmp_path):
    """A video whose header says that it is to be shown turned by 90 degrees; left half dark, right half bright."""
    frames = np.zeros((5, 240, 320, 3), np.uint8)
    frames[:, :, 160:] = 255
    write_video(tmp_path / "a.mp4", frames, 10)
    content = (tmp_path / "a.mp4").read_bytes()
    upright = b"".join(
        number.to_bytes(4, "big", signed=True) for number in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    )
    turned = b"".join(
        number.to_bytes(4, "big", signed=True) for number in (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    )
    place = content.rindex(upright)  # the track's matrix comes after the film's
    (tmp_path / "a.mp4").write_bytes(content[:place] + turned + content[place + len(turned) :])
    expected = VideoReader(tmp_path / "a.mp4").frames([2])[0]
    assert expected.shape == (320, 240, 3)
    write_copy(tmp_path / "a.mp4", tmp_path / "b.mp4", unchanged, Guard())
    actual = VideoReader(tmp_path / "b.mp4").frames([2])[0]
    assert actual.shape == expected.shape and np.abs(actual.astype(int) - expected).mean() < 3
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_the_source_is_never_written_over_under_any_name(tmp_path):
    source = write_numbered(tmp_path / "a.mp4", 5)
    before = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)
    for output in (source, tmp_path / "link.mp4"):
        with pytest.raises(ConfigError, match="is the video itself, which is never overwritten"):
            write_copy(source, output, unchanged, Guard())
    assert source.read_bytes() == before


def test_a_copy_that_fails_leaves_nothing(tmp_path):
    source = write_numbered(tmp_path / "a.mp4", 30)

    def fail(number, frame):
        assert number < 20, "stop"
        return frame

    with pytest.raises(AssertionError, match="stop"):
        write_copy(source, tmp_path / "b.mp4", fail, Guard())
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_the_label_of_the_moment_stands_in_the_corner(tmp_path):
    frames = np.full((40, 240, 320, 3), 128, np.uint8)
    write_video(tmp_path / "a.mp4", frames, 10)
    segments = (Segment(0.0, 2.0, "a", 0.91), Segment(2.0, 4.0, "a label that is much longer", 0.52))
    write_annotated(
        tmp_path / "a.mp4", tmp_path / "b.mp4", Timeline(np.zeros(1), np.zeros((1, 2)), segments, 4.0, 1.0), Guard()
    )
    actual = VideoReader(tmp_path / "b.mp4").frames(range(40)).astype(int)
    for number, frame in enumerate(actual):
        expected = put_caption(frames[0], "a  0.91" if number < 20 else "a label that is much longer  0.52")
        assert np.abs(frame - expected).mean() < 2
    assert np.abs(actual[19] - actual[20]).mean() > 2


@pytest.mark.parametrize("size", [(240, 320), (600, 80), (32, 32), (1, 1), (1080, 1920)])
@pytest.mark.parametrize(
    "text", ["a", "new\nline", "Putting something on the edge of something so it is not supported and falls down"]
)
def test_captions_fit_any_picture(size, text):
    frame = enlarged(np.full((*size, 3), 128, np.uint8))
    found = put_caption(frame, text)
    assert found.shape == frame.shape and (found != frame).any() and (frame == 128).all()
    assert (found[frame.shape[0] // 2 :] == 128).all()


def test_small_pictures_are_enlarged_by_whole_factors():
    assert enlarged(np.zeros((64, 80, 3), np.uint8)).shape == (256, 320, 3)
    assert enlarged(np.zeros((240, 10, 3), np.uint8)).shape == (240, 10, 3)


def test_long_and_thin_pictures_are_enlarged_as_far_as_a_picture_may_be_wide():
    assert enlarged(np.zeros((2, 2000, 3), np.uint8)).shape == (4, 4000, 3)
    assert enlarged(np.zeros((2, 9000, 3), np.uint8)).shape == (2, 9000, 3)


def plain_video(path, width, height, rate, count=4):
    """Lossless frames, each of one grey level: 0, 60, 120 ..."""
    with av.open(str(path), "w") as container:
        track = container.add_stream("ffv1", rate=rate)
        track.width, track.height, track.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            shown = np.full((height, width, 3), 60 * number % 256, np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(track.encode())
    return path


@pytest.mark.parametrize(
    ("width", "height", "copied"), [(2000, 2, (4000, 4)), (8, 300, (8, 300)), (20_000, 10, (16_384, 8))]
)
def test_a_video_of_any_shape_has_a_copy(tmp_path, width, height, copied):
    source = plain_video(tmp_path / "a.mkv", width, height, 10)
    write_copy(source, tmp_path / "b.mp4", unchanged, Guard())
    frames = VideoReader(tmp_path / "b.mp4").frames(range(4))
    assert frames.shape == (4, *copied[::-1], 3)
    assert np.abs(frames.mean((1, 2, 3)) - [0, 60, 120, 180]).max() < 4


def test_frames_that_are_closer_than_a_tick_keep_their_times(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        track = container.add_stream("libx264", rate=200_000)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        track.codec_context.time_base = Fraction(1, 200_000)
        for moment in (0, 1, 2, 7, 400):
            shown = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            shown.pts, shown.time_base = moment, Fraction(1, 200_000)
            container.mux(track.encode(shown))
        container.mux(track.encode())
    write_copy(tmp_path / "a.mp4", tmp_path / "b.mp4", unchanged, Guard())
    found = shown_at(VideoReader(tmp_path / "b.mp4"))[:5] * 200_000
    assert found == pytest.approx([0, 1, 2, 7, 400], abs=0.5)


def test_a_damaged_video_is_copied_up_to_the_damage(tmp_path):
    source = write_numbered(tmp_path / "a.mp4", 60, options={"g": "60", "bf": "0"})
    content = bytearray(source.read_bytes())
    begin, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[(begin + end) // 2 : end] = bytes(end - (begin + end) // 2)
    shutil.copy(source, tmp_path / "whole.mp4")
    source.write_bytes(content)
    write_copy(source, tmp_path / "b.mp4", unchanged, Guard())
    count = len(VideoReader(tmp_path / "b.mp4"))
    assert 10 < count < 60
    numbers = [read_number(frame[::5, ::5]) for frame in VideoReader(tmp_path / "b.mp4").frames(range(count))]
    assert numbers == list(range(count))


def test_pixels_that_are_not_square_stay_so(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        track = container.add_stream("libx264", rate=10)
        track.width, track.height, track.pix_fmt = 320, 240, "yuv420p"
        track.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(5):
            container.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((240, 320, 3), np.uint8), format="rgb24")))
        container.mux(track.encode())
    write_copy(tmp_path / "a.mp4", tmp_path / "b.mp4", unchanged, Guard())
    assert (
        VideoReader(tmp_path / "b.mp4").pixel_aspect == VideoReader(tmp_path / "a.mp4").pixel_aspect == Fraction(4, 3)
    )
