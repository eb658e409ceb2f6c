import re

import numpy as np

from mvit_video import figures
from mvit_video.evaluation.metrics import calibration
from mvit_video.report import page as report


def page(tmp_path, **changes):
    values = dict(title="Title", lead="Lead", numbers=[report.Number("1 %", "name")], sections=[], footer="Foot")
    report.Report(**(values | changes)).write(tmp_path / "r.html")
    return (tmp_path / "r.html").read_text()


def test_texts_are_escaped(tmp_path):
    html = page(tmp_path, title="<script>alert(1)</script>", footer="a & b")
    assert "<script>alert" not in html and "&lt;script&gt;" in html and "a &amp; b" in html


def test_the_page_needs_no_other_file(tmp_path):
    drawn = figures.loss_and_accuracy([{"epoch": 1, "loss": 1.0, "top1": 3}], [])
    html = page(
        tmp_path, sections=[report.Section("S", "T", drawn), report.Section("R", "", columns=["a"], rows=[[1]])]
    )
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html) and "://" not in html
    assert html.count("<svg") == 2


def test_charts_take_the_colour_of_the_page_and_share_no_name(tmp_path):
    steps = [{"epoch": epoch, "loss": 1 / epoch, "top1": epoch} for epoch in range(1, 9)]
    drawn = [*figures.loss_and_accuracy(steps, []), figures.frame_strips([(np.zeros((2, 4, 6, 3), np.uint8), "<b>&")])]
    html = page(tmp_path, sections=[report.Section("S", "T", drawn), report.Section("S", "T", drawn)])
    names = re.findall(r'\bid="([^"]+)"', html)
    assert len(names) == len(set(names)) and names
    pointed = re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", html)
    assert pointed and {one or other for one, other in pointed} <= set(names)
    assert "#000000" not in html and "#ffffff" not in html.partition("<body>")[2].partition("<script")[0]
    assert "&lt;b&gt;&amp;" in html and "loss" in re.search(r"<svg.*?</svg>", html, re.DOTALL)[0]


def test_smoothing_is_a_mean_over_neighbours():
    values = np.random.default_rng(0).random(100)
    smooth = figures.smoothed(values, share=0.1)
    for place in range(100):
        assert np.isclose(smooth[place], values[max(place - 5, 0) : place + 6].mean())


def test_curves_leave_out_what_is_not_recorded_and_thin_what_is_long():
    steps = [{"epoch": step / 1000, "loss": 1.0} for step in range(20_000)]
    loss, accuracy = figures.curves(
        [*steps, {"epoch": 20.0}, {"epoch": 21.0, "loss": float("nan")}], [{"epoch": 10, "top1": 50}]
    ).axes
    assert 4000 <= len(loss.lines[0].get_xdata()) <= 8000 and loss.lines[0].get_xdata()[-1] > 19.9
    assert [line.get_label() for line in accuracy.lines] == ["validation"]
    assert [len(axes.lines) for axes in figures.curves([], []).axes] == [0, 0]


def test_the_matrix_is_reordered_and_only_its_cells_above_zero_are_kept():
    matrix = np.array([[5, 0, 3], [0, 7, 0], [2, 0, 1]])
    data = report.matrix_data(matrix, ("a", "b", "c"), np.array([9, 7, 3]))
    assert data["names"] in (["a", "c", "b"], ["c", "a", "b"], ["b", "a", "c"], ["b", "c", "a"])
    for row, column, count in data["cells"]:
        assert count == matrix["abc".index(data["names"][row]), "abc".index(data["names"][column])] > 0
    assert len(data["cells"]) == 5
    assert data["totals"] == [{"a": 9, "b": 7, "c": 3}[name] for name in data["names"]]


def test_the_reliability_diagram_shows_the_bins():
    rng = np.random.default_rng(0)
    bins = calibration(rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200), np.ones(200, bool))
    above, below = report.reliability(bins).axes
    filled = bins.counts > 0
    assert np.allclose([bar.get_height() for bar in above.patches], bins.accuracy[filled])
    assert [bar.get_height() for bar in below.patches] == bins.counts.tolist()
    assert np.allclose(above.lines[1].get_xdata(), bins.confidence[filled])


def test_strips_show_every_frame_and_caption():
    strips = [(np.full((5, 20, 30, 3), 40 * row, np.uint8), f"video {row}") for row in range(3)]
    figure = figures.frame_strips(strips)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["video 0", "video 1", "video 2"]
    assert figure.axes[1].images[0].get_array().shape == (20, 5 * 32, 4)


def test_names_in_pictures_are_no_formulas_and_none_is_left_out():
    strips = [(np.zeros((2, 20, 30, 3), np.uint8), "costs $x_{$ and $")]
    figures.png(figures.frame_strips(strips, "run $x_{$"))
    runs = {name: ([], [{"epoch": 1, "top1": 50.0}]) for name in ("_baseline", "$x_{$")}
    figure = figures.curves_of_runs(runs)
    figures.png(figure)
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["_baseline", "$x_{$"]
