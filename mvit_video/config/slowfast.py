"""A PySlowFast configuration of an MViT as one of ours, with an account of every key.

Values are read by PySlowFast's rules: `_BASE_`, literals in texts such as "(3, 7, 7)", defaults for what is left out.
"""

import ast
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mvit_video.config.load import config_from_dict, read_yaml
from mvit_video.config.schema import Config
from mvit_video.config.slowfast_keys import (
    ARGUMENTS,
    CLIPS_OF_BASE_LR,
    FIXED,
    FIXED_IN_TRAINING,
    IGNORED,
    LISTS,
    MVITV1,
    MVITV2,
    OF_BLOCKS,
    OF_TRAINING,
    SAME,
    SAME_IN_TRAINING,
    SIZES,
)
from mvit_video.errors import ConfigError

FATES = ("kept", "renamed", "derived", "ignored", "unsupported")


@dataclass(frozen=True)
class Conversion:
    """Our settings by their dotted names, and what became of each key of the file: key -> (fate, how or why).

    `repeats` are keys that stand several times in the file, with their lines: the last one counts, as in PySlowFast.
    """

    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    fates: dict[str, tuple[str, str]] = field(default_factory=dict)
    repeats: dict[str, list[int]] = field(default_factory=dict)

    def of_fate(self, fate: str) -> dict[str, str]:
        return {key: how for key, (found, how) in self.fates.items() if found == fate}

    def config(self) -> Config:
        """The settings, validated."""
        return config_from_dict(self.tree(), self.source)

    def tree(self) -> dict[str, dict[str, Any]]:
        """The settings by section."""
        tree: dict[str, dict[str, Any]] = {"model": {}, "data": {}}
        for name, value in self.settings.items():
            section, key = name.split(".")
            tree.setdefault(section, {})[key] = value
        return tree

    def report(self) -> str:
        """How many keys had which fate, and a line for each key."""
        lines = [
            f"{key} stands in lines {_listed(places)}: the last one counts" for key, places in self.repeats.items()
        ]
        for fate in FATES:
            keys = self.of_fate(fate)
            lines += [f"{len(keys)} {fate}", *(f"  {key}: {how}" for key, how in keys.items())] if keys else []
        return "\n".join(lines)

    def to_yaml(self) -> str:
        """A configuration file, with what was left out as comments at its head."""
        head = [f"# Converted by `mvit-video convert-config` from PySlowFast's {Path(self.source).name}. Left out:"]
        left_out = self.of_fate("ignored").items()
        head += [f"#   {key}: {why}" for key, why in left_out if not why.startswith("always so")]
        return "\n".join(head) + "\n" + yaml.safe_dump(self.tree(), sort_keys=False, default_flow_style=None)


def _listed(lines: list[int]) -> str:
    *first, last = map(str, lines)
    return f"{', '.join(first)} and {last}"


def convert_slowfast(path: str | Path) -> Conversion:
    """Read a PySlowFast file of an MViT. Raises ConfigError that names every key without a counterpart.

    Another network or dataset is named alone: what else such files hold says nothing.
    """
    repeats: dict[str, list[int]] = {}
    file = _File(_flat(read_yaml(path, repeats)), Conversion(str(path), repeats=repeats))
    network = file.value("MODEL.ARCH", "slowfast"), file.value("MODEL.MODEL_NAME", "SlowFast")
    if network != ("mvit", "MViT"):
        raise ConfigError(
            f"{path}: only MViT is converted, and MODEL.ARCH and MODEL.MODEL_NAME are {network[0]!r} and {network[1]!r} "
            "(by default 'slowfast' and 'SlowFast'): name a file of an MViT"
        )
    file.tell("ignored", "always so: only MViT is converted", "MODEL.ARCH", "MODEL.MODEL_NAME")
    file.same(SAME)
    try:
        _lists(file)
        file.stop_at_unsupported()
        _input(file)
        _colours(file)
        _task(file)
        _network(file)
        file.fixed(FIXED)
        if file.training:
            file.same(SAME_IN_TRAINING)
            _crops(file)
            _augmentation(file)
            _mixing(file)
            _optimisation(file)
            file.fixed(FIXED_IN_TRAINING)
    except (TypeError, ValueError, IndexError) as reason:
        raise ConfigError(f"{path}: contains a value of another form than PySlowFast's ({reason})") from None
    file.settle_the_rest()
    file.stop_at_unsupported()
    file.result.config()
    return file.result


class _File:
    """The keys of a file, and the account of them."""

    def __init__(self, given: dict[str, Any], result: Conversion) -> None:
        self.given, self.result = given, result
        self.training = bool(self.value("TRAIN.ENABLE", True))
        self.tell("derived", "whether what concerns training is converted", "TRAIN.ENABLE")
        self.dataset_key = "TRAIN.DATASET" if self.training else "TEST.DATASET"
        self.dataset = self.value(self.dataset_key, "kinetics")

    def value(self, key: str, default: Any) -> Any:
        return self.given.get(key, default)

    def tell(self, fate: str, how: str, *keys: str) -> None:
        """The fate of those keys that the file has; one of two uses gets both texts, and what is refused stays so."""
        for key in keys:
            before = self.result.fates.get(key)
            if key in self.given and (before is None or before[0] != "unsupported"):
                self.result.fates[key] = (fate, f"{before[1]}; {how}" if before else how)

    def refuse(self, key: str, why: str) -> None:
        """`key` cannot be converted, be it given or left to PySlowFast's default."""
        self.result.fates[key] = ("unsupported", f"({why})" if key in self.given else f"(by default; {why})")

    def put(self, setting: str, value: Any, fate: str, *keys: str) -> None:
        """A setting of ours, and the keys that it comes from."""
        self.result.settings[setting] = value
        self.tell(fate, f"{setting} = {value}", *keys)

    def same(self, table: dict[str, tuple[Any, str]]) -> None:
        for key, (default, setting) in table.items():
            kept = key.rpartition(".")[2].lower() == setting.rpartition(".")[2]
            self.put(setting, self.value(key, default), "kept" if kept else "renamed", key)

    def fixed(self, table: dict[str, tuple[Any, Any, str]]) -> None:
        for key, (default, wanted, what) in table.items():
            if self.value(key, default) == wanted:
                self.tell("ignored", f"always so: {what}", key)
            else:
                self.refuse(key, f"is {self.value(key, default)!r}, but {what}")

    def settle_the_rest(self) -> None:
        """Ignore the keys that need no counterpart, refuse those that nobody knows."""
        for key in [key for key in self.given if key not in self.result.fates]:
            why = IGNORED.get(key) or IGNORED.get(key.partition(".")[0])
            of_training = key.startswith(OF_TRAINING) or key in SAME_IN_TRAINING or key in FIXED_IN_TRAINING
            if of_training and not self.training:
                why = "TRAIN.ENABLE is False, and this concerns training"
            if why is None:
                self.refuse(key, "not known here")
            else:
                self.tell("ignored", why, key)

    def stop_at_unsupported(self) -> None:
        if unsupported := self.result.of_fate("unsupported"):
            named = "; ".join(f"{key} {why}" for key, why in unsupported.items())
            raise ConfigError(f"{self.result.source}: unsupported are {named}: change or remove these keys")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted keys, sequences as lists."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": _literal(value)}
    return flat


def _literal(value: Any) -> Any:
    """PySlowFast takes "(3, 7, 7)" and "1e-6" for what they look like; YAML reads both as texts."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
    return [_literal(item) for item in value] if isinstance(value, (list, tuple)) else value


def _lists(file: _File) -> None:
    """The lists of the file's dataset."""
    if file.dataset not in LISTS:
        datasets = " and ".join(LISTS)
        file.refuse(file.dataset_key, f"is {file.dataset!r}, but {datasets} are the datasets that are converted")
        return
    for name, list_file in zip(("train", "val"), LISTS[file.dataset], strict=True):
        file.put(f"data.{name}", list_file, "derived", file.dataset_key)
    file.put("data.root", file.value("DATA.PATH_TO_DATA_DIR", "") or ".", "renamed", "DATA.PATH_TO_DATA_DIR")


def _input(file: _File) -> None:
    """Sampling, and the images and views of evaluation."""
    if file.dataset == "ssv2":
        file.put("data.sampling", "segment", "derived", file.dataset_key)
        file.tell("ignored", "one frame of each equal part", "DATA.SAMPLING_RATE", "DATA.USE_OFFSET_SAMPLING")
    else:
        file.put("data.sampling_rate", file.value("DATA.SAMPLING_RATE", 8), "kept", "DATA.SAMPLING_RATE")
        file.fixed({"DATA.USE_OFFSET_SAMPLING": (False, True, "test clips start at multiples of a whole number")})
    crop, test_crop = file.value("DATA.TRAIN_CROP_SIZE", 224), file.value("DATA.TEST_CROP_SIZE", 256)
    if crop != test_crop:
        file.refuse("DATA.TEST_CROP_SIZE", f"is {test_crop}, but training and evaluation share a crop, here of {crop}")
    file.tell("derived", f"data.crop_size = {crop}", "DATA.TEST_CROP_SIZE")
    several, crops = file.value("TEST.NUM_TEMPORAL_CLIPS", []), file.value("TEST.NUM_SPATIAL_CROPS", 3)
    clips = max(several, default=file.value("TEST.NUM_ENSEMBLE_VIEWS", 10))  # it tests with each of several, one by one
    views = ("TEST.NUM_TEMPORAL_CLIPS", "TEST.NUM_ENSEMBLE_VIEWS", "TEST.NUM_SPATIAL_CROPS")
    file.put("evaluation.protocol", f"{clips}x{crops}", "derived", *views)
    jitter = file.value("DATA.TRAIN_JITTER_SCALES", [256, 320])
    file.put("data.short_side", jitter[0] if crops == 1 else test_crop, "derived", "DATA.TRAIN_JITTER_SCALES")


def _colours(file: _File) -> None:
    """Mean and std in the order of RGB, which is what our networks are shown.

    PySlowFast decodes Kinetics as RGB and reads the images of Something-Something as BGR; it normalises them in that order,
    and only then DATA.REVERSE_INPUT_CHANNEL turns the channels round.
    """
    bgr, turned = file.dataset == "ssv2", file.value("DATA.REVERSE_INPUT_CHANNEL", False)
    for key, default in (("MEAN", [0.45, 0.45, 0.45]), ("STD", [0.225, 0.225, 0.225])):
        values = file.value(f"DATA.{key}", default)
        changed = bgr and values != values[::-1]
        file.put(
            f"data.{key.lower()}", values[::-1] if changed else values, "derived" if changed else "kept", f"DATA.{key}"
        )
    if bgr == bool(turned):
        file.tell("ignored", "colours are RGB from the file to the network", "DATA.REVERSE_INPUT_CHANNEL")
    else:
        file.refuse(
            "DATA.REVERSE_INPUT_CHANNEL", f"is {turned}, so that the network is shown BGR, but ours are shown RGB"
        )


def _task(file: _File) -> None:
    """Training is supervised, be it from scratch or from weights that self-supervised training has left."""
    task = file.value("TASK", "")
    if task == "ssl_eval":
        file.tell(
            "ignored",
            "supervised, from the newest self-supervised state in OUTPUT_DIR: name it as model.weights",
            "TASK",
        )
    else:
        file.fixed({"TASK": ("", "", "training is supervised")})


def _network(file: _File) -> None:
    """model.name, and in model.arguments what differs from it."""
    arguments = {name: file.value(key, default) for key, default, name in ARGUMENTS}
    arguments |= _stages(file) | _positions(file)
    padding = file.value("MVIT.PATCH_PADDING", [2, 4, 4])
    if padding != [size // 2 for size in arguments["patch_kernel"]]:
        file.refuse("MVIT.PATCH_PADDING", f"is {padding}, but patches are padded by half their kernel")
    size = tuple(arguments[name] for name in ("depths", "embed_dim", "num_heads"))
    letter = next((letter for letter, known in SIZES.items() if size == known), "")
    frames = file.value("DATA.NUM_FRAMES", 8)
    if arguments["positions"] == "absolute" and letter == "s":
        name, usual = f"mvitv1_b_{'32x3' if frames == 32 else '16x4'}", MVITV1
    else:
        name, usual = _mvitv2(letter, frames), MVITV2
    depths, dim, heads = SIZES[letter or "s"]
    usual = usual | {"depths": depths, "embed_dim": dim, "num_heads": heads}
    changed = {name: value for name, value in arguments.items() if usual.get(name) != value}
    file.put(
        "model.name", name, "derived", "MVIT.DEPTH", "MVIT.DIM_MUL", "MVIT.HEAD_MUL", "MVIT.EMBED_DIM", "MVIT.NUM_HEADS"
    )
    file.result.settings["model.arguments"] = changed
    for key, _, argument in ARGUMENTS:
        how = f"model.arguments.{argument} = {changed[argument]}" if argument in changed else f"as in {name}"
        file.tell("renamed" if argument in changed else "derived", how, key)
    told = file.result.fates
    file.tell("derived", "model.name and model.arguments", *(key for key in OF_BLOCKS if key not in told))


def _mvitv2(letter: str, frames: int) -> str:
    """The registered network of a size; its clips are its own affair, so that only S, B and L have two names."""
    clips = {"b": "32x3", "l": "40x3" if frames == 40 else "16x4"}.get(letter, "16x4")
    return f"mvitv2_{letter or 's'}_{clips}"


def _stages(file: _File) -> dict[str, Any]:
    """depths, strides and where the width grows, from lists over the blocks."""
    depth, widths = file.value("MVIT.DEPTH", 16), file.value("MVIT.DIM_MUL", [])
    starts = [block for block, _ in widths]
    if file.value("MVIT.HEAD_MUL", []) != widths or any(factor != 2 for _, factor in widths):
        file.refuse("MVIT.HEAD_MUL", "heads and width double together, at the start of a stage")
    strides = {block: stride for block, *stride in file.value("MVIT.POOL_Q_STRIDE", [])}
    strided = {block: stride for block, stride in strides.items() if max(stride) > 1}
    pool_all = list(strides) == list(range(depth))
    if (
        list(strided) != starts
        or len({tuple(stride) for stride in strided.values()}) > 1
        or not (pool_all or strides == strided)
    ):
        file.refuse("MVIT.POOL_Q_STRIDE", "queries are pooled in all blocks or at the starts of stages, by one stride")
    for key, missing in (
        ("POOL_KVQ_KERNEL", "kernels that grow with the strides are not built: one kernel is for all blocks"),
        ("POOL_KV_STRIDE_ADAPTIVE", "strides of single blocks are not built: that of the first stage decides them all"),
    ):
        if file.value(f"MVIT.{key}", None) is None:
            file.refuse(f"MVIT.{key}", missing)
    return {
        "depths": [end - start for start, end in pairwise([0, *starts, depth])],
        "q_stride": next(iter(strided.values()), [1, 2, 2]),
        "pool_all_queries": pool_all,
        "width_growth": "attention" if file.value("MVIT.DIM_MUL_IN_ATT", False) else "mlp",
    }


def _positions(file: _File) -> dict[str, Any]:
    """Relative positions in every block, or absolute ones in front of the first: separate for time and space."""
    absolute, separate = file.value("MVIT.USE_ABS_POS", True), file.value("MVIT.SEP_POS_EMBED", False)
    relative = {file.value(f"MVIT.REL_POS_{axis}", False) for axis in ("SPATIAL", "TEMPORAL")}
    if relative == {True} and not absolute:
        return {"positions": "relative"}
    if relative != {False} or not absolute or not separate:
        file.refuse("MVIT.USE_ABS_POS", "positions are relative in space and time, or absolute with SEP_POS_EMBED")
    return {"positions": "absolute"}


def _crops(file: _File) -> None:
    """Training's crop: a box of random size and shape, or a random scale."""
    area = file.value("DATA.TRAIN_JITTER_SCALES_RELATIVE", [])
    if area:
        file.put("data.crop_area", area, "renamed", "DATA.TRAIN_JITTER_SCALES_RELATIVE")
        ratio = file.value("DATA.TRAIN_JITTER_ASPECT_RELATIVE", []) or [0.75, 1.3333]
        file.put("data.crop_ratio", ratio, "renamed", "DATA.TRAIN_JITTER_ASPECT_RELATIVE")
        file.tell("ignored", "TRAIN_JITTER_SCALES_RELATIVE takes its place", "DATA.INV_UNIFORM_SAMPLE")
        return
    file.put("data.crop", "jitter", "derived", "DATA.TRAIN_JITTER_SCALES")
    file.put(
        "data.jitter_scales", file.value("DATA.TRAIN_JITTER_SCALES", [256, 320]), "derived", "DATA.TRAIN_JITTER_SCALES"
    )
    file.tell("ignored", "empty", "DATA.TRAIN_JITTER_SCALES_RELATIVE", "DATA.TRAIN_JITTER_ASPECT_RELATIVE")
    file.fixed({"DATA.INV_UNIFORM_SAMPLE": (False, True, "the inverse of the scale is uniform")})


def _augmentation(file: _File) -> None:
    enabled = file.value("AUG.ENABLE", False)
    kind = file.value("AUG.AA_TYPE", "rand-m9-mstd0.5-inc1") if enabled else ""
    file.put("data.randaugment", kind or None, "renamed", "AUG.AA_TYPE")
    file.put("data.erasing", file.value("AUG.RE_PROB", 0.25) if enabled else 0.0, "renamed", "AUG.RE_PROB")
    file.tell("derived", "data.randaugment and data.erasing are off without it", "AUG.ENABLE")
    file.tell("ignored", "RandAugment takes its place" if kind else "AUG is not enabled", "AUG.COLOR_JITTER")


def _mixing(file: _File) -> None:
    """Mixup, CutMix, and the label smoothing that PySlowFast does with them only."""
    enabled, share = file.value("MIXUP.ENABLE", False), file.value("MIXUP.PROB", 1.0)
    mixes = enabled and share > 0
    smoothing = file.value("MIXUP.LABEL_SMOOTH_VALUE", 0.1) if enabled else 0.0
    file.put("train.label_smoothing", smoothing, "renamed", "MIXUP.LABEL_SMOOTH_VALUE")
    file.tell("derived", "mixing and label smoothing are off without it", "MIXUP.ENABLE")
    for name, key, default in (("mixup", "ALPHA", 0.8), ("cutmix", "CUTMIX_ALPHA", 1.0)):
        file.put(f"train.{name}", file.value(f"MIXUP.{key}", default) if mixes else 0.0, "renamed", f"MIXUP.{key}")
    if mixes:
        file.put("train.mix_probability", share, "renamed", "MIXUP.PROB")
        file.put("train.mix_switch", file.value("MIXUP.SWITCH_PROB", 0.5), "renamed", "MIXUP.SWITCH_PROB")
    else:
        file.tell("ignored", "nothing is mixed", "MIXUP.PROB", "MIXUP.SWITCH_PROB")
    loss = file.value("MODEL.LOSS_FUNC", "cross_entropy")
    if loss not in ("cross_entropy", "soft_cross_entropy"):
        file.refuse("MODEL.LOSS_FUNC", f"is {loss!r}, but the loss is the cross entropy")
    file.tell("ignored", "the loss is the cross entropy with soft targets", "MODEL.LOSS_FUNC")


def _optimisation(file: _File) -> None:
    """Optimiser, rates for 512 clips, and the weights that training starts from."""
    method = file.value("SOLVER.OPTIMIZING_METHOD", "sgd")
    if method not in ("sgd", "adamw", "mt_adamw"):
        file.refuse("SOLVER.OPTIMIZING_METHOD", f"is {method!r}, but the optimisers are sgd and adamw")
    file.put("train.optimizer", method.removeprefix("mt_"), "renamed", "SOLVER.OPTIMIZING_METHOD")
    momentum, betas = ("kept", "ignored") if method == "sgd" else ("ignored", "kept")
    for key, default, fate in (("MOMENTUM", 0.9, momentum), ("BETAS", [0.9, 0.999], betas)):
        if fate == "kept":
            file.put(f"train.{key.lower()}", file.value(f"SOLVER.{key}", default), fate, f"SOLVER.{key}")
        else:
            file.tell(fate, f"{method} has none", f"SOLVER.{key}")
    shards = file.value("NUM_SHARDS", 1)
    per_machine = file.value("TRAIN.BATCH_SIZE", 64) * file.value("AUG.NUM_SAMPLE", 1)
    if per_machine * shards < 1:
        raise ValueError(f"TRAIN.BATCH_SIZE, AUG.NUM_SAMPLE and NUM_SHARDS make steps of {per_machine * shards} clips")
    sizes = ("TRAIN.BATCH_SIZE", "NUM_SHARDS")
    file.put("train.clips_per_step", per_machine * shards, "derived", *sizes)
    clips = per_machine if file.value("SOLVER.BASE_LR_SCALE_NUM_SHARDS", False) else per_machine * shards
    rates = (("BASE_LR", 0.1, "base_lr"), ("WARMUP_START_LR", 0.01, "warmup_lr"), ("COSINE_END_LR", 0.0, "end_lr"))
    for key, default, setting in rates:
        rate = float(f"{file.value(f'SOLVER.{key}', default) * CLIPS_OF_BASE_LR / clips:.12g}")
        file.put(f"train.{setting}", rate, "derived", f"SOLVER.{key}")
    mixed = file.value("TRAIN.MIXED_PRECISION", None)  # left out, train.precision is auto
    if mixed is not None:
        file.put("train.precision", "fp16" if mixed else "fp32", "derived", "TRAIN.MIXED_PRECISION")
    weights = file.value("TRAIN.CHECKPOINT_FILE_PATH", "") or None
    file.put("model.weights", weights, "renamed", "TRAIN.CHECKPOINT_FILE_PATH")
    if file.value("TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN", []):
        file.refuse("TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN", "names in checkpoints are recognised, not edited")
