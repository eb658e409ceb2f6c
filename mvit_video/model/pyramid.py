"""A feature pyramid (arXiv 1612.03144) on the stage maps of a backbone, for detection and localisation heads."""

# B batch, C channels of a stage, D channels of the pyramid, T/H/W a stage's grid

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.model.ops.convolution import Conv3d


class FeaturePyramid(nn.Module):
    """Maps (B, C_i, T_i, H_i, W_i), finest first, as `forward_features` gives them -> (B, D, T_i, H_i, W_i) each.

    Each map is projected to D channels, the coarser one is added, enlarged to its size by nearest neighbours, and a
    3×3 convolution over height and width smooths the sum. `dims` are the C_i, a network's `stage_dims`.
    """

    def __init__(self, dims: Sequence[int], dim: int = 256) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(Conv3d(stage, dim, 1) for stage in dims)
        self.smooth = nn.ModuleList(Conv3d(dim, dim, (1, 3, 3), padding=(0, 1, 1)) for _ in dims)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        sums: list[Tensor] = []
        for project, stage in zip(reversed(self.lateral), reversed(maps), strict=True):
            projected = project(stage)
            sums.append(projected + F.interpolate(sums[-1], size=projected.shape[2:]) if sums else projected)
        return [smooth(total) for smooth, total in zip(self.smooth, reversed(sums), strict=True)]
