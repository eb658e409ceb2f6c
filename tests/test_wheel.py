"""What a user of `pip install` gets: a wheel that works in an empty folder, far from any checkout."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

from mvit_video.config.shipped import shipped_configs

pytestmark = pytest.mark.integration


def build(source, output, *hooks):
    for hook in hooks:
        program = f"import sys; from setuptools.build_meta import {hook}; {hook}(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", program, output], cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, built from what git knows, so that nothing that lies about can slip in."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True).stdout.split(
        b"\0"
    )
    for name in filter(None, map(os.fsdecode, names)):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    build(source, output, "build_sdist", "build_wheel")
    return next(output.glob("*.whl")), next(output.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The wheel in an environment of its own, with the packages of this one behind it; returns its `mvit-video`."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        built[0],
    ]
    subprocess.run(install, check=True)
    [place] = (folder / "lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (place / "others.pth").write_text("\n".join(others) + "\n")
    return folder / "bin/mvit-video"


def in_an_empty_folder(program, folder, *words):
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([program, *words], cwd=folder, env=variables, capture_output=True, text=True)


def test_the_wheel_holds_the_package_its_configurations_and_its_data_and_nothing_else(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    package = {path for path in names if not path.split("/")[0].endswith(".dist-info")}
    assert all(path.startswith("mvit_video/") for path in package)
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "mvit_video").rglob("*.py")}
    assert modules <= package
    configs = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert {f"mvit_video/{path}" for path in configs} <= package
    for needed in ("py.typed", "serve/page.html", "data/lists/kinetics400_classes.txt"):
        assert f"mvit_video/{needed}" in package
    assert not [path for path in package if "test" in Path(path).name or "__pycache__" in path]


def test_the_source_archive_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    build(source, tmp_path, "build_wheel")
    [wheel] = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(wheel).namelist()) == set(zipfile.ZipFile(built[0]).namelist())


def test_an_installed_wheel_finds_its_configurations_by_name(installed, tmp_path):
    listed = in_an_empty_folder(installed, tmp_path, "configs")
    assert listed.returncode == 0 and str(REPOSITORY) not in listed.stdout, listed.stderr
    assert all(name in listed.stdout for name in shipped_configs())
    words = ("--dry-run", "--num-videos", "4000", "--num-classes", "5")
    for config in ("finetune", "configs/custom/finetune.yaml", "kinetics400/mvitv2_l_40x3"):
        planned = in_an_empty_folder(installed, tmp_path, "train", config, *words)
        assert planned.returncode == 0 and "optimiser: AdamW" in planned.stdout, planned.stderr


def test_an_installed_wheel_trains_evaluates_and_predicts_far_from_any_checkout(installed, tmp_path):
    def run(*words):
        done = in_an_empty_folder(installed, tmp_path, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("demo-data", "--output", "data", "--train", "16", "--val", "8")
    run(
        "train",
        "motion",
        "data.root=data",
        "train.epochs=1",
        "train.clips_per_step=8",
        "data.workers=1",
        "--output",
        "run",
    )
    run(
        "evaluate",
        "motion",
        "data.root=data",
        "--checkpoint",
        "run/model.safetensors",
        "--protocol",
        "1x1",
        "--output",
        "out",
    )
    assert (tmp_path / "out/report.html").is_file()
    assert "moving" in run("predict", "data/long.mp4", "--checkpoint", "run/model.safetensors", "--top", "8")
