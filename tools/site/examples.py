"""An extension of the API reference: examples in docstrings (`>>> call()`) become Python code that can be copied."""

from typing import Any

import griffe


def with_code(text: str) -> str:
    """Runs of lines that begin with `>>> ` or `... `, fenced; what doctest alone reads is left out."""
    lines: list[str] = []
    inside = False
    for line in [*text.splitlines(), ""]:
        is_code = line.lstrip().startswith((">>> ", "... ")) or (inside and bool(line.strip()))
        if is_code != inside:
            lines.append("```python" if is_code else "```")
            inside = is_code
        if not is_code:
            lines.append(line)
        elif line.lstrip().startswith((">>> ", "... ")):
            lines.append(line.strip()[4:].partition("  # doctest:")[0])
        else:
            lines.append(f"# {line.strip()}")
    return "\n".join(lines[:-1])


class Examples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = with_code(obj.docstring.value)
