"""The repairs for torchvision and pytorchvideo: made where needed, nowhere else, and never needed by our own part."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from mvit_video.compat import import_pytorchvideo, import_torchvision
from mvit_video.config.schema import DataSettings
from mvit_video.data.dataset import SampleKey, clip_dataset_from
from mvit_video.data.lists.read import read_videos
from mvit_video.data.synthetic import draw_video, write_video
from mvit_video.errors import ConfigError

# What torchvision does when it is imported: it registers shape functions for operators that may not exist.
REGISTERS_OPERATORS = """
import torch
for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda dets, scores, iou_threshold: dets)
"""
HAS_OPERATORS = """
import torch
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def run_python(code: str, *paths: Path) -> str:
    """The standard output of a fresh interpreter in which `paths` come first."""
    first = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    done = subprocess.run([sys.executable, "-c", first + textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_package(folder: Path, name: str, **modules: str) -> None:
    """A stand-in for a package; `__init__` and module names with dots as double underscores."""
    for module, source in {"__init__": "", **modules}.items():
        path = folder / name / (module.replace("__", "/") if module != "__init__" else module)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(source)
        for parent in path.parents:
            if parent == folder:
                break
            (parent / "__init__.py").touch()


@pytest.mark.integration
def test_our_networks_and_inference_work_with_torchvision_and_pytorchvideo_blocked(tmp_path):
    write_video(tmp_path / "video.mp4", draw_video(0, np.random.default_rng(0)), 15)
    output = run_python(
        f"""
        sys.modules["torchvision"] = sys.modules["pytorchvideo"] = None  # importing either is now an ImportError
        import torch, mvit_video
        from mvit_video.config.schema import InputSettings
        from mvit_video.errors import ConfigError
        from mvit_video.inference.predictor import Predictor
        from mvit_video.model.weights.card import ModelCard
        from mvit_video.model.weights.files import save_checkpoint

        model = mvit_video.build_model("mvitv2_nano_8x3", num_classes=2)
        assert model(torch.zeros(1, 3, 8, 48, 48)).shape == (1, 2)
        size = InputSettings(num_frames=8, crop_size=48, short_side=48)
        card = ModelCard(name="mvitv2_nano_8x3", arguments={{}}, classes=("a", "b"), preprocessing=size)
        save_checkpoint("{tmp_path}/model.safetensors", model, card)
        video, = Predictor.from_checkpoint("{tmp_path}/model.safetensors", "cpu")("{tmp_path}/video.mp4")
        print(len(video.predictions))
        assert "pytorchvideo/x3d_s" in mvit_video.list_models()
        for name in ("torchvision/mvit_v2_s", "pytorchvideo/x3d_s"):
            try:
                mvit_video.build_model(name)
            except ConfigError as reason:
                print(reason)
        """
    )
    labels, *errors = output.splitlines()
    assert labels == "2"
    assert len(errors) == 2  # pytorchvideo itself needs torchvision, so that one is named both times
    for error in errors:
        assert error.startswith("package 'torchvision' cannot be imported (")
        assert error.endswith(f": install the torchvision that matches torch {torch.__version__}")


@pytest.mark.integration
def test_our_networks_import_neither_package():
    output = run_python(
        """
        import mvit_video, mvit_video.cli, mvit_video.inference.predictor, mvit_video.benchmark.networks
        mvit_video.build_model("mvitv2_nano_8x3"), mvit_video.list_models()
        print([name for name in ("torchvision", "pytorchvideo") if name in sys.modules])
        """
    )
    assert output.strip() == "[]"


@pytest.mark.integration
def test_a_torchvision_without_compiled_operators_is_repaired(tmp_path):
    write_package(tmp_path, "torchvision", __init__=REGISTERS_OPERATORS)
    output = run_python(
        """
        import torch
        try:
            import torchvision
        except RuntimeError as reason:
            print(reason)
        from mvit_video.compat import import_torchvision
        print(import_torchvision().__file__, hasattr(torch.ops.torchvision, "qnms"))
        """,
        tmp_path,
    )
    assert output.splitlines() == [
        "operator torchvision::nms does not exist",
        f"{tmp_path}/torchvision/__init__.py True",
    ]


@pytest.mark.integration
def test_a_torchvision_that_imports_gets_no_schema_from_us(tmp_path):
    write_package(tmp_path, "torchvision")
    code = """
        import torch
        from mvit_video.compat import import_torchvision
        print(import_torchvision().__file__, hasattr(torch.ops.torchvision, "nms"))
        """
    assert run_python(code, tmp_path).strip() == f"{tmp_path}/torchvision/__init__.py False"
    write_package(tmp_path, "torchvision", __init__=HAS_OPERATORS + REGISTERS_OPERATORS)
    assert run_python(code, tmp_path).strip() == f"{tmp_path}/torchvision/__init__.py True"


@pytest.mark.integration
def test_the_old_module_name_is_added_only_where_it_is_missing(tmp_path):
    code = """
        from mvit_video.compat import import_pytorchvideo
        print(import_pytorchvideo().F_t.__name__)
        """
    write_package(tmp_path, "pytorchvideo", __init__="import torchvision.transforms.functional_tensor as F_t")
    write_package(tmp_path, "torchvision", transforms___functional_tensor="")
    assert run_python(code, tmp_path).strip() == "torchvision.transforms._functional_tensor"
    write_package(tmp_path, "torchvision", transforms__functional_tensor="")
    assert run_python(code, tmp_path).strip() == "torchvision.transforms.functional_tensor"


@pytest.mark.integration
@pytest.mark.parametrize("error", ["ImportError('libcudart.so.99:\\n no such file')", "RuntimeError('built for 1.2')"])
def test_a_torchvision_that_no_repair_helps_is_one_sentence(tmp_path, error):
    write_package(tmp_path, "torchvision", __init__=f"raise {error}")
    output = run_python(
        """
        from mvit_video.compat import import_torchvision
        from mvit_video.errors import ConfigError
        try:
            import_torchvision()
        except ConfigError as reason:
            print(reason)
        """,
        tmp_path,
    )
    what = "libcudart.so.99: no such file" if "libcudart" in error else "built for 1.2"
    cure = f"install the torchvision that matches torch {torch.__version__}"
    assert output == f"package 'torchvision' cannot be imported ({what}): {cure}\n"


@pytest.mark.integration
def test_a_missing_pytorchvideo_is_named_with_its_cure(tmp_path):
    write_package(tmp_path, "torchvision", transforms___functional_tensor="")
    output = run_python(
        """
        sys.modules["pytorchvideo"] = None
        from mvit_video.compat import import_pytorchvideo
        from mvit_video.errors import ConfigError
        try:
            import_pytorchvideo("pytorchvideo.transforms")
        except ConfigError as reason:
            print(reason)
        """,
        tmp_path,
    )
    assert output.startswith("package 'pytorchvideo' cannot be imported (")
    assert output.endswith("): run 'pip install pytorchvideo==0.1.5'\n")


def test_the_installed_packages_import_on_this_machine():
    assert import_torchvision("torchvision.models.video").mvit_v2_s
    assert import_pytorchvideo("pytorchvideo.models.hub").slow_r50


def test_pytorchvideo_transforms_take_our_clip_dictionary(tmp_path):
    import_pytorchvideo()
    from pytorchvideo.transforms import ApplyTransformToKey, Normalize, UniformTemporalSubsample

    write_video(tmp_path / "a.mp4", draw_video(3, np.random.default_rng(0)), 15)
    (tmp_path / "list.csv").write_text("a.mp4 3\n")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    data = DataSettings(root=str(tmp_path), num_frames=8, short_side=48, crop_size=48)
    sample = clip_dataset_from(data, read_videos("list.csv", str(tmp_path)), seed=0)[SampleKey(0, 0)]
    assert sample["video"].shape == (3, 8, 48, 48)

    subsampled = ApplyTransformToKey("video", UniformTemporalSubsample(4))(dict(sample))
    assert torch.equal(subsampled["video"], sample["video"][:, [0, 2, 4, 7]])
    normalised = ApplyTransformToKey("video", Normalize((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)))(dict(sample))
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        expected = (sample["video"][channel] - mean) / std
        torch.testing.assert_close(normalised["video"][channel], expected, rtol=1e-6, atol=1e-6)
    kept = {key: value for key, value in sample.items() if key != "video"}
    assert {key: normalised[key] for key in kept} == kept
    assert kept == {
        "label": 3,
        "video_name": "a.mp4",
        "video_index": 0,
        "clip_index": 0,
        "aug_index": 0,
        "repeated_frames": 0,
    }


def test_import_errors_are_configuration_errors_of_the_command_line():
    with pytest.raises(
        ConfigError, match=r"^package 'torchvision' cannot be imported \(No module named 'torchvision.x'"
    ):
        import_torchvision("torchvision.x")
