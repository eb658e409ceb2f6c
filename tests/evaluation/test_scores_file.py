import io
import pickle
import zipfile

import numpy as np
import pytest
from small_results import made_up_scores

from mvit_video.errors import ConfigError
from mvit_video.evaluation import scores_file
from mvit_video.evaluation.scores_file import load_scores, save_scores

CLASSES = ("courir", "跳", "a,b", "d", "e", "f")


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_come_back_bit_for_bit(tmp_path, multi_label):
    scores = made_up_scores(multi_label=multi_label)
    save_scores(tmp_path / "scores.npz", scores, CLASSES)
    for place in (tmp_path, tmp_path / "scores.npz"):
        found, classes = load_scores(place)
        assert classes == CLASSES and found.names == scores.names and found.multi_label == multi_label
        for name in ("labels", "scores", "decoded"):
            one, other = getattr(found, name), getattr(scores, name)
            assert one.dtype == other.dtype and np.array_equal(one, other)


def test_the_same_scores_are_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_scores(tmp_path / name, made_up_scores(), CLASSES)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


class Bomb:
    def __reduce__(self):
        return (print, ("code of a stranger has run",))


def write(tmp_path, **changes):
    scores = made_up_scores()
    arrays = dict(
        names=np.array(scores.names), labels=scores.labels, scores=scores.scores, decoded=scores.decoded,
        classes=np.array(CLASSES),
    )  # fmt: skip
    arrays = {name: value for name, value in (arrays | changes).items() if value is not None}
    np.savez(tmp_path / "scores.npz", **arrays)


@pytest.mark.parametrize("name", ["names", "labels", "scores", "classes"])
def test_pickled_arrays_are_refused_and_not_run(tmp_path, capsys, name):
    write(tmp_path, **{name: np.array([Bomb()] * 60, dtype=object)})
    with pytest.raises(
        ConfigError, match=r"scores.npz: is no scores.npz of `mvit-video evaluate` \(Object arrays cannot"
    ):
        load_scores(tmp_path)
    assert capsys.readouterr().out == ""


def test_files_of_other_kinds_are_refused(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "code.npz").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "empty.npz").touch()
    for name in ("text.npz", "code.npz", "one.npy", "empty.npz"):
        with pytest.raises(
            ConfigError, match=rf"{name}: is no scores.npz of `mvit-video evaluate` \(File is not a zip"
        ):
            load_scores(tmp_path / name)
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="nowhere: no such file"):
        load_scores(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"scores.npz: no such file"):
        load_scores(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(decoded=None), r"contains no array 'decoded'"),
        (dict(names=np.arange(60)), "its arrays have unexpected types"),
        (dict(decoded=np.ones(59, bool)), "its shapes do not match"),
        (dict(names=np.array([], "U1")), "its shapes do not match"),
        (dict(classes=np.array("a")), "its shapes do not match"),
        (dict(labels=np.full(60, 6)), "its labels go from 6 to 6, expected 0 to 5"),
        (dict(labels=np.full(60, -1)), "its labels go from -1 to -1, expected 0 to 5"),
        (dict(labels=np.ones((60, 5), bool)), r"its labels have shape \(60, 5\), expected \(60, 6\)"),
        (dict(scores=np.full((60, 6), np.nan, np.float32)), "its scores are not all from 0 to 1"),
        (dict(scores=np.full((60, 6), 1.5, np.float32)), "its scores are not all from 0 to 1"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        load_scores(tmp_path)


def test_a_file_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(scores_file, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"unpacks to [\d,]+ bytes, at most 1,000 are read"):
        load_scores(tmp_path)


def test_a_header_that_promises_more_than_there_is_costs_one_sentence(tmp_path):
    write(tmp_path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr="<f4", fortran_order=False, shape=(10**9, 10**6)))
    with zipfile.ZipFile(tmp_path / "scores.npz") as old, zipfile.ZipFile(tmp_path / "huge.npz", "w") as new:
        for entry in old.namelist():
            new.writestr(entry, header.getvalue() if entry == "scores.npy" else old.read(entry))
    with pytest.raises(ConfigError, match=r"huge.npz: is no scores.npz of `mvit-video evaluate` \("):
        load_scores(tmp_path / "huge.npz")
