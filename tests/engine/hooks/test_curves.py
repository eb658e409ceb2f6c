"""Curves of one run and of several."""

import json

from PIL import Image

from mvit_video import cli, figures


def run_folder(folder, values):
    """What of a run its curves are drawn from: three steps, and one validation."""
    folder.mkdir(parents=True)
    steps = [{"step": step + 1, "epoch": (step + 1) / 3, "loss": value} for step, value in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    (folder / "validation.jsonl").write_text(
        json.dumps({"step": 3, "epoch": 1.0, "top1": (values or (0.0,))[-1]}) + "\n"
    )
    return folder


def test_the_curves_of_several_runs_are_in_one_picture_with_a_colour_for_each_name_without_its_seed():
    runs = {
        name: (
            [{"epoch": 1, "loss": loss}, {"epoch": 2, "loss": loss}],
            [{"epoch": 2, "top1": 10 * loss}],
        )
        for name, loss in (("ours_0", 1.0), ("ours_1", 2.0), ("lr1", 3.0), ("lr3", 4.0))
    }
    losses, accuracies = figures.curves_of_runs(runs).axes
    assert [line.get_ydata().tolist() for line in losses.lines] == [[1, 1], [2, 2], [3, 3], [4, 4]]
    assert [line.get_ydata().tolist() for line in accuracies.lines] == [[10], [20], [30], [40]]
    colours = [line.get_color() for line in losses.lines]
    assert (
        colours[0] == colours[1] and len({*colours}) == 3 and colours == [line.get_color() for line in accuracies.lines]
    )
    assert [text.get_text() for text in accuracies.get_legend().get_texts()] == ["ours", "lr1", "lr3"]


def test_the_verb_draws_runs_and_says_which_folder_is_none(capsys, tmp_path):
    runs = [str(run_folder(tmp_path / name, (3.0, 2.0, 1.0))) for name in ("a/ours_0", "a/ours_1", "b/ours_0")]
    empty, other = run_folder(tmp_path / "empty", ()), run_folder(tmp_path / "other", (1.0,))
    (other / "validation.jsonl").write_text(json.dumps({"step": 3, "epoch": 1.0, "mean_average_precision": 50.0}))
    command = ["curves", *runs[:2], "--output", str(tmp_path / "both.png")]
    assert cli.main(command) == 0
    assert Image.open(tmp_path / "both.png").width > 800
    for words, message in (
        (command, "both.png: exists: choose another --output, or pass --overwrite"),
        (
            ["curves", *runs, "--output", str(tmp_path / "c.png")],
            "is the second run named ours_0: rename one of the folders",
        ),
        (
            ["curves", str(empty), "--output", str(tmp_path / "c.png")],
            "empty: its metrics.jsonl has no step with a loss: leave this run out",
        ),
        (
            ["curves", runs[0], str(other), "--output", str(tmp_path / "c.png")],
            "runs ours_0 and other: are measured by top1 and mean_average_precision, which have no axis in common",
        ),
        (
            ["curves", str(tmp_path), "--output", str(tmp_path / "c.png")],
            "has no metrics.jsonl: name the output folder of",
        ),
    ):
        capsys.readouterr()
        assert cli.main(words) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "c.png").exists()
