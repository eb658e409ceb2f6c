"""A single-frame baseline: the accuracy that appearance alone reaches on a list of videos.

A small 2D network is trained on single frames. Near chance, the dataset needs motion; near the video model, it does not.
"""

# B frames in a batch, H/W pixels

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.read import VideoList
from mvit_video.data.pixels import Normalise
from mvit_video.data.transforms import crop_at, scale_for_crop, to_clip
from mvit_video.data.video.guard import open_reader
from mvit_video.errors import DecodeError

FRAMES_PER_VIDEO = 4


def frame_only_accuracy(train: VideoList, test: VideoList, data: DataSettings, seed: int, epochs: int = 12) -> float:
    """Top-1 in percent on `test` of a 2D network trained on FRAMES_PER_VIDEO frames of each video of `train`.

    A test video's scores are the mean over as many of its frames. Undecodable videos are left out of the training and
    count as wrong in the test.
    """
    frames, labels, _ = _frames(train, data)
    network = _train(frames, labels, len(train.classes), epochs, seed)
    frames, labels, rows = _frames(test, data)
    scores = torch.zeros(len(test), len(test.classes))
    with torch.inference_mode():
        scores.index_add_(0, rows, network(frames).softmax(1))
    decoded = torch.zeros(len(test), dtype=torch.bool).index_fill_(0, rows, True)
    truth = torch.tensor([record.label for record in test.records])
    return 100.0 * float(((scores.argmax(1) == truth) & decoded).float().mean())


def _frames(videos: VideoList, data: DataSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Evenly spread frames of every video: (n, 3, H, W), their labels, and the videos' rows."""
    frames, labels, rows = [], [], []
    for row, record in enumerate(videos.records):
        try:
            with open_reader(record.path, data.root, data.decoder, data.decode_timeout) as reader:
                at = np.linspace(0, len(reader) - 1, FRAMES_PER_VIDEO + 2).round().astype(int)[1:-1]
                clip = scale_for_crop(to_clip(reader.frames(at)), data.short_side, data.crop_hw)
        except DecodeError:
            continue
        frames.append(Normalise(data.mean, data.std)(crop_at(clip, data.crop_hw, 1)).transpose(0, 1))
        labels += [record.label] * FRAMES_PER_VIDEO
        rows += [row] * FRAMES_PER_VIDEO
    return torch.cat(frames), torch.tensor(labels), torch.tensor(rows)


def _network(size: tuple[int, int], num_classes: int) -> nn.Module:
    """Three strided convolutions; the last map is kept whole, so that place and size of an object can be used."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    height, width = (-(-length // 8) for length in size)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * height * width, num_classes))


def _train(frames: Tensor, labels: Tensor, num_classes: int, epochs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network((frames.shape[-2], frames.shape[-1]), num_classes)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
        for _ in range(epochs):
            for batch in torch.randperm(len(frames)).split(64):
                loss = F.cross_entropy(network(frames[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.eval()
