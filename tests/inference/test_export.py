import itertools
import json
import logging
import runpy
import subprocess
import sys

import av
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import REPOSITORY
from numbered_video import write_numbered
from odd_videos import SHORT, TABLE
from onnx_files import with_metadata
from tiny_checkpoint import write_tiny
from tiny_models import randomise

from mvit_video import build_model, cli
from mvit_video.config.schema import Config, InputSettings
from mvit_video.data.dataset import view_indices
from mvit_video.data.transforms import ViewTransform
from mvit_video.data.video.reader import VideoReader
from mvit_video.engine.resolve import model_card
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.inference import export
from mvit_video.inference.export import EXPORTERS, example_clips, export_checkpoint, register_exporter
from mvit_video.inference.predictor import Predictor
from mvit_video.model.weights.card import CARD_KEY, ModelCard
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import load_checkpoint

RUNNER = REPOSITORY / "examples/onnx_runner.py"


def logits_of(checkpoint, clips):
    model, _ = load_checkpoint(checkpoint)
    with torch.inference_mode():
        return model(clips).numpy()


@pytest.mark.integration
def test_an_onnx_file_gives_the_networks_logits_for_any_batch(tiny, tiny_onnx):
    session = onnxruntime.InferenceSession(str(tiny_onnx))
    card = load_checkpoint(tiny)[1]
    for count in (1, 2, 5):
        clips = example_clips(card, count, seed=count + 10)
        found = session.run(None, {"clips": clips.numpy()})[0]
        assert np.abs(found - logits_of(tiny, clips)).max() < 1e-4
    assert found.std() > 0.1


@pytest.mark.integration
def test_the_plain_formula_without_class_token_exports_too(tmp_path):
    checkpoint = write_tiny(tmp_path / "model.safetensors", attention="reference", cls_token=False)
    assert export_checkpoint(checkpoint, "onnx", tmp_path / "model.onnx", 1).difference < 1e-4


@pytest.mark.integration
def test_the_onnx_file_has_no_scatters_and_carries_the_card(tiny, tiny_onnx):
    file = onnx.load(tiny_onnx)
    onnx.checker.check_model(file)
    kinds = {node.op_type for node in file.graph.node}
    assert not kinds & {"ScatterND", "ScatterElements", "Loop", "If"} and "Conv" in kinds
    [props] = [entry.value for entry in file.metadata_props if entry.key == CARD_KEY]
    assert ModelCard.model_validate_json(props) == load_checkpoint(tiny)[1]


@pytest.mark.integration
def test_a_pt2_file_is_all_that_torch_needs(tiny, tmp_path):
    output = tmp_path / "model.pt2"
    report = export_checkpoint(tiny, "pt2", output, None)
    assert report.size == output.stat().st_size and report.same_label == 1.0
    code = (
        "import json, sys, torch\n"
        "extra = {'mvit_video': ''}\n"
        f"program = torch.export.load({str(output)!r}, extra_files=extra)\n"
        "clips = torch.randn(3, 3, 8, 32, 40, generator=torch.Generator().manual_seed(7))\n"
        "assert 'mvit_video' not in sys.modules\n"
        "print(json.dumps([json.loads(extra['mvit_video'])['classes'], program.module()(clips).tolist()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    classes, logits = json.loads(done.stdout)
    card = load_checkpoint(tiny)[1]
    assert tuple(classes) == card.classes
    assert np.abs(np.array(logits) - logits_of(tiny, example_clips(card, 3, seed=7))).max() < 1e-4


def test_a_fixed_batch_takes_that_many_clips_only(tiny, tmp_path):
    output = tmp_path / "model.pt2"
    export_checkpoint(tiny, "pt2", output, 2)
    run, card = export.pt2_run(output.read_bytes()), load_checkpoint(tiny)[1]
    clips = example_clips(card, 2, seed=5)
    assert np.abs(run(clips) - logits_of(tiny, clips)).max() < 1e-4
    with pytest.raises(Exception, match=r"Guard failed: .* == 2|equal to 2"):
        run(example_clips(card, 3))


@pytest.mark.integration
def test_a_file_whose_logits_differ_is_not_written(tiny, tiny_onnx, tmp_path, request):
    model, card = load_checkpoint(tiny)
    model.head.projection.bias.data[2] += 0.01
    save_checkpoint(tmp_path / "other.safetensors", model, card)
    request.addfinalizer(lambda: EXPORTERS.forget(__name__))
    register_exporter("stale", lambda model, card, batch: tiny_onnx.read_bytes(), export.onnx_run)
    with pytest.raises(
        CheckpointError, match=r"model.onnx: not written, because its logits are up to .* expected at most"
    ):
        export_checkpoint(tmp_path / "other.safetensors", "stale", tmp_path / "model.onnx", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


@pytest.mark.integration
def test_what_cannot_be_exported_is_a_sentence(tiny, tiny_onnx, tmp_path, monkeypatch):
    before = tiny_onnx.read_bytes()
    with pytest.raises(ConfigError, match=r"model.onnx: exists: choose another --output, or pass --overwrite"):
        export_checkpoint(tiny, "onnx", tiny_onnx, None)
    assert tiny_onnx.read_bytes() == before
    with pytest.raises(ConfigError, match=r"--int8 is for ONNX files, not for pt2: use --format onnx"):
        export_checkpoint(tiny, "pt2", tmp_path / "model.pt2", None, int8=True)
    with pytest.raises(ConfigError, match=r"its folder .*missing does not exist"):
        export_checkpoint(tiny, "onnx", tmp_path / "missing/model.onnx", None)
    monkeypatch.setattr(export, "MAX_ONNX_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"bytes of weights, an ONNX file holds 2 GiB: use --format pt2"):
        export_checkpoint(tiny, "onnx", tmp_path / "model.onnx", None)


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_there_is_told_before_the_conversion(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(export, "load_network", None)
    with pytest.raises(ConfigError, match=rf"package '{name}' cannot be imported .*pip install {name}"):
        export_checkpoint(tiny, "onnx", tmp_path / "model.onnx", None)


def run_runner(*words, error=False):
    """The runner in a process in which neither torch nor this package can be imported: exit code, and answers or the error."""
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'mvit_video'): sys.modules[name] = None\n"
        f"sys.argv = {[str(RUNNER), *map(str, words)]!r}\n"
        f"runpy.run_path({str(RUNNER)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if error:
        return done.returncode, done.stderr
    assert not done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def videos(few_videos, tmp_path_factory):
    """Of several sizes, lengths and rates: 25, 15 and varying frames a second, wide and tall, shorter than a clip."""
    folder = tmp_path_factory.mktemp("videos")
    wide = write_numbered(folder / "wide.mp4", 60, options={"bf": "2", "g": "12"})
    short = write_numbered(folder / "short.mp4", 5)
    tall = folder / "tall.mp4"
    with av.open(str(tall), "w") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.width, stream.height, stream.pix_fmt = 48, 144, "yuv420p"
        with av.open(str(wide)) as source:
            for number, frame in enumerate(source.decode(video=0)):
                turned = av.VideoFrame.from_ndarray(np.rot90(frame.to_ndarray(format="rgb24")).copy(), format="rgb24")
                turned.pts = number
                container.mux(stream.encode(turned))
        container.mux(stream.encode())
    return [wide, short, tall, few_videos / "val/00001.mp4", *varied(folder)]


def varied(folder):
    """Of a varying rate that is not the one that the container states, one of them with frames that are not shown."""
    vp9 = write_numbered(folder / "vp9.webm", 60, "libvpx-vp9", gaps=True)
    hidden = {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "30"}
    return [vp9, write_numbered(folder / "vp8.webm", 70, "libvpx", hidden, gaps=True)]


def check_runner(checkpoint, file, videos, *words, within=1e-3):
    code, answers = run_runner(file, *videos, *words)
    assert code == 0
    for answer, prediction in zip(answers, Predictor.from_checkpoint(checkpoint, "cpu")(videos), strict=True):
        found = {entry["label"]: entry["score"] for entry in answer["predictions"]}
        assert answer["path"] == prediction.path
        assert found == pytest.approx(dict(prediction.predictions), abs=within)
    assert len({answer["predictions"][0]["score"] for answer in answers}) == len(videos)


@pytest.mark.integration
def test_the_runner_gives_what_predict_gives_without_torch(videos, tiny, tiny_onnx):
    check_runner(tiny, tiny_onnx, videos)


def check_frames(path):
    """The runner's count, rate and frames against the reader's."""
    runner = runpy.run_path(str(RUNNER))
    with VideoReader(path) as reader:
        assert runner["count_frames"](str(path)) == (len(reader), pytest.approx(reader.fps)), path
        given = dict(runner["read_frames"](str(path), set(range(len(reader)))))
        assert sorted(given) == list(range(len(reader)))
        for number, frame in enumerate(reader.stream()):
            assert np.array_equal(given[number], frame), (path, number)


def test_the_runner_counts_and_reads_frames_as_we_do(videos):
    for path in videos:
        check_frames(path)


@pytest.mark.parametrize(
    "kind", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in TABLE]
)
def test_the_runner_reads_every_kind_of_file_as_we_do(kind, tmp_path):
    check_frames(TABLE[kind](tmp_path))


@pytest.mark.integration
def test_a_card_has_the_views_of_a_named_protocol_and_the_runner_takes_both(tiny_onnx, tmp_path):
    config = Config.model_validate({"data": {"train": "list.csv"}, "evaluation": {"protocol": "kinetics-5x3"}})
    card = model_card(config, ("a", "b"))
    assert card.protocol == "5x3"
    kind = runpy.run_path(str(RUNNER))["Runner"]
    for protocol in ("5x3", "kinetics-5x3"):
        props = {CARD_KEY: card.model_copy(update={"protocol": protocol}).model_dump_json()}
        runner = kind(str(with_metadata(tiny_onnx, tmp_path / "model.onnx", props)))
        assert (runner.num_clips, runner.num_crops) == (5, 3)


@pytest.mark.integration
@pytest.mark.parametrize("words", [[], ["--precision", "bf16"]], ids=["fp32", "bf16"])
def test_the_runner_gives_what_predict_gives_in_openvino(videos, tiny, tiny_onnx, words):
    words = ["--provider", "OpenVINO", *words]
    if "bf16" in words:
        _, error = run_runner(tiny_onnx, videos[0], *words, error=True)
        if error == "error: --precision bf16: this CPU does not compute in it: use fp32\n":
            pytest.skip(error)
    check_runner(tiny, tiny_onnx, videos, *words, within=0.02 if "bf16" in words else 1e-3)


@pytest.mark.integration
def test_the_runner_names_what_is_installed_where_a_provider_is_not(tiny_onnx, tmp_path):
    code, answers = run_runner(tiny_onnx, "a.mp4", "--provider", "TensorRT", error=True)
    assert (code, answers) == (1, "error: provider TensorRT is not installed here: choose from CPU, OpenVINO\n")
    _, error = run_runner(tiny_onnx, "a.mp4", "--precision", "bf16", error=True)
    assert error == "error: --precision bf16 is for OpenVINO: CPU computes in what the file says\n"
    _, error = run_runner(tmp_path / "missing.onnx", "a.mp4", error=True)
    assert error.endswith("missing.onnx: no such file\n")
    bare, text = with_metadata(tiny_onnx, tmp_path / "bare.onnx", {}), tmp_path / "text.onnx"
    text.write_text("no network")
    for provider in ("CPU", "OpenVINO"):
        _, error = run_runner(text, "a.mp4", "--provider", provider, error=True)
        assert error.splitlines()[-1].startswith(f"error: {text}: {provider} cannot read it (")
        _, error = run_runner(bare, "a.mp4", "--provider", provider, error=True)
        assert error == f"error: {bare}: was not written by mvit-video export --format onnx\n"


@pytest.mark.parametrize(("step", "sampling"), [("linspace", "dense"), ("stride", "dense"), ("linspace", "segment")])
def test_the_runner_takes_the_frames_that_we_take(step, sampling):
    kind = runpy.run_path(str(RUNNER))["Runner"]
    runner = kind.__new__(kind)  # without a file
    settings = InputSettings(num_frames=8, sampling_rate=3, dense_step=step, sampling=sampling)
    runner.settings = settings.model_dump(mode="json")
    for count, fps, runner.num_clips in itertools.product((1, 7, 23, 60, 301), (15.0, 29.97, 60.0), (1, 2, 5)):
        expected = view_indices(count, fps, settings, runner.num_clips)
        actual = [runner.frame_numbers(count, fps, clip) for clip in range(runner.num_clips)]
        assert np.array_equal(actual, expected), (count, fps)


@pytest.mark.parametrize("crop", [32, (32, 56), (56, 32)])
def test_the_runner_shows_the_pixels_that_we_show_for_a_crop_of_any_shape(crop):
    runner = runpy.run_path(str(RUNNER))["Runner"]
    runner = runner.__new__(runner)  # without a file
    settings = InputSettings(short_side=36, crop_size=crop, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    runner.settings = settings.model_dump(mode="json")
    for height, width in ((30, 40), (48, 27), (50, 50), (9, 70)):
        frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        clip = np.stack([runner.scaled(frame) for frame in frames], 1)
        expected = ViewTransform(settings.crop_hw, settings.mean, settings.std, settings.short_side, 3)(frames)
        for position in (0, 1, 2):
            assert np.abs(runner.crop(clip, position) - expected[position].numpy()).max() < 1e-5


@pytest.mark.integration
def test_the_runner_samples_whole_videos_and_fills_a_fixed_batch(videos, tmp_path):
    checkpoint, file = write_tiny(tmp_path / "model.safetensors", "segment"), tmp_path / "model.onnx"
    export_checkpoint(checkpoint, "onnx", file, 4)
    check_runner(checkpoint, file, videos)
    with pytest.raises(Exception, match="Got: 3 Expected: 4"):
        export.onnx_run(file.read_bytes())(example_clips(load_checkpoint(checkpoint)[1], 3))


@pytest.mark.integration
def test_the_runner_goes_on_after_a_bad_file(videos, tiny_onnx, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    code, answers = run_runner(tiny_onnx, bad, videos[1])
    assert (
        code == 1
        and answers[0]["error"] == f"{bad}: Invalid data found when processing input"
        and answers[1]["predictions"]
    )


@pytest.mark.long
@pytest.mark.parametrize("words", [["onnx"], ["onnx", "--batch", "1", "--int8"], ["pt2"]], ids=" ".join)
def test_the_published_size_exports_with_its_logits(tmp_path, words, capsys):
    """S 16x4 with 400 classes; logits of unit scale, on clips that the command has not seen."""
    model = randomise(build_model("mvitv2_s_16x4", num_classes=400), 5)
    torch.save({"model_state": model.state_dict()}, tmp_path / "s.pyth")
    command = ["export", "--checkpoint", str(tmp_path / "s.pyth"), "--output", str(tmp_path / "s"), "--format", *words]
    assert cli.main(command) == 0
    clips = torch.randn(1, 3, 16, 224, 224, generator=torch.Generator().manual_seed(9))
    run = (export.onnx_run if words[0] == "onnx" else export.pt2_run)((tmp_path / "s").read_bytes())
    with torch.inference_mode():
        expected = model(clips).numpy()
    assert 0.3 < expected.std() < 3
    difference = np.abs(run(clips) - expected).max()
    if "--int8" not in words:
        assert difference < 1e-4
    else:
        assert 1e-4 < difference < expected.std() and (tmp_path / "s").stat().st_size < 0.5 * 4 * 34.5e6


@pytest.mark.integration
def test_eight_bits_keep_the_accuracy_and_halve_the_file(trained, motion_data, tmp_path, capsys):
    words = ["export", "--checkpoint", str(trained.weights), "--format", "onnx", "--output"]
    assert cli.main([*words, str(tmp_path / "full.onnx")]) == 0
    assert cli.main([*words, str(tmp_path / "int8.onnx"), "--int8"]) == 0
    first, second = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "full.onnx: " in first and "the same label for 100% of random clips" in first
    assert "ms a run on this CPU, the network" in second
    assert (tmp_path / "int8.onnx").stat().st_size < 0.6 * (tmp_path / "full.onnx").stat().st_size
    rows = [row.split(" ") for row in (motion_data / "val.csv").read_text().splitlines()]
    classes = (motion_data / "classes.txt").read_text().splitlines()
    right = {}
    for name in ("full", "int8"):
        _, answers = run_runner(tmp_path / f"{name}.onnx", *(motion_data / path for path, _ in rows), "--top", 1)
        labels = [answer["predictions"][0]["label"] for answer in answers]
        right[name] = sum(label == classes[int(row[1])] for label, row in zip(labels, rows, strict=True))
    assert right["full"] > 0.5 * len(rows)
    assert abs(right["full"] - right["int8"]) <= 0.05 * len(rows)


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


@pytest.mark.integration
@pytest.mark.parametrize("handled", [True, False], ids=["a program that logs", "a program that has set up nothing"])
def test_an_export_leaves_the_logging_of_the_process_alone(tmp_path, handled):
    checkpoint, root, kept = write_tiny(tmp_path / "a.safetensors"), logging.getLogger(), Kept()
    before = root.handlers[:], logging.root.manager.disable, root.level, root.filters[:]
    try:
        root.handlers[:] = [kept] if handled else []
        logging.disable(logging.DEBUG)
        export_checkpoint(checkpoint, "onnx", tmp_path / "a.onnx", None, int8=True)
        assert root.handlers == ([kept] if handled else []) and kept.said == []
        assert (logging.root.manager.disable, root.level, root.filters) == (logging.DEBUG, *before[2:])
    finally:
        root.handlers[:] = before[0]
        logging.disable(before[1])


def test_what_others_log_while_the_quantiser_works_is_heard():
    root, kept = logging.getLogger(), Kept()
    root.addHandler(kept)
    try:
        with export._without_advice():
            logging.warning("of another thread")
            logging.getLogger("a library").warning("of a library")
    finally:
        root.removeHandler(kept)
    assert kept.said == ["of another thread", "of a library"]
