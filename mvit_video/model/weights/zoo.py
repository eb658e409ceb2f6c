"""The public checkpoints: where they are, what they need as input, and whose numbers are published for them.

`mvit-video models --markdown > MODEL_ZOO.md` writes the page of the same name. No digest is published for any of these
files except in torchvision's names; download.py checks those, and records the others at the first download.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mvit_video.config.schema import InputSettings, Settings
from mvit_video.model.registry import build_model, list_models, model_entry

_VIDEO = "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo/mvitv2/pysf_video_models/"
_IMAGE = "https://dl.fbaipublicfiles.com/mvit/mvitv2_models/"
_PYSLOWFAST = "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo/mvit/"
_MASKED = "https://dl.fbaipublicfiles.com/pyslowfast/masked_models/"
_MMACTION = "https://download.openmmlab.com/mmaction/v1.0/recognition/mvit/"
_MMSELFSUP = "https://download.openmmlab.com/mmselfsup/1.x/maskfeat/maskfeat_mvit-small_16xb32-amp-coslr-300e_k400/"
_MMSELFSUP_FILE = "maskfeat_mvit-small_16xb32-amp-coslr-300e_k400_20230131-87d60b6f.pth"
_MMSELFSUP_TWIN = "mvit-small_ft-8xb16-coslr-100e_k400/mvit-small_ft-8xb16-coslr-100e_k400_20230131-5e8303f5.pth"
_TORCHVISION = "https://download.pytorch.org/models/"
_CSWIN = "https://github.com/microsoft/CSWin-Transformer/releases/download/v0.1.0/"
_VIDEO_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.4/"
_HUB = "https://huggingface.co/timm/{}/resolve/main/model.safetensors"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_INPUT_S = InputSettings()
_INPUT_B = InputSettings(num_frames=32, sampling_rate=3)
_INPUT_L = InputSettings(num_frames=40, sampling_rate=3, short_side=312, crop_size=312, mean=_MEAN, std=_STD)
# PySlowFast reads Something-Something as BGR, normalises it, and only then turns the colours round (datasets/ssv2.py).
_INPUT_L_SSV2 = _INPUT_L.model_copy(update={"mean": _MEAN[::-1], "std": _STD[::-1]})
_INPUT_PICTURE = InputSettings(num_frames=1, mean=_MEAN, std=_STD)
_INPUT_SWIN = InputSettings(num_frames=32, sampling_rate=2, mean=_MEAN, std=_STD)
APACHE = "Apache-2.0"


class ZooEntry(Settings):
    """One public checkpoint."""

    url: str
    """Where its file is."""
    model: str
    """The network, a name that `build_model` takes."""
    arguments: dict[str, Any] | None = Field(default_factory=dict)
    """What differs from its usual arguments; None where only the file tells."""
    dataset: str
    """What it was trained on, for people."""
    num_classes: int
    """Rows of its head; 0 for pre-trained weights, which have none."""
    classes: str | None = None
    """The shipped list of its class names, where there is one: kinetics400 or ssv2."""
    preprocessing: InputSettings
    """From a video (or image) to its input."""
    protocol: str = "1x1"
    """Clips × crops that the published numbers are for."""
    top1: float | None = None
    """Published top-1 accuracy in percent; not measured here."""
    top5: float | None = None
    """Published top-5 accuracy in percent; not measured here."""
    published_by: str = ""
    """Whose numbers these are."""
    licence: str
    """Of the code that the file is published with, and of the file where that says one."""


def _kinetics(file: str, model: str, inputs: InputSettings, protocol: str, top1: float, top5: float) -> ZooEntry:
    return ZooEntry(
        url=_VIDEO + file,
        model=model,
        dataset="Kinetics-400",
        num_classes=400,
        classes="kinetics400",
        preprocessing=inputs,
        protocol=protocol,
        top1=top1,
        top5=top5,
        published_by="MViTv2 paper",
        licence=APACHE,
    )


def _something(file: str, model: str, inputs: InputSettings, top1: float, top5: float) -> ZooEntry:
    crop = inputs.crop_size  # the short side is the crop's: three crops then cover the whole width
    return ZooEntry(
        url=_VIDEO + file,
        model=model,
        dataset="Something-Something v2",
        num_classes=174,
        classes="ssv2",
        preprocessing=inputs.model_copy(update={"sampling": "segment", "short_side": crop}),
        protocol="1x3",
        top1=top1,
        top5=top5,
        published_by="MViTv2 paper",
        licence=APACHE,
    )


def _maskfeat(url: str, size: str, top1: float, pooling: str = "mean_without_cls") -> ZooEntry:
    """Pre-trained by masked feature prediction; the number is that of its authors' fine-tuning, by 10x1 views."""
    return ZooEntry(
        url=url,
        model=f"mvitv2_{size}_16x4",
        arguments={"width_growth": "mlp"} | ({"pooling": pooling} if pooling != "cls" else {}),
        dataset=f"Kinetics-400 without labels; {top1:.1f} after fine-tuning",
        num_classes=0,
        preprocessing=_INPUT_S,
        licence=APACHE,
    )


def _mvitv1(file: str, data: str, num_classes: int, classes: str | None, top1: float, top5: float) -> ZooEntry:
    """The public yaml says 24 blocks and filters by stride, the paper 16: the file tells."""
    entry = _kinetics("", "mvitv1_b_32x3", _INPUT_B, "5x1", top1, top5)
    changes: dict[str, Any] = {"arguments": None, "dataset": data, "num_classes": num_classes, "classes": classes}
    return entry.model_copy(update=changes | {"url": _PYSLOWFAST + file, "published_by": "PySlowFast"})


def _mmaction(file: str, like: ZooEntry, protocol: str, top1: float, top5: float, **changes: Any) -> ZooEntry:
    """MMAction2 scales the short side to the crop, and normalises every network's input alike."""
    mean, std = _INPUT_S.mean, _INPUT_S.std
    shown = {"short_side": like.preprocessing.crop_size, "mean": mean, "std": std}
    own = {"url": file, "protocol": protocol, "top1": top1, "top5": top5, "published_by": "MMAction2"}
    return like.model_copy(update=own | {"preprocessing": like.preprocessing.model_copy(update=shown)} | changes)


def _masked_and_mmaction(ours: dict[str, ZooEntry]) -> dict[str, ZooEntry]:
    """MaskFeat's weights, PySlowFast's MViTv1-B 32x3, and MMAction2's MViTv2 with those of MMSelfSup."""
    rows = {
        "maskfeat_s_16x4_k400": _maskfeat(f"{_MASKED}k400_MVIT_S_MaskFeat_PT_epoch_00300.pyth", "s", 82.2),
        "maskfeat_l_16x4_k400": _maskfeat(f"{_MASKED}k400_MVIT_L_MaskFeat_PT_epoch_00800.pyth", "l", 84.3),
        "maskfeat_s_16x4_k400_mmselfsup": _maskfeat(f"{_MMSELFSUP}{_MMSELFSUP_FILE}", "s", 81.8, "cls"),
        "mvitv1_b_32x3_k400": _mvitv1("k400.pyth", "Kinetics-400", 400, "kinetics400", 80.4, 94.8),
        "mvitv1_b_32x3_k600": _mvitv1("k600.pyth", "Kinetics-600", 600, None, 83.9, 96.5),
    }
    for name, file, protocol, top1, top5 in (
        ("s_16x4_k400", "small-p244_16x4x1_kinetics400-rgb_20221021-9ebaaeed", "5x1", 81.1, 94.7),
        ("b_32x3_k400", "base-p244_32x3x1_kinetics400-rgb_20221021-f392cd2d", "5x1", 82.6, 95.8),
        ("l_40x3_k400", "large-p244_40x3x1_kinetics400-rgb_20221021-11fe1f97", "5x3", 85.4, 96.2),
        ("s_16x4_ssv2", "small-p244_u16_sthv2-rgb_20221021-65ecae7d", "1x3", 68.1, 91.0),
        ("b_32x3_ssv2", "base-p244_u32_sthv2-rgb_20221021-d5de5da6", "1x3", 70.8, 92.7),
        ("l_40x3_ssv2", "large-p244_u40_sthv2-rgb_20221021-61696e07", "1x3", 73.2, 94.0),
    ):
        url = f"{_MMACTION}converted/mvit-{file}.pth"
        rows[f"mvitv2_{name}_mmaction2"] = _mmaction(url, ours[f"mvitv2_{name}"], protocol, top1, top5)
    masked = {"arguments": {"width_growth": "mlp"}, "dataset": "Kinetics-400, from MaskFeat"}
    for name, like, folder, digest, protocol, top1, top5, changes in (
        ("mvitv2_s_16x4_k400_mmaction2_own", "k400", "32xb16-16x4x1-200e_kinetics400-rgb", "23284ff3", "5x1", 80.6, 94.7, {}),
        ("mvitv2_s_16x4_ssv2_mmaction2_own", "ssv2", "k400-pre_16xb16-u16-100e_sthv2-rgb", "4065c1b9", "1x3", 68.2, 91.3, {}),
        ("maskfeat_s_16x4_k400_ft_mmaction2", "k400", "k400-maskfeat-pre_8xb32-16x4x1-100e_kinetics400-rgb",
         "5bced1d0", "10x1", 81.8, 95.2, masked),
    ):  # fmt: skip
        stem = f"mvit-small-p244_{folder}"
        url = f"{_MMACTION}{stem}/{stem}_20230201-{digest}.pth"
        rows[name] = _mmaction(url, ours[f"mvitv2_s_16x4_{like}"], protocol, top1, top5, **changes)
    twin = rows["maskfeat_s_16x4_k400_ft_mmaction2"]
    told: dict[str, Any] = {"url": _MMSELFSUP + _MMSELFSUP_TWIN, "top5": None, "published_by": "MMSelfSup"}
    return rows | {"maskfeat_s_16x4_k400_ft_mmselfsup": twin.model_copy(update=told)}


def _torchvision(file: str, model: str, top1: float, top5: float) -> ZooEntry:
    entry = _kinetics(file, model, _INPUT_S, "5x1", top1, top5)
    return entry.model_copy(
        update={"url": _TORCHVISION + file, "published_by": "torchvision", "licence": "BSD-3-Clause"}
    )


def _picture(size: str, top1: float | None = None, pretraining: str = "in1k") -> ZooEntry:
    names = {"in1k": ("ImageNet-1K", 1000), "in21k": ("ImageNet-21K", 19168)}
    return ZooEntry(
        url=f"{_IMAGE}MViTv2_{size}_{pretraining}.pyth",
        model=f"mvitv2_{size.lower()}_{pretraining}",
        dataset=names[pretraining][0],
        num_classes=names[pretraining][1],
        preprocessing=_INPUT_PICTURE,
        top1=top1,
        published_by="image MViTv2 zoo" if top1 else "",
        licence=APACHE,
    )


def _image(
    url: str, model: str, top1: float, published_by: str, licence: str, short_side: int = 249, data: str = "ImageNet-1K"
) -> ZooEntry:
    return ZooEntry(
        url=url,
        model=model,
        dataset=data,
        num_classes=1000,
        preprocessing=_INPUT_PICTURE.model_copy(update={"short_side": short_side}),
        top1=top1,
        published_by=published_by,
        licence=licence,
    )


def _of_timm(name: str, model: str, top1: float, paper: str, short_side: int = 249) -> ZooEntry:
    return _image(_HUB.format(f"{name}.in1k"), model, top1, paper, APACHE, short_side)


def _video_swin(url: str, size: str, protocol: str, top1: float, top5: float, by: str, licence: str) -> ZooEntry:
    own = by == "Video Swin paper"  # whose three crops cover images as wide as they are; torchvision's is one of 256
    inputs = _INPUT_SWIN.model_copy(update={"short_side": 224}) if own else _INPUT_SWIN
    entry = _kinetics("", f"torchvision/swin3d_{size}", inputs, protocol, top1, top5)
    return entry.model_copy(update={"url": url, "published_by": by, "licence": licence})


def _families() -> dict[str, ZooEntry]:
    """CSWin, MaxViT, PVT v2, Twins and Swin."""
    rows = {}
    for size, word, top1, data in (
        ("t", "tiny", 82.8, "ImageNet-1K"),
        ("s", "small", 83.6, "ImageNet-1K"),
        ("b", "base", 84.2, "ImageNet-1K"),
        ("l", "large", 86.5, "ImageNet-21K, then 1K"),
    ):
        file = f"{_CSWIN}cswin_{word}_224.pth"
        rows[f"cswin_{size}_in1k"] = _image(file, f"cswin_{size}_in1k", top1, "CSWin's authors", "MIT", data=data)
    for word, top1 in (("tiny", 83.62), ("small", 84.45), ("base", 84.95), ("large", 85.17)):
        name = f"maxvit_{word[0]}_in1k"
        rows[name] = _of_timm(f"maxvit_{word}_tf_224", name, top1, "MaxViT's authors", 236)
    for size, top1 in dict(b0=70.5, b1=78.7, b2=82.0, b2_li=82.1, b3=83.1, b4=83.6, b5=83.8).items():
        rows[f"pvt_v2_{size}_in1k"] = _of_timm(f"pvt_v2_{size}", f"pvt_v2_{size}_in1k", top1, "PVT v2's authors")
    for kind, accuracies in (("svt", (81.7, 83.2, 83.7)), ("pcpvt", (81.2, 82.7, 83.1))):
        for word, top1 in zip(("small", "base", "large"), accuracies, strict=True):
            name = f"twins_{kind}_{word[0]}_in1k"
            rows[name] = _of_timm(f"twins_{kind}_{word}", name, top1, "Twins' authors")
    for size, file, short_side, top1 in (
        ("t", "swin_t-704ceda3.pth", 232, 81.474),
        ("s", "swin_s-5e29d889.pth", 246, 83.196),
        ("b", "swin_b-68c6b09e.pth", 238, 83.582),
    ):
        rows[f"swin_{size}_in1k_torchvision"] = _image(
            _TORCHVISION + file, f"torchvision/swin3d_{size}", top1, "torchvision", "BSD-3-Clause", short_side
        )
    for size, word, top1, top5 in (("t", "tiny", 78.8, 93.6), ("s", "small", 80.6, 94.5), ("b", "base", 80.6, 94.6)):
        url = f"{_VIDEO_SWIN}swin_{word}_patch244_window877_kinetics400_1k.pth"
        rows[f"swin3d_{size}_k400"] = _video_swin(url, size, "4x3", top1, top5, "Video Swin paper", APACHE)
    for size, file, top1, top5 in (
        ("t", "swin3d_t-7615ae03.pth", 77.715, 93.519),
        ("s", "swin3d_s-da41c237.pth", 79.521, 94.158),
        ("b", "swin3d_b_1k-24f7c7c6.pth", 79.427, 94.386),
    ):
        rows[f"swin3d_{size}_k400_torchvision"] = _video_swin(
            _TORCHVISION + file, size, "12x1", top1, top5, "torchvision", "BSD-3-Clause"
        )
    return rows


ZOO: dict[str, ZooEntry] = {
    "mvitv2_s_16x4_k400": _kinetics("MViTv2_S_16x4_k400_f302660347.pyth", "mvitv2_s_16x4", _INPUT_S, "5x1", 81.0, 94.6),
    "mvitv2_b_32x3_k400": _kinetics("MViTv2_B_32x3_k400_f304025456.pyth", "mvitv2_b_32x3", _INPUT_B, "5x1", 82.9, 95.7),
    "mvitv2_l_40x3_k400": _kinetics("MViTv2_L_40x3_k400_f306903192.pyth", "mvitv2_l_40x3", _INPUT_L, "5x3", 86.1, 97.0),
    "mvitv2_s_16x4_ssv2": _something("MViTv2_S_16x4_ssv2_f308341823.pyth", "mvitv2_s_16x4", _INPUT_S, 68.2, 91.4),
    "mvitv2_b_32x3_ssv2": _something("MViTv2_B_32x3_ssv2_f305803282.pyth", "mvitv2_b_32x3", _INPUT_B, 70.5, 92.7),
    "mvitv2_l_40x3_ssv2": _something("MViTv2_L_40x3_ssv2_f309603968.pyth", "mvitv2_l_40x3", _INPUT_L_SSV2, 73.3, 94.1),
    "mvitv2_s_16x4_k400_torchvision": _torchvision("mvit_v2_s-ae3be167.pth", "mvitv2_s_16x4", 80.757, 94.665),
    "mvitv1_b_16x4_k400_torchvision": _torchvision("mvit_v1_b-dbeb1030.pth", "mvitv1_b_16x4", 78.477, 93.582),
    "mvitv2_t_in1k": _picture("T", 82.3),
    "mvitv2_s_in1k": _picture("S", 83.6),
    "mvitv2_b_in1k": _picture("B", 84.4),
    "mvitv2_l_in1k": _picture("L", 85.3),
    "mvitv2_b_in21k": _picture("B", pretraining="in21k"),  # L's 87.5 and H's 88.0 are after fine-tuning on IN-1K
    "mvitv2_l_in21k": _picture("L", pretraining="in21k"),
    "mvitv2_h_in21k": _picture("H", pretraining="in21k"),
    **_families(),
}
ZOO |= _masked_and_mmaction(ZOO)
# Names that tell nothing: that of every repository on the Hugging Face hub and of our runs, and two that anybody may give.
_ANYBODYS = ("model.safetensors", "k400.pyth", "k600.pyth")


def zoo_entry(source: str) -> ZooEntry | None:
    """The entry of this name, or of this file name or address: published names tell one file from another."""
    file = source.rpartition("/")[2]
    named = [e for e in ZOO.values() if e.url == source or (file not in _ANYBODYS and e.url.endswith(f"/{file}"))]
    return ZOO.get(source) or next(iter(named), None)


class _Undrawn(TorchFunctionMode):
    """Leaves out every random draw: on the meta device it draws nothing and takes most of the time that building takes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def model_rows() -> Iterator[tuple[str, str, str, str]]:
    """Every network of ours: name, parameters (counted without making any), input as frames × height × width, source."""
    for entry in map(model_entry, list_models()):
        if not entry.package and entry.plugin is None:
            with torch.device("meta" if entry.capabilities.meta else "cpu"), _Undrawn():
                count = sum(parameter.numel() for parameter in build_model(entry.name).parameters())
            yield entry.name, f"{count:,}", "×".join(map(str, entry.input_size)), entry.source


def baseline_rows() -> Iterator[tuple[str, str, str]]:
    """Every baseline: name, usual input as frames × height × width, source. Their packages are not imported."""
    for entry in map(model_entry, list_models()):
        if entry.package and entry.plugin is None:
            yield entry.name, "×".join(map(str, entry.input_size)), entry.source


def plugin_rows() -> Iterator[tuple[str, str, str]]:
    """Every network of a plugin: name, usual input, the plugin."""
    for entry in map(model_entry, list_models()):
        if entry.plugin is not None:
            yield entry.name, "×".join(map(str, entry.input_size)), entry.plugin


def zoo_rows() -> Iterator[tuple[str, str, str, str, str]]:
    """Every public checkpoint: name, clips × crops, top-1, top-5, whose numbers."""
    for name, entry in ZOO.items():
        top1, top5 = ("" if number is None else f"{number:.1f}" for number in (entry.top1, entry.top5))
        yield name, entry.protocol, top1, top5, entry.published_by


BASELINE_COLUMNS = ("network", "input", "source")
PLUGIN_COLUMNS = ("network", "input", "plugin")
MODEL_COLUMNS = ("network", "parameters", "input", "source")
ZOO_COLUMNS = ("checkpoint", "views", "top-1", "top-5", "published by")


def model_zoo_page() -> str:
    """MODEL_ZOO.md."""
    rows = [(*row, *_page_cells(ZOO[row[0]])) for row in zoo_rows()]
    return "\n".join(
        [
            "# Model zoo",
            "",
            "Generated by `mvit-video models --markdown > MODEL_ZOO.md`; change `mvit_video/model/weights/zoo.py` instead.",
            "",
            "## Networks",
            "",
            "`build_model(NAME)` or `model.name` in a configuration. Parameters are counted with the published number of",
            "classes; the input is frames × height × width, and any other size works, but for MaxViT, whose sizes are multiples of its",
            "windows. Networks of other packages, as baselines, are below.",
            "",
            *_markdown(MODEL_COLUMNS, model_rows()),
            "",
            *_markdown(BASELINE_COLUMNS, baseline_rows()),
            "",
            "## Public checkpoints",
            "",
            "`load_weights(model, NAME)`, `model.weights: NAME` in a configuration, or `mvit-video convert NAME --to native`.",
            "The accuracies in percent are those that the named source publishes; **we have not measured them**. Views are",
            "clips × crops per video. The MViTv2 paper is arXiv 2112.01526, and PySlowFast's zoo repeats its numbers for these files;",
            "the image MViTv2 zoo is github.com/facebookresearch/mvit; torchvision's are for clips at 7.5 frames a second (MViT)",
            "or 15 (Swin). The files of MaxViT, PVT v2 and Twins are timm's, the numbers their authors'. Files of image",
            "Swin are inflated into torchvision's video networks. MaskFeat's pre-trained files have no head: they start a training.",
            "MMAction2's number for its L on Something-Something v2 is for crops of 224; its network is made for 312. No source says",
            "whether PySlowFast's MViTv1-B 32x3 has 16 blocks or 24: the file does. The licence is that of the code that a file is",
            "published with. An image checkpoint can start a video network of its size (`mvit_video/model/weights/inflate.py`); that of",
            "mvitv2_l_in1k needs `width_growth='mlp'`. Downloads are kept in $MVIT_VIDEO_CACHE, or ~/.cache/mvit_video, at",
            "host/path; a file that is put there by hand is used like a downloaded one.",
            "",
            *_markdown((*ZOO_COLUMNS, "network", "trained on", "licence", "file", "preprocessing"), rows),
            "",
        ]
    )


def _page_cells(entry: ZooEntry) -> tuple[str, str, str, str, str]:
    seen = entry.dataset if entry.preprocessing.num_frames > 1 else f"{entry.dataset}; untrained on video"
    file = f"[{entry.url.rpartition('/')[2]}]({entry.url})"
    told = {"depth and filters": "of the file"} if entry.arguments is None else entry.arguments
    network = ", ".join([entry.model, *(f"{name} {value}" for name, value in told.items())])
    return network, seen, entry.licence, file, input_text(entry.preprocessing)


def input_text(inputs: InputSettings) -> str:
    """How a network is fed, in a line."""
    frames = {
        "dense": f"{inputs.num_frames} frames, 1 in {inputs.sampling_rate} at {inputs.target_fps:g}/s",
        "segment": f"{inputs.num_frames} frames, 1 in each equal part",
    }[inputs.sampling]
    mean, std = (", ".join(f"{value:g}" for value in dict.fromkeys(values)) for values in (inputs.mean, inputs.std))
    crop = inputs.crop_size if isinstance(inputs.crop_size, int) else "×".join(map(str, inputs.crop_size))
    picture = f"short side {inputs.short_side}, crop {crop}, mean {mean}, std {std}"
    return picture if inputs.num_frames == 1 else f"{frames}, {picture}"


def _markdown(columns: tuple[str, ...], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
