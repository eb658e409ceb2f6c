"""Other people's networks under names of ours, to compare with: torchvision's and pytorchvideo's, with new weights.

All take clips (B, 3, T, H, W) and return logits (B, num_classes), in training and in evaluation. Neither package is
imported before a network of it is built, and nothing is downloaded.
"""

import math
from collections.abc import Callable, Sequence

from torch import nn

from mvit_video.compat import import_pytorchvideo, import_torchvision
from mvit_video.errors import ConfigError
from mvit_video.model.checks import check_counts, check_sizes
from mvit_video.model.evidence import entering
from mvit_video.model.registry import Capabilities, register_model
from mvit_video.model.weights.swin_formats import SWIN_FORMATS

Size = tuple[int, int, int]  # frames, height, width of a clip


def _mvit_v2_s(num_classes: int, size: Size) -> nn.Module:
    _check_size("torchvision/mvit_v2_s", size, size == (16, 224, 224), "16×224×224 only")
    return import_torchvision("torchvision.models.video").mvit_v2_s(num_classes=num_classes)


def _swin3d(size_name: str) -> Callable[[int, Size], nn.Module]:
    def build(num_classes: int, size: Size) -> nn.Module:
        return getattr(import_torchvision("torchvision.models.video"), f"swin3d_{size_name}")(num_classes=num_classes)

    return build


def _swin_stages(network: nn.Module) -> list[list[nn.Module]]:
    """Blocks by stage: every second of `features`; the others merge."""
    return [list(stage.children()) for stage in list(network.get_submodule("features").children())[::2]]


SWIN = Capabilities(
    head="head",
    blocks=lambda network: [block for stage in _swin_stages(network) for block in stage],
    evidence=entering(lambda network: _swin_stages(network)[-1], channels_last=True),
    formats=SWIN_FORMATS,
    meta=True,
)


def _slow_r50(num_classes: int, size: Size) -> nn.Module:
    """The arguments of pytorchvideo.models.hub.slow_r50, with the last pooling as large as the last map."""
    resnet = import_pytorchvideo("pytorchvideo.models.resnet")
    return resnet.create_resnet(
        stem_conv_kernel_size=(1, 7, 7),
        head_pool_kernel_size=(size[0], math.ceil(size[1] / 32), math.ceil(size[2] / 32)),
        model_depth=50,
        model_num_class=num_classes,
    )


def _x3d_s(num_classes: int, size: Size) -> nn.Module:
    """The arguments of pytorchvideo.models.hub.x3d_s, without the softmax that it ends in by default."""
    _check_size("pytorchvideo/x3d_s", size, min(size[1:]) >= 32, "images of at least 32×32")
    x3d = import_pytorchvideo("pytorchvideo.models.x3d")
    return x3d.create_x3d(
        input_clip_length=size[0], input_crop_size=min(size[1:]), model_num_class=num_classes, head_activation=None
    )


def _mvit_base_16x4(num_classes: int, size: Size) -> nn.Module:
    whole_patches = all(length % step == 0 for length, step in zip(size, (2, 4, 4), strict=True))
    _check_size("pytorchvideo/mvit_base_16x4", size, whole_patches, "multiples of 2×4×4")
    hub = import_pytorchvideo("pytorchvideo.models.hub.vision_transformers")
    return hub.mvit_base_16x4(spatial_size=size[1:], temporal_size=size[0], head_num_classes=num_classes)


def _register(
    name: str,
    usual_frames: int,
    usual_crop: int,
    build: Callable[[int, Size], nn.Module],
    paper: str,
    capabilities: Capabilities | None = None,
) -> None:
    """Register who builds a network from (num_classes, size); without capabilities its blocks are called blocks.0 and so on."""

    def make(
        *, num_classes: int = 400, num_frames: int = usual_frames, crop_size: int | Sequence[int] = usual_crop
    ) -> nn.Module:
        check_counts(num_classes=num_classes, num_frames=num_frames)
        check_sizes(crop_size=crop_size)
        height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        return build(num_classes, (num_frames, height, width))

    capabilities = capabilities or Capabilities(blocks=_blocks)
    package = name.partition("/")[0]
    register_model(name, make, capabilities=capabilities, package=package, source=f"arXiv {paper}, {package}")


def _blocks(network: nn.Module) -> Sequence[nn.Module]:
    return list(network.get_submodule("blocks").children())


def _check_size(name: str, size: Size, fits: bool, rule: str) -> None:
    if not fits:
        given = "×".join(map(str, size))
        raise ConfigError(f"{name} cannot be built for clips of {given} (frames×height×width): it takes {rule}")


# Usual inputs: torchvision's weights metadata and its documentation (clip_len), the papers' training crops for
# pytorchvideo's (its zoo evaluates slow_r50 at 256 and x3d_s at 182 pixels).
_register("torchvision/mvit_v2_s", 16, 224, _mvit_v2_s, "2112.01526")
for _size in "tsb":
    _register(f"torchvision/swin3d_{_size}", 32, 224, _swin3d(_size), "2106.13230", SWIN)
_register("pytorchvideo/slow_r50", 8, 224, _slow_r50, "1812.03982")
_register("pytorchvideo/x3d_s", 13, 160, _x3d_s, "2004.04730")
_register("pytorchvideo/mvit_base_16x4", 16, 224, _mvit_base_16x4, "2104.11227")
