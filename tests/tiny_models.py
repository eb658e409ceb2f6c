"""Networks of a few thousand parameters whose weights are large enough for every part to matter."""

import torch
from torch import nn

from mvit_video import build_model
from mvit_video.model.registry import build_masked

SMALL = dict(depths=(1, 2), embed_dim=16, crop_size=32, num_classes=5)


def tiny_image(seed: int = 0, **arguments) -> nn.Module:
    """An image MViTv2 without class token, in eval mode; keys strided by 4 and 2."""
    return randomise(build_model("mvitv2_s_in1k", **(SMALL | arguments)), seed)


def tiny_video(seed: int = 1, **arguments) -> nn.Module:
    """A video MViTv2 of 8 frames with class token, in eval mode; keys strided as in `tiny_image`."""
    arguments = SMALL | dict(num_frames=8, kv_stride=(1, 4, 4)) | arguments
    return randomise(build_model("mvitv2_s_16x4", **arguments), seed)


def tiny_masked(seed: int = 1, predict_from=(0, 2), **arguments) -> nn.Module:
    """The pre-training form of `tiny_video`, predicting from two blocks; masks have 2×2 cells of 16 pixels and 4 times."""
    arguments = SMALL | dict(num_frames=8, kv_stride=(1, 4, 4), patch_stride=(2, 8, 8)) | arguments
    return randomise(build_masked("mvitv2_s_16x4", predict_from, **arguments), seed)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """New values everywhere, norms and biases too; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            noise = 0.1 * noise + float(name.endswith("weight"))
        elif "rel_pos" in name or "pos_e" in name or name in ("cls_token", "mask_token"):
            noise = 0.3 * noise
        else:
            noise = noise / parameter[0].numel() ** 0.5
        parameter.data = noise
    return model.eval()


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())
