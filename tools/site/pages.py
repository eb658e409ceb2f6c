"""Hooks of `make docs`: pages from files outside docs/ and from the code, and links between them that work on the site."""

import json
import posixpath
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = {
    "index.md": "README.md",
    "datasets.md": "datasets/README.md",
    "model_zoo.md": "MODEL_ZOO.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    made: dict[str, Callable[[], str]] = {"settings.md": settings_page, "commands.md": commands_page}
    for page, source in COPIED.items():
        files.append(File.generated(config, page, content=(REPOSITORY / source).read_text(encoding="utf-8")))
    for notebook in sorted((REPOSITORY / "docs/notebooks").glob("*.ipynb")):
        made[f"notebooks/{notebook.stem}.md"] = partial(notebook_page, notebook)
    for page, write in made.items():
        files.append(File.generated(config, page, content=write()))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """Links to files of the repository as links to their pages; a link to a file without a page becomes its text."""
    source = COPIED.get(page, f"docs/{page}")
    pages = {file: uri for uri, file in COPIED.items()}

    def changed(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        to = pages.get(file, file.removeprefix("docs/") if file.startswith("docs/") else None)
        if to is None:
            return text if (REPOSITORY / file).exists() else match[0]
        return f"[{text}]({posixpath.relpath(to, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(changed, markdown)


def notebook_page(file: Path) -> str:
    """The cells of a notebook, which is kept without outputs."""
    parts = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, *rest = parts
    note = f"A notebook: `docs/notebooks/{file.name}`. `make test-integration` executes it."
    return "\n\n".join([title, note, *rest]) + "\n"


def settings_page() -> str:
    """Every setting with its default and its sentence, by section."""
    from mvit_video.config.load import describe_settings

    lines = [
        "# Settings",
        "",
        "`mvit-video settings` prints the same. Write them in a YAML file, or behind a command as `section.name=value`.",
    ]
    section = ""
    for key, default, sentence in describe_settings():
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            lines += ["", f"## {section}", ""]
        lines.append(f"- **`{key}`** = `{default}`  \n  {sentence}")
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """The help of every verb."""
    import argparse

    from mvit_video.cli import build_parser

    parser = build_parser()
    [verbs] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    lines = ["# Command line", ""]
    for name, verb in verbs.choices.items():
        lines += [f"## {name}", "", "```text", verb.format_help().rstrip(), "```", ""]
    return "\n".join(lines)
