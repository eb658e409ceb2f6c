"""Convert a PySlowFast configuration of an MViT to ours, and report what became of every key.

Values are read by PySlowFast's rules: `_BASE_`, literals in texts such as "(3, 7, 7)", defaults for what is left out.
"""

import ast
import os
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mvit_video.config.load import config_from_dict, read_yaml
from mvit_video.config.schema import Config
from mvit_video.config.slowfast_keys import (
    ARGUMENTS,
    BLOCK_KEYS,
    CLIPS_OF_BASE_LR,
    COPIED,
    COPIED_IN_TRAINING,
    FIXED,
    FIXED_IN_PRETRAINING,
    FIXED_IN_TRAINING,
    IGNORED,
    LIST_FILES,
    MVITV1,
    MVITV2,
    SIZES,
    TRAINING_KEYS,
)
from mvit_video.errors import ConfigError

FRAMES_PER_SECOND = 30.0  # that frame folders are taken to have: see data/video/frame_folders.py
FATES = ("kept", "renamed", "derived", "ignored", "unsupported")


@dataclass(frozen=True)
class Conversion:
    """Our settings by dotted name, and the fate of each key of the file: key -> (fate, how or why).

    `duplicates` are duplicate keys with their lines: the last one counts, as in PySlowFast.
    """

    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    fates: dict[str, tuple[str, str]] = field(default_factory=dict)
    duplicates: dict[str, list[int]] = field(default_factory=dict)

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
        """List the keys by fate, with a count and a line for each key."""
        lines = [
            f"duplicate key {key} (lines {_joined(places)}): the last one counts"
            for key, places in self.duplicates.items()
        ]
        for fate in FATES:
            keys = self.of_fate(fate)
            lines += [f"{len(keys)} {fate}", *(f"  {key}: {how}" for key, how in keys.items())] if keys else []
        return "\n".join(lines)

    def to_yaml(self) -> str:
        """Write a configuration file that lists ignored keys in comments at its top."""
        head = [f"# Converted by `mvit-video convert-config` from PySlowFast's {Path(self.source).name}. Left out:"]
        left_out = self.of_fate("ignored").items()
        head += [f"#   {key}: {why}" for key, why in left_out if not why.startswith("same here")]
        return "\n".join(head) + "\n" + yaml.safe_dump(self.tree(), sort_keys=False, default_flow_style=None)


def _joined(lines: list[int]) -> str:
    *first, last = map(str, lines)
    return f"{', '.join(first)} and {last}"


def convert_slowfast(path: str | Path) -> Conversion:
    """Convert a PySlowFast file of an MViT. Raises ConfigError that names every key without a counterpart.

    For another network or dataset the error names only that.
    """
    duplicates: dict[str, list[int]] = {}
    file = _SlowFastConfig(_flat(read_yaml(path, duplicates)), Conversion(str(path), duplicates=duplicates))
    network = file.value("MODEL.ARCH", "slowfast"), file.value("MODEL.MODEL_NAME", "SlowFast")
    file.masked = network == ("maskmvit", "MaskMViT")
    if not file.masked and network != ("mvit", "MViT"):
        raise ConfigError(
            f"{path}: only MViT is converted, and MODEL.ARCH and MODEL.MODEL_NAME are {network[0]!r} and {network[1]!r} "
            "(by default 'slowfast' and 'SlowFast'): pass the configuration of an MViT"
        )
    file.record("ignored", "same here: only MViT is converted", "MODEL.ARCH", "MODEL.MODEL_NAME")
    file.same(COPIED)
    try:
        _lists(file)
        file.stop_at_unsupported()
        _input(file)
        _colours(file)
        _task(file)
        _network(file)
        file.fixed(FIXED)
        _scores(file)
        if file.masked:
            _masking(file)
        if file.training:
            file.same(COPIED_IN_TRAINING)
            _crops(file)
            _augmentation(file)
            _mixing(file)
            _optimisation(file)
            file.fixed(FIXED_IN_TRAINING)
    except (TypeError, ValueError, IndexError) as reason:
        raise ConfigError(f"{path}: contains a value of a type that PySlowFast does not use ({reason})") from None
    file.account_for_the_rest()
    file.stop_at_unsupported()
    file.result.config()
    return file.result


class _SlowFastConfig:
    """The keys of a file, and what became of them."""

    def __init__(self, given: dict[str, Any], result: Conversion) -> None:
        self.given, self.result = given, result
        self.masked = False  # MaskFeat's pre-training
        self.training = self.value("TRAIN.ENABLE", True) is not False
        self.record("derived", "decides whether training keys are converted", "TRAIN.ENABLE")
        if not isinstance(self.value("TRAIN.ENABLE", True), bool):
            self.refuse("TRAIN.ENABLE", f"is {self.value('TRAIN.ENABLE', True)!r}, but True or False is needed")
        self.dataset_key = "TRAIN.DATASET" if self.training else "TEST.DATASET"
        self.dataset = self.value(self.dataset_key, "kinetics")

    def value(self, key: str, default: Any) -> Any:
        return self.given.get(key, default)

    def count(self, key: str, default: int) -> int:
        """A whole number from 1; another value is refused, and its default stands for it."""
        value = self.value(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        self.refuse(key, f"is {value!r}, but a whole number from 1 is needed")
        return default

    def record(self, fate: str, how: str, *keys: str) -> None:
        """Record the fate of those keys that the file has; a key with two uses gets both texts, a refused one stays refused."""
        for key in keys:
            before = self.result.fates.get(key)
            if key in self.given and (before is None or before[0] != "unsupported"):
                self.result.fates[key] = (fate, f"{before[1]}; {how}" if before else how)

    def refuse(self, key: str, why: str) -> None:
        """Record that `key`, given or default, cannot be converted."""
        self.result.fates[key] = ("unsupported", f"({why})" if key in self.given else f"(by default; {why})")

    def put(self, setting: str, value: Any, fate: str, *keys: str) -> None:
        """Set one of our settings, and record the keys that it comes from."""
        self.result.settings[setting] = value
        self.record(fate, f"{setting} = {value}", *keys)

    def same(self, table: dict[str, tuple[Any, str]]) -> None:
        for key, (default, setting) in table.items():
            kept = key.rpartition(".")[2].lower() == setting.rpartition(".")[2]
            self.put(setting, self.value(key, default), "kept" if kept else "renamed", key)

    def fixed(self, table: dict[str, tuple[Any, Any, str]]) -> None:
        for key, (default, wanted, what) in table.items():
            if self.value(key, default) == wanted:
                self.record("ignored", f"same here: {what}", key)
            else:
                self.refuse(key, f"is {self.value(key, default)!r}, but {what}")

    def account_for_the_rest(self) -> None:
        """Ignore keys that need no counterpart; refuse unknown ones."""
        for key in [key for key in self.given if key not in self.result.fates]:
            why = IGNORED.get(key) or IGNORED.get(key.partition(".")[0])
            of_training = key.startswith(TRAINING_KEYS) or key in COPIED_IN_TRAINING or key in FIXED_IN_TRAINING
            if of_training and not self.training:
                why = "TRAIN.ENABLE is False, so training keys do not matter"
            if why is None:
                self.refuse(key, "unknown key")
            else:
                self.record("ignored", why, key)

    def stop_at_unsupported(self) -> None:
        if unsupported := self.result.of_fate("unsupported"):
            named = "; ".join(f"{key} {why}" for key, why in unsupported.items())
            raise ConfigError(f"{self.result.source}: unsupported keys: {named}; change or remove them")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten to dotted keys, sequences as lists."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": _literal(value)}
    return flat


def _literal(value: Any) -> Any:
    """Evaluate texts such as "(3, 7, 7)" and "1e-6", as PySlowFast does; YAML reads both as strings."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
    return [_literal(item) for item in value] if isinstance(value, (list, tuple)) else value


def _lists(file: _SlowFastConfig) -> None:
    """Lists of the dataset."""
    if file.dataset not in LIST_FILES:
        *others, last = LIST_FILES
        file.refuse(file.dataset_key, f"is {file.dataset!r}, but only {', '.join(others)} and {last} are converted")
        return
    folder, prefix = file.value("DATA.PATH_TO_DATA_DIR", "") or ".", file.value("DATA.PATH_PREFIX", "")
    if file.dataset == "charades":
        lists = os.path.relpath(folder, prefix) if prefix else "."
        file.put("data.decoder", "frames", "derived", file.dataset_key)
    else:
        file.fixed({"DATA.PATH_PREFIX": ("", "", "paths are relative to data.root")})
        lists, prefix = ".", ""
    for name, list_file in zip(("train", "val"), LIST_FILES[file.dataset], strict=True):
        file.put(f"data.{name}", os.path.normpath(os.path.join(lists, list_file)), "derived", file.dataset_key)
    if prefix:
        file.put("data.root", prefix, "renamed", "DATA.PATH_PREFIX")
        file.record("derived", "data.train and data.val", "DATA.PATH_TO_DATA_DIR")
    else:
        file.put("data.root", folder, "renamed", "DATA.PATH_TO_DATA_DIR")
        file.record("ignored", "empty", "DATA.PATH_PREFIX")


def _input(file: _SlowFastConfig) -> None:
    """Sampling, and the size and views of evaluation."""
    if file.dataset == "ssv2":
        file.put("data.sampling", "segment", "derived", file.dataset_key)
        file.record(
            "ignored",
            "segment sampling takes one frame of each equal part",
            "DATA.SAMPLING_RATE",
            "DATA.USE_OFFSET_SAMPLING",
        )
    elif file.dataset == "charades":
        _charades_input(file)
    else:
        file.put("data.sampling_rate", file.value("DATA.SAMPLING_RATE", 8), "kept", "DATA.SAMPLING_RATE")
        file.fixed(
            {"DATA.USE_OFFSET_SAMPLING": (False, True, "test clips start at multiples of a whole number of frames")}
        )
    crop, test_crop = file.value("DATA.TRAIN_CROP_SIZE", 224), file.value("DATA.TEST_CROP_SIZE", 256)
    if crop != test_crop:
        file.refuse(
            "DATA.TEST_CROP_SIZE", f"is {test_crop}, but training and evaluation share one crop size, here {crop}"
        )
    file.record("derived", f"data.crop_size = {crop}", "DATA.TEST_CROP_SIZE")
    several, crops = file.value("TEST.NUM_TEMPORAL_CLIPS", []), file.value("TEST.NUM_SPATIAL_CROPS", 3)
    clips = max(
        several, default=file.value("TEST.NUM_ENSEMBLE_VIEWS", 10)
    )  # PySlowFast tests with each of them in turn
    views = ("TEST.NUM_TEMPORAL_CLIPS", "TEST.NUM_ENSEMBLE_VIEWS", "TEST.NUM_SPATIAL_CROPS")
    file.put("evaluation.protocol", f"{clips}x{crops}", "derived", *views)
    jitter = file.value("DATA.TRAIN_JITTER_SCALES", [256, 320])
    file.put("data.short_side", jitter[0] if crops == 1 else test_crop, "derived", "DATA.TRAIN_JITTER_SCALES")


def _charades_input(file: _SlowFastConfig) -> None:
    """Frames exactly SAMPLING_RATE apart, of folders, which have no rate. What PySlowFast does otherwise is told."""
    file.put("data.sampling_rate", file.value("DATA.SAMPLING_RATE", 8), "kept", "DATA.SAMPLING_RATE")
    file.put("data.dense_step", "stride", "derived", file.dataset_key)
    file.record("ignored", "frames of folders have no rate: every frame counts, as there", "DATA.TARGET_FPS")
    file.result.settings["data.target_fps"] = FRAMES_PER_SECOND
    file.record(
        "ignored", "PySlowFast's Charades does not use it; test clips start less than clips + SAMPLING_RATE frames earlier than there",
        "DATA.USE_OFFSET_SAMPLING",
    )  # fmt: skip
    file.record(
        "derived",
        "a training clip has all labels of its video, where PySlowFast takes those of the clip's frames; videos without a label are "
        "left out; a video shorter than a clip repeats its last frame, never its first",
        file.dataset_key,
    )


def _scores(file: _SlowFastConfig) -> None:
    """How many labels a video has, and how the scores of its views become its own."""
    several, method = file.value("DATA.MULTI_LABEL", False), file.value("DATA.ENSEMBLE_METHOD", "sum")
    if file.dataset == "charades" and not several:
        file.refuse("DATA.MULTI_LABEL", "is False, but videos of Charades have several labels")
    if several:
        file.put("train.loss", "binary_cross_entropy", "derived", "DATA.MULTI_LABEL")
    else:
        file.record("ignored", "same here: clips have one label", "DATA.MULTI_LABEL")
    if method not in ("sum", "max"):
        file.refuse("DATA.ENSEMBLE_METHOD", f"is {method!r}, but the views of a video are summed or their max is taken")
    file.put("evaluation.fusion", "max" if method == "max" else "mean", "renamed", "DATA.ENSEMBLE_METHOD")


def _colours(file: _SlowFastConfig) -> None:
    """Mean and std in RGB order, the order of our networks' input.

    PySlowFast decodes Kinetics as RGB and reads the images of Something-Something and Charades as BGR; it normalises them in
    that order, before DATA.REVERSE_INPUT_CHANNEL swaps the channels.
    """
    bgr, turned = file.dataset in ("ssv2", "charades"), file.value("DATA.REVERSE_INPUT_CHANNEL", False)
    for key, default in (("MEAN", [0.45, 0.45, 0.45]), ("STD", [0.225, 0.225, 0.225])):
        values = file.value(f"DATA.{key}", default)
        changed = bgr and values != values[::-1]
        file.put(
            f"data.{key.lower()}", values[::-1] if changed else values, "derived" if changed else "kept", f"DATA.{key}"
        )
    if bgr == bool(turned):
        file.record("ignored", "the network's input is RGB", "DATA.REVERSE_INPUT_CHANNEL")
    else:
        file.refuse("DATA.REVERSE_INPUT_CHANNEL", f"is {turned}, so the network's input is BGR, but ours take RGB")


def _task(file: _SlowFastConfig) -> None:
    """Training is supervised, from scratch or from self-supervised weights; or it is MaskFeat's pre-training."""
    task = file.value("TASK", "")
    if file.masked:
        file.fixed({"TASK": ("", "ssl", "MaskMViT is pre-trained: `mvit-video pretrain`")})
    elif task == "ssl_eval":
        file.record(
            "ignored",
            "supervised, from the newest self-supervised checkpoint in OUTPUT_DIR: pass it as model.weights",
            "TASK",
        )
    else:
        file.fixed({"TASK": ("", "", "training is supervised")})


def _network(file: _SlowFastConfig) -> None:
    """model.name, and in model.arguments what differs from its defaults."""
    arguments = {name: file.value(key, default) for key, default, name in ARGUMENTS}
    arguments |= _stages(file) | _positions(file)
    arguments["pool_kernel"] = arguments["pool_kernel"] or "stride"
    arguments["pooling"] = "mean_without_cls" if file.value("MVIT.USE_MEAN_POOLING", False) else None
    padding = file.value("MVIT.PATCH_PADDING", [2, 4, 4])
    if padding != [size // 2 for size in arguments["patch_kernel"]]:
        file.refuse("MVIT.PATCH_PADDING", f"is {padding}, but patches are padded by half their kernel")
    size = tuple(arguments[name] for name in ("depths", "embed_dim", "num_heads"))
    letter = next((letter for letter, known in SIZES.items() if size == known), "")
    frames = file.value("DATA.NUM_FRAMES", 8)
    if arguments["positions"] == "absolute" and size[1:] == SIZES["s"][1:]:
        letter, name, usual = "s", f"mvitv1_b_{'32x3' if frames == 32 else '16x4'}", MVITV1
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
        file.record("renamed" if argument in changed else "derived", how, key)
    recorded = file.result.fates
    file.record("derived", "model.name and model.arguments", *(key for key in BLOCK_KEYS if key not in recorded))


def _masking(file: _SlowFastConfig) -> None:
    """What is hidden and predicted in MaskFeat's pre-training."""
    file.fixed(FIXED_IN_PRETRAINING)
    file.put("train.objective", "masked", "derived", "MODEL.MODEL_NAME")
    if not file.value("MASK.PRED_HOG", False):
        file.put("pretrain.target", "pixels", "derived", "MASK.PRED_HOG")
    else:
        file.put("pretrain.target", "hog", "derived", "MASK.PRED_HOG")
    blocks, last = file.value("MASK.PRETRAIN_DEPTH", [15]), file.value("MVIT.DEPTH", 16) - 1
    if blocks[-1] != last:
        file.refuse(
            "MASK.PRETRAIN_DEPTH", f"is {blocks}, but the last block, {last}, must be among the predicting ones"
        )
    file.put("pretrain.predict_from", [] if blocks == [last] else blocks, "renamed", "MASK.PRETRAIN_DEPTH")
    tube, frames = file.value("AUG.MASK_TUBE", False), file.value("AUG.MASK_FRAMES", False)
    kind = "tube" if tube else "frames" if frames else "cube"
    file.put("pretrain.mask", kind, "derived", "AUG.MASK_TUBE", "AUG.MASK_FRAMES")
    file.put("pretrain.mask_ratio", file.value("AUG.MASK_RATIO", 0.0), "renamed", "AUG.MASK_RATIO")
    _mask_cells(file, kind)


def _mask_cells(file: _SlowFastConfig, kind: str) -> None:
    """Cells are square, and last one step of patches; a tube's window has no times."""
    window, crop = file.value("AUG.MASK_WINDOW_SIZE", [8, 7, 7]), file.value("DATA.TRAIN_CROP_SIZE", 224)
    times = file.value("DATA.NUM_FRAMES", 8) // file.value("MVIT.PATCH_STRIDE", [2, 4, 4])[0]
    rows, columns = window[-2:]
    if rows != columns or crop % rows or (kind != "tube" and window != [times, rows, columns]):
        expected = f"[{times}, N, N] with N a divisor of DATA.TRAIN_CROP_SIZE {crop}"
        file.refuse("AUG.MASK_WINDOW_SIZE", f"is {window}, expected {expected}")
        return
    file.put("pretrain.mask_cell", crop // rows, "derived", "AUG.MASK_WINDOW_SIZE")


def _mvitv2(letter: str, frames: int) -> str:
    """Registered name of a network of this size; data.num_frames sets its input, so any clip length in the name will do."""
    clips = {"b": "32x3", "l": "40x3" if frames == 40 else "16x4"}.get(letter, "16x4")
    return f"mvitv2_{letter or 's'}_{clips}"


def _stages(file: _SlowFastConfig) -> dict[str, Any]:
    """Depths, strides and where the width grows, from per-block lists."""
    depth, widths = file.value("MVIT.DEPTH", 16), file.value("MVIT.DIM_MUL", [])
    starts = [block for block, _ in widths]
    if file.value("MVIT.HEAD_MUL", []) != widths or any(factor != 2 for _, factor in widths):
        file.refuse("MVIT.HEAD_MUL", "heads and width must double together, at the start of a stage")
    strides = {block: stride for block, *stride in file.value("MVIT.POOL_Q_STRIDE", [])}
    strided = {block: stride for block, stride in strides.items() if max(stride) > 1}
    pool_all = list(strides) == list(range(depth))
    if not strided.keys() <= set(starts) or not (pool_all or strides == strided):
        file.refuse(
            "MVIT.POOL_Q_STRIDE", "queries must be pooled in all blocks or at stage starts, and strided there only"
        )
    if file.value("MVIT.POOL_KV_STRIDE_ADAPTIVE", None) is None:
        missing = "only adaptive strides are supported, not strides of single blocks"
        file.refuse("MVIT.POOL_KV_STRIDE_ADAPTIVE", missing)
    by_stage = [strided.get(start, [1, 1, 1]) for start in starts]
    one = not by_stage or all(stride == by_stage[0] for stride in by_stage)
    return {
        "depths": [end - start for start, end in pairwise([0, *starts, depth])],
        "q_stride": next(iter(by_stage), [1, 2, 2]) if one else by_stage,
        "pool_all_queries": pool_all,
        "width_growth": "attention" if file.value("MVIT.DIM_MUL_IN_ATT", False) else "mlp",
    }


def _positions(file: _SlowFastConfig) -> dict[str, Any]:
    """Relative positions in every block, or absolute ones before the first, separate for time and space."""
    absolute, separate = file.value("MVIT.USE_ABS_POS", True), file.value("MVIT.SEP_POS_EMBED", False)
    relative = {file.value(f"MVIT.REL_POS_{axis}", False) for axis in ("SPATIAL", "TEMPORAL")}
    if relative == {True} and not absolute:
        return {"positions": "relative"}
    if relative != {False} or not absolute or not separate:
        file.refuse("MVIT.USE_ABS_POS", "positions must be relative in space and time, or absolute with SEP_POS_EMBED")
    return {"positions": "absolute"}


def _crops(file: _SlowFastConfig) -> None:
    """Training crop: a box of random area and aspect ratio, or, always with Charades, a random scale."""
    area = file.value("DATA.TRAIN_JITTER_SCALES_RELATIVE", []) if file.dataset != "charades" else []
    if area:
        file.put("data.crop_area", area, "renamed", "DATA.TRAIN_JITTER_SCALES_RELATIVE")
        ratio = file.value("DATA.TRAIN_JITTER_ASPECT_RELATIVE", []) or [0.75, 1.3333]
        file.put("data.crop_ratio", ratio, "renamed", "DATA.TRAIN_JITTER_ASPECT_RELATIVE")
        file.record("ignored", "replaced by TRAIN_JITTER_SCALES_RELATIVE", "DATA.INV_UNIFORM_SAMPLE")
        return
    file.put("data.crop", "jitter", "derived", "DATA.TRAIN_JITTER_SCALES")
    file.put(
        "data.jitter_scales", file.value("DATA.TRAIN_JITTER_SCALES", [256, 320]), "derived", "DATA.TRAIN_JITTER_SCALES"
    )
    why = "PySlowFast's Charades does not use it" if file.dataset == "charades" else "empty"
    file.record("ignored", why, "DATA.TRAIN_JITTER_SCALES_RELATIVE", "DATA.TRAIN_JITTER_ASPECT_RELATIVE")
    file.fixed({"DATA.INV_UNIFORM_SAMPLE": (False, True, "the inverse of the scale is uniform")})


def _augmentation(file: _SlowFastConfig) -> None:
    """RandAugment and erasing, which PySlowFast's Charades does not do, whatever the file says."""
    if file.dataset == "charades":
        file.result.settings.update({"data.randaugment": None, "data.erasing": 0.0})
        keys = ("ENABLE", "AA_TYPE", "RE_PROB", "COLOR_JITTER")
        file.record("ignored", "PySlowFast's Charades does not augment so", *(f"AUG.{key}" for key in keys))
        file.record("ignored", "PySlowFast's Charades takes one clip of a video", "AUG.NUM_SAMPLE")
        return
    file.put("data.repeated_aug", file.count("AUG.NUM_SAMPLE", 1), "renamed", "AUG.NUM_SAMPLE")
    enabled = file.value("AUG.ENABLE", False)
    kind = file.value("AUG.AA_TYPE", "rand-m9-mstd0.5-inc1") if enabled else ""
    operations = re.sub(r"^(rand-m\d+)-(?!n\d)", r"\1-n2-", kind)  # two where none are said, as in timm
    file.put("data.randaugment", operations or None, "renamed", "AUG.AA_TYPE")
    file.put("data.erasing", file.value("AUG.RE_PROB", 0.25) if enabled else 0.0, "renamed", "AUG.RE_PROB")
    file.record("derived", "switches data.randaugment and data.erasing", "AUG.ENABLE")
    file.record("ignored", "replaced by RandAugment" if kind else "AUG is not enabled", "AUG.COLOR_JITTER")


def _mixing(file: _SlowFastConfig) -> None:
    """Mixup, CutMix, and label smoothing, which PySlowFast only does with them."""
    enabled, share = file.value("MIXUP.ENABLE", False), file.value("MIXUP.PROB", 1.0)
    mixes = enabled and share > 0
    smoothing = file.value("MIXUP.LABEL_SMOOTH_VALUE", 0.1) if enabled else 0.0
    file.put("train.label_smoothing", smoothing, "renamed", "MIXUP.LABEL_SMOOTH_VALUE")
    file.record("derived", "switches mixing and label smoothing", "MIXUP.ENABLE")
    for name, key, default in (("mixup", "ALPHA", 0.8), ("cutmix", "CUTMIX_ALPHA", 1.0)):
        file.put(f"train.{name}", file.value(f"MIXUP.{key}", default) if mixes else 0.0, "renamed", f"MIXUP.{key}")
    if mixes:
        file.put("train.mix_probability", share, "renamed", "MIXUP.PROB")
        file.put("train.mix_switch", file.value("MIXUP.SWITCH_PROB", 0.5), "renamed", "MIXUP.SWITCH_PROB")
    else:
        file.record("ignored", "nothing is mixed", "MIXUP.PROB", "MIXUP.SWITCH_PROB")
    loss = file.value("MODEL.LOSS_FUNC", "cross_entropy")
    if file.masked:
        file.fixed(
            {"MODEL.LOSS_FUNC": ("cross_entropy", "multi_mse", "the loss is the squared error over hidden tokens")}
        )
        return
    if file.value("DATA.MULTI_LABEL", False):
        if loss != "bce_logit":
            file.refuse("MODEL.LOSS_FUNC", f"is {loss!r}, but with DATA.MULTI_LABEL the loss must be bce_logit")
        file.record("derived", "train.loss = binary_cross_entropy", "MODEL.LOSS_FUNC")
        return
    if loss not in ("cross_entropy", "soft_cross_entropy"):
        file.refuse("MODEL.LOSS_FUNC", f"is {loss!r}, but the loss must be the cross entropy")
    file.record("ignored", "the loss is the cross entropy with soft targets", "MODEL.LOSS_FUNC")


def _optimisation(file: _SlowFastConfig) -> None:
    """Optimiser, rates for 512 clips, and the weights that training starts from."""
    method = file.value("SOLVER.OPTIMIZING_METHOD", "sgd")
    if method not in ("sgd", "adamw", "mt_adamw"):
        file.refuse("SOLVER.OPTIMIZING_METHOD", f"is {method!r}, but only sgd and adamw are supported")
    file.put("train.optimizer", method.removeprefix("mt_"), "renamed", "SOLVER.OPTIMIZING_METHOD")
    momentum, betas = ("kept", "ignored") if method == "sgd" else ("ignored", "kept")
    for key, default, fate in (("MOMENTUM", 0.9, momentum), ("BETAS", [0.9, 0.999], betas)):
        if fate == "kept":
            file.put(f"train.{key.lower()}", file.value(f"SOLVER.{key}", default), fate, f"SOLVER.{key}")
        else:
            file.record(fate, f"{method} has none", f"SOLVER.{key}")
    shards = file.count("NUM_SHARDS", 1)
    per_machine = file.count("TRAIN.BATCH_SIZE", 64) * file.result.settings.get("data.repeated_aug", 1)
    sizes = ("TRAIN.BATCH_SIZE", "NUM_SHARDS")
    file.put("train.clips_per_step", per_machine * shards, "derived", *sizes)
    clips = per_machine if file.value("SOLVER.BASE_LR_SCALE_NUM_SHARDS", False) else per_machine * shards
    rates = (("BASE_LR", 0.1, "base_lr"), ("WARMUP_START_LR", 0.01, "warmup_lr"), ("COSINE_END_LR", 0.0, "end_lr"))
    for key, default, setting in rates:
        rate = float(f"{file.value(f'SOLVER.{key}', default) * CLIPS_OF_BASE_LR / clips:.12g}")
        file.put(f"train.{setting}", rate, "derived", f"SOLVER.{key}")
    mixed = file.value("TRAIN.MIXED_PRECISION", None)  # if unset, train.precision is auto
    if mixed is not None:
        file.put("train.precision", "fp16" if mixed else "fp32", "derived", "TRAIN.MIXED_PRECISION")
    weights = file.value("TRAIN.CHECKPOINT_FILE_PATH", "") or None
    file.put("model.weights", weights, "renamed", "TRAIN.CHECKPOINT_FILE_PATH")
    if file.value("TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN", []):
        file.refuse("TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN", "parameter names are recognised, not edited")
