"""What a step of masked pre-training costs beside a supervised one: `python -m mvit_video.benchmark.pretraining`.

Seconds of the processor, which other programs change less than those of the clock, of forward, targets, loss and backward;
the forms take turns. Both supervised forms have a head of 400 classes; one has the grid of pre-training in its last stage.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mvit_video.config.schema import Config, DataSettings, PretrainSettings
from mvit_video.data.masking import mask_from, mask_random
from mvit_video.engine.losses import Objective
from mvit_video.engine.masked import hidden_weights, mask_window, masked_objective_from
from mvit_video.model.registry import build_masked, build_model


def seconds_of_steps(name: str, frames: int, crop: int, clips: int, cell: int, rounds: int) -> dict[str, float]:
    """The median of each form."""
    torch.manual_seed(0)
    batch = torch.randn(clips, 3, frames, crop, crop)
    steps = _steps(name, batch, cell)
    times: dict[str, list[float]] = {form: [] for form in steps}
    for number in range(rounds + 1):
        for form, step in steps.items():
            start = time.process_time()
            step()
            times[form] += [time.process_time() - start] if number else []  # the first one warms up
    return {form: median(each) for form, each in times.items()}


def _steps(name: str, batch: Tensor, cell: int) -> dict[str, Callable[[], None]]:
    clips, _, frames, crop, _ = batch.shape
    size: dict[str, Any] = dict(num_frames=frames, crop_size=crop, width_growth="mlp")
    stages = len(build_model(name).stage_ends)  # type: ignore[arg-type]
    grid = ((1, 2, 2),) * (stages - 2) + ((1, 1, 1),)
    targets = torch.full((clips, 400), 1 / 400)
    config = Config(
        data=DataSettings(num_frames=frames, crop_size=crop, short_side=crop), pretrain=PretrainSettings(mask_cell=cell)
    )
    masked = build_masked(name, q_stride=grid, **size)
    draw = mask_from(config.pretrain, mask_window(config, masked))
    masks = torch.stack([torch.from_numpy(draw(mask_random("mask", number))) for number in range(clips)])

    def step(objective, network, answers: Tensor) -> Callable[[], None]:
        def run() -> None:
            network.zero_grad()
            for losses, _ in objective.parts(network, nullcontext, batch, answers):
                losses.mean().backward()

        return run

    supervised = {
        "supervised": build_model(name, 400, pooling="mean_without_cls", **size),
        "supervised, last stage not strided": build_model(name, 400, pooling="mean_without_cls", q_stride=grid, **size),
    }
    return {form: step(Objective(), network, targets) for form, network in supervised.items()} | {
        "pre-training": step(masked_objective_from(config.pretrain, masked), masked, hidden_weights(batch, masks)[1])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of a training step, supervised and in masked pre-training.")
    parser.add_argument("--model", default="mvitv2_nano_8x3")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--mask-cell", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    words = parser.parse_args()
    found = seconds_of_steps(words.model, words.frames, words.crop, words.clips, words.mask_cell, words.rounds)
    for form, seconds in found.items():
        print(f"{form}: {seconds:.3f} s, {seconds / found['supervised']:.2f} of a supervised step")


if __name__ == "__main__":
    main()
