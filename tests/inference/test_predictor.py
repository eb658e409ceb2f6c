import threading

import pytest
import torch
from odd_videos import TABLE
from tiny_predictor import NANO, nano_predictor
from torch import nn

import mvit_video
from mvit_video import build_model
from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import read_views
from mvit_video.data.lists.class_names import published_classes
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import CheckpointError, ConfigError, DecodeError
from mvit_video.evaluation.evaluate import evaluator_from
from mvit_video.evaluation.protocols import Protocol
from mvit_video.inference import predictor as predictor_module
from mvit_video.inference.predictor import Predictor, choose_device, expand_paths, groups, read_ahead
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.zoo import ZOO


@pytest.fixture(scope="module")
def predictor(small_run):
    return Predictor.from_checkpoint(small_run.weights, device="cpu")


def test_predictions_are_the_evaluators_scores(predictor, small_run, few_videos, few_validation_videos):
    judge = evaluator_from(
        small_run.config, few_validation_videos, small_run.config.data.input, Protocol.parse("2x3"), predictor.precision
    )
    scores = judge.scores(predictor.model).scores
    for row in (0, 3, 6):
        [prediction] = predictor(few_videos / few_validation_videos.records[row].path, top=8)
        for label, score in prediction.predictions:
            assert score == pytest.approx(scores[row, predictor.card.classes.index(label)], abs=1e-5)
        values = [score for _, score in prediction.predictions]
        assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-5)


def test_an_array_of_frames_gives_what_its_file_gives(predictor, few_videos):
    path = few_videos / "val/00002.mp4"
    reader = VideoReader(path)
    array = reader.frames(range(len(reader)))
    [from_array], [from_file] = predictor(array, fps=reader.fps), predictor(path)
    assert dict(from_array.predictions) == pytest.approx(dict(from_file.predictions))
    assert from_array.path == "array"


def test_the_protocol_is_the_checkpoints_unless_another_is_named(predictor, small_run):
    assert str(predictor.protocol) == "2x3"
    assert str(Predictor.from_checkpoint(small_run.weights, "cpu", "4x1").protocol) == "4x1"


def test_a_bad_file_is_a_decode_error(predictor, tmp_path):
    (tmp_path / "a.mp4").write_text("no")
    with pytest.raises(DecodeError, match=r"a.mp4: cannot be opened as a video"):
        predictor(tmp_path / "a.mp4")


def test_folders_and_patterns_stand_for_their_videos(tmp_path):
    for name in ("b.mp4", "a/c.WEBM", "notes.txt", "d[1].mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    b, c, d = (str(tmp_path / name) for name in ("b.mp4", "a/c.WEBM", "d[1].mp4"))
    assert list(expand_paths(["x.mp4", str(tmp_path)])) == ["x.mp4", c, b, d]
    assert list(expand_paths([f"{tmp_path}/*.mp4"])) == [b, d]
    assert list(expand_paths([f"{tmp_path}/**/*.WEBM", d])) == [c, d]
    assert list(expand_paths([f"{tmp_path}/*.avi"])) == [f"{tmp_path}/*.avi"]


def test_a_folder_without_videos_is_an_error_in_its_place_and_the_rest_goes_on(few_videos, tmp_path):
    (tmp_path / "empty").mkdir()
    good = str(few_videos / "val/00000.mp4")
    found = expand_paths([str(tmp_path / "empty"), good, f"{tmp_path}/*.mkv"])
    bad, prediction, nothing = nano_predictor().each(found)
    assert (
        bad.error
        == f"{tmp_path}/empty: this folder contains no videos, expected files such as .mp4, .mkv, .webm or .avi"
    )
    assert nothing.error == f"{tmp_path}/*.mkv: no such file"
    assert prediction.path == good and prediction.error is None and len(prediction.predictions) == 5


def test_a_device_that_is_not_there_is_named():
    assert choose_device("cpu").type == "cpu"
    for name in ("cuda:99", "gpu"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here .*: try auto or cpu"):
            choose_device(name)


@pytest.fixture(scope="module")
def videos(few_videos):
    return sorted((few_videos / "val").iterdir())


@pytest.mark.parametrize("sampling", ["dense", "segment"])
@pytest.mark.parametrize("views_at_once", [1, 4, 7, 32])
def test_scores_do_not_depend_on_what_shares_a_forward_pass(videos, sampling, views_at_once, monkeypatch):
    clips = 2 if sampling == "dense" else 1
    predictor = nano_predictor(sampling=sampling, protocol=f"{clips}x3")
    monkeypatch.setattr(Predictor, "views_at_once", views_at_once)
    batches = []
    predictor.model.register_forward_pre_hook(lambda model, arguments: batches.append(len(arguments[0])))
    actual = predictor(videos, top=8)
    assert max(batches) <= views_at_once and sum(batches) == 3 * clips * len(videos)
    assert [prediction.path for prediction in actual] == [str(path) for path in videos]
    for path, prediction in zip(videos, actual, strict=True):
        with VideoReader(path) as reader, torch.no_grad():
            views = read_views(reader, predictor.card.preprocessing, clips, 3)
            expected = torch.stack([predictor.model(view[None])[0].softmax(0) for view in views]).mean(0)
        for label, score in prediction.predictions:
            assert score == pytest.approx(float(expected[predictor.card.classes.index(label)]), abs=1e-6)


def test_views_of_several_videos_share_a_forward_pass(videos):
    predictor, batches = nano_predictor(protocol="1x1"), []
    predictor.model.register_forward_pre_hook(lambda model, arguments: batches.append(len(arguments[0])))
    predictor(videos)
    assert batches == [8]


def test_a_list_may_mix_paths_and_arrays_and_a_bad_file_costs_only_itself(videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no")
    array = VideoReader(videos[0]).frames(range(20))
    predictor = nano_predictor()
    found = list(predictor.each([videos[0], tmp_path / "bad.mp4", array], top=1, fps=15))
    assert [prediction.path for prediction in found] == [str(videos[0]), str(tmp_path / "bad.mp4"), "array"]
    assert "bad.mp4: cannot be opened as a video" in found[1].error and found[1].predictions == ()
    assert found[1].as_dict() == {"path": str(tmp_path / "bad.mp4"), "error": found[1].error}
    assert found[0].label == found[0].predictions[0][0] and found[2].score == found[2].predictions[0][1]
    with pytest.raises(DecodeError, match=r"bad.mp4: cannot be opened"):
        predictor([videos[0], tmp_path / "bad.mp4"])


def test_groups_hold_all_items_in_order_and_end_where_they_are_full():
    assert list(groups([2, 2, 3, 9, 1], lambda size: size, 4)) == [[2, 2], [3, 9], [1]]
    assert list(groups([], lambda size: size, 4)) == []


def test_reading_ahead_is_bounded_and_stops_with_its_reader():
    begun, most, lock = [], [], threading.Lock()

    def read(item):
        with lock:
            begun.append(item)
        return item * item

    results = read_ahead(read, range(1000), workers=3)
    for done in range(20):
        assert next(results) == done * done
        most.append(len(begun) - done)
    results.close()
    assert max(most) <= 5 and len(begun) < 30


def test_views_at_once_follow_the_size_of_a_view():
    sizes = {"nano": NANO, "S": InputSettings(), "L": InputSettings(num_frames=40, short_side=312, crop_size=312)}
    counts = {}
    for name, preprocessing in sizes.items():
        card = ModelCard(name="mvitv2_nano_8x3", arguments={}, classes=("a",), preprocessing=preprocessing)
        counts[name] = Predictor(nn.Identity(), card, torch.device("cpu")).views_at_once
    assert counts == {"nano": 32, "S": 4, "L": 1}


def test_the_predictor_is_a_name_of_the_package():
    assert mvit_video.Predictor is predictor_module.Predictor
    with pytest.raises(AttributeError, match="has no attribute 'Predicter'"):
        mvit_video.Predicter  # noqa: B018


@pytest.mark.parametrize("name", ["mvitv2_s_16x4_k400", "mvitv2_s_16x4_ssv2", "mvitv2_s_16x4_k400_torchvision"])
def test_a_public_checkpoint_gets_the_zoos_card(name, tmp_path, monkeypatch):
    """The published file's names, with new weights, at the place in the cache where its download would lie."""
    from mvit_video.model.weights.formats import to_torchvision

    entry = ZOO[name]
    model = build_model("mvitv2_s_16x4", num_classes=entry.num_classes, depths=(1, 2, 11, 2))
    state = model.state_dict()
    content = to_torchvision(state) if name.endswith("torchvision") else {"model_state": state, "epoch": 3}
    file = tmp_path / entry.url.rpartition("/")[2].replace("-ae3be167", "")
    torch.save(content, file)
    monkeypatch.setitem(ZOO, name, entry.model_copy(update={"url": f"http://localhost/{file.name}"}))
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache/localhost" / file.name
    place.parent.mkdir(parents=True)
    file.rename(place)
    predictor = Predictor.from_checkpoint(name, "cpu")
    assert predictor.card.preprocessing == entry.preprocessing and str(predictor.protocol) == entry.protocol
    assert predictor.card.classes == published_classes(entry.classes)
    assert all(torch.equal(tensor, state[key]) for key, tensor in predictor.model.state_dict().items())
    assert place.with_name(place.name + ".sha256").exists()


def test_what_is_no_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such file \(did you mean 'mvitv2_s_16x4_k400'\?\)"):
        Predictor.from_checkpoint("mvitv2_s_16x4_k40", "cpu")


@pytest.mark.parametrize("count", [6, 174, 400])
def test_class_names_of_foreign_weights_are_not_guessed_from_their_number(tmp_path, few_videos, count, caplog):
    """174 gestures are not Something-Something's classes, and 400 not Kinetics'; nor is the input theirs."""
    file = tmp_path / f"my_{count}_gestures.pyth"
    torch.save({"model_state": build_model("mvitv2_nano_8x3", num_classes=count).state_dict(), "epoch": 3}, file)
    predictor = Predictor.from_checkpoint(file, "cpu")
    assert predictor.card.classes == tuple(f"class {number}" for number in range(count))
    assert predictor.card.preprocessing.sampling == "dense" and predictor.card.preprocessing.num_frames == 8
    [prediction] = predictor(few_videos / "val/00000.mp4")
    assert prediction.label.startswith("class ")
    [warning] = [record.getMessage() for record in caplog.records]
    assert f"no names are known for its {count} classes, which are called class 0 to class {count - 1}" in warning
    assert "8 frames, 1 in 3 at 30/s, short side 55, crop 48, mean 0.45" in warning
    assert f"`mvit-video convert {file} --to native --classes FILE --output FILE`" in warning and "\n" not in warning


def test_a_baseline_trained_here_predicts(tmp_path, few_videos):
    """Its tensors bear another project's names, which the card says to leave as they are."""
    card = ModelCard(
        name="pytorchvideo/x3d_s",
        arguments={},
        classes=("a", "b"),
        preprocessing=InputSettings(num_frames=4, crop_size=96, short_side=96),
    )
    model = build_model(card.name, num_classes=2, num_frames=4, crop_size=96)
    save_checkpoint(tmp_path / "b.safetensors", model, card)
    [prediction] = Predictor.from_checkpoint(tmp_path / "b.safetensors", "cpu")(few_videos / "val/00000.mp4")
    assert sum(score for _, score in prediction.predictions) == pytest.approx(1, abs=1e-5)


def test_what_is_odd_about_a_video_is_logged_and_the_video_read(tmp_path, caplog):
    path = TABLE["Matroska, does not begin with a key frame"](tmp_path)
    [prediction] = nano_predictor(protocol="1x1")(path)
    assert prediction.label and "does not begin with a key frame" in caplog.text
