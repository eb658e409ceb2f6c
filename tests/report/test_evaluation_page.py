import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from small_results import made_up_scores, settings

from mvit_video.data.dataset import BadVideo
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.results import results
from mvit_video.evaluation.views import VideoScores
from mvit_video.report.evaluation_page import MISTAKES, confident_mistakes, evaluation_report
from mvit_video.report.page import matrix_data

CLASSES = ("running", "</script><b>jumping", "swimming", "d", "e", "f")


@pytest.fixture
def scores(few_videos):
    """Names of videos that are there, for the mistakes to be shown."""
    made = made_up_scores()
    names = [f"val/{row % 8:05}.mp4" for row in range(60)]
    bad = [BadVideo(row, names[row], f"row {row + 1} of val.csv", "is no <video>") for row in (3, 17)]
    return VideoScores(names, made.labels, made.scores, made.decoded, bad)


def page(scores, root, tmp_path, run=None, classes=CLASSES):
    result = results(scores, classes, Protocol(5, 1), 12.0) | {
        "protocol_in_words": "5 clips & 1 crop", "list": "/data/val.csv", "device": "cpu", "precision": "fp32",
        "checkpoint": {"path": "model.safetensors", "sha256": "0" * 64, "card": {"name": "mvitv2_s_16x4"}},
        "versions": {"mvit_video": "1", "torch": "2"},
    }  # fmt: skip
    evaluation_report(scores, classes, result, settings(root).data, run).write(tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(), result


def headings(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_the_page_has_every_section_and_needs_no_other_file(scores, few_videos, tmp_path):
    text, result = page(scores, few_videos, tmp_path)
    assert headings(text) == [
        "Confusion matrix", "Most confused pairs", "Classes, worst first", "Most confident mistakes",
        "Calibration", "Videos that could not be decoded", "Where these numbers come from",
    ]  # fmt: skip
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text) and "://" not in text
    assert "default-src 'none'" in text and "5 clips &amp; 1 crop" in text and "is no &lt;video&gt;" in text
    low, high = result["intervals_95"]["top1"]
    assert f"{result['top1']:.2f} %" in text and f"95 % interval {low:.1f}\u00a0to\u00a0{high:.1f}" in text
    assert "<b>jumping" not in text and "&lt;/script&gt;&lt;b&gt;jumping" in text
    assert text.count("<script") == text.count("</script>") == 2


@pytest.mark.integration
def test_the_first_sentence_says_what_came_out_without_a_word_of_the_field(scores, few_videos, tmp_path):
    text, result = page(scores, few_videos, tmp_path)
    assert (
        f"named the right one of {len(CLASSES)} classes for {result['top1']:.1f} % of {result['num_videos']} videos"
        in text
    )
    assert f"guessing would be right for {100 / len(CLASSES):.1f} %." in text


def test_many_classes_have_a_table_of_the_worst_and_one_of_the_best(few_videos, tmp_path):
    labels = np.arange(42) % 21
    chosen = np.eye(21, dtype=np.float32)[np.where(labels < 10, labels, 20)]
    names = tuple(f"class {number}" for number in range(21))
    scored = VideoScores([f"v{row}" for row in range(42)], labels, chosen, np.ones(42, bool))
    text, _ = page(scored, few_videos, tmp_path, classes=names)
    assert "Worst classes" in headings(text) and "Best classes" in headings(text)


@pytest.mark.integration
def test_the_matrix_on_the_page_is_the_confusion_matrix(scores, few_videos, tmp_path):
    text, _ = page(scores, few_videos, tmp_path)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.S)[1])
    assert sorted(data["names"]) == sorted(CLASSES)
    expected = {}
    for row in range(60):
        if scores.decoded[row]:
            pair = CLASSES[scores.labels[row]], CLASSES[scores.scores[row].argmax()]
            expected[pair] = expected.get(pair, 0) + 1
    actual = {(data["names"][row], data["names"][column]): videos for row, column, videos in data["cells"]}
    assert actual == expected
    assert dict(zip(data["names"], data["totals"], strict=True)) == {
        name: int((scores.labels == place).sum()) for place, name in enumerate(CLASSES)
    }


def test_four_hundred_classes_are_a_page_of_less_than_a_megabyte(tmp_path):
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(10, 50, 400))
    np.add.at(matrix, tuple(rng.integers(0, 400, (2, 6000))), 1)
    data = matrix_data(matrix, [f"class {place}" for place in range(400)], matrix.sum(1))
    assert sum(cell[2] for cell in data["cells"]) == matrix.sum() and len(json.dumps(data)) < 200_000


def test_the_most_confident_mistakes_come_first_and_play(scores, few_videos, tmp_path):
    rows = confident_mistakes(scores, 100)
    best = scores.scores.argmax(1)
    assert set(rows) == {row for row in range(60) if scores.decoded[row] and best[row] != scores.labels[row]}
    heights = scores.scores.max(1)[rows]
    assert (np.diff(heights) <= 0).all()
    text, _ = page(scores, few_videos, tmp_path)
    shown = re.findall(r"<figcaption>(.*?)<br>predicted <b>(.*?)</b>, true <b>(.*?)</b>", text)
    count = min(len(rows), MISTAKES)
    assert len(shown) == count > 3
    for row, (name, predicted, true) in zip(rows, shown, strict=False):
        assert name == scores.names[row]
        assert html.unescape(predicted) == f"{CLASSES[best[row]]} ({scores.scores[row].max():.2f})"
        assert html.unescape(true).startswith(f"{CLASSES[scores.labels[row]]} (")
    moving = re.findall(r'data-moving="data:image/webp;base64,(.*?)"', text)
    assert len(moving) == count and all(b"ANIM" in base64.b64decode(content)[:60] for content in moving)


def test_a_mistake_that_cannot_be_shown_is_said(scores, few_videos, tmp_path):
    shutil.copytree(few_videos, tmp_path / "data")
    lost = scores.names[confident_mistakes(scores, 1)[0]]
    (tmp_path / "data" / lost).unlink()
    text, _ = page(scores, tmp_path / "data", tmp_path)
    count = sum(scores.names[row] == lost for row in confident_mistakes(scores, MISTAKES))
    assert f"{count} more cannot be shown" in text and f"play {lost}" not in text


@pytest.mark.integration
def test_the_curves_are_those_of_the_checkpoints_folder(scores, few_videos, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        "".join(f'{{"step": {i}, "epoch": {i}, "loss": {1 / i}}}\n' for i in range(1, 9))
    )
    assert "Training" in headings(page(scores, few_videos, tmp_path, run)[0]), "without top-1 too, as with mixup"
    for content in (b"", b"\xff\xfe", b"[1, 2]\n", b'"text"\n'):
        (run / "metrics.jsonl").write_bytes(content)
        assert "Training" not in headings(page(scores, few_videos, tmp_path, run)[0])


def test_a_multi_label_page_has_average_precisions(few_videos, tmp_path):
    made = made_up_scores(multi_label=True)
    text, result = page(made, few_videos, tmp_path)
    assert headings(text) == ["Classes, worst first", "Where these numbers come from"]
    assert f"{result['mean_average_precision']:.2f} %" in text and "mean average precision" in text


def test_a_page_without_mistakes_has_no_section_for_them(few_videos, tmp_path):
    labels = np.arange(8) % 2
    perfect = VideoScores(["a"] * 8, labels, np.eye(2, dtype=np.float32)[labels], np.ones(8, bool))
    text, _ = page(perfect, few_videos, tmp_path, classes=("a", "b"))
    assert headings(text)[:2] == ["Confusion matrix", "Classes, worst first"]
    assert "Most confident mistakes" not in text and "could not be decoded" not in text


STEERING = """<script>
const matrix = document.querySelector(".matrix"), line = matrix.querySelector(".hover"), said = [];
const input = matrix.querySelector("input"), canvas = matrix.querySelector("canvas");
const choose = (name) => { input.value = name; input.dispatchEvent(new Event("change")); said.push(line.textContent); };
choose("swimming");
choose("nothing");
const frame = canvas.getBoundingClientRect();
const point = (x, y) => new PointerEvent("pointermove", { clientX: frame.right - x, clientY: frame.top + y });
canvas.dispatchEvent(point(12, 12));
said.push(line.textContent);
matrix.querySelector(".closer").click();
canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", cancelable: true }));
canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -1, ctrlKey: true, clientX: frame.right - 40, clientY: frame.top + 40 }));
matrix.querySelector(".whole").click();
canvas.dispatchEvent(point(12, 12));
said.push(line.textContent);
canvas.dispatchEvent(new PointerEvent("pointerleave"));
said.push(line.textContent);
const button = document.querySelector(".strip button"), image = button.querySelector("img"), still = image.src;
button.click();
said.push(`${image.src === button.dataset.moving} ${button.querySelector("span").textContent}`);
button.click();
said.push(`${image.src === still} ${button.querySelector("span").textContent}`);
const painted = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value);
said.push(`painted ${painted}, scrolls ${document.documentElement.scrollWidth > window.innerWidth}`);
document.title = JSON.stringify(said);
</script></body>"""


@pytest.mark.integration
@pytest.mark.parametrize("width", [500, 1300])
def test_the_page_works_in_a_browser(scores, few_videos, tmp_path, width):
    """Clicks, keys and the pointer in headless Chromium; what the page then says is written to its title."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    text, _ = page(scores, few_videos, tmp_path)
    (tmp_path / "steered.html").write_text(text.replace("</body>", STEERING))
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    words += [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
        f"file://{tmp_path}/steered.html",
    ]
    dom = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    said = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom)[1]))
    count, place = int((scores.labels == 2).sum()), scores.labels == 2
    right = int((place & scores.decoded & (scores.scores.argmax(1) == 2)).sum())
    assert said[0].startswith(f"true: swimming · predicted: swimming · {right} of {count} videos (")
    assert said[1] == "no class is named 'nothing'"
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.S)[1])
    corner = f"true: {data['names'][0]} · predicted: {data['names'][-1]} · "
    assert said[2].startswith(corner) and said[3] == said[2], "zooming out shows the same corner"
    assert said[4].startswith("Point at a cell to read it.")
    assert said[5:] == ["true ■ stop", "true ▶ play", "painted true, scrolls false"]
