"""The notebooks of the documentation, executed from top to bottom on small networks and drawn videos."""

import shutil

import nbformat
import pytest
import torch
from conftest import REPOSITORY
from nbclient import NotebookClient

from mvit_video import InputSettings, build_model
from mvit_video.data.synthetic import CLASSES
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.files import save_checkpoint

NOTEBOOKS = REPOSITORY / "docs/notebooks"


@pytest.fixture
def class_folders(few_videos, tmp_path):
    """The videos as train/CLASS/*.mp4 and val/CLASS/*.mp4."""
    for split in ("train", "val"):
        for row in (few_videos / f"{split}.csv").read_text().splitlines():
            path, label = row.split(" ")
            (tmp_path / "videos" / split / CLASSES[int(label)]).mkdir(parents=True, exist_ok=True)
            shutil.copy(few_videos / path, tmp_path / "videos" / split / CLASSES[int(label)])
    return tmp_path / "videos"


def run(name, folder, **parameters):
    """What the cells of a notebook print and show, with other values in the cell of its parameters."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    place = next(at for at, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    lines = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(texts), sum("image/png" in output.get("data", {}) for output in outputs)


def test_notebooks_are_kept_without_outputs_and_with_a_cell_of_parameters():
    files = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert len(files) == 3
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code), file.name
        assert sum("parameters" in cell.metadata.get("tags", ()) for cell in code) == 1, file.name


@pytest.mark.integration
def test_a_video_gets_a_label_a_timeline_and_a_heat_map(small_run, few_videos):
    text, pictures = run("label_a_video", few_videos, video="long.mp4", checkpoint=str(small_run.weights))
    assert pictures == 2
    assert " s   " in text and any(name in text for name in CLASSES)


@pytest.mark.integration
def test_a_folder_becomes_a_classifier_whose_mistakes_are_shown(small_run, class_folders, tmp_path):
    settings = {"train.epochs": 1, "data.workers": 0}
    text, pictures = run(
        "fine_tune_and_look_at_mistakes",
        tmp_path,
        root=str(class_folders),
        weights=str(small_run.weights),
        settings=settings,
    )
    assert "of 8 videos" in text and "labelled" in text and pictures >= 2


@pytest.mark.integration
def test_a_still_video_gets_the_logits_of_its_picture(tmp_path):
    torch.manual_seed(0)
    sizes = {"num_classes": 5, "depths": [1, 1], "embed_dim": 16, "crop_size": 64}
    seen = InputSettings(num_frames=1, sampling_rate=1, short_side=64, crop_size=64)
    kept = {name: value for name, value in sizes.items() if name in ("depths", "embed_dim")}
    card = ModelCard(name="mvitv2_t_in1k", arguments=kept, classes=tuple("abcde"), preprocessing=seen)
    save_checkpoint(tmp_path / "image.safetensors", build_model("mvitv2_t_in1k", **sizes), card)
    text, _ = run(
        "inflate_an_image_network",
        tmp_path,
        image_weights=str(tmp_path / "image.safetensors"),
        image_model="mvitv2_t_in1k",
        video_model="mvitv2_t_16x4",
        arguments=sizes,
        frames=8,
        side=64,
    )
    still, order = (float(line.rpartition(" ")[2]) for line in text.strip().splitlines()[-2:])
    assert still < 1e-4 and order < 1e-4
