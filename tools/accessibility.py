"""Check pages with axe-core in headless Chromium; fails for serious findings: `python tools/accessibility.py PAGE.html ...`.

At 1300 pixels in light and at 500 pixels in dark colours. axe-core comes with `pip install axe-core-python`, or from npm.
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VIEWS = {"1300 pixels, light": (1300, 1), "500 pixels, dark": (500, 0)}  # width; Chromium's number of the colour scheme
POLICY = re.compile(r"<meta[^>]*Content-Security-Policy[^>]*>", re.IGNORECASE)  # allows no script but the page's own
ANSWER = re.compile(r'<textarea id="axe">(.*?)</textarea>', re.DOTALL)
RUN = """
addEventListener("load", () => setTimeout(async () => {
  const answer = document.createElement("textarea")
  answer.id = "axe"
  answer.textContent = JSON.stringify((await axe.run(document, {resultTypes: ["violations"]})).violations)
  document.body.appendChild(answer)
}, 500))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE.html", help="self-contained pages")
    parser.add_argument("--axe", type=Path, metavar="axe.min.js", help="axe-core (default: axe-core-python's)")
    arguments = parser.parse_args()
    axe, serious = (arguments.axe or installed_axe()).read_text(), 0
    for page in arguments.pages:
        for name, view in VIEWS.items():
            found = findings(page.read_text(), axe, *view)
            print(f"{page}, {name}: {len(found)} findings")
            for finding in found:
                print(f"  {finding['impact']}: {finding['help']}: {finding['nodes'][0]['html'][:120]}")
            serious += sum(finding["impact"] in ("serious", "critical") for finding in found)
    if serious:
        raise SystemExit(f"{serious} serious findings")


def installed_axe() -> Path:
    package = find_spec("axe_core_python")
    if package is None or package.origin is None:
        raise SystemExit("axe-core is not installed: pip install axe-core-python, or give --axe axe.min.js")
    return Path(package.origin).with_name("axe.min.js")


def findings(page: str, axe: str, width: int, scheme: int) -> list[dict[str, Any]]:
    """What axe-core says about a page (HTML) in a window of this width."""
    page = POLICY.sub("", page).replace("</body>", f"<script>{axe}</script><script>{RUN}</script></body>")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "page.html")
        file.write_text(page)
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={scratch}/browser", "--dump-dom"]
        look = [f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},1400"]
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None:
            raise SystemExit(f"none of {', '.join(BROWSERS)} is installed: install one")
        command = [browser, *options, *look, "--virtual-time-budget=30000", file.as_uri()]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    answer = ANSWER.search(shown)
    if answer is None:
        raise SystemExit("axe-core gave no answer: does the page work in a browser?")
    found: list[dict[str, Any]] = json.loads(html.unescape(answer[1]))
    return found


if __name__ == "__main__":
    main()
