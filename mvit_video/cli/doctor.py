"""The verb doctor, which checks the installation."""

import argparse

from rich.console import Console
from rich.table import Table


def doctor(arguments: argparse.Namespace) -> int:
    """Check what is installed and whether it works: versions, decoders, GPU, limits; and how to fix problems.

    Exits with 1 if a required part does not work.
    """
    from mvit_video.doctor import BROKEN, NOTE, OK, as_dict, run_checks, works
    from mvit_video.paths import output_file, write_json

    output = output_file(arguments.json) if arguments.json else None
    checks = run_checks()
    colours = {OK: "green", NOTE: "yellow", BROKEN: "red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for place in range(3):
        table.add_column(no_wrap=place < 2, overflow="fold")
    for check in checks:
        table.add_row(f"[{colours[check.state]}]{check.state}[/]", check.name, _plain(check.found))
        if check.cure:
            table.add_row("", "", f"[italic]→ {_plain(check.cure)}[/]")
    Console(highlight=False).print(table)
    if output:
        write_json(output, as_dict(checks))
    broken = [check.name for check in checks if check.state == BROKEN]
    print(f"broken: {', '.join(broken)}" if broken else "all required parts work")
    return 0 if works(checks) else 1


def _plain(text: str) -> str:
    from rich.markup import escape

    from mvit_video.printable import printable

    return escape(printable(text))


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the same to this file")


VERBS = ((doctor, _add_doctor),)
