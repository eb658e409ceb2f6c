"""`mvit-video browse`: the page about a dataset, and the csv files beside it."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from mvit_video.cli import main
from mvit_video.data.lists.read import read_videos
from mvit_video.data.lists.records import VideoList, VideoRecord
from mvit_video.data.prepare.look import Look
from mvit_video.data.prepare.verify import Decoding
from mvit_video.data.video.fingerprint import MOMENTS, SIDE
from mvit_video.errors import ConfigError
from mvit_video.inference.features import read_features
from mvit_video.report.browse import Survey, chosen_entries, same_videos, with_doubts, write_tables
from mvit_video.report.browse_page import MOST_STRIPS, BrowsePage, class_bars, class_counts, histogram, random_entries

NAMES = ("<script>alert(1)</script>", "=cmd", "\x1b[2Jclear $a$ and $b$")


def records(*rows):
    return [VideoRecord(path, labels[0], number, tuple(labels[1:])) for number, (path, *labels) in enumerate(rows, 1)]


def survey_of(lists, doubts=None, **changes):
    """A survey of videos that nobody decodes: each path has a picture of its own, but for those with the same last word."""
    lists = {split: VideoList(rows, NAMES, f"{split}.csv") for split, rows in lists.items()}
    entries, rng = chosen_entries(lists, None, 0), np.random.default_rng(0)
    pictures = {}
    for entry in entries:
        word = entry.record.path.split()[-1]
        pictures.setdefault(word, rng.integers(0, 256, (MOMENTS, SIDE, SIDE), dtype=np.uint8))
    looks = {
        entry.record.path: Look(30, 15.0, 64, 48, "", pictures[entry.record.path.split()[-1]]) for entry in entries
    }
    groups, nearest = same_videos([looks[entry.record.path] for entry in entries])
    values = dict(unreadable=[], groups=groups, nearest=nearest, sampled=False, doubts=doubts)
    return Survey(lists, entries, looks, **(values | changes))


def rows_of(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def odd():
    bad = [("train", VideoRecord("=cmd|' /C calc'!A0.mp4", 1, 9), "<b>is broken</b>")]
    train = records(("=one.mp4", 0), ("two.mp4", 1), ("again one.mp4", 2), ("three.mp4", 2), ("x two.mp4", 1))
    return survey_of({"train": train, "val": records(("copy two.mp4", 1), ("four.mp4", 0))}, unreadable=bad)


def test_copies_between_lists_come_first_and_each_video_has_a_row(odd, tmp_path):
    odd = survey_of({"train": odd.lists["train"].records, "val": odd.lists["val"].records})
    write_tables(odd, tmp_path)
    rows = rows_of(tmp_path / "duplicates.csv")
    assert [(row["group"], row["list"], row["video"]) for row in rows] == [
        ("1", "train", "two.mp4"),
        ("1", "train", "x two.mp4"),
        ("1", "val", "copy two.mp4"),
    ]
    assert len(odd.leaks) == 1 and all(float(row["distance"]) < 1e-3 for row in rows)
    assert not (tmp_path / "doubts.csv").exists()


def test_names_of_strangers_are_shown_and_never_run(odd, tmp_path):
    write_tables(odd, tmp_path)
    page = BrowsePage(odd, Decoding(str(tmp_path), timeout=0), 1, 0).report("<i>title")
    page.write(tmp_path / "browse.html")
    text = (tmp_path / "browse.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text and "<b>is broken" not in text
    assert "\x1b" not in text and "\\x1b[2J" in text and "<i>title" not in text
    assert text.count("<script") == text.count("</script>") == 1
    assert "\n'=cmd|" in "\n" + (tmp_path / "unreadable.csv").read_text().replace("train,9,", "\n")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text) and "://" not in text
    assert "cannot be shown" in text  # none of these files is there


def test_every_section_is_there_with_what_was_found(odd, tmp_path):
    page = BrowsePage(odd, Decoding(str(tmp_path), timeout=0), 1, 0).report("t")
    assert [section.title for section in page.sections] == [
        "Classes", "Lengths", "Sizes and rates", "Random videos", "Near-duplicates", "Unreadable videos",
    ]  # fmt: skip
    assert [number.value for number in page.numbers] == ["7", "1", "1"]
    assert "1 of 3 classes have no video in val" in page.sections[0].text
    assert page.sections[2].rows == [("64×48", "15", 7, "100.0 %")]


def test_counts_are_of_all_lists_and_a_video_counts_in_each_of_its_labels():
    survey = survey_of({"train": records(("a", 0, 2), ("b", 2)), "test": records(("c", 1))})
    assert {split: of.tolist() for split, of in class_counts(survey).items()} == {"train": [1, 0, 2], "test": [0, 1, 0]}
    figure = class_bars(class_counts(survey), NAMES)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [1, 0, 2, 0, 1, 0]
    assert histogram({"train": np.array([1.0, 1.0, 500.0])}, "s").axes[0].get_xscale() == "log"


def test_random_videos_follow_from_the_seed_and_are_not_more_than_the_page_bears():
    videos = [(f"v{number}", number % 3) for number in range(300)]
    survey = survey_of({"train": records(*videos)})
    chosen, text = random_entries(survey, 2, 5)
    assert chosen == random_entries(survey, 2, 5)[0] != random_entries(survey, 2, 6)[0]
    assert [entry.record.label for entry in chosen] == [0, 0, 1, 1, 2, 2] and "Up to 2 of each class" in text
    chosen, text = random_entries(survey, MOST_STRIPS, 5)
    assert len(chosen) == MOST_STRIPS and "1 of 3 classes" in text


def test_a_sample_takes_each_video_once_and_follows_from_the_seed():
    train = VideoList(records(*[(f"v{number % 50}", 0) for number in range(80)]), NAMES, "train.csv")
    assert [entry.record.path for entry in chosen_entries({"train": train}, None, 0)] == [f"v{n}" for n in range(50)]
    some = chosen_entries({"train": train}, 20, 0)
    assert len(some) == 20 and some == chosen_entries({"train": train}, 20, 0) != chosen_entries(
        {"train": train}, 20, 1
    )


def test_doubted_videos_are_a_list_that_reads_back_and_training_goes_without_them_and_unreadable_ones(tmp_path):
    videos = [(f"v{number}.mp4", number // 20) for number in range(60)]
    videos[7] = ("v7.mp4", 2)
    survey = survey_of({"train": records(*videos, ("both.mp4", 0, 1))})
    survey = Survey(
        {"train": VideoList(records(*videos), NAMES, "train.csv")},
        survey.entries, survey.looks, [("train", records(*videos)[9], "is broken")], survey.groups, survey.nearest, False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    features = {f"v{n}.mp4": 4 * np.eye(3)[n // 20] + rng.normal(0, 0.3, 3) for n in range(59)}
    found = with_doubts(survey, features, 0)
    assert [survey.entries[doubt.place].record.path for doubt in found.doubts] == ["v7.mp4"]
    assert found.not_judged == ["1 without exactly one label", "1 without features"]
    write_tables(found, tmp_path)
    [row] = rows_of(tmp_path / "doubts.csv")
    assert (row["list"], row["video"], row["class"], row["likely"]) == (
        "train",
        "v7.mp4",
        "\\x1b[2Jclear $a$ and $b$",
        NAMES[0],
    )
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")  # names that a list may have
    doubted = read_videos("doubted.csv", str(tmp_path))
    assert [(record.path, record.label) for record in doubted.records] == [("v7.mp4", 2)]
    trusted = read_videos("train_trusted.csv", str(tmp_path))
    assert len(trusted) == 58 and not {"v7.mp4", "v9.mp4"} & {*trusted.records.paths()}


def test_the_label_of_a_whole_recording_is_doubted_if_the_recordings_are_named_as_groups():
    """Each of 30 films is three clips, which look alike, and more like each other than like their class."""
    rng, films = np.random.default_rng(0), np.arange(30)
    labels = [film // 10 + (film == 3) for film in films]
    looks = np.hstack([3 * np.eye(30), np.tile(np.eye(3)[films // 10], 4)])
    clips = [(film, f"film{film}_{clip}.mp4") for film in films for clip in range(3)]
    survey = survey_of({"train": records(*[(name, labels[film]) for film, name in clips])})
    features = {name: looks[film] + rng.normal(0, 0.1, 42) for film, name in clips}

    def doubted(pattern):
        found = with_doubts(survey, features, 0, pattern)
        return {survey.entries[doubt.place].record.path.partition("_")[0] for doubt in found.doubts}

    assert doubted("^(.+)_") == {"film3"} and doubted(None) == set()
    with pytest.raises(ConfigError, match=r"data.split_group = movie does not match the file name of 90 of 90"):
        doubted("movie")


def test_features_of_a_folder_are_the_mean_over_the_views_of_each_video(tmp_path):
    job = {"stage": "pooled", "videos": 3, "videos_per_shard": 2}
    (tmp_path / "features.json").write_text(json.dumps(job))
    for number, (names, video) in enumerate(((["a", "b"], [0, 0]), (["c"], [0, 0]))):
        features = np.arange(6.0).reshape(2, 3) + 10 * number
        np.savez(
            tmp_path / f"features-0000{number}.npz", features=features, video=np.array(video), names=np.array(names)
        )
    found = read_features(tmp_path)
    assert {name: of.tolist() for name, of in found.items()} == {"a": [1.5, 2.5, 3.5], "c": [11.5, 12.5, 13.5]}


def write_config(folder, **data):
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": {"root": str(folder), **data}}))
    return str(folder / "data.yaml")


@pytest.mark.parametrize("content", [None, "{", '{"stage": "3"}', '{"stage": "pooled"}', "[]"])
def test_a_folder_without_pooled_features_is_one_sentence(content, few_videos, tmp_path, capsys):
    if content:
        (tmp_path / "features.json").write_text(content)
    config = write_config(tmp_path, root=str(few_videos), train="train.csv")
    words = ["browse", config, "data.train=val.csv", "--output", str(tmp_path / "o"), "--features", str(tmp_path)]
    assert main(words) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}: holds ") and "Traceback" not in error


@pytest.mark.integration
def test_a_dataset_with_copies_and_bad_files_is_a_page_with_all_of_them(few_videos, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(few_videos, root)
    shutil.copy(root / "train/00003.mp4", root / "val/<b>=copy.mp4")
    (root / "val/\x1b[2J.mp4").write_bytes(b"no video")
    with (root / "val.csv").open("a") as file:
        file.write("val/<b>=copy.mp4\t3\nval/\x1b[2J.mp4\t0\nval/missing.mp4\t1\n")
    output = tmp_path / "page"
    config = write_config(root, train="train.csv", val="val.csv")
    assert main(["browse", config, "--output", str(output), "--strips", "1"]) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said and "missing.mp4: no such file" in said and "\\x1b[2J.mp4" in said
    assert "2 unreadable, 1 groups of near-duplicates (1 in more than one list)" in said
    rows = rows_of(output / "duplicates.csv")
    assert [row["video"] for row in rows] == ["train/00003.mp4", "val/<b>=copy.mp4"]
    text = (output / "browse.html").read_text()
    assert "<b>=copy" not in text and text.count('class="strip"') == 8 + 2
    assert main(["browse", config, "--output", str(output)]) == 1 and "--overwrite" in capsys.readouterr().err


@pytest.mark.integration
def test_class_folders_and_frame_folders_are_split_as_for_training(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("walk", "run"):
        for video in range(3):
            folder = tmp_path / "data" / name / f"v{video}"
            folder.mkdir(parents=True)
            for frame in range(10):
                picture = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"img_{frame:05}.jpg")
    config = write_config(tmp_path / "data", train="auto", decoder="frames")
    assert main(["browse", config, "--output", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page/browse.html").read_text()
    assert "4 in train, 2 in val" in text and "40×32" in text
    assert rows_of(tmp_path / "page/duplicates.csv") == []


@pytest.mark.integration
def test_planted_wrong_labels_and_re_encoded_copies_are_found(trained, tmp_path):
    from importlib.util import module_from_spec, spec_from_file_location

    from conftest import REPOSITORY

    spec = spec_from_file_location("planted_faults", REPOSITORY / "tools/planted_faults.py")
    planted_faults = module_from_spec(spec)
    spec.loader.exec_module(planted_faults)
    shutil.copytree(trained.config.data.root, tmp_path / "data")
    planted = planted_faults.plant(tmp_path / "data", 0)
    found = planted_faults.measure(tmp_path / "data", planted, tmp_path / "page", str(trained.weights))
    assert found["copies"]["precision"] == 1 and found["copies"]["recall"] >= 0.9
    assert found["labels"]["precision"] >= 0.5 and found["labels"]["recall"] >= 0.5


def test_the_verb_refuses_two_sources_of_features(few_videos, tmp_path, capsys):
    config = write_config(tmp_path, root=str(few_videos), train="train.csv")
    words = ["browse", config, "--output", str(tmp_path / "o"), "--features", "f", "--checkpoint", "c"]
    assert main(words) == 1 and "cannot be combined" in capsys.readouterr().err
