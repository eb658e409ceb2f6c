import base64
import io
import re

import numpy as np
from PIL import Image

from mvit_video.evaluation import report


def page(tmp_path, **changes):
    values = dict(title="Title", lead="Lead", numbers=[report.Number("1 %", "name")], sections=[], footer="Foot")
    report.Report(**(values | changes)).write(tmp_path / "r.html")
    return (tmp_path / "r.html").read_text()


def test_texts_are_escaped(tmp_path):
    html = page(tmp_path, title="<script>alert(1)</script>", footer="a & b")
    assert "<script>" not in html and "&lt;script&gt;" in html and "a &amp; b" in html


def test_the_page_needs_no_other_file(tmp_path):
    figure = report.curves([{"epoch": 1, "loss": 1.0, "top1": 3}], [])
    html = page(
        tmp_path, sections=[report.Section("S", "T", figure), report.Section("R", "", columns=["a"], rows=[[1]])]
    )
    assert not re.findall(r'(?:src|href)="(?!data:)', html) and "http" not in html
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])))
    assert picture.width > 800


def test_smoothing_is_a_mean_over_neighbours():
    values = np.random.default_rng(0).random(100)
    smooth = report.smoothed(values, share=0.1)
    for place in range(100):
        assert np.isclose(smooth[place], values[max(place - 5, 0) : place + 6].mean())


def test_the_confusion_matrix_is_readable_for_few_and_for_many_classes():
    for count, named in ((8, True), (60, True), (400, False)):
        figure = report.confusion_figure(np.eye(count, dtype=int), [f"class {place}" for place in range(count)])
        axes = figure.axes[0]
        assert (axes.get_yticklabels()[-1].get_text() == f"class {count - 1}") == named
        assert len(axes.texts) == (count if count <= 25 else 0)
        assert max(figure.get_size_inches()) <= 15.5


def test_strips_show_every_frame_and_caption():
    strips = [(np.full((5, 20, 30, 3), 40 * row, np.uint8), f"video {row}") for row in range(3)]
    figure = report.frame_strips(strips)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["video 0", "video 1", "video 2"]
    assert figure.axes[1].images[0].get_array().shape == (20, 5 * 32, 3)
