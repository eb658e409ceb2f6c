"""The console script `mvit-video`: each verb is a function of a module here.

A module's VERBS are (function, function that adds its arguments); the function's name is the verb, its docstring the help.
"""

import argparse
import errno
import inspect
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn

from mvit_video.cli import (
    benchmark,
    browse,
    data,
    doctor,
    evaluation,
    export,
    inference,
    models,
    probe,
    serve,
    training,
)
from mvit_video.cli.common import print_error, say
from mvit_video.errors import Interrupted, MvitVideoError
from mvit_video.paths import ODD_BYTES
from mvit_video.plugins import load_plugins
from mvit_video.printable import printable
from mvit_video.version import __version__

VERBS = (
    *data.VERBS,
    *browse.VERBS,
    *training.VERBS,
    *evaluation.VERBS,
    *probe.VERBS,
    *inference.VERBS,
    *export.VERBS,
    *serve.VERBS,
    *models.VERBS,
    *benchmark.VERBS,
    *doctor.VERBS,
)


CURES = {
    errno.ENOSPC: "make room, or write to another place (--output, --json)",
    errno.EDQUOT: "make room in your quota, or write to another place (--output, --json)",
    errno.EROFS: "write to another place (--output, --json)",
    errno.EACCES: "change its permissions, or write to another place (--output, --json)",
    errno.EPERM: "change its permissions, or write to another place (--output, --json)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the number of open files with `ulimit -n`",
    errno.ENOMEM: "close other programs, or lower the number of workers",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print argparse's error; file names in it may contain any character."""
        super().error(printable(message))


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mvit-video", description="Video action recognition around MViTv2.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for function, add_arguments in VERBS:
        text = inspect.getdoc(function) or ""
        verb = verbs.add_parser(function.__name__.replace("_", "-"), help=text.partition("\n")[0], description=text)
        verb.set_defaults(run=function)
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verb.add_argument(
            "--plugin",
            action="append",
            default=[],
            metavar="MODULE",
            help="a Python module that registers networks, list formats, transforms, losses, exporters or trackers "
            "(docs/extending.md); may be repeated",
        )
        add_arguments(verb)
    return parser


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments; KEY=VALUE may also follow options, where argparse alone does not accept it."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    stray = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(arguments, "overrides")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    if getattr(arguments, "resume", None) and arguments.overwrite:
        parser.error("--resume and --overwrite cannot be combined")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb. User errors print one line on stderr and exit with 1; usage errors exit with 2, a graceful stop with 75."""
    arguments = parse(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ODD_BYTES)
    try:
        load_plugins(arguments.plugin)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except Interrupted as reason:
        say(str(reason))
        return reason.exit_code
    except (MvitVideoError, OSError) as reason:
        if arguments.debug:
            raise
        if isinstance(reason, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        text = str(reason) if isinstance(reason, MvitVideoError) else _os_error(reason)
        print_error(text)
        return 1
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130


def _os_error(reason: OSError) -> str:
    where = str(Path(os.fsdecode(reason.filename))) if reason.filename else ""
    if not where and _was_printing(reason):
        where = "standard output"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which would fail again at the end
        return f"{where}: {reason.strerror or reason}"
    text = f"{where}: {reason.strerror or reason}" if where else reason.strerror or str(reason)
    return f"{text}: {CURES[reason.errno]}" if reason.errno in CURES else text


def _was_printing(reason: OSError) -> bool:
    """Whether an error comes from a line of ours, or of rich, that writes to standard output."""
    *_, (frame, _) = walk_tb(reason.__traceback__)
    return frame.f_globals.get("__name__", "").startswith(("rich.", __name__))
