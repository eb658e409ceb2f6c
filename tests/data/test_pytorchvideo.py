"""pytorchvideo's datasets feed our loader and network, and our samples and batches its transforms."""

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from torch.utils.data import DataLoader, SequentialSampler

from mvit_video import build_model
from mvit_video.compat import import_pytorchvideo
from mvit_video.config.load import load_config
from mvit_video.config.schema import TrainSettings
from mvit_video.data.dataset import ClipDataset, SampleKey, clip_dataset_from
from mvit_video.data.lists.read import read_videos
from mvit_video.data.loader import StepSampler, collate, training_loader
from mvit_video.data.mixing import mix_generator, mixer_from
from mvit_video.data.transforms import train_transform_from
from mvit_video.data.video.reader import VideoReader
from mvit_video.data.video.source import VideoFiles


@pytest.fixture(scope="module")
def theirs():
    import_pytorchvideo("pytorchvideo.data")
    return import_pytorchvideo("pytorchvideo.transforms")


def labeled_video_dataset(folder, **arguments):
    from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler

    records = read_videos("val.csv", str(folder)).records
    videos = [(str(folder / record.path), {"label": record.label}) for record in records]
    sampler = make_clip_sampler("constant_clips_per_video", 36 / 15, 1)  # all of the 36 frames
    return LabeledVideoDataset(videos, sampler, SequentialSampler, decode_audio=False, **arguments)


def test_their_dataset_gives_the_frames_that_our_reader_gives(theirs, few_videos):
    for sample, record in zip(
        labeled_video_dataset(few_videos), read_videos("val.csv", str(few_videos)).records, strict=True
    ):
        with VideoReader(record.path, few_videos) as reader:
            ours = reader.frames(range(len(reader)))
        assert sample["label"] == record.label
        assert np.array_equal(sample["video"].permute(1, 2, 3, 0).numpy(), ours)


@pytest.mark.parametrize("workers", [0, 2])
def test_their_dataset_trains_our_network_through_our_loader(theirs, few_videos, workers):
    from torchvision.transforms import CenterCrop, Compose

    prepare = theirs.ApplyTransformToKey(
        "video",
        Compose(
            [
                theirs.UniformTemporalSubsample(8),
                theirs.Div255(),
                theirs.Normalize((0.45,) * 3, (0.225,) * 3),
                theirs.ShortSideScale(48),
                CenterCrop(48),
            ]
        ),
    )
    dataset = labeled_video_dataset(few_videos, transform=prepare)
    batches = list(DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=collate))
    assert sorted(label for batch in batches for label in batch["label"].tolist()) == list(range(8))
    model = build_model("mvitv2_nano_8x3", num_classes=8, crop_size=48)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches:
        assert batch["video"].shape == (4, 3, 8, 48, 48) and batch["bad"] == []
        loss = torch.nn.functional.cross_entropy(model(batch["video"]), batch["label"])
        loss.backward()
        optimizer.step()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    assert model.head.projection.weight.grad.any()


class Transformed(ClipDataset):
    """Our clips behind a transform of theirs on the sample's dictionary."""

    def __getitem__(self, key: SampleKey) -> dict:
        return self.apply(super().__getitem__(key))


def test_their_transforms_on_our_samples_go_through_our_loader(theirs, few_videos):
    data = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={few_videos}"]).data
    videos, sampler = read_videos("train.csv", str(few_videos)), StepSampler(16, 4, 0, 0, 1)
    dataset = Transformed(videos, VideoFiles(str(few_videos)), data.input, train_transform_from(data, data))
    dataset.apply = theirs.ApplyTransformToKey("video", theirs.UniformTemporalSubsample(4))
    plain = next(iter(training_loader(clip_dataset_from(data, videos, seed=0), sampler, 0)))
    batch = next(iter(training_loader(dataset, sampler, 0)))
    assert torch.equal(batch["video"], plain["video"][:, :, [0, 2, 4, 7]])
    assert batch["video_name"] == plain["video_name"]


@pytest.mark.parametrize("kind", ["MixUp", "CutMix"])
def test_their_mixing_of_our_batches_makes_the_targets_that_ours_makes(theirs, few_videos, kind):
    data = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={few_videos}"]).data
    dataset = clip_dataset_from(data, read_videos("train.csv", str(few_videos)), seed=0)
    batch = next(iter(training_loader(dataset, StepSampler(16, 4, 0, 0, 1), 0)))
    clips, labels = batch["video"], batch["label"]
    mixed, targets = getattr(theirs, kind)(1.0, 0.1, 8)(clips.clone(), labels)
    settings = TrainSettings(mixup=float(kind == "MixUp"), cutmix=float(kind == "CutMix"), label_smoothing=0.1)
    ours, our_targets = mixer_from(settings, 8)(clips, labels, mix_generator(0, 0))
    assert mixed.shape == ours.shape and targets.shape == our_targets.shape == (4, 8)
    assert torch.allclose(targets.sum(1), torch.ones(4)) and torch.allclose(our_targets.sum(1), torch.ones(4))
    assert torch.allclose(targets.sort()[0][:, :6], our_targets.sort()[0][:, :6])  # the smoothing of the other classes
