"""predict and explain as a user runs them: what they print, leave and return, and what bad input gets."""

import csv
import errno
import io
import json
import os
import re
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_video import write_numbered
from tiny_predictor import nano_card, nano_model

from mvit_video import cli
from mvit_video.cli.common import print_rows
from mvit_video.cli.inference import _print_table
from mvit_video.data.video.reader import VideoReader
from mvit_video.inference.predictor import Prediction, expand_paths
from mvit_video.inference.windows import SlidingClips
from mvit_video.locks import alone_in
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.report.outputs import EXPLAIN_FILES, TIMELINE_FILES, folders_for


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_checkpoint(path, nano_model(), nano_card())
    return path


@pytest.fixture
def run(capsys, weights):
    def call(*words, checkpoint=weights):
        code = cli.main([*map(str, words), *(["--checkpoint", str(checkpoint)] if checkpoint else [])])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def one_line(code, out, err, message):
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_the_three_formats_say_the_same(run, few_videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no")
    paths = [few_videos / "val/00000.mp4", tmp_path / "bad.mp4", few_videos / "val/00001.mp4"]
    code, out, err = run("predict", *paths, "--format", "jsonl", "--top", 3)
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and err == "" and [answer["path"] for answer in answers] == [str(path) for path in paths]
    assert "cannot be opened as a video" in answers[1]["error"]
    assert run("predict", *paths, "--json", "--top", 3)[1] == out

    code, out, err = run("predict", *paths, "--format", "csv", "--top", 3)
    one_line(code, out, err, "bad.mp4: cannot be opened as a video")
    rows = list(csv.DictReader(io.StringIO(out)))
    expected = [
        (answer["path"], str(rank), actual["label"], f"{actual['score']:.6f}")
        for answer in answers
        for rank, actual in enumerate(answer.get("predictions", ()), 1)
    ]
    assert [(row["path"], row["rank"], row["label"], row["score"]) for row in rows] == expected and len(rows) == 6

    code, out, err = run("predict", *paths, "--top", 3)
    one_line(code, out, err, "bad.mp4: cannot be opened as a video")
    assert all(label in out and f"{float(score):.3f}" in out for _, _, label, score in expected)


def test_folders_patterns_and_a_list_on_standard_input(run, few_videos, monkeypatch):
    code, out, _ = run("predict", few_videos / "val", "--format", "jsonl")
    assert code == 0 and len(out.splitlines()) == 8
    assert run("predict", f"{few_videos}/va*/*.mp4", "--format", "jsonl")[1] == out
    names = "".join(f"{few_videos}/val/{number:05d}.mp4\r\n\n" for number in range(8))
    standard_input(monkeypatch, names.encode())
    assert run("predict", "-", "--format", "jsonl")[1] == out


def standard_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_an_empty_list_on_standard_input_is_told(run, tmp_path, monkeypatch):
    for words in ([], ["--timeline", "--output", tmp_path / "out"]):
        standard_input(monkeypatch, b"\n")
        one_line(*run("predict", "-", *words), "no video on standard input: write one path per line")


def test_the_csv_heading_stands_also_above_no_rows(run, tmp_path):
    (tmp_path / "bad.mp4").write_text("no")
    assert run("predict", tmp_path / "bad.mp4", "--format", "csv")[1] == "path,rank,label,score\n"


@pytest.fixture
def odd_names(few_videos, tmp_path):
    """A video under names that are no text, look like an image, or have two lines."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"bad\xff.mp4", b":dog: [red].mp4", b"two\nlines.mp4"):
        (folder / os.fsdecode(name)).write_bytes((few_videos / "val/00000.mp4").read_bytes())
    return folder


@pytest.mark.integration
def test_videos_of_any_name_are_predicted(run, odd_names, tmp_path, monkeypatch):
    code, out, err = run("predict", odd_names, "--json")
    assert (code, err) == (0, "")
    paths = [json.loads(line)["path"] for line in out.splitlines()]
    assert sorted(paths) == sorted(map(str, odd_names.iterdir())), "what JSON says is the name"
    standard_input(monkeypatch, os.fsencode(odd_names) + b"/bad\xff.mp4\n")
    assert json.loads(run("predict", "-", "--json")[1])["path"] == str(odd_names / os.fsdecode(b"bad\xff.mp4"))
    assert "bad\\udcff.mp4,1," in run("predict", odd_names, "--format", "csv")[1]
    out = run("predict", odd_names)[1]
    assert ":dog: [red].mp4" in out and "bad\\udcff.mp4" in out
    for word in ("predict", "explain"):
        odd = odd_names / os.fsdecode(b"bad\xff.mp4")
        words = ["--timeline"] if word == "predict" else []
        assert run(word, odd, *words, "--output", tmp_path / word)[0] == 0
    assert json.loads((tmp_path / "predict/timeline.json").read_text())["path"] == str(odd)


def test_a_name_of_two_lines_makes_an_error_of_one(run, tmp_path):
    one_line(*run("predict", tmp_path / "no\nfile.mp4"), "no file.mp4: no such file")


def test_a_name_that_cannot_be_looked_up_costs_one_line_and_the_others_are_done(run, few_videos, tmp_path, monkeypatch):
    good, long = few_videos / "val/00000.mp4", "x" * 300 + ".mp4"
    locked = tmp_path / "locked"
    locked.mkdir()
    listing = Path.iterdir

    def iterdir(path):
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)  # root may read everything
    code, out, err = run("predict", long, locked, good, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and err == "" and answers[2]["predictions"]
    assert answers[0]["error"].startswith(f"{long}: cannot be opened (") and "File name too long" in answers[0]["error"]
    assert answers[1]["error"] == f"{locked}: cannot be opened (Permission denied)"


def test_folders_named_like_videos_and_our_own_copies_are_not_among_the_videos_of_a_folder(run, few_videos, tmp_path):
    for name in ("a.mp4", "annotated.mp4"):
        (tmp_path / name).write_bytes((few_videos / "val/00000.mp4").read_bytes())
    out = tmp_path / "out"
    assert run("predict", tmp_path, "--timeline", "--output", out)[0] == 0
    assert {path.name for path in out.iterdir()} == {"a.mp4", "annotated.mp4"} and (out / "a.mp4").is_dir()
    found = sorted(expand_paths([str(tmp_path)]))
    assert found == [str(tmp_path / "a.mp4"), str(tmp_path / "annotated.mp4")], "the last is the user's own"


def test_long_labels_and_names_are_whole_in_tables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    label, text = "opening_a_:bottle:_" + "q" * 80 + "_end", "y" * 50
    _print_table(Prediction("a.mp4", ((label, 0.5),)))
    print_rows(":dog:", ["name", "text"], [[label, text]], ())
    out = re.sub(r"[^\w.:]", "", capsys.readouterr().out)
    assert out.count("opening_a_:bottle:_") == 2 and out.count("_end") == 2 and ":dog:" in out
    assert out.count("q") == 160 and out.count("y") == 50


def test_without_a_checkpoint_and_without_a_network_one_sentence_says_which_file_to_put_where(
    run, few_videos, tmp_path, monkeypatch
):
    def no_network(*words, **more):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path))
    code, out, err = run("predict", few_videos / "val/00000.mp4", checkpoint=None)
    url = "dl.fbaipublicfiles.com/pyslowfast/model_zoo/mvitv2/pysf_video_models/MViTv2_S_16x4_k400_f302660347.pyth"
    assert (code, out) == (1, "")
    assert err == (
        f"error: https://{url}: cannot be fetched (<urlopen error Network is unreachable>): download it by other "
        f"means to {tmp_path / url}, and run again\n"
    )


def huge(path):
    """A few kilobytes that decode to 8192×8192 pixels."""
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=10)
        track.width, track.height, track.pix_fmt, track.options = 8192, 8192, "yuv420p", {"preset": "veryfast"}
        container.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((8192 * 3 // 2, 8192), np.uint8), "yuv420p")))
        container.mux(track.encode())
    assert path.stat().st_size < 100_000


def sound_only(path):
    with av.open(str(path), "w") as container:
        track = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(track.encode(frame))
        container.mux(track.encode())


def no_frames(path):
    write_numbered(path, 1)
    content = bytearray(path.read_bytes())
    place = content.index(b"stsz") + 12  # number of samples
    content[place : place + 4] = bytes(4)
    path.write_bytes(content)


def ten_hours(path):
    """30 frames under a header that says ten hours."""
    write_numbered(path, 30)
    content = bytearray(path.read_bytes())
    place = content.index(b"\x44\x89\x88") + 3  # Matroska's Duration, eight bytes
    content[place : place + 8] = struct.pack(">d", 36_000_000.0)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """Files with what is said of each."""
    folder = tmp_path_factory.mktemp("bad")
    makers = {
        "huge.mp4": (huge, "8192×8192 pixels are above the limit"),
        "sound.mp4": (sound_only, "sound.mp4: no video stream"),
        "none.mp4": (no_frames, "none.mp4: "),
        "empty.mp4": (lambda path: path.touch(), "the file is empty (0 bytes)"),
        "text.mp4": (lambda path: path.write_text("hello"), "cannot be opened as a video"),
        "folder": (lambda path: path.mkdir(), "folder: this folder contains no videos"),
    }
    for name, (make, _) in makers.items():
        make(folder / name)
    return {folder / name: message for name, (_, message) in makers.items()}


def test_each_bad_file_is_a_sentence_and_the_good_one_is_done(run, bad_files, few_videos):
    good = few_videos / "val/00000.mp4"
    code, out, err = run("predict", *bad_files, good)
    lines = err.splitlines()
    assert code == 1 and len(lines) == len(bad_files) and out.count("score") == 1
    for line, (path, message) in zip(lines, bad_files.items(), strict=True):
        assert line.startswith(f"error: {path}") and message in line


def test_each_bad_file_is_a_sentence_for_timelines_and_explanations_too(run, bad_files, few_videos, tmp_path):
    code, _, err = run("predict", *bad_files, few_videos / "long.mp4", "--timeline", "--output", tmp_path / "out")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(lines) == len(bad_files)
    assert all(message in line for line, message in zip(lines, bad_files.values(), strict=True))
    assert {file.name for file in (tmp_path / "out/long.mp4").iterdir()} == set(TIMELINE_FILES)
    for number, (path, message) in enumerate(bad_files.items()):
        one_line(*run("explain", path, "--output", tmp_path / str(number)), message)


def test_a_header_that_says_ten_hours_costs_nothing(run, tmp_path):
    ten_hours(tmp_path / "ten.mkv")
    with av.open(str(tmp_path / "ten.mkv")) as container:
        assert container.duration == 36_000_000_000
    assert run("predict", tmp_path / "ten.mkv", "--timeline", "--output", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out/timeline.json").read_text())["seconds"] == pytest.approx(1.2, abs=0.01)


@pytest.mark.integration
def test_a_timeline_leaves_its_files_which_agree(run, few_videos, tmp_path):
    words = ("predict", few_videos / "long.mp4", "--timeline", "--output", tmp_path / "out")
    code, out, err = run(*words)
    assert (code, out) == (0, "") and f"segments in 14.4 s, see {tmp_path / 'out/timeline.png'}" in err
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(TIMELINE_FILES)
    written = json.loads((tmp_path / "out/timeline.json").read_text())
    assert written["error"] is None and len(written["windows"]) == 33 and written["window_seconds"] == 1.6
    rows = list(csv.DictReader((tmp_path / "out/timeline.csv").open()))
    assert [row["label"] for row in rows] == [segment["label"] for segment in written["segments"]]
    assert (tmp_path / "out/timeline.srt").read_text().count(" --> ") == len(rows)
    assert (tmp_path / "out/timeline.png").read_bytes().startswith(b"\x89PNG")
    assert len(VideoReader(tmp_path / "out/annotated.mp4")) == 216
    one_line(*run(*words), "already contains timeline.json of another run")
    assert run(*words, "--overwrite", "--window-step", 1.6)[0] == 0
    assert len(json.loads((tmp_path / "out/timeline.json").read_text())["windows"]) == 9


@pytest.mark.integration
def test_an_explanation_leaves_its_files(run, few_videos, tmp_path):
    words = ("explain", few_videos / "val/00000.mp4", "--output", tmp_path / "out", "--label", "moving up")
    code, _, err = run(*words)
    assert code == 0 and "the evidence for 'moving up' is in" in err
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(EXPLAIN_FILES)
    written = json.loads((tmp_path / "out/explain.json").read_text())
    assert written["label"] == "moving up" and len(written["predictions"]) == 5
    assert np.array(written["clips"][0]["heat"]).shape == (4, 6, 6)
    assert len(VideoReader(tmp_path / "out/explain.mp4")) == 36
    one_line(*run(*words), "already contains explain.json of another run")


@pytest.mark.parametrize("words", [("predict", "--timeline"), ("explain",)], ids=("timeline", "explain"))
def test_a_folder_that_another_call_writes_to_is_refused(run, few_videos, tmp_path, words):
    words = (*words, few_videos / "val/00000.mp4", "--output", tmp_path / "out")
    with alone_in(tmp_path / "out", print):
        one_line(*run(*words), "is being written to by process")
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_what_is_odd_about_a_video_is_said_once(run, few_videos, tmp_path, caplog):
    video = write_numbered(tmp_path / "a.ts", 40, options={"bf": "0", "g": "10"})
    video.write_bytes(video.read_bytes() * 2)
    for words in (("predict", "--timeline"), ("explain",)):
        caplog.clear()
        assert run(*words, video, "--output", tmp_path / words[0])[0] == 0
        assert caplog.text.count("its clock jumps") == 1


def test_a_video_among_the_files_to_be_written_is_never_deleted(run, few_videos, tmp_path):
    source = tmp_path / "annotated.mp4"
    source.write_bytes((few_videos / "long.mp4").read_bytes())
    words = ("predict", source, "--timeline", "--output", tmp_path, "--overwrite")
    one_line(*run(*words), "annotated.mp4: is the video itself, which is never overwritten: choose another --output")
    assert source.read_bytes() == (few_videos / "long.mp4").read_bytes()


def test_several_videos_have_a_folder_each(tmp_path):
    paths = ["a/x.mp4", "b/x.mp4", "y.mkv"]
    found = [folder for _, folder in folders_for(paths, tmp_path, TIMELINE_FILES, False)]
    assert found == [tmp_path / "x.mp4", tmp_path / "x.mp4-2", tmp_path / "y.mkv"]


def test_a_call_that_fails_leaves_no_folder_and_what_an_earlier_one_wrote(run, few_videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    good, bad = few_videos / "val/00000.mp4", tmp_path / "bad.mp4"
    fails = (
        (["explain", good, "--label", "moving upp"], "label 'moving upp' is not one of the checkpoint's 8 classes"),
        (["explain", bad], "bad.mp4: cannot be opened as a video"),
        (["explain", tmp_path / "none.mp4"], "none.mp4: no such file"),
        (["predict", bad, "--timeline"], "bad.mp4: cannot be opened as a video"),
    )
    for words, message in fails:
        one_line(*run(*words, "--output", tmp_path / "out"), message)
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    for name in {*EXPLAIN_FILES, *TIMELINE_FILES}:
        (tmp_path / "out" / name).write_text("earlier")
    for words, message in fails:
        one_line(*run(*words, "--output", tmp_path / "out", "--overwrite"), message)
    assert {file.read_text() for file in (tmp_path / "out").iterdir()} == {"earlier"}


def test_an_output_that_cannot_be_made_is_told_before_the_work(run, few_videos, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(SlidingClips, "push", None)
    words = ("predict", few_videos / "long.mp4", "--timeline", "--output", tmp_path / "file/out")
    one_line(*run(*words), "file/out: cannot be written to (Not a directory): choose another --output")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict"], "expected videos, folders, patterns or -"),
        (["predict", "a.mp4", "--stream", "-"], "expected videos, folders, patterns or -"),
        (
            ["predict", "a.mp4", "--timeline"],
            "--timeline or --shard, and --output DIR, must be used together",
        ),
        (
            ["predict", "a.mp4", "--output", "x"],
            "--timeline or --shard, and --output DIR, must be used together",
        ),
        (["predict", "--stream", "-", "--format", "csv"], "--stream writes JSON lines of the top label only"),
        (["predict", "--stream", "-", "--top", "3"], "--stream writes JSON lines of the top label only"),
        (["predict", "a.mp4", "--timeline", "--output", "x", "--json"], "drop --format, --json and --top"),
        (["predict", "a.mp4", "--timeline", "--output", "x", "--top", "3"], "drop --format, --json and --top"),
        (["predict", "a.mp4", "--timeline", "--output", "x", "--protocol", "5x1"], "drop it with --timeline"),
        (["predict", "a.mp4", "--window-step", "1"], "--window-step is for --timeline and --stream only"),
        (["predict", "a.mp4", "--allow-network"], "--allow-network is for --stream only"),
        (
            ["predict", "--stream", "http://127.0.0.1:1/x"],
            "pass --allow-network to open it",
        ),
        (["predict", ""], "'': is an empty path, expected a video: is a variable of your shell unset?"),
        (["predict", "http://127.0.0.1:1/x.mp4"], "is a URL, expected a local file: download it first"),
    ],
)
def test_words_that_do_not_go_together_cost_one_line(run, words, message):
    one_line(*run(*words), message)


@pytest.mark.parametrize("step", ["0", "-1", "nan", "inf", "x"])
def test_a_step_is_a_number_of_seconds(capsys, step):
    with pytest.raises(SystemExit) as caught:
        cli.main(["predict", "a.mp4", "--window-step", step])
    assert caught.value.code == 2 and f"'{step}' is not a number of seconds above 0" in capsys.readouterr().err


def test_frames_held_do_not_grow_with_the_video(run, few_videos, tmp_path, monkeypatch):
    held: list[int] = []
    push = SlidingClips.push

    def watched(clips, number, frame):
        yield from push(clips, number, frame)
        held.append(clips.held)

    monkeypatch.setattr(SlidingClips, "push", watched)
    assert run("predict", few_videos / "long.mp4", "--timeline", "--output", tmp_path / "out")[0] == 0
    assert len(held) == 216 and max(held) <= 24


def write_long(path, seconds, fps=15):
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=fps)
        track.width, track.height, track.pix_fmt = 80, 64, "yuv420p"
        track.options = {"preset": "ultrafast", "g": "600", "crf": "30"}
        frame = np.full((64, 80, 3), 60, np.uint8)
        for number in range(seconds * fps):
            picture = frame.copy()
            picture[20:40, number * 2 % 60 :][:, :20] = 220
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(track.encode())


def peak_memory(words):
    """MiB at the peak of a process of its own; getrusage would count what it was forked from, which is pytest."""
    code = "import sys; from mvit_video import cli; code = cli.main(sys.argv[1:])\n"
    code += "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True)
    return int(done.stderr.split()[-1]) / 1024


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_an_hour_of_video_stays_within_a_gibibyte(weights, tmp_path):
    """Everything of the process counts: libraries, network, timeline, image and annotated copy."""
    peaks = {}
    for name, seconds in (("short", 10), ("hour", 3600)):
        write_long(tmp_path / f"{name}.mp4", seconds)
        words = [
            "predict",
            tmp_path / f"{name}.mp4",
            "--timeline",
            "--output",
            tmp_path / name,
            "--checkpoint",
            weights,
        ]
        peaks[name] = peak_memory(words)
    assert json.loads((tmp_path / "hour/timeline.json").read_text())["seconds"] == pytest.approx(3600)
    assert peaks["hour"] - peaks["short"] < 200 and peaks["hour"] < 1024, peaks
