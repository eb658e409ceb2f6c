"""docs/extending.md, executed: its code is a plugin in a folder of its own, its commands are run there."""

import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from two_processes import environment, torchrun_words

from mvit_video import build_model, cli, plugins
from mvit_video.data.lists.read import read_videos
from mvit_video.data.transform_registry import AddedTransforms
from mvit_video.engine.losses import LOSSES
from mvit_video.errors import AnnotationError
from mvit_video.model.registry import model_entry

PAGE = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SMALLER = {"demo-data": ["--train", "16", "--val", "8"], "train": ["train.clips_per_step=8", "data.workers=1"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The plugin and what the commands name, somewhere outside of the repository."""
    (tmp_path / "my_plugin.py").write_text(CODE)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plugin(folder, monkeypatch):
    """The same, loaded in this process until the test ends."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugins.load_plugins(["my_plugin"])
    yield sys.modules["my_plugin"]
    plugins.unload_plugin("my_plugin")


def test_the_network_of_the_page_has_what_it_promises(plugin):
    model = build_model("tiny3d_8x3", num_classes=5, crop_size=32).eval()
    clips = torch.randn(2, 3, 8, 32, 32)
    logits, feature = model(clips, with_feature=True)
    assert logits.shape == (2, 5) and torch.equal(model.head(feature), logits)
    [grid] = model.forward_features(clips)
    assert grid.shape[1] == model.stage_dims[0]
    seen, maps = model_entry("tiny3d_8x3").capabilities.evidence(model, clips)
    torch.testing.assert_close(seen, logits)
    gradient = torch.autograd.grad(seen[:, 1].sum(), maps[0])[0]
    assert gradient.shape == maps[0].shape and gradient.abs().sum() > 0


def test_the_loss_and_the_augmentation_of_the_page_do_what_they_say(plugin):
    logits, targets = torch.randn(6, 4, dtype=torch.float64), torch.eye(4)[[0, 1, 2, 3, 0, 1]].double()
    scores = [row.softmax(0)[k] for row, k in zip(logits, targets.argmax(1), strict=True)]
    expected = [1 - score - score.log() for score in scores]
    torch.testing.assert_close(LOSSES.get("poly")(logits, targets), torch.stack(expected))
    clip, count = torch.rand(3, 2, 4, 4), 0
    for seed in range(200):
        made = AddedTransforms(("grey",))(clip.clone(), np.random.default_rng(seed))
        grey = torch.equal(made[0], made[1]) and torch.equal(made[1], made[2])
        assert grey or torch.equal(made, clip)
        count += grey
    assert 20 < count < 60


def test_the_list_format_of_the_page_is_read_as_ours_are(folder, plugin):
    (folder / "some.jsonl").write_text('{"file": "a.mp4", "class": "wave"}\n{"file": "b/c.mp4", "class": "clap"}\n')
    videos = read_videos("some.jsonl", str(folder), classes=("clap", "wave"))
    assert [(record.path, record.label, record.row) for record in videos.records] == [
        ("a.mp4", 1, 1),
        ("b/c.mp4", 0, 2),
    ]
    (folder / "some.jsonl").write_text('{"file": "a.mp4", "class": "jump"}\n')
    with pytest.raises(AnnotationError, match=r"some.jsonl: row 1 has the label 'jump'"):
        read_videos("some.jsonl", str(folder), classes=("clap", "wave"))


def test_a_dry_run_names_what_comes_from_the_plugin(folder, plugin, few_videos, capsys):
    words = [f"data.root={few_videos}", "train.clips_per_step=8", "model.name=tiny3d_8x3"]
    words += ["data.transforms=[grey]", "train.loss=poly", "train.trackers=[lines]", "train.epochs=2"]
    assert cli.main(["train", "configs/demo/motion.yaml", "--dry-run", "--plugin", "my_plugin", *words]) == 0
    plan = capsys.readouterr().out
    assert all(
        part in plan for part in ("tiny3d_8x3: ", "grey of the plugin my_plugin", "poly of the plugin my_plugin")
    )


@pytest.mark.integration
def test_a_process_that_is_no_fork_knows_the_plugins_too(folder, plugin):
    """As DataLoader's workers are where they are spawned: what is looked up by name is registered there first."""
    words = (AddedTransforms(("grey",)), plugins.named_plugins())
    code = (
        "import pickle, sys, numpy, torch\nfrom mvit_video.plugins import load_plugins\n"
        "transform, names = pickle.load(sys.stdin.buffer)\n"
        "from mvit_video.data.loader import _be_a_worker\n_be_a_worker(0, plugins=names)\n"
        "print(transform(torch.ones(3, 1, 2, 2), numpy.random.default_rng(0)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(words), capture_output=True, env=environment()
    )
    assert done.stdout.decode().strip() == "torch.Size([3, 1, 2, 2])", done.stderr.decode()


def run(words, where, **more):
    return subprocess.run(words, cwd=where, capture_output=True, text=True, timeout=600, env=environment(**more))


def mvit_video(*words, where, **more):
    return run([sys.executable, "-m", "mvit_video", *words], where, **more)


def ours() -> str:
    """A digest of every file of the package."""
    files = sorted(
        path for path in (REPOSITORY / "mvit_video").rglob("*") if path.suffix in (".py", ".txt", ".j2", ".js")
    )
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.integration
def test_every_command_of_the_page_works_and_touches_no_file_of_ours(folder):
    before, outputs = ours(), {}
    shim = folder / "bin/mvit-video"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mvit_video "$@"\n')
    shim.chmod(0o755)
    path = f"{shim.parent}{os.pathsep}{os.environ['PATH']}"
    for command in COMMANDS:
        verb = command.split()[1] if command.startswith("mvit-video") else ""
        line = " ".join([command, *SMALLER.get(verb, [])])
        done = run(["/bin/sh", "-c", line], folder, PATH=path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        outputs[verb] = done.stdout + done.stderr
    assert ours() == before
    assert "tiny3d_8x3" in outputs["models"] and "my_plugin" in outputs["models"]
    assert "poly of the plugin my_plugin" in outputs["train"]
    lines = (folder / "run/lines.txt").read_text().splitlines()
    assert lines[0].startswith("1 {'train/loss':") and any("validation/top1" in line for line in lines)
    assert "plugins:\n- my_plugin" in (folder / "run/config.yaml").read_text()
    assert (folder / "why/explain.png").exists() and (folder / "features/index.csv").exists()
    assert len(outputs["predict"].splitlines()) >= 8
    files: dict = {"card.json": ""}
    module = torch.jit.load(str(folder / "model.pt"), _extra_files=files)
    assert (
        module(torch.zeros(1, 3, 8, 48, 48)).shape == (1, 8) and '"plugin":"my_plugin"' in files["card.json"].decode()
    )
    _without_the_plugin(folder)
    _installed(folder)
    _under_torchrun(folder)


def _train_words(folder: Path, *more: str) -> list[str]:
    [line] = [command for command in COMMANDS if command.startswith("mvit-video train")]
    return [*line.split()[1:], *SMALLER["train"], *more]


def _without_the_plugin(folder):
    """Resuming, evaluating by the run's settings and predicting say which plugin is missing, and load none."""
    words = [word for word in _train_words(folder, "--resume", "auto") if word not in ("--plugin", "my_plugin")]
    missing = "was made with the plugin 'my_plugin', which is not loaded: add --plugin my_plugin"
    weights = ["--checkpoint", "run/model.safetensors"]
    for given in (
        words,
        ["evaluate", "run/config.yaml", *weights, "--output", "again"],
        ["predict", "data/long.mp4", *weights],
    ):
        done = mvit_video(*given, where=folder)
        assert done.returncode == 1 and missing in done.stderr and "Traceback" not in done.stderr, done.stderr
    done = mvit_video(*_train_words(folder, "--resume", "auto"), where=folder)
    assert done.returncode == 0 and "resuming after step 2" in done.stderr, done.stderr


def _installed(folder):
    """An installed package's entry point does without --plugin."""
    site = folder / "site"
    (site / "my_plugin-1.0.dist-info").mkdir(parents=True)
    shutil.copy(folder / "my_plugin.py", site)
    toml = re.search(r"```toml\n\[project\.entry-points\.\"(.*?)\"\]\n(my_plugin) = \"(.*?)\"\n", PAGE)
    (site / "my_plugin-1.0.dist-info/entry_points.txt").write_text(f"[{toml[1]}]\n{toml[2]} = {toml[3]}\n")
    (site / "my_plugin-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    away = folder / "away"
    away.mkdir()
    found = os.pathsep.join((environment()["PYTHONPATH"], str(site)))
    words = ["predict", str(folder / "data/long.mp4"), "--checkpoint", str(folder / "run/model.safetensors"), "--json"]
    done = mvit_video(*words, where=away, PYTHONPATH=found)
    assert done.returncode == 0 and '"label"' in done.stdout, done.stderr
    (site / "my_plugin.py").write_text("import no_such_package\n")
    done = mvit_video(*words, where=away, PYTHONPATH=found)
    assert "plugin 'my_plugin' of my-plugin: needs the module 'no_such_package'" in done.stderr, done.stderr


def _under_torchrun(folder):
    words = [word.replace("run", "both") if word == "run" else word for word in _train_words(folder)]
    done = run([*torchrun_words("-m", "mvit_video", *words)], folder)
    assert done.returncode == 0, done.stderr
    assert "plugins:\n- my_plugin" in (folder / "both/config.yaml").read_text()
