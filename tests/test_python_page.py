"""docs/python.md, from top to bottom, on a few videos."""

import re

import pytest
from conftest import REPOSITORY

from mvit_video import cli, plugins

PAGE = (REPOSITORY / "docs/python.md").read_text(encoding="utf-8")


@pytest.mark.integration
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo-data", "--output", "data", "--train", "16", "--val", "8"]) == 0
    names = {"__name__": "page"}
    try:
        for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
            exec(compile(code, "python.md", "exec"), names)
    finally:
        plugins.unload_plugin("page")
    printed = capsys.readouterr().out
    assert printed.count("top-1") == 2 and "torch.Size([2, 3, 8, 48, 48])" in printed
    assert (tmp_path / "means/model.safetensors").is_file() and (tmp_path / "mine.safetensors").is_file()


def test_the_loop_of_the_page_has_twenty_five_lines():
    loop = re.search(r"## A training loop of your own\n\n```python\n(.*?)```", PAGE, re.DOTALL)[1]
    assert len(loop.strip().splitlines()) <= 25
