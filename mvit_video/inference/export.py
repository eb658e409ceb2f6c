"""Networks as files that other programs run: ONNX, for a smaller file with 8-bit weights, and torch.export's pt2.

Each file carries the checkpoint's card (class names, preprocessing, protocol) under the same key as our checkpoints do,
and is compared with the network before it is written. examples/onnx_runner.py predicts from the ONNX file alone.
"""

# B clips, T/H/W frames and pixels, K classes

import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.inference.runners import package, with_onnxruntime
from mvit_video.model.precision import Precision, resolve_precision
from mvit_video.model.weights.card import CARD_KEY, ModelCard
from mvit_video.model.weights.convert import load_network
from mvit_video.paths import output_file, write_whole
from mvit_video.plugins import Registry, calling_module

OPSET = 20  # the first with GELU
TOLERANCE = 1e-4  # of the logits, absolute, or relative where they are larger than 1
MAX_ONNX_BYTES = 2**31 - 2**24  # a protobuf message ends at 2 GiB
DYNAMIC_CLIPS = 3  # with which a file of any batch is tried, besides one
TIMED_RUNS = 5
CPU = torch.device("cpu")

Run = Callable[[Tensor], np.ndarray]  # clips (B, 3, T, H, W) -> logits (B, K)


@dataclass(frozen=True)
class Exporter:
    """See `register_exporter`."""

    write: Callable[[nn.Module, ModelCard, int | None], bytes]
    run: Callable[[bytes], Run]
    packages: tuple[str, ...]


EXPORTERS: Registry[Exporter] = Registry("export format")


def register_exporter(
    name: str,
    write: Callable[[nn.Module, ModelCard, int | None], bytes],
    run: Callable[[bytes], Run],
    packages: Sequence[str] = (),
) -> None:
    """Let `export --format` name a format of files that other programs run.

    Args:
        write: (network in eval mode, its card, the number of clips that the file takes or None for any) -> the file's content;
            clips (B, 3, T, H, W) float32, normalised, in, logits (B, K) out. The card belongs into the file.
        run: content -> a function that runs the file, clips -> logits (B, K): before a file is written, its logits are compared
            with the network's.
        packages: what both import; looked for before the work begins.

    Raises ConfigError for a name that is taken.
    """
    EXPORTERS.add(name, Exporter(write, run, tuple(packages)), calling_module())


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the network on random clips."""

    size: int
    """Bytes of the file."""
    difference: float
    """The greatest of any logit."""
    same_label: float
    """Share of clips with the same best class."""
    seconds: float
    """Per run of the file, median, in this process on the CPU."""
    network_seconds: float
    """The same of the network itself."""
    precision: str
    """Of the network that the file was compared with."""


def export_checkpoint(
    source: str | Path,
    kind: str,
    output: str | Path,
    batch: int | None,
    int8: bool = False,
    overwrite: bool = False,
    precision: str = "auto",
) -> ExportReport:
    """Write the network of a checkpoint to `output`; there whole or not at all.

    `kind` is a registered format, `batch` the number of clips that the file takes, None for any. The file is in fp32 and must
    have the logits of the network in fp32; the report compares it with the network in `precision`, on the CPU. Raises ConfigError for what
    cannot be exported and CheckpointError where the file's logits are not the network's.
    """
    exporter, fp32, asked = EXPORTERS.get(kind), *(resolve_precision(word, CPU) for word in ("fp32", precision))
    if int8 and kind != "onnx":
        raise ConfigError(f"--int8 is for ONNX files, not for {kind}: use --format onnx")
    output = output_file(output, overwrite)
    for (
        name
    ) in exporter.packages:  # a conversion may take minutes: what it, and what follows, needs is looked for first
        package(name)
    model, card = load_network(source)
    model.eval()
    content = exporter.write(model, card, batch)
    run = exporter.run(content)
    report = _compare(run, model, card, batch, len(content), fp32)
    if report.difference > TOLERANCE:
        raise CheckpointError(
            f"{output}: not written, because its logits are up to {report.difference:.1e} from the network's, "
            f"expected at most {TOLERANCE:g}"
        )
    if int8:
        content = to_int8(content)
        run = onnx_run(content)
    if int8 or asked != fp32:
        report = _compare(run, model, card, batch, len(content), asked)
    write_whole(output, content)
    return report


def to_onnx(model: nn.Module, card: ModelCard, batch: int | None) -> bytes:
    """An ONNX file: input `clips` (B, 3, T, H, W) float32, normalised, output `logits` (B, K)."""
    onnx = package("onnx")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > MAX_ONNX_BYTES:
        raise ConfigError(f"'{card.name}' has {size:,} bytes of weights, an ONNX file holds 2 GiB: use --format pt2")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example_clips(card, batch or 2),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["clips"],
            output_names=["logits"],
            dynamic_shapes=_dynamic(batch),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {CARD_KEY: card.model_dump_json()})
    return bytes(proto.SerializeToString())


def to_pt2(model: nn.Module, card: ModelCard, batch: int | None) -> bytes:
    """A torch.export file: `torch.export.load(FILE).module()(clips)`; the card is its extra file."""
    with torch.no_grad():
        program = torch.export.export(model, (example_clips(card, batch or 2),), dynamic_shapes=_dynamic(batch))
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={CARD_KEY: card.model_dump_json()})
    return content.getvalue()


def to_int8(content: bytes) -> bytes:
    """An ONNX file with the weights of its linear layers in 8 bits, a scale for each output channel.

    Their inputs are rounded to 8 bits as they come (dynamic quantisation); all else stays float32.
    """
    onnx, quantization = package("onnx"), package("onnxruntime.quantization")
    full = onnx.load_from_string(content)
    del full.graph.value_info[:]  # shapes of weights that the quantiser turns around, and then finds wrong
    with TemporaryDirectory(prefix="mvit_video_export_") as folder, _without_advice():
        file = Path(folder) / "int8.onnx"
        quantization.quantize_dynamic(
            full,
            file,
            nodes_to_quantize=_linear_layers(full.graph),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )
        return file.read_bytes()


def _linear_layers(graph: Any) -> list[str]:
    """Names of the nodes that multiply by a weight matrix; those of position tables have three axes and are few."""
    matrices = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    return [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices]


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without the quantiser's advice to optimise the graph first, which has been done. All other logging stays as it is.

    The quantiser logs to the root, which would give it a handler for good where it has none.
    """
    root = logging.getLogger()
    handlers = [logging.lastResort] if logging.lastResort and not root.handlers else []
    root.addFilter(_not_of_the_quantiser)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.removeFilter(_not_of_the_quantiser)
        for handler in handlers:
            root.removeHandler(handler)


def _not_of_the_quantiser(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in Path(record.pathname).parts


def onnx_run(content: bytes) -> Run:
    """The file in onnxruntime, on the CPU."""
    loaded = with_onnxruntime(content, torch.get_num_threads())
    return lambda clips: loaded.run(clips.numpy())


def pt2_run(content: bytes) -> Run:
    """The file in torch, as another program would load it."""
    module = torch.export.load(io.BytesIO(content)).module()

    def run(clips: Tensor) -> np.ndarray:
        with torch.no_grad():
            scores: np.ndarray = module(clips).numpy()
            return scores

    return run


def example_clips(card: ModelCard, count: int, seed: int = 0) -> Tensor:
    """Random clips of the checkpoint's input size, (B, 3, T, H, W)."""
    shape = (count, 3, card.preprocessing.num_frames, *card.preprocessing.crop_hw)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _dynamic(batch: int | None) -> tuple[dict[int, object]] | None:
    return None if batch else ({0: torch.export.Dim("batch", min=1, max=1024)},)


def _compare(
    run: Run, model: nn.Module, card: ModelCard, batch: int | None, size: int, precision: Precision
) -> ExportReport:
    differences, same, model = [], [], precision.held(model)
    for seed, count in enumerate([batch] if batch else [1, DYNAMIC_CLIPS], 1):
        clips = example_clips(card, count, seed)
        with torch.inference_mode(), precision.autocast():
            wanted = model(clips).float().numpy()
        found = run(clips)
        differences.append(float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1.0)))
        same += (found.argmax(1) == wanted.argmax(1)).tolist()
    clips = example_clips(card, batch or 1)
    with torch.inference_mode(), precision.autocast():
        network_seconds = _median_seconds(lambda: model(clips))
    seconds = _median_seconds(lambda: run(clips))
    return ExportReport(size, max(differences), float(np.mean(same)), seconds, network_seconds, str(precision))


def _median_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


register_exporter("onnx", to_onnx, onnx_run, ("onnx", "onnxscript", "onnxruntime"))
register_exporter("pt2", to_pt2, pt2_run)
