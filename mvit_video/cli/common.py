"""Arguments that verbs share, and functions that print."""

import argparse
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table

from mvit_video.printable import printable

DEFAULT_CHECKPOINT = "mvitv2_s_16x4_k400"
MAX_ONE_LINE = 40  # characters of a name that a table keeps on one line


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a name that `mvit-video configs` lists")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override settings of the file")


def add_allow_missing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-missing", action="store_true", help="continue if listed files are missing; writes missing.txt"
    )


def overrides(arguments: argparse.Namespace) -> list[str]:
    """KEY=VALUE overrides, including those implied by options."""
    return [*arguments.overrides, "data.allow_missing=true"] if arguments.allow_missing else arguments.overrides


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1 ...")


def add_precision(parser: argparse.ArgumentParser, default: str | None = "auto", what: str = "of the network") -> None:
    usual = "auto" if default else "evaluation.precision"
    parser.add_argument(
        "--precision",
        default=default,
        metavar="NAME",
        help=f"{what}: fp32, bf16, fp16, or auto, bf16 on GPUs that have it, else fp32 (default: {usual})",
    )


def add_output(parser: argparse.ArgumentParser, what: str, required: bool = True) -> None:
    parser.add_argument("--output", required=required, metavar="DIR", help=f"folder for {what}")
    parser.add_argument("--overwrite", action="store_true", help="delete the output of an earlier run there")


def add_shard(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help=f"process part I of N of {what}, for `mvit-video merge`: one part on each machine",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        metavar="FILE",
        help="a file, a URL, hf://OWNER/NAME, or a name from `mvit-video models` "
        f"(default: {DEFAULT_CHECKPOINT}, downloaded once)",
    )


def at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def whole_number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0")
    return int(text)


def console(stderr: bool = False) -> Console:
    """A rich console that prints names verbatim."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def say(text: str) -> None:
    console(stderr=True).print(printable(text, keep="\n"), soft_wrap=True)


def show(text: str) -> None:
    """Print lines of a result on standard output."""
    print(printable(text, keep="\n"))


def print_error(text: str) -> None:
    """Print an error as one line on standard error."""
    print(f"error: {printable(' '.join(text.split()))}", file=sys.stderr, flush=True)


def print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> None:
    """Print a table without truncation; short names in its first column are not wrapped."""
    table, rows = Table(title=printable(title), title_justify="left"), list(rows)
    short = all(len(row[0]) <= MAX_ONE_LINE for row in rows)
    for place, column in enumerate(columns):
        justify: JustifyMethod = "right" if place in numbers else "left"
        table.add_column(printable(column), justify=justify, no_wrap=place == 0 and short, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console().print(table)
