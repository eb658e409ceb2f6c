"""The settings of `data`, apart by purpose."""

import pytest

from mvit_video.config.schema import Config, DataSettings, InputSettings

PARTS = ("input", "lists", "decoding", "augmentation")


def test_every_setting_of_data_is_of_one_purpose_and_has_its_value_there():
    data = DataSettings(num_frames=8, root="videos", decoder="decord", flip=True)
    parts = [getattr(data, name) for name in PARTS]
    names = [name for part in parts for name in type(part).model_fields]
    assert names == list(DataSettings.model_fields)
    assert {name: value for part in parts for name, value in part.model_dump().items()} == data.model_dump()
    assert (data.input.num_frames, data.lists.root, data.decoding.decoder, data.augmentation.flip) == (
        8, "videos", "decord", True,
    )  # fmt: skip


def test_what_travels_with_weights_knows_nothing_of_lists_decoders_and_augmentation():
    travelling = set(InputSettings.model_fields)
    assert type(Config().data.input) is InputSettings
    for name in PARTS[1:]:
        assert not travelling & set(type(getattr(Config().data, name)).model_fields)
    with pytest.raises(ValueError, match="root"):
        InputSettings(root="videos")
