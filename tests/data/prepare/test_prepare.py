import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from numbered_video import read_number, write_numbered

from mvit_video.cli import main
from mvit_video.data.lists.read import read_videos
from mvit_video.data.prepare import prepare, reencode
from mvit_video.data.prepare.prepare import output_names, prepare_dataset
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import AnnotationError, ConfigError
from mvit_video.locks import alone_in
from mvit_video.paths import file_sha256

VIDEOS = {
    "a b/one.mp4": dict(options={"bf": "3", "g": "250", "crf": "16"}),
    "a b/two.webm": dict(codec="libvpx-vp9", options={"g": "250", "deadline": "realtime", "cpu-used": "8"}),
    "c/three.avi": dict(codec="mpeg4", options={"g": "12", "qscale": "3"}),
    "c/four#.mkv": dict(options={"bf": "2"}, gaps=True),
}
FRAMES = 40


def write_videos(root):
    for name, arguments in VIDEOS.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        write_numbered(root / name, FRAMES, **arguments)
    (root / "train.csv").write_text("".join(f"{name},{number % 2}\n" for number, name in enumerate(VIDEOS)))
    (root / "classes.txt").write_text("ä\nb\n")
    return root


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(root, output) of one call on four videos of four kinds."""
    root = write_videos(tmp_path_factory.mktemp("original"))
    output, before = root.with_name("prepared"), contents(root)
    complaints = []
    done = prepare_dataset("train.csv", str(root), output, 256, 2, complaints.append)
    assert (done.written, done.kept, done.bad, complaints) == (4, 0, (), [])
    assert contents(root) == before, "the originals were touched"
    return root, output


def manifest(output):
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def test_the_new_root_works_with_the_same_list_name_and_labels(prepared):
    root, output = prepared
    old, new = (read_videos("train.csv", str(place)) for place in (root, output))
    assert [record.path for record in new.records] == ["a b/one.mp4", "a b/two.mp4", "c/three.mp4", "c/four#.mp4"]
    assert [record.label for record in new.records] == [record.label for record in old.records]
    assert new.classes == old.classes == ("ä", "b")


def test_every_frame_keeps_its_number(prepared):
    _, output = prepared
    for record in read_videos("train.csv", str(output)).records:
        with VideoReader(record.path, str(output)) as reader:
            assert [read_number(frame) for frame in reader.stream()] == list(range(FRAMES))


def test_every_frame_keeps_its_time_and_the_video_its_rate(prepared):
    root, output = prepared
    for source, record in zip(VIDEOS, read_videos("train.csv", str(output)).records, strict=True):
        with VideoReader(root / source) as old, VideoReader(output / record.path) as new:
            first, times = old.times()[0], new.times()
            assert max(abs(now - (then - first)) for then, now in zip(old.times(), times, strict=True)) < 0.0011
            mean_rate = (FRAMES - 1) / float(times[-1])
            assert new.fps == (pytest.approx(mean_rate, rel=0.03) if "four" in source else 25)
    gaps = np.diff([float(at) for at in times]).round(3)
    assert sorted(set(gaps)) == [0.04, 0.08]


def test_colours_stay_as_they_were(prepared):
    root, output = prepared
    with VideoReader(root / "a b/one.mp4") as old, VideoReader(output / "a b/one.mp4") as new:
        difference = np.abs(old.frames([0, 7, 39]).astype(int) - new.frames([0, 7, 39]))
    assert difference.mean() < 3 and np.percentile(difference, 90) < 10


def test_new_files_hold_nothing_but_short_closed_groups_of_planar_video(prepared):
    _, output = prepared
    with av.open(str(output / "a b/two.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, container.streams.video[0].sample_aspect_ratio) == ("h264", "yuv420p", None)
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        assert keys == [0, reencode.GROUP]
        assert all(packet.pts > packets[reencode.GROUP].pts for packet in packets[reencode.GROUP + 1 :])


def test_the_manifest_says_what_each_file_is_and_was_made_from(prepared):
    root, output = prepared
    records = manifest(output)
    assert [record["path"] for record in records] == ["a b/one.mp4", "a b/two.mp4", "c/four#.mp4", "c/three.mp4"]
    for record in records:
        source = root / record["source"]
        assert record["source_bytes"] == source.stat().st_size
        assert record["source_sha256"] == file_sha256(source)
        assert record["bytes"] == (output / record["path"]).stat().st_size
        assert (record["frames"], record["height"], record["width"]) == (FRAMES, 48, 144)
        assert record["settings"]["short_side"] == 256 and record["versions"]["av"]
    assert records[0]["seconds"] == 1.6 and records[0]["fps"] == 25


@pytest.mark.parametrize(
    ("fps", "milliseconds", "rate"),
    [(30000 / 1001, [0, 33, 67, 100, 133], Fraction(30000, 1001)), (100.0, [40, 80, 120], 25), (25.0, [7], 25)],
)
def test_even_times_are_counted_in_frames_whatever_the_header_says(fps, milliseconds, rate):
    times = [Fraction(time, 1000) for time in milliseconds]
    assert reencode.frame_clock(times, fps) == (rate, 1 / Fraction(rate), list(range(len(times))))


def test_uneven_times_keep_their_distances():
    times = [Fraction(time, 1000) for time in (500, 540, 620, 620, 700)]
    assert reencode.frame_clock(times, 20.0)[1:] == (Fraction(1, 90_000), [0, 3600, 10800, 10801, 18000])


def test_a_second_call_keeps_what_is_done(prepared):
    root, output = prepared
    before = contents(output)
    done = prepare_dataset("train.csv", str(root), output, 256, 2, print)
    assert (done.written, done.kept) == (0, 4)
    after = contents(output)
    assert {path: after[path] for path in before if path.suffix == ".mp4"} == {
        path: before[path] for path in before if path.suffix == ".mp4"
    }
    assert set(after) == set(before)


def one_video(tmp_path, name="one.mp4", count=5, **arguments):
    root = tmp_path / "root"
    root.mkdir()
    write_numbered(root / name, count, **arguments)
    (root / "train.csv").write_text(f"{name} 0\n")
    return root, tmp_path / "out"


def run(root, output, **changes):
    return prepare_dataset(
        **dict(annotations="train.csv", root=str(root), output=output, short_side=256, workers=1, complain=print)
        | changes
    )


def test_a_source_that_changed_is_made_anew_and_one_that_was_copied_is_not(tmp_path):
    root, output = one_video(tmp_path)
    assert run(root, output).written == 1
    os.utime(root / "one.mp4", (1, 1))
    assert run(root, output).written == 0
    write_numbered(root / "one.mp4", 7)
    assert run(root, output).written == 1
    assert len(VideoReader(output / "one.mp4")) == 7
    (output / "one.mp4").write_bytes(b"cut short")
    assert run(root, output).written == 1
    assert len(VideoReader(output / "one.mp4")) == 7


def test_other_settings_are_refused_unless_the_old_files_may_go(tmp_path):
    root, output = one_video(tmp_path)
    run(root, output)
    with pytest.raises(ConfigError, match="contains videos prepared with other settings, such as a short side of 256"):
        run(root, output, short_side=24)
    assert VideoReader(output / "one.mp4").frames([0]).shape == (1, 48, 144, 3)
    assert run(root, output, short_side=24, overwrite=True).written == 1
    assert VideoReader(output / "one.mp4").frames([0]).shape == (1, 24, 72, 3)


def test_what_is_not_ours_is_not_replaced(tmp_path):
    root, output = one_video(tmp_path)
    output.mkdir()
    (output / "one.mp4").write_text("mine")
    with pytest.raises(ConfigError, match=r"one.mp4: exists, but is not in manifest.jsonl: choose another"):
        run(root, output)
    assert (output / "one.mp4").read_text() == "mine"


@pytest.mark.parametrize("output", ["", "inside", "../root", "link"])
def test_an_output_within_the_root_is_refused(tmp_path, output):
    root, _ = one_video(tmp_path)
    before = contents(root)
    (root / "link").symlink_to(root)
    with pytest.raises(ConfigError, match="which must not be changed: choose an --output outside"):
        run(root, root / output)
    assert contents(root) == before


def test_bad_videos_cost_a_line_each_and_the_exit_code(tmp_path, capsys):
    root, output = one_video(tmp_path)
    (root / "empty.mp4").touch()
    (root / "text.avi").write_text("no video\n" * 99)
    (root / "cut.mp4").write_bytes((root / "one.mp4").read_bytes()[:-200])
    (root / "train.csv").write_text("one.mp4 0\nempty.mp4 1\ntext.avi 1\nnone.mp4 0\ncut.mp4 0\nempty.mp4 0\n")
    words = ["prepare", "--annotations", "train.csv", "--root", str(root), "--output", str(output), "--workers", "2"]
    assert main(words) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    bad = json.loads((output / "bad.json").read_text())
    assert bad["num_videos"] == 6
    reasons = {
        1: "",
        2: "empty (0 bytes)",
        3: "cannot be opened as a video",
        4: "no such file",
        5: "",
        6: "empty",
    }
    assert [row["row"] for row in bad["bad"]] == [2, 3, 4, 5, 6]
    assert all(reasons[row["row"]] in row["reason"] for row in bad["bad"])
    assert len(errors) == 5 and errors[-1].startswith("error: 5 rows have no video, see ")
    assert (output / "one.mp4").is_file() and not (tmp_path / "train.mp4").exists()
    assert len(read_videos("train.csv", str(output))) == 6, "rows of bad videos stay in the list"
    (root / "train.csv").write_text("one.mp4 0\n")
    assert main(words) == 0 and not (output / "bad.json").exists()


def test_names_that_would_be_the_same_are_kept_apart_over_several_lists():
    assert output_names(["a.webm", "a.mp4", "a.webm"], {}) == {"a.webm": "a.mp4", "a.mp4": "a.mp4.mp4"}
    assert output_names(["a.mp4"], {"a.mp4": "a.webm"}) == {"a.mp4": "a.mp4.mp4"}
    with pytest.raises(ConfigError, match=r"a.mp4: has the same output name as b: rename one of the videos"):
        output_names(["a.mp4"], {"a.mp4": "a.webm", "a.mp4.mp4": "b"})


def test_lists_of_one_output_share_their_classes(tmp_path):
    root, output = one_video(tmp_path)
    (root / "classes.txt").write_text("x\ny\nz\n")
    run(root, output)
    (root / "classes.txt").write_text("x\ny\n")
    (root / "val.csv").write_text("one.mp4 1\n")
    run(root, output, annotations="val.csv")
    assert (output / "classes.txt").read_text() == "x\ny\nz\n"
    (root / "classes.txt").write_text("y\nx\n")
    with pytest.raises(
        AnnotationError, match=r"classes.txt: has other classes than this list: put the same classes.txt"
    ):
        run(root, output, annotations="val.csv")


def test_a_list_is_tried_before_anything_is_encoded(tmp_path):
    root, output = one_video(tmp_path)
    for name in ("7", "8"):
        (root / "folders" / name).mkdir(parents=True)
        write_numbered(root / "folders" / name / "x.mkv", 2)
    with pytest.raises(AnnotationError, match=r"the class '7' has the label 0, so numbers in the list are ambiguous"):
        run(root, output, annotations="folders")
    (root / "classes.txt").write_text("x\ny\n")
    run(root, output)
    (root / "classes.txt").write_text("y\nx\n")
    write_numbered(root / "two.mp4", 2)
    (root / "val.csv").write_text("two.mp4 0\n")
    with pytest.raises(AnnotationError, match="has other classes than this list"):
        run(root, output, annotations="val.csv")
    assert (
        not (output / "two.mp4").exists()
        and not list(output.glob("folders*"))
        and not (output / ".unfinished").exists()
    )
    (root / "classes.txt").unlink()
    with pytest.raises(AnnotationError, match="numbers in the list are ambiguous"):
        prepare_dataset("folders", str(root), output, 256, 1, pytest.fail, overwrite=True)
    assert (output / "one.mp4").exists(), "what is there goes only when something can take its place"


def test_class_folders_called_by_numbers_from_0_keep_their_order(tmp_path):
    root = tmp_path / "root"
    for name in map(str, range(11)):
        (root / "train" / name).mkdir(parents=True)
        write_numbered(root / "train" / name / "x.mkv", 2)
    run(root, tmp_path / "out", annotations="train")
    videos = read_videos("train.csv", str(tmp_path / "out"))
    assert [(record.path, record.label) for record in videos.records] == [
        (f"train/{number}/x.mp4", number) for number in range(11)
    ]


def test_lists_whose_classes_nothing_names_are_prepared_side_by_side(tmp_path):
    root, output = tmp_path / "root", tmp_path / "out"
    for name in ("train/jump/a", "train/run/b", "val/a", "val/b"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_numbered(root / f"{name}.mp4", 2)
    (root / "train.csv").write_text("train/jump/a.mp4 0\ntrain/run/b.mp4 1\n")
    (root / "val.csv").write_text("val/a.mp4 0\nval/b.mp4 1\n")
    for name in ("train.csv", "val.csv"):
        run(root, output, annotations=name)
        assert read_videos(name, str(output)).classes == read_videos(name, str(root)).classes
    assert not (output / "classes.txt").exists()


def test_bad_rows_of_all_lists_of_an_output_stay_listed(tmp_path):
    root, output = one_video(tmp_path)
    (root / "train.csv").write_text("one.mp4 0\nnone.mp4 0\n")
    (root / "val.csv").write_text("one.mp4 0\ngone.mp4 0\n")
    for name in ("train.csv", "val.csv"):
        prepare_dataset(name, str(root), output, 256, 1, lambda text: None)
    bad = json.loads((output / "bad.json").read_text())
    found = [(row["list"], row["row"], row["path"]) for row in bad["bad"]]
    assert bad["num_videos"] == 4 and found == [("train.csv", 2, "none.mp4"), ("val.csv", 2, "gone.mp4")]
    (root / "train.csv").write_text("one.mp4 0\n")
    run(root, output)
    bad = json.loads((output / "bad.json").read_text())
    assert bad["num_videos"] == 3 and [row["list"] for row in bad["bad"]] == ["val.csv"]


def test_a_list_made_from_another_one_is_not_replaced(tmp_path):
    root, output = one_video(tmp_path)
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "list.csv").write_text("one.mp4 0\n")
    run(root, output, annotations=str(tmp_path / "first/list.csv"))
    second = str(tmp_path / "second/list.csv")
    with pytest.raises(ConfigError, match=r"list.csv: was made from .*/first/list.csv, not from .*/second/list.csv"):
        run(root, output, annotations=second)
    (output / "lists.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"lists.json: was not written by `prepare`: choose another --output"):
        run(root, output, annotations=second)
    prepare_dataset(second, str(root), output, 48, 1, pytest.fail, overwrite=True)
    assert list(json.loads((output / "lists.json").read_text())) == ["list.csv"]


def test_a_video_of_one_frame_an_hour_is_written_as_it_is():
    rate, _, ticks = reencode.frame_clock([Fraction(0), Fraction(3600)], 1 / 3600)
    assert rate > 0 and ticks == [0, 3600 * 90_000]


def test_lists_lie_where_data_train_looks_for_them(tmp_path, monkeypatch):
    root, output = one_video(tmp_path)
    (root / "lists").mkdir()
    (root / "lists/x.txt").write_text("one.mp4 0\n")
    (tmp_path / "outside.csv").write_text("one.mp4 0\n")
    (root / "videos").mkdir()
    write_numbered(root / "videos/c.mp4", 2)
    monkeypatch.chdir(tmp_path)
    for annotations, expected in (("lists/x.txt", "lists/x.txt"), ("outside.csv", "outside.csv")):
        assert run(root, output, annotations=annotations).list_file == output / expected
        assert len(read_videos(expected, str(output))) == 1


def test_a_folder_of_class_folders_becomes_a_list(tmp_path):
    root = tmp_path / "root"
    for name in ("train/walk", "train/run"):
        (root / name).mkdir(parents=True)
        write_numbered(root / name / "x.mkv", 2)
    done = run(root, tmp_path / "out", annotations="train")
    videos = read_videos("train.csv", str(tmp_path / "out"))
    assert done.list_file == tmp_path / "out/train.csv" and videos.classes == ("run", "walk")
    assert [(record.path, record.label) for record in videos.records] == [
        ("train/run/x.mp4", 0),
        ("train/walk/x.mp4", 1),
    ]


@pytest.mark.parametrize(
    ("height", "width", "aspect", "size"),
    [
        (720, 1280, 1, (256, 456)),
        (1280, 720, 1, (456, 256)),
        (240, 320, 1, (240, 320)),
        (255, 341, 1, (254, 340)),
        (480, 720, Fraction(8, 9), (256, 342)),
        (480, 720, Fraction(32, 27), (256, 456)),
        (200, 200, Fraction(2), (100, 200)),
        (1, 1, 1, (2, 2)),
        (1080, 1080, 1, (256, 256)),
    ],
)
def test_sizes_are_even_square_and_never_larger(height, width, aspect, size):
    assert reencode.prepared_size(height, width, Fraction(aspect), 256) == size


def turned(path, degrees):
    """The same packets in a file that says how to turn the image."""
    new = path.with_name("turned.mp4")
    with av.open(str(path)) as old, av.open(str(new), "w") as container:
        stream = container.add_stream_from_template(old.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    return new


def write_anew(name, folder):
    for _ in reencode.reencode(name, str(folder), folder / "new.mp4", 256):
        pass


def test_pixels_become_square_and_pictures_upright(tmp_path):
    plain = write_numbered(tmp_path / "a.mp4", 3, sample_aspect=Fraction(1, 2))
    write_anew("a.mp4", tmp_path)
    assert VideoReader(tmp_path / "new.mp4").frames([0]).shape == (1, 48, 72, 3)
    assert VideoReader(turned(plain, 90)).frames([0]).shape == (1, 144, 48, 3)
    write_anew("turned.mp4", tmp_path)
    with VideoReader(tmp_path / "new.mp4") as reader:
        assert reader.frames([0]).shape == (1, 72, 48, 3) and reader.pixel_aspect == 1


@pytest.mark.integration
def test_a_disk_that_is_full_stops_with_one_sentence(tmp_path):
    """In a program that may not write large files, which the encoder hears of as it does of a full disk."""
    root, output = one_video(tmp_path, count=60)
    words = f"prepare --annotations train.csv --root {root} --output {output}"
    command = f"ulimit -f 1; exec {sys.executable} -m mvit_video {words}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1 and not list(output.glob("*.mp4")) and not (output / ".unfinished").exists()
    assert done.stderr.splitlines()[-1] == (
        f"error: {output}/.unfinished: cannot be written (File too large): free some space and call again"
    )


def test_what_is_no_fault_of_the_video_stops_everything(tmp_path, monkeypatch):
    root, output = one_video(tmp_path)
    monkeypatch.setattr(prepare, "REENCODE", "misbehaving:no_room")
    with pytest.raises(reencode.WriteError, match="full"):
        run(root, output)
    assert not (output / ".unfinished").exists()


def test_a_manifest_that_a_kill_has_cut_counts_up_to_there(tmp_path):
    root, output = one_video(tmp_path)
    run(root, output)
    with (output / "manifest.jsonl").open("a") as file:
        file.write('{"path": "two.mp4", "sour')
    assert run(root, output).kept == 1
    (output / "manifest.jsonl").write_text('{"path": "../two.mp4", "source": "a"}\n')
    with pytest.raises(ConfigError, match=r"manifest.jsonl: row 1 is not a line of a manifest"):
        run(root, output)


def test_two_calls_do_not_share_an_output(tmp_path):
    root, output = one_video(tmp_path)
    with (
        alone_in(output, print),
        pytest.raises(ConfigError, match=r"is being written to by process \d+ .*wait until it ends"),
    ):
        run(root, output)


@pytest.mark.long
def test_a_killed_call_leaves_whole_files_only_and_the_next_one_goes_on(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for number in range(12):
        write_numbered(root / f"{number}.mp4", 200)
    (root / "train.csv").write_text("".join(f"{number}.mp4 0\n" for number in range(12)))
    output = tmp_path / "out"
    words = ["prepare", "--annotations", "train.csv", "--root", str(root), "--output", str(output), "--workers", "2"]
    for round_ in range(4):
        call = subprocess.Popen([sys.executable, "-m", "mvit_video", *words], stderr=subprocess.DEVNULL)
        while call.poll() is None and len(list(output.glob("*.mp4"))) < 2 * round_ + 1:
            time.sleep(0.02)
        call.send_signal(signal.SIGKILL)
        call.wait()
        for file in output.glob("*.mp4"):
            assert len(VideoReader(file)) == 200
    assert main(words) == 0
    assert len(list(output.glob("*.mp4"))) == len(manifest(output)) == 12
    assert not (output / ".unfinished").exists()


def test_an_odd_short_side_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--annotations", "x", "--root", "x", "--output", "y", "--short-side", "255"])
    assert "'255' is odd" in capsys.readouterr().err
