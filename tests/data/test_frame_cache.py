import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numbered_video import write_numbered
from PIL import Image
from safetensors import safe_open

from mvit_video.config.schema import DataSettings
from mvit_video.data.dataset import SampleKey, ViewDataset, clip_dataset_from
from mvit_video.data.frame_cache import FrameCache, cache_room, training_source
from mvit_video.data.lists.read import VideoList, VideoRecord
from mvit_video.data.loader import StepSampler, training_loader
from mvit_video.data.scaled_videos import ScaledReader, ScaledVideos, shrunk
from mvit_video.data.video.source import VideoFiles
from mvit_video.errors import ConfigError, DecodeError

INPUT = dict(num_frames=4, sampling_rate=3, target_fps=25, short_side=24, crop_size=24, workers=0, decode_timeout=0)
NAMES = ("one.mp4", "odd ü name.mkv", "images")


@pytest.fixture
def videos(tmp_path):
    """Two files and a folder of images, of other sizes and lengths."""
    root = tmp_path / "videos"
    root.mkdir()
    write_numbered(root / NAMES[0], 40, options={"bf": "2"})
    write_numbered(root / NAMES[1], 23, padding=22)
    (root / NAMES[2]).mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 30, 40, 3), np.uint8)
    for number, frame in enumerate(pixels):
        Image.fromarray(frame).save(root / NAMES[2] / f"{number:04}.png")
    return VideoList(tuple(VideoRecord(name, 0, row) for row, name in enumerate(NAMES, 1)), ("a",), "list.csv")


@pytest.fixture
def settings(tmp_path):
    def make(**words):
        return DataSettings(root=str(tmp_path / "videos"), **INPUT | words)

    return make


def entries(folder):
    return sorted(folder.glob("*.safetensors"))


def all_samples(videos, settings, epochs=2):
    dataset = clip_dataset_from(settings, videos, seed=3, pixels=True)
    views = ViewDataset(videos, training_source(settings.root, settings.decoding), settings.input, 2, 1)
    clips = [dataset[SampleKey(epoch, index)] for epoch in range(epochs) for index in range(len(videos))]
    return [clip["video"] for clip in clips] + [views[index]["video"] for index in range(len(videos))]


@pytest.mark.parametrize("side", [None, 30])
def test_samples_are_the_same_to_the_bit_with_and_without_the_cache(videos, settings, tmp_path, side):
    plain = all_samples(videos, settings(decoded_side=side))
    for _ in range(2):  # empty, then full
        cached = all_samples(videos, settings(decoded_side=side, cache=str(tmp_path / "cache")))
        assert all(map(torch.equal, plain, cached))
    assert len(entries(tmp_path / "cache")) == len(NAMES)


def test_a_full_cache_decodes_nothing(videos, settings, tmp_path, monkeypatch):
    words = dict(decoded_side=30, cache=str(tmp_path / "cache"))
    first = all_samples(videos, settings(**words))
    monkeypatch.setattr(VideoFiles, "open", lambda self, path: pytest.fail(f"{path} was opened"))
    assert all(map(torch.equal, first, all_samples(videos, settings(**words))))


def test_a_kept_video_is_a_file_of_safetensors_with_its_rate(videos, settings, tmp_path):
    all_samples(videos, settings(decoded_side=30, cache=str(tmp_path / "cache")), epochs=1)
    shapes = {}
    for file in entries(tmp_path / "cache"):
        with safe_open(file, "np") as content:
            about = content.metadata()
            shapes[json.loads(about["origin"])[0].rpartition("/")[2]] = content.get_tensor("frames").shape, about["fps"]
    assert shapes == {
        NAMES[0]: ((40, 30, 90, 3), "25.0"),
        NAMES[1]: ((23, 30, 71, 3), "25.0"),  # 70 rows, 166 columns
        NAMES[2]: ((9, 30, 40, 3), "30.0"),
    }


@pytest.mark.parametrize("size", [(48, 144), (144, 48), (31, 33), (30, 300)])
def test_frames_are_scaled_within_a_grey_level_of_float64(size):
    frames = np.random.default_rng(1).integers(0, 256, (5, *size, 3), np.uint8)
    ours = shrunk(frames, 30)
    rows, columns = (round(length * 30 / min(size)) for length in size)
    assert ours.shape == (5, rows, columns, 3)
    exact = F.interpolate(torch.from_numpy(frames).permute(0, 3, 1, 2).double(), size=(rows, columns), mode="bilinear")
    assert (torch.from_numpy(ours).permute(0, 3, 1, 2) - exact).abs().max() <= 1.01


def test_small_frames_stay_as_they_are_and_parts_change_nothing(videos, settings, tmp_path, monkeypatch):
    small = np.zeros((2, 20, 90, 3), np.uint8)
    assert shrunk(small, 20) is small
    assert shrunk(small, 64) is small
    source, numbers = ScaledVideos(VideoFiles(str(tmp_path / "videos"), timeout=0), 30), [7, 3, 3, 39, 0]
    with source.open(NAMES[0]) as reader:
        whole = reader.frames(numbers)
    monkeypatch.setattr("mvit_video.data.scaled_videos.PART_BYTES", 1)
    with source.open(NAMES[0]) as reader:
        assert np.array_equal(whole, reader.frames(numbers))


def cache_of(tmp_path, gib=1.0, side=30, decoder="pyav"):
    files = VideoFiles(str(tmp_path / "videos"), decoder, timeout=0)
    (tmp_path / "cache").mkdir(exist_ok=True)
    return FrameCache(ScaledVideos(files, side), tmp_path / "cache", round(gib * 2**30))


def frames_of(cache, name=NAMES[0]):
    with cache.open(name) as reader:
        return reader.frames(range(len(reader)))


def test_a_video_that_changes_another_side_and_another_decoder_are_other_entries(videos, tmp_path):
    before = frames_of(cache_of(tmp_path))
    assert frames_of(cache_of(tmp_path, side=20)).shape[1] == 20
    frames_of(cache_of(tmp_path, decoder="decord"))
    assert len(entries(tmp_path / "cache")) == 3
    write_numbered(tmp_path / "videos" / NAMES[0], 17)
    after = frames_of(cache_of(tmp_path))
    assert (len(before), len(after)) == (40, 17)


def test_a_picture_that_changes_in_a_folder_is_another_entry(videos, tmp_path):
    before = frames_of(cache_of(tmp_path), "images")
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "videos" / "images" / "0004.png")
    after = frames_of(cache_of(tmp_path), "images")
    assert not after[4].any()
    assert np.array_equal(np.delete(before, 4, 0), np.delete(after, 4, 0))


def damage_every_way(content):
    yield b""
    yield content[:5]
    yield content[:-1]
    yield content + b"x"
    yield b"\xff" * 8 + content[8:]
    yield content[:8] + b"[" + content[9:]
    yield b"\x40\x0d\x03" + bytes(5) + b"[" * 200_000
    yield content.replace(b"[40,30,90,3]", b"[1e999,30,3]")
    yield content.replace(b'"25.0"', b'"50.0"')
    yield content.replace(b"[40,30,90,3]", b"[30,40,90,3]")
    for place in np.random.default_rng(2).integers(0, len(content), 60):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_damaged_entry_is_decoded_anew_wherever_a_bit_has_changed(videos, tmp_path):
    expected = frames_of(cache_of(tmp_path))
    [entry] = entries(tmp_path / "cache")
    content = entry.read_bytes()
    for damaged in damage_every_way(content):
        assert damaged != content
        entry.write_bytes(damaged)
        cache = cache_of(tmp_path)
        with cache.open(NAMES[0]) as reader:
            assert reader.fps == 25
            assert np.array_equal(expected, reader.frames(range(len(reader))))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [entry.name]


def test_a_kept_file_that_is_cut_while_it_is_read_and_frames_it_lacks_are_decode_errors(videos, tmp_path):
    cache = cache_of(tmp_path)
    frames_of(cache)
    [entry] = entries(tmp_path / "cache")
    with cache.open(NAMES[0]) as reader:
        for missing in ([40], [-41], [-1], []):
            with pytest.raises(DecodeError, match=r"^one\.mp4: frames \[.*\] were requested, it has 0 to 39"):
                reader.frames(missing)
        os.truncate(entry, entry.stat().st_size - 1)
        assert len(reader.frames([38])) == 1
        with pytest.raises(DecodeError, match=r"^one\.mp4: frame 39 is not in"):
            reader.frames([39])


def test_a_video_whose_end_is_damaged_is_read_where_it_is_sound_and_not_kept(videos, tmp_path, monkeypatch):
    opened = []

    class FailsBehind20:
        def __init__(self, reader):
            self.reader, self.fps, self.num_pixels, self.path = reader, reader.fps, reader.num_pixels, reader.path
            self.close, self.__len__ = reader.close, reader.__len__

        def __len__(self):
            return len(self.reader)

        def frames(self, indices):
            if max(indices) > 20:
                raise DecodeError("one.mp4: frame 21 is damaged")
            return self.reader.frames(indices)

    class Damaged(ScaledVideos):
        def open(self, path):
            opened.append(path)
            return FailsBehind20(super().open(path))

    cache = cache_of(tmp_path)
    cache.videos = Damaged(cache.videos.files, 30)
    for _ in range(3):
        reader = cache.open(NAMES[0])
        assert reader.frames([3, 20]).shape == (2, 30, 90, 3)
        with pytest.raises(DecodeError, match="frame 21 is damaged"):
            reader.frames([21])
        reader.close()
    assert entries(tmp_path / "cache") == []
    assert len(opened) == 4  # tried whole once


def test_frames_of_two_sizes_are_refused_even_where_both_scale_to_one(tmp_path, monkeypatch):
    class TwoSizes:
        path, fps, num_pixels = "two.mp4", 25.0, 48 * 64

        def __len__(self):
            return 4

        def frames(self, indices):
            scale = 1 if max(indices) < 2 else 2
            return np.zeros((len(indices), 48 * scale, 64 * scale, 3), np.uint8)

    monkeypatch.setattr("mvit_video.data.scaled_videos.PART_BYTES", 2 * 3 * 48 * 64)
    assert ScaledReader(TwoSizes(), 24).frames([2, 3]).shape == (2, 24, 32, 3)
    with pytest.raises(DecodeError, match=r"two\.mp4: the frame size changes within the video, from 64×48 to 128×96"):
        ScaledReader(TwoSizes(), 24).frames([0, 1, 2, 3])


def test_clips_of_either_size_are_read_of_a_video_that_is_not_kept_for_its_two_sizes(videos, tmp_path, monkeypatch):
    class TwoSizes:
        path, fps, num_pixels = "two.mp4", 25.0, 48 * 64

        def __len__(self):
            return 40

        def frames(self, indices):
            scale = 1 if max(indices) < 20 else 2
            return np.zeros((len(indices), 48 * scale, 64 * scale, 3), np.uint8)

        def close(self):
            pass

    for gib in (1.0, 1e-6):  # found while it is decoded whole, or too large from its first frame
        cache = cache_of(tmp_path, gib)
        monkeypatch.setattr(VideoFiles, "open", lambda self, path: TwoSizes())
        with cache.open(NAMES[0]) as reader:
            assert reader.frames([38, 39]).shape == (2, 30, 40, 3)
        assert entries(tmp_path / "cache") == []


def test_a_sound_file_that_cannot_be_opened_stays(videos, tmp_path, monkeypatch):
    expected = frames_of(cache_of(tmp_path))
    [entry] = entries(tmp_path / "cache")
    content, own = entry.read_bytes(), Path.open

    def too_many(self, *words, **named):
        if self == entry:
            raise OSError(24, "Too many open files")
        return own(self, *words, **named)

    monkeypatch.setattr(Path, "open", too_many)
    assert np.array_equal(expected, frames_of(cache_of(tmp_path)))
    monkeypatch.undo()
    assert entry.read_bytes() == content


def test_the_room_is_the_bound_or_what_the_disk_has_beyond_a_gibibyte_and_what_is_kept(
    videos, settings, tmp_path, monkeypatch
):
    frames_of(cache_of(tmp_path))
    held = entries(tmp_path / "cache")[0].stat().st_size
    usage = shutil.disk_usage(tmp_path)
    for free, room in ((2**34, 3.0), (2**31, 1 + held / 2**30), (2**30 - 2 * held, 0), (0, 0)):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: usage._replace(free=free))
        assert cache_room(settings(cache=str(tmp_path / "cache"), cache_gib=3.0).decoding) == room
    assert cache_room(settings(cache=str(tmp_path / "not/yet")).decoding) == 0


def test_missing_videos_and_paths_that_leave_the_root_have_the_readers_sentence(videos, tmp_path):
    for path in ("missing.mp4", "../cache", "/etc/passwd", "http://host/a.mp4", ""):
        with pytest.raises(DecodeError) as plain:
            ScaledVideos(VideoFiles(str(tmp_path / "videos"), timeout=0), 30).open(path)
        with pytest.raises(DecodeError) as cached:
            cache_of(tmp_path).open(path)
        assert str(plain.value) == str(cached.value)


def test_the_folder_keeps_its_bound_whoever_writes(videos, tmp_path):
    size = frames_of(cache_of(tmp_path)).nbytes
    for file in entries(tmp_path / "cache"):
        file.unlink()
    for number in range(100):
        os.link(tmp_path / "videos" / NAMES[0], tmp_path / "videos" / f"{number}.mp4")
    bound = 70.5 * (size + 600)
    several = [cache_of(tmp_path, bound / 2**30) for _ in range(4)]
    for number in range(100):
        assert len(frames_of(several[number % 4], f"{number}.mp4")) == 40
    stored = sum(file.stat().st_size for file in entries(tmp_path / "cache"))
    assert 0.9 * bound < stored <= bound


def test_a_video_of_more_than_a_64th_of_the_bound_is_not_kept(videos, tmp_path):
    size = frames_of(cache_of(tmp_path)).nbytes
    entries(tmp_path / "cache")[0].unlink()
    frames_of(cache_of(tmp_path, 63 * size / 2**30))
    assert entries(tmp_path / "cache") == []
    frames_of(cache_of(tmp_path, 64 * size / 2**30))
    assert len(entries(tmp_path / "cache")) == 1


def test_the_folder_leaves_a_gibibyte_of_the_disk_to_others(videos, tmp_path, monkeypatch):
    size = frames_of(cache_of(tmp_path)).nbytes
    entries(tmp_path / "cache")[0].unlink()
    usage = shutil.disk_usage(tmp_path)
    for free, kept in ((2**30 + size - 1, 0), (2**30 + size, 1)):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: usage._replace(free=free))
        frames_of(cache_of(tmp_path))
        assert len(entries(tmp_path / "cache")) == kept


def test_what_killed_processes_left_is_deleted_and_what_others_write_is_not(videos, tmp_path):
    cache = cache_of(tmp_path)
    left, written = (cache.folder / f".a.0000000{number}.unfinished" for number in (1, 2))
    left.write_bytes(b"x")
    written.write_bytes(b"x")
    os.utime(left, (0, 0))
    frames_of(cache)
    assert written.exists() and not left.exists()


def test_a_disk_that_is_full_costs_time_alone(videos, tmp_path, monkeypatch):
    expected, cache = frames_of(cache_of(tmp_path, side=20), NAMES[1]), cache_of(tmp_path, side=20)
    for file in entries(tmp_path / "cache"):
        file.unlink()

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert np.array_equal(expected, frames_of(cache, NAMES[1]))
    assert list((tmp_path / "cache").iterdir()) == []


def test_workers_share_the_folder_and_give_the_samples_of_one_process(videos, settings, tmp_path):
    def batches(**words):
        given = settings(**words)
        dataset = clip_dataset_from(given, videos, seed=0, pixels=True)
        loader = training_loader(dataset, StepSampler(len(videos), 3, 0, 0, 4), given.workers)
        return [batch["video"] for batch in loader]

    plain = batches(decoded_side=30)
    assert all(map(torch.equal, plain, batches(decoded_side=30, cache=str(tmp_path / "cache"), workers=2)))
    assert len(entries(tmp_path / "cache")) == len(NAMES)


def test_a_folder_that_cannot_be_written_is_one_sentence(settings, tmp_path):
    """Said before a run begins too, by what tells its plan."""
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file/below/it"):
        given = settings(cache=str(cache))
        for work in (
            lambda given=given: training_source(given.root, given.decoding),
            lambda given=given: cache_room(given.decoding),
        ):
            with pytest.raises(ConfigError, match=r"data.cache = .*: .*file is a file: name another folder, or null"):
                work()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"data.cache = .*: .*link is a link to nothing: name another folder"):
        cache_room(settings(cache=str(tmp_path / "link/below")).decoding)


def test_a_decoded_side_below_what_is_scaled_later_is_refused(settings):
    with pytest.raises(ValueError, match="decoded_side 20 is smaller than short_side, 24"):
        settings(decoded_side=20)
    with pytest.raises(ValueError, match="decoded_side 24 is smaller than the largest of jitter_scales, 40"):
        settings(decoded_side=24, crop="jitter", jitter_scales=(24, 40))
    settings(decoded_side=40, crop="jitter", jitter_scales=(24, 40))
