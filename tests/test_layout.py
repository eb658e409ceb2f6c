"""The shape of the house: who imports whom, and what is never called."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mvit_video

PACKAGE = Path(__file__).resolve().parents[1] / "mvit_video"
ROOMS = (
    "config", "data", "model", "engine", "evaluation", "inference", "report", "serve", "benchmark", "api", "demo", "doctor", "cli",
)  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_rooms(tree: ast.AST):
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "mvit_video" and len(parts) > 1 and parts[1] in ROOMS:
                yield parts[1]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_left_only(room):
    files = [file for file in FILES if file.relative_to(PACKAGE).parts[0] in (room, f"{room}.py")]
    assert files, f"no file belongs to {room}"
    for file in files:
        for other in imported_rooms(ast.parse(file.read_text())):
            assert ROOMS.index(other) <= ROOMS.index(room), f"{file.name} in {room} imports {other}"


def test_leaves_import_no_room():
    for name in (
        "errors.py",
        "paths.py",
        "printable.py",
        "download.py",
        "locks.py",
        "compat.py",
        "progress.py",
        "figures.py",
        "shards.py",
        "version.py",
    ):
        assert list(imported_rooms(ast.parse((PACKAGE / name).read_text()))) == []


def test_every_module_of_an_exported_name_is_type_checked_strictly():
    makefile = (PACKAGE.parent / "Makefile").read_text()
    public = makefile.partition("PUBLIC := ")[2].partition("\n\n")[0].replace("\\", " ").split()
    assert all((PACKAGE / file).is_file() for file in public)
    modules = {module.removeprefix("mvit_video.") for module in mvit_video._MODULES.values()} | {"model.weights.zoo"}
    assert {f"{module.replace('.', '/')}.py" for module in modules} <= {*public}
    exported = {*mvit_video.__all__} - {"__version__", "zoo"}
    assert exported == {*mvit_video._MODULES}
    assert all(getattr(mvit_video, name).__doc__ for name in exported)


def calls(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_runs_a_strangers_code():
    for file in FILES:
        tree = ast.parse(file.read_text())
        names = {ast.unparse(call.func) for call in calls(tree)}
        assert not names & {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system"}, file
        keywords = {(word.arg, ast.unparse(word.value)) for call in calls(tree) for word in call.keywords}
        assert not keywords & {("shell", "True"), ("weights_only", "False"), ("allow_pickle", "True")}, file
        loads = [call for call in calls(tree) if ast.unparse(call.func) == "torch.load"]
        assert all(any(word.arg == "weights_only" for word in call.keywords) for call in loads), file


def test_importing_the_package_loads_neither_torchvision_nor_pytorchvideo():
    code = "import sys, mvit_video; print([n for n in ('torchvision', 'pytorchvideo', 'decord') if n in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("module", ["mvit_video", "mvit_video.data.video.reader"])
def test_the_package_and_its_decoders_load_without_torch(module):
    code = f"import sys, {module}; print([n for n in ('torch', 'pydantic', 'matplotlib') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"


def test_every_public_name_can_be_had():
    import mvit_video

    assert all(getattr(mvit_video, name) is not None for name in mvit_video.__all__)
    assert set(mvit_video.__all__) <= set(dir(mvit_video))


@pytest.mark.parametrize("room", ["inference", "serve", "report"])
def test_files_of_users_are_opened_in_guarded_processes_only(room):
    """`Guard.open` and `Guard.play` decode elsewhere; a VideoReader, or av.open for reading, would do it here."""
    for file in (PACKAGE / room).rglob("*.py"):
        for call in calls(ast.parse(file.read_text())):
            name = ast.unparse(call.func)
            reads = (
                name == "av.open" and ast.unparse(call.args[1:2][0] if call.args[1:] else ast.Constant("r")) != "'w'"
            )
            assert name != "VideoReader" and not reads, f"{file.name}, line {call.lineno}"
