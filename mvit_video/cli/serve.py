"""The verb serve, a local web page."""

import argparse

from mvit_video.cli.common import add_checkpoint, add_device, add_precision, at_least_one, print_error, say
from mvit_video.errors import ConfigError


def serve(arguments: argparse.Namespace) -> int:
    """Serve a local web page: drop a video, see labels, timeline and heat map."""
    try:
        from mvit_video.serve.app import LOCAL, bound, serve
    except ImportError as reason:
        raise ConfigError(f"the page needs more packages ({reason}): run 'pip install starlette uvicorn'") from None
    from mvit_video.inference.predictor import Predictor
    from mvit_video.serve.jobs import Jobs, Limits

    limits = Limits(arguments.max_megabytes * 10**6, float(arguments.max_seconds), arguments.queue)
    host, port = arguments.host, arguments.port
    with bound(host, port) as place:
        predictor = Predictor.from_checkpoint(arguments.checkpoint, arguments.device, precision=arguments.precision)
        if host not in LOCAL:
            print_error(f"--host {host}: anyone who can reach this machine can use the page, without a password")
        name = f"[{host}]" if ":" in host else host
        say(f"open http://{name}:{port} in a browser; Ctrl+C ends it and deletes all uploads")
        serve(Jobs(predictor, limits), host, place)
    return 0


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=_port, default=8000, help="default: 8000")
    parser.add_argument(
        "--max-megabytes", type=at_least_one, default=200, metavar="N", help="maximum size of an upload (default: 200)"
    )
    parser.add_argument(
        "--max-seconds", type=at_least_one, default=600, metavar="N", help="maximum length of a video (default: 600)"
    )
    parser.add_argument(
        "--queue",
        type=at_least_one,
        default=4,
        metavar="N",
        help="maximum number of videos uploading, waiting or in progress (default: 4)",
    )
    add_precision(parser)
    add_device(parser)


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port from 1 to 65535")
    return int(text)


VERBS = ((serve, _add_serve),)
