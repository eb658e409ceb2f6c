"""Every page: its commands are ones that the command line takes, its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from mvit_video import build_model, cli
from mvit_video.config.load import config_from_dict
from mvit_video.config.shipped import config_file

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "MODEL_ZOO.md", "datasets/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def commands(page):
    """The words behind `mvit-video` of every command in a page's shell blocks."""
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        if language in ("sh", "bash", "text", ""):
            yield from lines_of(block)
    indented = "\n".join(line[4:] for line in FENCE.sub("", text).splitlines() if line.startswith("    "))
    yield from lines_of(indented)


def lines_of(block):
    for line in block.replace("\\\n", " ").splitlines():
        found = re.search(
            r"(?:^|[|;] *)(?:\.venv/bin/mvit-video|mvit-video|torchrun .*-m mvit_video) +(\S.*)", line.strip()
        )
        if found and not re.search(r"\$|\.\.\.", found[1]):
            yield shlex.split(found[1].partition(" && ")[0], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_that_the_command_line_takes(page, capsys):
    for words in commands(page):
        try:
            arguments = cli.parse(words)
        except SystemExit as reason:
            pytest.fail(f"mvit-video {shlex.join(words)}: {capsys.readouterr().err}{reason}")
        if arguments.verb == "train" and not arguments.plugin:
            config_from_dict({}, "the page", arguments.overrides)
        name = getattr(arguments, "config", None)
        if name and name.startswith("configs/"):
            assert config_file(name) != name or (REPOSITORY / name).is_file(), f"{page.name} names {name}"


def test_the_pages_hold_commands_to_look_at():
    assert sum(len(list(commands(page))) for page in PAGES) > 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_to_a_heading_of_it(page):
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}"


@pytest.mark.integration
def test_the_site_is_built_without_a_warning_and_holds_every_page(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of its makers, about the next version
    done = subprocess.run(build, cwd=REPOSITORY, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for page in (REPOSITORY / "docs").rglob("*.md"):
        assert (tmp_path / page.relative_to(REPOSITORY / "docs").with_suffix(".html")).is_file()
    for page in ("index", "datasets", "settings", "commands", "model_zoo"):
        assert (tmp_path / f"{page}.html").is_file()
    assert "train.clips_per_step" in (tmp_path / "settings.html").read_text()
    assert "TrainResult" in (tmp_path / "api/index.html").read_text()
    outside = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://")
    assert not [page for page in tmp_path.rglob("*.html") if outside.search(page.read_text())]


def test_examples_in_docstrings_become_code_with_their_results_as_comments():
    pytest.importorskip("griffe")
    from examples import with_code

    text = "What it does.\n\n>>> for x in y:  # doctest: +SKIP\n...     print(x)\n1\n\nMore."
    assert with_code(text) == "What it does.\n\n```python\nfor x in y:\n    print(x)\n# 1\n```\n\nMore."


def test_every_network_is_an_entry_point_of_torch_hub():
    for name in ("mvitv2_nano_8x3", "pvt_v2_b0_16x4"):
        model = torch.hub.load(str(REPOSITORY), name, source="local", num_classes=3)
        assert isinstance(model, type(build_model(name))) and model.num_classes == 3
