"""Verbs that carry a trained network, or what it computes, to other programs: export, features."""

import argparse

from mvit_video.cli.common import add_checkpoint, at_least_one, say


def export(arguments: argparse.Namespace) -> int:
    """Write a network as ONNX or torch.export file, with class names and preprocessing, compared with the network."""
    from mvit_video.inference.export import export_checkpoint

    report = export_checkpoint(
        arguments.checkpoint,
        arguments.format,
        arguments.output,
        arguments.batch,
        arguments.int8,
        arguments.overwrite,
    )
    say(
        f"{arguments.output}: {report.size / 1e6:.1f} MB, logits up to {report.difference:.1e} from the network's and "
        f"the same label for {report.same_label:.0%} of random clips; {1000 * report.seconds:.0f} ms a run on this CPU, "
        f"the network {1000 * report.network_seconds:.0f} ms"
    )
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--format", required=True, choices=("onnx", "pt2"), help="ONNX, or torch.export's pt2")
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if there is one")
    parser.add_argument(
        "--batch", type=_batch, metavar="N", help="clips that the file takes: a number, or dynamic for any (default)"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="ONNX with the weights of linear layers in 8 bits: smaller, a bit less exact",
    )


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else at_least_one(text)


VERBS = ((export, _add_export),)
