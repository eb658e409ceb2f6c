"""Verbs that measure a trained network: evaluate."""

import argparse

from mvit_video.cli.common import add_config, add_device, add_output, complain, say
from mvit_video.errors import ConfigError


def evaluate(arguments: argparse.Namespace) -> int:
    """Score every video of data.test (or data.val) over several views; writes results.json to --output."""
    from mvit_video.config.load import load_config
    from mvit_video.data.annotations import read_videos
    from mvit_video.evaluation.evaluate import Protocol, evaluate
    from mvit_video.inference.predictor import choose_device
    from mvit_video.model.checkpoints import load_checkpoint
    from mvit_video.paths import fresh_folder, write_json

    config = load_config(arguments.config, arguments.overrides)
    device = choose_device(arguments.device)
    protocol = Protocol.parse(arguments.protocol or config.evaluation.protocol)
    model, card = load_checkpoint(arguments.checkpoint)
    source = config.data.test or config.data.val
    if source is None:
        raise ConfigError("neither data.test nor data.val is set: name the list of videos to evaluate on")
    videos = read_videos(source, config.data.root, card.classes)
    output = fresh_folder(arguments.output, ("results.json",), arguments.overwrite)
    _, result = evaluate(model.to(device), card, videos, config, protocol, device)
    write_json(output / "results.json", result)
    for bad in result["undecodable"]:
        complain(f"{bad['reason']} ({bad['where']}): counted as wrong")
    say(
        f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % of {result['num_videos']} videos, "
        f"{result['protocol']} views each; details in {output / 'results.json'}"
    )
    return 0


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="a model.safetensors that train has written"
    )
    parser.add_argument(
        "--protocol", metavar="NxM", help="clips × crops per video, such as 5x1 (default: the config's)"
    )
    add_output(parser, "results.json")
    add_device(parser)


VERBS = ((evaluate, _add_evaluate),)
