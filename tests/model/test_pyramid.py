import torch
from tiny_models import tiny_video

from mvit_video.model.pyramid import FeaturePyramid


def test_each_level_is_its_stage_plus_the_coarser_levels_above_it():
    model = tiny_video()
    maps = model.forward_features(torch.randn(2, 3, 8, 36, 44))
    pyramid = FeaturePyramid(model.stage_dims, dim=5)
    levels = pyramid(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 5, *stage.shape[2:]) for stage in maps]
    fine, coarse = (lateral(stage) for lateral, stage in zip(pyramid.lateral, maps, strict=True))
    height, width = fine.shape[-2:]
    rows = [row * coarse.shape[-2] // height for row in range(height)]
    columns = [column * coarse.shape[-1] // width for column in range(width)]
    expected = pyramid.smooth[0](fine + coarse[..., rows, :][..., columns])
    assert torch.allclose(levels[0], expected, atol=1e-5)
    assert torch.allclose(levels[1], pyramid.smooth[1](coarse), atol=1e-5)
