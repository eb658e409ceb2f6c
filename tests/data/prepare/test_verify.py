"""`mvit-video verify`: all bad files of a dataset and no other, by name, row and reason."""

import json
import os
import time
from dataclasses import replace

import av
import numpy as np
import pytest
import yaml
from numbered_video import numbered_frame, write_numbered
from PIL import Image
from processes import decoding_processes, gone_within

from mvit_video.cli import main
from mvit_video.data.lists.read import VideoList, VideoRecord
from mvit_video.data.prepare import verify
from mvit_video.data.prepare.verify import Decoding

FAST = {"bf": "2", "g": "12"}
SOURCES = {
    "a.mp4": dict(options=FAST, container={"movflags": "faststart"}),
    "b.webm": dict(codec="libvpx-vp9", options={"g": "20", "deadline": "realtime", "cpu-used": "8"}),
    "c.avi": dict(codec="mpeg4", options={"g": "12", "bf": "2"}),
    "d.mkv": dict(options=FAST, gaps=True),
    "e.webm": dict(codec="libvpx", options={"g": "20", "deadline": "realtime", "cpu-used": "8"}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return {name: write_numbered(folder / name, 40, **arguments) for name, arguments in SOURCES.items()}


def flipped(content: bytes, position: int) -> bytes:
    return (
        content[:position]
        + bytes(255 - byte for byte in content[position : position + 120])
        + content[position + 120 :]
    )


def audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def frame_folder(path, missing: int | None = None):
    path.mkdir()
    for number in range(4):
        if number != missing:
            Image.fromarray(numbered_frame(number)).save(path / f"img_{number:05d}.jpg")


def plant(root, sources) -> dict[str, str]:
    """Twenty bad videos of ten kinds, with words of the reason that each must get."""
    mp4, vp9, avi, mkv, vp8 = (path.read_bytes() for path in sources.values())
    giant = vp8.index(b"\x9d\x01\x2a") + 3
    header = mp4.index(b"mdat")
    contents = {
        "header1.mp4": (mp4[: header // 2], "cannot be opened"),
        "header2.avi": (avi[:300], "cannot be opened"),
        "tail1.mp4": (mp4[: header + (len(mp4) - header) // 2], "cut short"),
        "tail2.webm": (vp9[: len(vp9) // 2], "cut short"),
        "flipped1.mp4": (flipped(mp4, (header + len(mp4)) // 2), "frame"),
        "flipped2.mkv": (flipped(mkv, len(mkv) // 2), "frame|cut short"),
        "empty1.mp4": (b"", "0 bytes"),
        "empty2.webm": (b"", "0 bytes"),
        "text1.mp4": (b"404 not found\n" * 40, "cannot be opened"),
        "text2.avi": (b"<html><body>Video unavailable</body></html>", "cannot be opened"),
        "list1.mp4": (f"#EXTM3U\n#EXTINF:1,\n{sources['a.mp4']}\n".encode(), "cannot be opened"),
        "list2.mp4": (f"ffconcat version 1.0\nfile {sources['a.mp4']}\n".encode(), "cannot be opened"),
        "giant1.webm": (vp8[:giant] + b"\xff\x3f\xff\x3f" + vp8[giant + 4 :], "above the limit of 36,000,000 pixels"),
        "giant2.webm": (vp8[:giant] + b"\x00\x20\x00\x20" + vp8[giant + 4 :], "above the limit of 36,000,000 pixels"),
    }
    for name, (content, _) in contents.items():
        (root / name).write_bytes(content)
    audio(root / "audio1.mp4")
    audio(root / "audio2.mp4")
    reasons = {name: reason for name, (_, reason) in contents.items()}
    reasons |= {f"audio{number}.mp4": "no video stream" for number in (1, 2)}
    reasons |= {
        "../outside.mp4": "leads out of data.root",
        "/outside.mp4": "is outside data.root",
    }
    return reasons | {f"missing{number}.mp4": "no such file" for number in (1, 2)}


@pytest.fixture
def planted(tmp_path, sources):
    """200 clips, 20 of them bad: (root, list file, {path: reason})."""
    root = tmp_path / "root"
    root.mkdir()
    os.link(sources["a.mp4"], tmp_path / "outside.mp4")
    reasons = plant(root, sources)
    assert len(reasons) == 20
    good = []
    for number in range(178):
        source = list(sources.values())[number % len(sources)]
        good.append(f"good {number:03d}{source.suffix}")
        os.link(source, root / good[-1])
    for name in ("frames1", "frames2"):
        frame_folder(root / name)
        good.append(name)
    names = np.random.default_rng(0).permutation([*good, *reasons]).tolist()
    (root / "list.csv").write_text("".join(f"{name},{row % 3}\n" for row, name in enumerate(names)))
    return root, root / "list.csv", reasons


def test_twenty_faults_of_ten_kinds_among_200_clips_are_found_and_no_other(planted, tmp_path, capsys):
    root, annotations, reasons = planted
    words = ["verify", "--annotations", str(annotations), "--root", str(root), "--json", str(tmp_path / "bad.json")]
    assert main([*words, "--workers", "3"]) == 1
    result = json.loads((tmp_path / "bad.json").read_text())
    assert result["num_videos"] == 200
    rows = [line.rpartition(",")[0] for line in annotations.read_text().splitlines()]
    assert {bad["path"] for bad in result["bad"]} == set(reasons)
    assert len(result["bad"]) == 20
    for bad in result["bad"]:
        assert rows[bad["row"] - 1] == bad["path"]
        assert any(words in bad["reason"] for words in reasons[bad["path"]].split("|")), bad
        assert not bad["reason"].startswith(bad["path"]) and 0 <= bad["seconds"] < 30
    captured = capsys.readouterr()
    assert "20 bad videos of 200" in captured.err and "giant1.webm" in captured.out


def test_rows_that_may_not_be_read_are_bad_videos_and_the_others_are_verified(sources, tmp_path, capsys):
    root = tmp_path / "root"
    root.mkdir()
    os.link(sources["a.mp4"], root / "a.mp4")
    os.link(sources["a.mp4"], tmp_path / "outside.mp4")
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    rows = ["../outside.mp4", "a.mp4", "http://x.org/a.mp4", "list.m3u8", "link.mp4", "gone.mp4", "C:\\a.mp4"]
    (root / "train.csv").write_text("".join(f"{row},0\n" for row in rows))
    (tmp_path / "a.yaml").write_text(f"data: {{root: {root}, train: train.csv}}\n")
    words = ["verify", str(tmp_path / "a.yaml"), "--json", str(tmp_path / "bad.json")]
    for follow, bad_rows in (("true", [1, 3, 4, 6, 7]), ("false", [1, 3, 4, 5, 6, 7])):
        assert main([*words, f"data.follow_links={follow}"]) == 1
        result = json.loads((tmp_path / "bad.json").read_text())
        assert result["num_videos"] == 7 and [bad["row"] for bad in result["bad"]] == bad_rows
        reasons = {bad["row"]: bad["reason"] for bad in result["bad"]}
        for row, words_of_reason in {
            1: "through '..'",
            3: "is a URL",
            4: "is a playlist",
            6: "no such file",
            7: "Windows",
        }.items():
            assert words_of_reason in reasons[row]
    assert "symbolic link out of data.root" in reasons[5]
    captured = capsys.readouterr()
    assert "6 bad videos of 7" in captured.err


def test_a_list_of_which_no_row_may_be_read_is_verified(tmp_path, capsys):
    (tmp_path / "train.csv").write_text("../a.mp4 0\n/etc/b.mp4 1\n")
    assert main(["verify", "--annotations", "train.csv", "--root", str(tmp_path)]) == 1
    assert "2 bad videos of 2" in capsys.readouterr().err


def test_many_videos_with_one_cause_are_one_line(tmp_path, capsys):
    for number in range(200):
        (tmp_path / f"{number}.mp4").touch()
    (tmp_path / "train.csv").write_text("".join(f"{number}.mp4 0\n" for number in range(200)) + "gone.mp4 0\n")
    assert (
        main(["verify", "--annotations", "train.csv", "--root", str(tmp_path), "--json", str(tmp_path / "b.json")]) == 1
    )
    out = capsys.readouterr().out
    assert out.count("the file is empty") == 1 and "200 videos, the first is 0.mp4" in " ".join(out.split())
    assert len(json.loads((tmp_path / "b.json").read_text())["bad"]) == 201


def test_what_is_left_out_of_class_folders_is_said(sources, tmp_path, capsys):
    (tmp_path / "jump").mkdir()
    os.link(sources["a.mp4"], tmp_path / "jump/a.mp4")
    (tmp_path / "jump/._a.mp4").touch()
    assert main(["verify", "--annotations", ".", "--root", str(tmp_path)]) == 0
    assert "skipped 1 hidden or macOS metadata file, 'jump/._a.mp4'" in " ".join(capsys.readouterr().err.split())


def test_a_whole_dataset_passes_with_exit_code_0(few_videos, tmp_path, capsys):
    config = dict(data=dict(root=str(few_videos), train="train.csv", val="val.csv", test="val.csv"))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    assert main(["verify", str(tmp_path / "a.yaml"), "--json", str(tmp_path / "bad.json")]) == 0
    assert json.loads((tmp_path / "bad.json").read_text()) == {"num_videos": 32, "bad": []}
    assert "0 bad videos of 32" in capsys.readouterr().err


def test_all_lists_of_a_configuration_are_verified_and_each_row_of_a_bad_video_is_named(sources, tmp_path):
    for name in ("good", "bad"):
        os.link(sources["a.mp4"], tmp_path / f"{name}.mp4") if name == "good" else (tmp_path / "bad.mp4").touch()
    (tmp_path / "train.csv").write_text("good.mp4 0\nbad.mp4 1\n")
    (tmp_path / "val.csv").write_text("bad.mp4 1\ngone.mp4 0\n")
    (tmp_path / "a.yaml").write_text("data: {train: train.csv, val: val.csv}\n")
    words = ["verify", str(tmp_path / "a.yaml"), f"data.root={tmp_path}", "--json", str(tmp_path / "bad.json")]
    assert main(words) == 1
    result = json.loads((tmp_path / "bad.json").read_text())
    found = [(bad["list"].rpartition("/")[2], bad["row"], bad["path"], bad["reason"]) for bad in result["bad"]]
    empty = "the file is empty (0 bytes)"
    assert found == [
        ("train.csv", 2, "bad.mp4", empty),
        ("val.csv", 1, "bad.mp4", empty),
        ("val.csv", 2, "gone.mp4", "no such file"),
    ]
    assert result["num_videos"] == 4


def test_a_list_is_found_from_the_root_or_from_where_the_user_stands(sources, tmp_path, monkeypatch, capsys):
    (tmp_path / "root/lists").mkdir(parents=True)
    os.link(sources["a.mp4"], tmp_path / "root/a.mp4")
    (tmp_path / "root/lists/inside.csv").write_text("a.mp4 0\n")
    (tmp_path / "outside.csv").write_text("a.mp4 0\na.mp4 0\n")
    monkeypatch.chdir(tmp_path)
    for annotations, count in (("lists/inside.csv", 1), ("outside.csv", 2), (str(tmp_path / "outside.csv"), 2)):
        assert main(["verify", "--annotations", annotations, "--root", "root"]) == 0
        assert f"0 bad videos of {count}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected either a CONFIG, or --annotations with --root"),
        (["a.yaml", "--annotations", "x.csv", "--root", "."], "expected either a CONFIG, or --annotations with --root"),
        (["--annotations", "x.csv"], "--annotations needs --root"),
        (["--annotations", "x.csv", "--root", "."], "x.csv: no such file"),
        (["a.yaml"], "none of data.train, data.val and data.test is set"),
        (["a.yaml", "--json", "nowhere/x.json"], "its folder nowhere does not exist"),
    ],
)
def test_wrong_calls_are_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("data: {num_frames: 4}\n")
    assert main(["verify", *words]) == 1
    assert message in capsys.readouterr().err


def misbehaving(folder, *troubles) -> Decoding:
    """Files of troubles (see misbehaving.py), to be verified by processes that know them."""
    for trouble in troubles:
        (folder / f"{trouble}.bad").write_text(trouble.rstrip("0123456789"))
    return Decoding(str(folder), timeout=1.0, workers=2, imports=("misbehaving",))


def test_files_that_hang_or_crash_the_decoder_are_bad_and_the_others_are_verified(sources, tmp_path):
    troubles = ("spin1", "die1", "spin2", "die2")
    plan = misbehaving(tmp_path, *troubles)
    names = ["spin1.bad", "die1.bad", *(f"{number}.mp4" for number in range(12)), "spin2.bad", "die2.bad"]
    for name in names[2:-2]:
        os.link(sources["a.mp4"], tmp_path / name)
    videos = VideoList(tuple(VideoRecord(name, 0, row) for row, name in enumerate(names, 1)), ("a",), "list.csv")
    start, seen = time.monotonic(), []
    result = verify.verify([videos], plan, lambda count, text: seen.append((count, text)))
    assert time.monotonic() - start < 15
    assert {bad["path"]: bad["reason"] for bad in result["bad"]} == {
        "spin1.bad": "the decoder did not answer within 1 s",
        "spin2.bad": "the decoder did not answer within 1 s",
        "die1.bad": "the decoder died (SIGSEGV)",
        "die2.bad": "the decoder died (SIGSEGV)",
    }
    assert len(seen) == 16 and seen[-1] == (1, "4 bad")
    assert all(bad["seconds"] >= 1 for bad in result["bad"] if "spin" in bad["path"])


def test_a_video_may_take_longer_than_the_timeout_as_long_as_frames_come(tmp_path):
    plan = misbehaving(tmp_path, "slow", "slow-spin")
    plan = replace(plan, timeout=0.7)
    found = {
        path: (reason, seconds) for path, reason, seconds, _ in verify.check_videos(["slow.bad", "slow-spin.bad"], plan)
    }
    assert found["slow.bad"][0] == "" and found["slow.bad"][1] > 1
    assert found["slow-spin.bad"][0] == "the decoder did not answer within 0.7 s"


def test_a_child_that_dies_between_two_videos_costs_none(sources, tmp_path):
    names = [f"{number}.mp4" for number in range(4)]
    for name in names:
        os.link(sources["a.mp4"], tmp_path / name)
    before = decoding_processes()
    checked = verify.check_videos(names, Decoding(str(tmp_path), workers=1))
    found = [next(checked)]
    (child,) = decoding_processes() - before
    os.kill(child, 9)
    assert gone_within(child, 20)
    assert [(path, reason) for path, reason, *_ in [*found, *checked]] == [(name, "") for name in names]


def test_verifying_without_a_timeout_finds_the_same_in_this_process(planted):
    root, _, reasons = planted
    names = [*reasons, "good 000.mp4", "good 001.webm", "frames1"]
    before = decoding_processes()
    found = {path: reason for path, reason, *_ in verify.check_videos(names, Decoding(str(root), timeout=0)) if reason}
    assert set(found) == set(reasons) and decoding_processes() == before


def test_an_interrupted_verification_leaves_no_child_behind(sources, tmp_path):
    os.link(sources["a.mp4"], tmp_path / "a.mp4")
    before = decoding_processes()
    checked = verify.check_videos(["a.mp4"] * 50, Decoding(str(tmp_path), workers=3))
    next(checked)
    assert len(decoding_processes() - before) == 3
    checked.close()
    assert decoding_processes() <= before
