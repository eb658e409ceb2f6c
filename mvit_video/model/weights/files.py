"""Files of weights, read without running what is in them: safetensors, and what `torch.save` writes.

Ours are safetensors with a card (see card.py) among their metadata.
"""

import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from mvit_video.download import local_file
from mvit_video.errors import CheckpointError
from mvit_video.model.weights.card import CARD_KEY, ModelCard, read_card
from mvit_video.paths import write_whole

Result = TypeVar("Result")

WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTS = (torch.int64,)  # what networks hold besides: batches that a norm has seen, indices of a table
WRAPPERS = ("model_state", "model", "state_dict_ema", "state_dict")  # averaged weights are what was published
METADATA = frozenset(  # what training programs (PySlowFast's, torchvision's, timm's) write beside the weights
    {"epoch", "optimizer_state", "scaler_state", "cfg", "optimizer", "lr_scheduler", "scaler", "args", "arch", "metric"}
    | {"version", "amp_scaler", "state_dict", "meta", "message_hub"}
)


TRUNCATED = "is not a complete PyTorch file (truncated or damaged): download it again"
MAX_BYTES = 64 << 30  # of a file, and of what is in it; the largest network's training state has 8 GB
MAX_PICKLE = 64 << 20  # of the names and numbers beside the tensors in a PyTorch file
MAX_UNPACK_RATIO = 8  # times a file's size: torch.save packs nothing, and tensors may share their values


class Ignored:
    """Stands where a file has one of NOT_READ: takes whatever that was made of, and keeps none of it."""

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# Numbers of numpy and arguments of a command line, which training programs keep beside the weights. Only the name under
# which they lie there is reported, so nothing of numpy's or argparse's is called.
IGNORED_GLOBALS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "argparse.Namespace",
)


def save_checkpoint(path: str | Path, model: nn.Module, card: ModelCard) -> None:
    """Weights and card in one safetensors file; there whole or not at all. Raises CheckpointError for NaN or Inf."""
    save_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, card)


def save_tensors(path: str | Path, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """`save_checkpoint` of weights that lie on the CPU already."""
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{path}: not written, because '{broken[0]}' contains NaN or Inf ({len(broken)} tensors do)"
        )
    write_whole(path, to_safetensors(dict(state), metadata={CARD_KEY: card.model_dump_json()}))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Tensors and card of a checkpoint of ours. Raises CheckpointError that says what the file is not."""
    file = local_file(path, CheckpointError, check=lambda file: check_file(file, path))
    state, metadata = read_tensors(file, path)
    if CARD_KEY not in metadata:
        kind = "a safetensors file" if Path(path).suffix == ".safetensors" else "a checkpoint"
        raise CheckpointError(
            f"{path}: is {kind} without our card: train writes one with it, `mvit-video convert --to native` adds it"
        )
    return state, read_card(metadata, path)


def read_tensors(file: Path, source: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and metadata, of a PyTorch or safetensors file, told apart by content. Never runs code.

    Metadata is safetensors' own, or the names of what lies beside the weights in a PyTorch file, with empty values.
    Raises CheckpointError for a file that is neither, is truncated, or holds anything else than whole, finite tensors.
    """
    try:
        tensors, metadata = _read(file, source)
        for name, tensor in tensors.items():
            _check_array(name, tensor, source)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        _check_size(size, file.stat().st_size, source)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{source}: '{name}' contains NaN or Inf: these weights are unusable")
        return tensors, metadata
    except CheckpointError as reason:
        if str(file) == str(source):
            raise
        raise CheckpointError(f"{reason}; the file is {file}") from None


def check_file(file: Path, source: str | Path) -> None:
    """CheckpointError where a file, such as one just fetched, is not whole or holds no weights; reads as little as tells that."""
    kind = _kind_of(file, source)
    if kind == "safetensors":
        _open_safetensors(file, source, lambda content: None)
    elif kind == "zip":
        _check_zip(file, source)
    else:
        _read_torch(file, source)


def _read(file: Path, source: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    kind = _kind_of(file, source)
    if kind == "safetensors":
        return _open_safetensors(file, source, _all_of_safetensors)
    if kind == "zip":
        _check_zip(file, source)
    return _unwrap(_read_torch(file, source), source)


def _kind_of(file: Path, source: str | Path) -> str:
    """safetensors, or of what torch.save writes zip or pickle (as it was before PyTorch 1.6), by the first bytes."""
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{source}: has {size:,} bytes, and at most {MAX_BYTES:,} are read: is it one of weights?"
        )
    with file.open("rb") as content:
        start = content.read(9)
    if start[8:9] == b"{" or file.suffix == ".safetensors":
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start.startswith(b"\x80"):
        return "pickle"
    raise CheckpointError(
        f"{source}: is neither a PyTorch nor a safetensors file: give a .pth, .pyth or .safetensors of weights"
    )


def _check_zip(file: Path, source: str | Path) -> None:
    """CheckpointError for a file that unpacks to more than a checkpoint can hold, before anything of it is unpacked."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CheckpointError(f"{source}: {TRUNCATED}") from None
    _check_size(sum(entry.file_size for entry in entries), file.stat().st_size, source)
    pickled = max((entry.file_size for entry in entries if entry.filename.lower().endswith(".pkl")), default=0)
    if pickled > MAX_PICKLE:
        raise CheckpointError(
            f"{source}: has {pickled:,} bytes beside the tensors, and at most {MAX_PICKLE:,} are read: save the weights alone"
        )


def _check_size(unpacked: int, size: int, source: str | Path) -> None:
    if unpacked > min(MAX_UNPACK_RATIO * size, MAX_BYTES):
        raise CheckpointError(
            f"{source}: has {size:,} bytes and unpacks to {unpacked:,}, and at most {MAX_UNPACK_RATIO} times as many and "
            f"{MAX_BYTES:,} are read: no program that saves weights writes such a file, so get it from its source"
        )


def _check_array(name: str, tensor: Tensor, source: str | Path) -> None:
    """CheckpointError for what is no dense array of weights or counts, or is not whole in the file."""
    if tensor.layout is not torch.strided or tensor.dtype not in WEIGHTS + COUNTS:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in WEIGHTS)
        raise CheckpointError(f"{source}: '{name}' contains {_kind(tensor)}, expected dense weights of {kinds}")
    if tensor.device.type != "cpu" or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{source}: '{name}' has shape {tuple(tensor.shape)}, but the file does not hold that many values: save all of "
            "them, where the file was made"
        )


def _kind(tensor: Tensor) -> str:
    return ", ".join(str(kind).removeprefix("torch.") for kind in (tensor.dtype, tensor.layout))


def _open_safetensors(file: Path, source: str | Path, take: Callable[[Any], Result]) -> Result:
    try:
        with safe_open(file, framework="pt") as content:
            return take(content)
    except (SafetensorError, OSError) as reason:
        raise CheckpointError(f"{source}: is not a complete safetensors file ({reason}): download it again") from None


def _all_of_safetensors(content: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    return {name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {}  # noqa: SIM118


def _read_torch(file: Path, source: str | Path) -> object:
    stand_ins: list[Any] = [(Ignored, name) for name in IGNORED_GLOBALS]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # what torch warns of is in the error
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as reason:  # a damaged pickle can raise anything; nothing of it has been run
        raise CheckpointError(f"{source}: {_unreadable_reason(file, str(reason))}") from None


def _unreadable_reason(file: Path, reason: str) -> str:
    """What keeps a file from being read, and the cure."""
    alone = "save the weights alone, torch.save(model.state_dict(), FILE), where the file was made"
    stranger = re.search(r"GLOBAL ([\w.]+)", reason)
    if stranger:
        return f"contains '{stranger[1]}', which is code and is never run here: {alone}, or ask for such a file"
    if "Unsupported operand" in reason:
        return (
            f"is damaged, or a pickle with more in it than torch.save writes for tensors: download it again, or {alone}"
        )
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
        if "data.pkl" not in names or "constants.pkl" in names:
            return (
                "is a zip file, but not of weights by torch.save (a TorchScript or exported program?): "
                "pass the state dict of its network"
            )
    return TRUNCATED


def _unwrap(content: object, source: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights, and the names of what lies beside them."""
    beside: set[str] = set()
    if isinstance(content, dict):
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if wrapper is not None:
            beside, content = {str(name) for name in content.keys() - {wrapper}}, content[wrapper]
            if beside - METADATA:
                raise CheckpointError(
                    f"{source}: contains '{min(beside - METADATA)}' next to '{wrapper}', which is unknown: "
                    f"known are {', '.join(sorted(METADATA))}"
                )
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{source}: contains no tensors by name: give a state dict, or one under 'model_state'")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{source}: '{name}' is of type {type(tensor).__name__}, expected tensors by name, alone or under 'model_state'"
            )
    return {name: tensor.detach() for name, tensor in content.items()}, dict.fromkeys(sorted(beside), "")
