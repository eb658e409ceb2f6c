"""A decoder that hangs, dies or eats memory costs one video and a limited time."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numbered_video import read_number, write_numbered
from torch.utils.data import DataLoader, Dataset

from mvit_video.config.schema import DataSettings
from mvit_video.data.dataset import BadVideo, ClipDataset
from mvit_video.data.lists.read import VideoList, VideoRecord
from mvit_video.data.loader import StepSampler, training_loader
from mvit_video.data.video import guard, guard_child
from mvit_video.data.video import reader as decode
from mvit_video.data.video.guard import GuardedReader, open_reader
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError

TIMEOUT = 1.5


class Misbehaving:
    """A decoder whose trouble is named in the file: `spin` when opened, `late-spin` when read, and so on."""

    num_frames, num_decoded, fps = 10, 0, 25.0

    def __init__(self, file: Path, root) -> None:
        self.trouble = file.read_text()
        self._happen("")

    def _happen(self, when: str) -> None:
        if self.trouble == f"{when}spin":
            while True:
                pass
        if self.trouble == f"{when}die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.trouble == f"{when}exit":
            os._exit(3)
        if self.trouble == f"{when}eat":
            self.eaten = [np.zeros(1 << 30, np.uint8) for _ in range((guard_child.MEMORY >> 30) + 2)]
        if self.trouble == f"{when}bug":
            raise IndexError("a mistake of ours")

    def read(self, wanted):
        self._happen("late-")
        yield from np.zeros((len(wanted), 4, 6, 3), np.uint8)

    def close(self) -> None:
        pass


@pytest.fixture
def misbehaving(monkeypatch, tmp_path):
    """Writes a file with a trouble; children that are started from here on know the decoder."""
    guard._idle.clear()
    gc.collect()
    monkeypatch.setitem(decode.BACKENDS, "pyav", _either)

    def write(name: str, trouble: str) -> Path:
        (tmp_path / name).write_text(trouble)
        return tmp_path / name

    yield write
    guard._idle.clear()


def _either(file: Path, root):
    return Misbehaving(file, root) if file.suffix == ".bad" else decode.PyAvBackend(file, root)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture
def video(tmp_path):
    return write_numbered(tmp_path / "a.mp4", 30, options={"bf": "2"})


def test_a_guarded_reader_gives_what_a_plain_one_gives(video):
    with open_reader(video) as guarded, VideoReader(video) as plain:
        assert isinstance(guarded, GuardedReader)
        assert (len(guarded), guarded.fps) == (len(plain), plain.fps)
        for wanted in ([3], [29, 0, 0, 7], range(30)):
            assert np.array_equal(guarded.frames(wanted), plain.frames(wanted))
        for ours, theirs in zip(guarded.stream(), plain.stream(), strict=True):
            assert np.array_equal(ours, theirs)
        assert [read_number(frame) for frame in guarded.stream()] == list(range(30))


def test_clips_outlive_the_next_one_and_their_reader(video):
    with open_reader(video) as reader:
        first, second = reader.frames([3, 4]), reader.frames(range(30))
    with open_reader(video) as reader:
        third = reader.frames([9])
    assert [read_number(frame) for frame in (*first, *second[5:7], *third)] == [3, 4, 5, 6, 9]


def test_one_child_serves_one_reader_after_another_and_two_serve_two_at_once(video):
    with open_reader(video) as one:
        child = one._decoder.pid
        with open_reader(video) as two:
            assert two._decoder.pid != child
            assert read_number(two.frames([8])[0]) == 8 and read_number(one.frames([5])[0]) == 5
    pids = set()
    for _ in range(3):
        with open_reader(video) as reader:
            pids.add(reader._decoder.pid)
    assert len(pids) == 1


def test_no_timeout_means_no_child(video):
    with open_reader(video, timeout=0) as reader:
        assert isinstance(reader, VideoReader)


def test_bad_files_and_wrong_questions_are_the_same_errors_and_the_child_goes_on(video, tmp_path):
    (tmp_path / "empty.mp4").touch()
    with open_reader(video) as reader:
        child = reader._decoder.pid
        with pytest.raises(DecodeError, match=r"a.mp4: frames \[30\] are wanted, it has 0 to 29"):
            reader.frames([30])
        assert read_number(reader.frames([2])[0]) == 2
    with pytest.raises(DecodeError, match=r"^empty.mp4: the file is empty \(0 bytes\)$"):
        open_reader("empty.mp4", tmp_path)
    with open_reader(video) as reader:
        assert reader._decoder.pid == child


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("spin", rf"the decoder did not answer within {TIMEOUT} s"),
        ("late-spin", r"the decoder did not answer within 1\.\d+ s"),
        ("die", r"the decoder died \(SIGSEGV\)"),
        ("late-die", r"the decoder died \(SIGSEGV\)"),
        ("exit", r"the decoder died \(its process ended\)"),
    ],
)
def test_a_decoder_that_hangs_or_dies_is_a_bad_video_within_the_timeout(misbehaving, video, trouble, reason):
    file = misbehaving("a.bad", trouble)
    start = time.monotonic()
    with pytest.raises(DecodeError, match=f"^{file}: {reason}"), open_reader(file, timeout=TIMEOUT) as reader:
        reader.frames([0])
    assert time.monotonic() - start < TIMEOUT + 1
    with open_reader(video, timeout=20) as reader:
        assert read_number(reader.frames([11])[0]) == 11


def test_a_decoder_that_takes_all_memory_is_a_bad_video(misbehaving, video):
    """With time for a busy machine to take it in."""
    file = misbehaving("a.bad", "eat")
    with pytest.raises(DecodeError, match=rf"^{file}: decoding it needs more than 8\.6 GB of memory"):
        open_reader(file, timeout=30)
    with open_reader(video, timeout=20) as reader:
        assert read_number(reader.frames([11])[0]) == 11


def test_a_mistake_of_ours_in_the_child_is_not_called_a_bad_video(misbehaving):
    with pytest.raises(RuntimeError, match="IndexError: a mistake of ours"):
        open_reader(misbehaving("a.bad", "bug"))


def test_a_child_that_was_killed_while_idle_is_replaced(video):
    with open_reader(video) as reader:
        child = reader._decoder.pid
    os.kill(child, signal.SIGKILL)
    assert gone_within(child, 5)
    with open_reader(video) as reader:
        assert reader._decoder.pid != child and read_number(reader.frames([1])[0]) == 1


def test_a_reader_that_is_forgotten_takes_its_child_along(video):
    reader = open_reader(video)
    child = reader._decoder.pid
    assert alive(child)
    del reader
    gc.collect()
    assert gone_within(child, 5)


def test_a_reader_that_lost_its_decoder_says_so(misbehaving):
    reader = open_reader(misbehaving("a.bad", "late-die"), timeout=TIMEOUT)
    with pytest.raises(DecodeError, match="SIGSEGV"):
        reader.frames([0])
    with pytest.raises(DecodeError, match="its reader is closed, or its decoder was lost"):
        reader.frames([0])


def test_training_goes_on_past_videos_whose_decoder_hangs_or_dies(misbehaving, tmp_path):
    names = []
    for number in range(6):
        names.append(f"{number}.mp4")
        write_numbered(tmp_path / names[-1], 20)
    for name, trouble in (("hang.bad", "late-spin"), ("crash.bad", "die")):
        misbehaving(name, trouble)
        names.append(name)
    videos = VideoList(tuple(VideoRecord(name, 0, row) for row, name in enumerate(names, 1)), ("a",), "list.csv")
    settings = DataSettings(
        root=str(tmp_path), num_frames=2, short_side=32, crop_size=32, sampling_rate=2, decode_timeout=TIMEOUT
    )
    start = time.monotonic()
    batches = list(training_loader(ClipDataset(videos, settings, seed=0), StepSampler(8, 4, 0, 0, 2), workers=2))
    bad = {video.path: video.reason for batch in batches for video in batch["bad"]}
    assert set(bad) == {"hang.bad", "crash.bad"} and all(isinstance(each, BadVideo) for each in batches[0]["bad"])
    assert "did not answer within" in bad["hang.bad"] and "died (SIGSEGV)" in bad["crash.bad"]
    assert sum(len(batch.get("label", ())) for batch in batches) == 6
    assert time.monotonic() - start < 30


class ChildOfWorker(Dataset):
    """The process id of the child that a loader's worker decodes with."""

    def __init__(self, video) -> None:
        self.video = video

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        with open_reader(self.video) as reader:
            assert read_number(reader.frames([index])[0]) == index
            return reader._decoder.pid


@pytest.mark.parametrize(
    "start", ["fork", *(pytest.param(name, marks=pytest.mark.long) for name in ("forkserver", "spawn"))]
)
def test_a_loaders_workers_have_a_child_each_which_ends_with_them(video, start):
    loader = DataLoader(ChildOfWorker(video), batch_size=None, num_workers=2, multiprocessing_context=start)
    children = list(loader)
    assert len(children) == 4 and len(set(children)) == 2
    assert all(gone_within(child, 5) for child in children)


PARENT = """
import os, sys, time
from mvit_video.data.video.guard import open_reader
from mvit_video.data.video import reader as decode
class Spin:
    def __init__(self, file, root):
        time.sleep(600)
reader = open_reader(sys.argv[1])
decode.BACKENDS["pyav"] = Spin
from mvit_video.data.video.guard import Decoder, open_request
busy = Decoder()
busy.send(open_request(sys.argv[1], None, "pyav"), 600)
print(reader._decoder.pid, busy.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_children_die_with_a_parent_that_is_killed_idle_or_at_work(video):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(video)], stdout=subprocess.PIPE, text=True)
    try:
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2 and all(alive(child) for child in children)
    finally:
        parent.kill()
        parent.wait()
    assert all(gone_within(child, 5) for child in children)


def test_a_forked_process_starts_a_child_of_its_own_and_leaves_that_of_its_parent_alone(video):
    with open_reader(video) as reader:
        forked = os.fork()
        if forked == 0:
            status = 1
            try:
                with open_reader(video) as other:
                    status = 0 if read_number(other.frames([4])[0]) == 4 and other._decoder is not None else 1
                    status = 2 if other._decoder.pid == reader._decoder.pid else status
            finally:
                os._exit(status)
        assert os.waitpid(forked, 0)[1] == 0
        assert read_number(reader.frames([5])[0]) == 5


def test_the_child_holds_no_file_of_its_parent_open(video, tmp_path):
    with open(tmp_path / "held.txt", "w"):
        guard._idle.clear()
        with open_reader(video) as reader:
            folder = Path(f"/proc/{reader._decoder.pid}/fd")
            if not folder.exists():
                pytest.skip("no /proc")
            held = {os.readlink(link) for link in folder.iterdir()}
    assert not any("held.txt" in name for name in held)
    assert any("a.mp4" in name for name in held)


def test_memory_of_a_large_clip_is_given_back_by_the_next(video):
    with open_reader(video) as reader:
        reader.frames(list(range(30)) * 20)
        memory = reader._decoder._memory
        assert os.fstat(memory).st_size == 600 * 48 * 144 * 3
        reader.frames([0])
        assert os.fstat(memory).st_size == 48 * 144 * 3


def test_a_relative_root_is_that_of_the_folder_one_is_in_now(tmp_path, monkeypatch):
    """Children outlive a change of the current folder, as in a notebook."""
    for place, count in (("one", 5), ("two", 8)):
        (tmp_path / place / "data").mkdir(parents=True)
        write_numbered(tmp_path / place / "data/v.mp4", count)
        monkeypatch.chdir(tmp_path / place)
        with open_reader("v.mp4", "data", "pyav", TIMEOUT * 20) as reader:
            assert len(reader) == count
