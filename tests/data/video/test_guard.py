"""A decoder that hangs, dies or eats memory costs one video and a limited time."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numbered_video import read_number, write_numbered
from processes import alive, decoding_processes, gone_within, launchers
from torch.utils.data import DataLoader, Dataset

from mvit_video.config.schema import DataSettings
from mvit_video.data.dataset import BadVideo, clip_dataset_from
from mvit_video.data.lists.read import VideoList, VideoRecord
from mvit_video.data.loader import StepSampler, training_loader
from mvit_video.data.video import guard
from mvit_video.data.video.guard import Guard, GuardedReader, open_reader
from mvit_video.data.video.guard_pool import COPIED_BYTES, DecoderPool, Job
from mvit_video.data.video.guard_start import Launcher, launcher
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import ConfigError, DecodeError

TIMEOUT = 1.5


@pytest.fixture
def pool():
    """Of processes that know the decoder of misbehaving.py."""
    with DecoderPool(imports=["misbehaving"]) as pool:
        yield pool


@pytest.fixture
def trouble(tmp_path):
    def write(trouble: str) -> Path:
        (tmp_path / f"{trouble}.bad").write_text(trouble)
        return tmp_path / f"{trouble}.bad"

    return write


@pytest.fixture
def video(tmp_path):
    return write_numbered(tmp_path / "a.mp4", 30, options={"bf": "2"})


def test_a_guarded_reader_returns_what_a_plain_one_returns(video):
    with open_reader(video) as guarded, VideoReader(video) as plain:
        assert isinstance(guarded, GuardedReader)
        assert (len(guarded), guarded.fps, guarded.shortfall) == (len(plain), plain.fps, plain.shortfall)
        assert guarded.times() == plain.times()
        for expected in ([3], [29, 0, 0, 7], range(30)):
            assert np.array_equal(guarded.frames(expected), plain.frames(expected))
        assert guarded.num_decoded == plain.num_decoded
        for ours, theirs in zip(guarded.stream(), plain.stream(), strict=True):
            assert np.array_equal(ours, theirs)
        assert [read_number(frame) for frame in guarded.stream()] == list(range(30))


def test_what_a_reader_learns_from_the_first_frame_is_passed_on(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 3, sample_aspect=Fraction(1, 2))
    with open_reader(path) as reader:
        reader.frames([0])
        assert reader.pixel_aspect == Fraction(1, 2) and reader.num_decoded >= 1


@pytest.mark.parametrize("whole", [True, False])
def test_a_truncated_file_is_refused_or_read_up_to_its_end(tmp_path, whole):
    path = write_numbered(tmp_path / "a.mp4", 200, options={"g": "10"}, container={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with_plain = [
        _frames_of(lambda: VideoReader(path, whole=whole)),
        _frames_of(lambda: Guard().open(path, whole=whole)),
    ]
    assert with_plain[0] == with_plain[1]
    assert whole == (with_plain[1][0] == []) and "cut short" in with_plain[1][1]


def _frames_of(opened):
    """Numbers of the frames of a stream, and what is said about their end."""
    numbers, reader = [], None
    try:
        with opened() as reader:
            for frame in reader.stream():
                numbers.append(read_number(frame))
    except DecodeError as reason:
        return numbers, f"{reader and reader.shortfall} {reason}"
    return numbers, reader.shortfall


def test_clips_outlive_the_next_one_and_their_reader(video):
    with open_reader(video) as reader:
        first, second = reader.frames([3, 4]), reader.frames(range(30))
    with open_reader(video) as reader:
        third = reader.frames([9])
    assert [read_number(frame) for frame in (*first, *second[5:7], *third)] == [3, 4, 5, 6, 9]


def test_large_clips_are_not_copied_and_outlive_the_next_one_too(video):
    repeats = COPIED_BYTES // (48 * 144 * 3) + 1
    with open_reader(video) as reader:
        large = reader.frames([7] * repeats)
        again = reader.frames([8] * repeats)
        small = reader.frames([9])
        larger = reader.frames([10] * (repeats + 1))
    assert not large.flags.owndata and small.flags.owndata
    assert [read_number(clip[-1]) for clip in (large, again, small, larger)] == [7, 8, 9, 10]
    large[:] = 0  # it is the reader's to change


def test_a_stream_holds_a_bounded_number_of_frames_whatever_their_size(pool, trouble):
    with Guard(pool=pool).open(trouble("none")) as reader:
        frames, held = reader.stream(), []
        for number, frame in enumerate(frames):
            assert (frame == number).all() and frame.shape == (1200, 1600, 3)
            held.append(frame.base.nbytes if frame.base is not None else frame.nbytes)
        assert number == 9 and max(held) <= 32 << 20


def test_a_reader_works_after_an_abandoned_stream(video):
    with open_reader(video) as reader:
        stream = reader.stream()
        assert read_number(next(stream)) == 0
        assert read_number(reader.frames([17])[0]) == 17
        with pytest.raises(RuntimeError, match=r"a.mp4: its reader received another request during a stream"):
            list(stream)
        assert [read_number(frame) for frame in reader.stream()] == list(range(30))


def test_a_stream_returns_its_frames_before_it_raises(pool, trouble):
    with Guard(timeout=TIMEOUT, pool=pool).open(trouble("mid-die")) as reader:
        seen = []
        with pytest.raises(DecodeError, match=r"mid-die.bad: the decoder died \(SIGSEGV\)"):
            seen.extend(reader.stream())
    assert len(seen) == 5


def test_one_process_serves_one_reader_after_another_and_two_serve_two_at_once(video):
    with open_reader(video) as one:
        child = one.process
        with open_reader(video) as two:
            assert two.process != child
            assert read_number(two.frames([8])[0]) == 8 and read_number(one.frames([5])[0]) == 5
    pids = set()
    for _ in range(3):
        with open_reader(video) as reader:
            pids.add(reader.process)
    assert len(pids) == 1


def test_no_timeout_means_no_process(video):
    with open_reader(video, timeout=0) as reader:
        assert isinstance(reader, VideoReader)


def test_bad_files_and_requests_raise_the_same_errors_and_the_process_survives(video, tmp_path):
    (tmp_path / "empty.mp4").touch()
    with open_reader(video) as reader:
        child = reader.process
        with pytest.raises(DecodeError, match=r"a.mp4: frames \[30\] were requested, it has 0 to 29"):
            reader.frames([30])
        assert read_number(reader.frames([2])[0]) == 2
    with pytest.raises(DecodeError, match=r"^empty.mp4: the file is empty \(0 bytes\)$"):
        open_reader("empty.mp4", tmp_path)
    with open_reader(video) as reader:
        assert reader.process == child


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("spin", rf"the decoder did not answer within {TIMEOUT} s"),
        ("late-spin", r"the decoder did not answer within 1\.\d+ s"),
        ("mid-spin", r"the decoder did not answer within 1\.\d+ s"),
        ("die", r"the decoder died \(SIGSEGV\)"),
        ("late-die", r"the decoder died \(SIGSEGV\)"),
        ("exit", r"the decoder died \(its process ended\)"),
    ],
)
def test_a_decoder_that_hangs_or_dies_is_a_bad_video_within_the_timeout(pool, trouble, video, what, reason):
    file = trouble(what)
    pool.release(pool.acquire())  # the first one takes the time to start
    start = time.monotonic()
    with (
        pytest.raises(DecodeError, match=f"^{file}: {reason}"),
        Guard(timeout=TIMEOUT, pool=pool).open(file) as reader,
    ):
        list(reader.stream()) if what.startswith("mid") else reader.frames([0])
    assert time.monotonic() - start < TIMEOUT + 1
    with Guard(timeout=20, pool=pool).open(video) as reader:
        assert read_number(reader.frames([11])[0]) == 11


def test_a_decoder_that_takes_all_memory_is_a_bad_video(trouble, video):
    """With time for a busy machine to take it in."""
    file = trouble("eat")
    with DecoderPool(memory=1 << 30, imports=["misbehaving"]) as pool:
        with pytest.raises(DecodeError, match=rf"^{file}: decoding it needs more than 1\.1 GB of memory"):
            Guard(timeout=30, pool=pool).open(file)
        with Guard(timeout=20, pool=pool).open(video) as reader:
            assert read_number(reader.frames([11])[0]) == 11


def test_frames_above_the_pixel_limit_are_refused_by_every_method(video):
    with Guard(max_pixels=48 * 144).open(video) as reader:
        assert reader.frames([0]).shape == (1, 48, 144, 3)
    with Guard(max_pixels=48 * 144 - 1).open(video) as reader:
        for ask in (lambda: reader.frames([0]), lambda: next(reader.stream())):
            with pytest.raises(DecodeError, match="its frames of 144×48 pixels are above the limit of 6,911 pixels"):
                ask()


def test_a_bug_in_the_process_is_not_reported_as_a_bad_video(pool, trouble):
    with pytest.raises(RuntimeError, match="IndexError: a mistake of ours"):
        Guard(pool=pool).open(trouble("bug"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
def test_a_process_that_was_killed_or_stopped_while_idle_is_replaced(video, how, pool, monkeypatch):
    monkeypatch.setattr("mvit_video.data.video.guard_pool.PING_SECONDS", 0.3)
    with Guard(pool=pool).open(video) as reader:
        child = reader.process
    os.kill(child, how)
    with Guard(pool=pool).open(video) as reader:
        assert reader.process != child and read_number(reader.frames([1])[0]) == 1
    assert gone_within(child, 5)


@pytest.mark.integration
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
def test_a_launcher_that_was_killed_or_stopped_is_replaced(video, how, monkeypatch):
    monkeypatch.setattr(launcher, "start_seconds", 4.0)
    with DecoderPool() as first:
        first.release(first.acquire())
        before = launchers()
        for process in before:
            os.kill(process, how)
        with DecoderPool() as second, Guard(pool=second).open(video) as reader:
            assert read_number(reader.frames([1])[0]) == 1
            assert launchers() - before
    assert all(gone_within(process, 5) for process in before)


def test_a_launcher_that_cannot_start_early_says_nothing_until_a_process_is_needed(monkeypatch):
    starting = Launcher()
    monkeypatch.setattr(subprocess, "Popen", refuse)
    starting.start_early()
    with pytest.raises(ConfigError, match=r"no process for decoding can be started .*too many processes"):
        starting.connect(1 << 30, ())


def refuse(*_, **__):
    raise OSError("too many processes")


def test_a_garbage_collected_reader_ends_its_process(video):
    reader = open_reader(video)
    child = reader.process
    assert alive(child)
    del reader
    gc.collect()
    assert gone_within(child, 5)


def test_a_reader_reports_that_it_lost_its_decoder(pool, trouble):
    reader = Guard(timeout=TIMEOUT, pool=pool).open(trouble("late-die"))
    with pytest.raises(DecodeError, match="SIGSEGV"):
        reader.frames([0])
    with pytest.raises(DecodeError, match="its reader is closed, or its decoder died"):
        reader.frames([0])


def test_closing_a_pool_interrupts_waiting_threads_and_ends_every_process(pool, trouble, video):
    reasons, before, spin = [], decoding_processes(), trouble("spin")

    def wait():
        try:
            Guard(timeout=600, pool=pool).open(spin)
        except DecodeError as reason:
            reasons.append(str(reason))

    with Guard(pool=pool).open(video):
        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 30
        while len(decoding_processes() - before) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)
        start = time.monotonic()
        pool.close()
        for thread in threads:
            thread.join(5)
        assert time.monotonic() - start < 2 and not any(thread.is_alive() for thread in threads)
    assert len(reasons) == 3 and all(reason.endswith("spin.bad: decoding was stopped") for reason in reasons)
    assert decoding_processes() <= before
    with pytest.raises(DecodeError, match=r"a.mp4: decoding was stopped"):
        Guard(pool=pool).open(video)


def test_threads_share_a_pool_whose_processes_outlive_them(video, pool):
    numbers = []

    def read(number):
        for _ in range(5):
            with Guard(pool=pool).open(video) as reader:
                numbers.append((number, read_number(reader.frames([number])[0])))

    for _ in range(2):
        threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(numbers) == 60 and all(expected == actual for expected, actual in numbers)
    assert len(pool._idle) >= 1 and all(alive(decoder.pid) for decoder in pool._idle)


def test_jobs_run_in_parallel_and_only_one_without_progress_is_given_up(pool):
    jobs = [
        Job(name, f"misbehaving:{name}", (1.6,) if name == "slow" else ()) for name in ("slow", "hang", "die", "bad")
    ]
    found = {done.job.name: done for done in pool.run(jobs, workers=2, timeout=0.8)}
    assert alive_or_gone(found.pop("slow").result["child"])
    assert {name: done.reason for name, done in found.items()} == {
        "hang": "hang: the decoder did not answer within 0.8 s",
        "die": "die: the decoder died (SIGSEGV)",
        "bad": "x.mp4: is bad",
    }
    with pytest.raises(RuntimeError, match="ZeroDivisionError: ours"):
        list(pool.run([Job("x", "misbehaving:mistake", ())], 1, 5.0))


def alive_or_gone(pid: int) -> bool:
    return pid != os.getpid()


def test_training_continues_past_videos_whose_decoder_hangs_or_dies(tmp_path, pool, monkeypatch):
    names = []
    for number in range(6):
        names.append(f"{number}.mp4")
        write_numbered(tmp_path / names[-1], 20)
    for name, text in (("hang.bad", "late-spin"), ("crash.bad", "die")):
        (tmp_path / name).write_text(text)
        names.append(name)
    videos = VideoList(tuple(VideoRecord(name, 0, row) for row, name in enumerate(names, 1)), ("a",), "list.csv")
    settings = DataSettings(
        root=str(tmp_path), num_frames=2, short_side=32, crop_size=32, sampling_rate=2, decode_timeout=TIMEOUT
    )
    monkeypatch.setattr(guard, "shared_pool", pool)
    start = time.monotonic()
    batches = list(training_loader(clip_dataset_from(settings, videos, seed=0), StepSampler(8, 4, 0, 0, 2), workers=2))
    bad = {video.path: video.reason for batch in batches for video in batch["bad"]}
    assert set(bad) == {"hang.bad", "crash.bad"} and all(isinstance(each, BadVideo) for each in batches[0]["bad"])
    assert "did not answer within" in bad["hang.bad"] and "died (SIGSEGV)" in bad["crash.bad"]
    assert sum(len(batch.get("label", ())) for batch in batches) == 6
    assert time.monotonic() - start < 30


class ProcessOfWorker(Dataset):
    """The process that a loader's worker decodes with."""

    def __init__(self, video) -> None:
        self.video = video

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int]:
        with open_reader(self.video) as reader:
            assert read_number(reader.frames([index])[0]) == index
            return reader.process, len(launchers())


@pytest.mark.parametrize(
    "start", ["fork", *(pytest.param(name, marks=pytest.mark.long) for name in ("forkserver", "spawn"))]
)
def test_a_loaders_workers_have_a_process_each_which_ends_with_them(video, start):
    with open_reader(video):
        loader = DataLoader(ProcessOfWorker(video), batch_size=None, num_workers=2, multiprocessing_context=start)
        found = list(loader)
    children = {child for child, _ in found}
    assert len(children) == 2
    assert all(own == (0 if start == "fork" else 1) for _, own in found), (
        "what is forked shares this process's launcher"
    )
    assert all(gone_within(child, 5) for child in children)


PARENT = """
import sys, time
from mvit_video.data.video.guard import open_reader
from mvit_video.data.video.guard_pool import DecoderPool
pool = DecoderPool(imports=["misbehaving"])
reader, busy = open_reader(sys.argv[1]), pool.acquire()
busy.send("work", 600, seconds=600, name="x", function="misbehaving:hang", arguments=[])
print(reader.process, busy.pid, flush=True)
if sys.argv[2] == "end":
    sys.exit()
time.sleep(600)
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
@pytest.mark.parametrize("how", ["kill", "end", "interrupt"])
def test_processes_end_with_a_program_that_ends_or_is_killed_idle_or_busy(video, how):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(video), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        processes = [int(word) for word in parent.stdout.readline().split()]
        assert len(processes) == 2
        if how != "end":
            assert all(alive(process) for process in processes)
            processes += launchers(parent.pid)
            assert len(processes) == 3
            parent.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
        parent.wait(20)
    finally:
        parent.kill()
        parent.wait()
    assert all(gone_within(process, 5) for process in processes)


def test_a_forked_process_has_a_decoder_of_its_own_and_leaves_that_of_its_parent_alone(video):
    with open_reader(video) as reader:
        forked = os.fork()
        if forked == 0:
            status = 1
            try:
                with open_reader(video) as other:
                    status = 0 if read_number(other.frames([4])[0]) == 4 and isinstance(other, GuardedReader) else 1
                    status = 2 if other.process == reader.process else status
            finally:
                os._exit(status)
        assert os.waitpid(forked, 0)[1] == 0
        assert read_number(reader.frames([5])[0]) == 5


def test_the_process_holds_no_file_of_the_program_open(video, tmp_path):
    with open(tmp_path / "held.txt", "w"), DecoderPool() as pool, Guard(pool=pool).open(video) as reader:
        folder = Path(f"/proc/{reader.process}/fd")
        if not folder.exists():
            pytest.skip("no /proc")
        held = {os.readlink(link) for link in folder.iterdir()}
    assert not any("held.txt" in name for name in held)
    assert any("a.mp4" in name for name in held)


def test_memory_of_a_clip_is_freed_by_the_next(video):
    with open_reader(video) as reader:
        reader.frames(list(range(30)) * 20)
        links = Path(f"/proc/{reader.process}/fd").iterdir()
        memory = next(link for link in links if "memfd:frames" in os.readlink(link))
        assert os.stat(memory).st_size == 600 * 48 * 144 * 3
        reader.frames([0])
        assert os.stat(memory).st_size == 48 * 144 * 3


@pytest.mark.parametrize("root", ["data", None])
def test_relative_paths_start_from_the_current_folder(tmp_path, monkeypatch, root):
    """Processes outlive a change of the current folder, as in a notebook."""
    for place, count in (("one", 5), ("two", 8)):
        (tmp_path / place / "data").mkdir(parents=True)
        write_numbered(tmp_path / place / "data/v.mp4", count)
        monkeypatch.chdir(tmp_path / place)
        with open_reader("v.mp4" if root else "data/v.mp4", root) as reader:
            assert len(reader) == count


NOHUP = """
import os, signal, sys
from mvit_video.data.video.guard import open_reader
with open_reader(sys.argv[1]) as reader:
    children = [reader.process, int(sys.argv[2]) or os.getpid()]
    for pid in children:
        print(next(line.split()[1] for line in open(f"/proc/{pid}/status") if line.startswith("SigIgn")))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGXFSZ):
        os.kill(children[0], number)
    print(reader.frames([3]).shape)
"""


@pytest.mark.integration
def test_signals_that_the_shell_ignores_stay_ignored_and_those_that_stop_a_program_do_not_reach_its_processes(video):
    """SIGTTIN and SIGQUIT stand for those that neither we nor Python know of."""
    command = f"trap '' HUP XFSZ TTIN QUIT; exec {sys.executable} -c \"$1\" {video} 0"
    done = subprocess.run(["bash", "-c", command, "-", NOHUP], capture_output=True, text=True, check=True)
    theirs, own, shape = done.stdout.splitlines()
    for number in (signal.SIGHUP, signal.SIGXFSZ, signal.SIGTTIN, signal.SIGQUIT):
        assert int(own, 16) >> (number - 1) & 1 and int(theirs, 16) >> (number - 1) & 1, number
    assert shape == "(1, 48, 144, 3)"


SMALL_FILES = """
import sys
from mvit_video.data.video.guard import open_reader
with open_reader(sys.argv[1]) as reader:
    print(reader.frames([3]).shape)
    reader.frames(range(30))
"""


@pytest.mark.integration
def test_a_shell_that_limits_the_size_of_files_is_named_and_no_video_is_called_bad(video):
    command = f'ulimit -f 100; exec {sys.executable} -c "$1" {video}'
    done = subprocess.run(["bash", "-c", command, "-", SMALL_FILES], capture_output=True, text=True)
    assert done.stdout == "(1, 48, 144, 3)\n"
    assert done.stderr.splitlines()[-1] == (
        f"mvit_video.errors.{ConfigError.__name__}: {video}: 622,080 bytes of frames are above this shell's limit on the size "
        "of files: raise it with ulimit -f"
    )


HAMMER = """
import sys, threading, time, importlib, logging
import torch, av
from mvit_video.data.video.guard import Guard
from mvit_video.data.video.guard_pool import DecoderPool
stop = threading.Event()
def multiply():
    while not stop.is_set():
        torch.randn(64, 64) @ torch.randn(64, 64)
def load():
    while not stop.is_set():
        for name in ("colorsys", "wave", "sndhdr"):
            sys.modules.pop(name, None)
            try: importlib.import_module(name)
            except ImportError: pass
def decode():
    while not stop.is_set():
        with av.open(sys.argv[1]) as container:
            for frame in container.decode(video=0): pass
threads = [threading.Thread(target=work, daemon=True) for work in (multiply, multiply, load, decode, decode)]
for thread in threads: thread.start()
slowest = 0.0
for number in range(20):
    start = time.monotonic()
    with DecoderPool() as pool, Guard(30, pool).open(sys.argv[1]) as reader:
        assert reader.frames([number % 30]).shape == (1, 48, 144, 3)
    slowest = max(slowest, time.monotonic() - start)
stop.set()
print("read", slowest < 25)
"""


@pytest.mark.integration
def test_no_decoder_is_lost_in_a_program_whose_threads_multiply_import_and_decode(video):
    """A fork of such a program may find locks taken for ever; its decoders are not forks of it."""
    done = subprocess.run([sys.executable, "-c", HAMMER, str(video)], capture_output=True, text=True, timeout=300)
    assert done.stdout == "read True\n", done.stderr
