"""Validation of masked pre-training: the loss of one centre view per video, each with a mask of its own that never changes."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import nn

from mvit_video.config.schema import Config
from mvit_video.data.dataset import BadVideo, ViewDataset
from mvit_video.data.frame_cache import training_source
from mvit_video.data.lists.records import VideoList
from mvit_video.data.loader import report_lost_workers, view_loader
from mvit_video.data.masking import mask_from, mask_random
from mvit_video.data.pixels import Normalise
from mvit_video.engine.distributed import all_reduced, rank, world_size
from mvit_video.engine.masked import mask_window, masked_objective_from
from mvit_video.errors import DecodeError
from mvit_video.model.precision import resolve_precision


def masked_validator(
    videos: VideoList, config: Config, device: torch.device
) -> Callable[[nn.Module], dict[str, float]]:
    """Network -> {"loss"}, the mean over all hidden cells of all videos. Every process must call it."""
    precision = resolve_precision(config.evaluation.precision, device, "evaluation.precision")
    source = training_source(config.data.root, config.data.decoding)
    dataset = ViewDataset(videos, source, config.data.input, on_bad="return", pixels=True)
    normalise = Normalise(config.data.mean, config.data.std)

    def measure(network: nn.Module) -> dict[str, float]:
        draw = mask_from(config.pretrain, mask_window(config, network))
        objective = masked_objective_from(config.pretrain, network.eval())
        total = torch.zeros(2, dtype=torch.float64)  # error, hidden cells
        loader = view_loader(dataset, config.data.workers, rank(), world_size())
        good = (sample for sample in loader if not isinstance(sample, BadVideo))
        with torch.no_grad(), report_lost_workers():
            while samples := list(islice(good, config.evaluation.views_per_batch)):
                masks = torch.stack([_mask(draw, config, sample) for sample in samples]).to(device)
                clips = normalise.joined([sample["video"] for sample in samples], device)
                for errors, _ in objective.parts(network, precision.autocast, clips, masks.float()):
                    total += torch.stack([errors.sum(), masks.sum()]).double().cpu()
        error, cells = all_reduced(total).tolist()
        if not cells:
            raise DecodeError(
                f"none of {len(videos)} videos of {videos.source} can be decoded: check data.root and data.val"
            )
        return {"loss": error / cells}

    return measure


def _mask(draw: Callable[..., Any], config: Config, sample: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(draw(mask_random("validation mask", config.train.seed, sample["video_name"])))
