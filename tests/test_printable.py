"""What names of strangers can do to terminals, spreadsheets, subtitles and pages: nothing."""

import csv
import io
import json
import re
import unicodedata

import pytest
from conftest import REPOSITORY
from tiny_predictor import nano_card, nano_model

from mvit_video import cli
from mvit_video.cli.common import print_error, print_rows, say, show
from mvit_video.evaluation.results import write_csv
from mvit_video.inference.timeline import Segment, segments_csv, segments_srt
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.paths import write_json
from mvit_video.printable import csv_text, json_text, printable, subtitle
from mvit_video.progress import progress_bar
from mvit_video.report.page import Number, Report, Section

HOSTILE = [
    "\x1b]0;owned\x07\x1b[2Jb.mp4",
    "\x9b31mC1",
    "a\rerror: b",
    "back\b\b\bspace\x7f",
    "photo\u202egpm.exe",
    "\u2066a\u2069\u2028b",
    "=cmd|'/C calc'!A0",
    "\t=1+1",
    "@SUM(A1)",
    "-2+3",
    "＝1",
    "<b>--></b>{\\an8}",
]
PLAIN = [
    "größer",
    "日本語",
    "שלום",
    "सूर्य",
    "a\u200db",
    "👩‍🚀",
    "a=b",
    "a-b",
    "x'y",
    "[red]x[/red]",
    "moving left",
    "-1.5",
    "+3e5",
    "",
]


TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def acted_on(text):
    """Characters that a terminal or the order of letters takes notice of, by Unicode's own table."""
    return [
        letter
        for letter in dict.fromkeys(text)
        if unicodedata.category(letter) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(letter) in TURNS
    ]


def test_every_character_that_is_acted_on_is_shown_and_every_other_one_stays():
    for code in range(0x110000):
        letter = chr(code)
        assert (printable(letter) == letter) == (not acted_on(letter)), hex(code)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names_stay_as_they_are(name):
    assert printable(name) == name and json.loads(json_text(name)) == name
    [[read]] = csv.reader(io.StringIO(csv_text([[name]]) or "''"))
    assert read == name


@pytest.mark.parametrize("name", HOSTILE)
def test_cells_of_a_table_are_neither_run_nor_acted_on(name, tmp_path):
    write_csv(tmp_path / "x.csv", [name], [[name, 1, None]])
    texts = [csv_text([[name, 1.5]]), (tmp_path / "x.csv").read_text(), segments_csv((Segment(0, 1, name, 0.5),))]
    for text in texts:
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert not any(acted_on(cell) for cell in cells)
        assert not any(re.match(r"\s*[=+\-@＝＋－＠]", cell) for cell in cells)


def test_numbers_in_tables_stay_numbers():
    assert csv_text([[-1.5, 3, None, "-1.5", "-2e-3"]]) == "-1.5,3,,-1.5,-2e-3\n"


@pytest.mark.parametrize("name", HOSTILE + PLAIN)
def test_json_reads_back_as_it_was_and_holds_nothing_that_is_acted_on(name, tmp_path):
    write_json(tmp_path / "x.json", {name: [name]})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {name: [name]} and not acted_on(text.replace("\n", ""))
    assert json.loads(json_text(name)) == name and not acted_on(json_text(name))


@pytest.mark.parametrize("name", HOSTILE)
def test_subtitles_have_no_tags_no_arrow_and_one_line(name):
    text = segments_srt(
        (Segment(0, 1, name, 0.5), Segment(1, 2, f"{name}\n\n3\n00:00:00,000 --> 00:00:09,000\nx", 0.5))
    )
    assert text.count("-->") == 2 and text.count("\n") == 7 and not acted_on(text.replace("\n", ""))
    assert not set(text.replace("-->", "")) & set("<>{}") and subtitle("größer") == "größer"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_holds_nothing_that_is_acted_on_and_no_tag_of_a_name(name, tmp_path):
    section = Section(
        name, name, columns=(name,), rows=[(name, 1)], matrix={"names": [name], "totals": [1], "cells": []}
    )
    Report(name, name, [Number(name, name, name)], [section], name).write(tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert not acted_on(text.replace("\n", "")) and "<b>-->" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_all_that_is_printed_is_safe(name, capsys):
    print_error(f"{name}: {name}")
    say(f"{name}\nsecond line")
    show(f"{name}\nsecond line")
    print_rows(name, (name, "x"), [(name, name)], (1,))
    with progress_bar("x", 1) as bar:
        bar.advance(1, name)
    captured = capsys.readouterr()
    assert not acted_on((captured.out + captured.err).replace("\n", ""))
    assert "second line" in captured.out and captured.err.splitlines()[0].startswith("error: ")


@pytest.fixture(scope="module")
def hostile_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "hostile.safetensors"
    save_checkpoint(path, nano_model(), nano_card().model_copy(update={"classes": tuple(HOSTILE[:8])}))
    return path


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_labels_of_a_foreign_checkpoint_and_names_of_files_are_printed_safely(
    hostile_weights, few_videos, tmp_path, capsys, form
):
    video = tmp_path / HOSTILE[0]
    video.write_bytes((few_videos / "val/00000.mp4").read_bytes())
    (tmp_path / f"{HOSTILE[4]}.mp4").write_bytes(b"no video")
    words = ["predict", str(video), str(tmp_path / f"{HOSTILE[4]}.mp4"), "--checkpoint", str(hostile_weights)]
    assert cli.main([*words, "--format", form, "--top", "8", "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert not acted_on((captured.out + captured.err).replace("\n", "")) and "\\x1b" in captured.out.replace(
        "\\u00", "\\x"
    )
    if form == "csv":
        assert all(row[0] != "=" for row in csv.reader(io.StringIO(captured.out)))
        assert "\n=" not in captured.out and ",=" not in captured.out and "'=cmd" in captured.out


def test_words_that_are_not_understood_are_shown_safely(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", str(REPOSITORY / "x.yaml"), "--output", "x", "--\x1b[2J"])
    assert not acted_on(capsys.readouterr().err.replace("\n", ""))
