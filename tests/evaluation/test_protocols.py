import re

import pytest
from conftest import REPOSITORY

from mvit_video.config.load import load_config
from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import view_indices
from mvit_video.errors import ConfigError
from mvit_video.evaluation.protocols import NAMED, Protocol
from mvit_video.model.weights.zoo import ZOO

S, L = InputSettings(), InputSettings(num_frames=40, sampling_rate=3, short_side=312, crop_size=312)
SSV2 = InputSettings(sampling="segment", short_side=224)


@pytest.mark.parametrize("text", ["5", "5x", "x3", "0x1", "5x4", "5 x 1", "-1x1", "axb", "²x1", "kinetics-5x2", ""])
def test_a_wrong_protocol_is_one_sentence(text):
    message = f"protocol '{text}' is not CLIPSxCROPS with 1, 2 or 3 crops: write 5x1, 5x3 or 1x3, for example, or kinetics-5x1"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Protocol.parse(text)
    assert str(Protocol.parse("10x3")) == "10x3"


@pytest.mark.parametrize(
    ("name", "views", "fits", "other"),
    [("kinetics-5x1", (5, 1), S, L), ("kinetics-5x3", (5, 3), L, S), ("ssv2-1x3", (1, 3), SSV2, S)],
)
def test_a_named_protocol_is_its_views_and_its_input(name, views, fits, other):
    protocol = Protocol.parse(name)
    assert (protocol.clips, protocol.crops) == views and str(protocol) == name
    protocol.check(fits)
    with pytest.raises(
        ConfigError, match=f"protocol {name} needs .*, the checkpoint was trained with .*: write {views[0]}x"
    ):
        protocol.check(other)
    assert load_config_with(name).evaluation.protocol == name


def load_config_with(protocol):
    return load_config(REPOSITORY / "configs/demo/motion.yaml", [f"evaluation.protocol={protocol}"])


def test_a_disagreement_names_both_sides():
    with pytest.raises(ConfigError) as caught:
        NAMED["kinetics-5x3"].check(S)
    assert str(caught.value) == (
        "protocol kinetics-5x3 needs dense sampling and short side 312 → crop 312×312, the checkpoint was trained with "
        "dense sampling and short side 256 → crop 224×224: write 5x3 for as many views of the checkpoint's own kind"
    )
    with pytest.raises(
        ConfigError, match=r"needs segment sampling and a short side that is the crop's, .* short side 256"
    ):
        NAMED["ssv2-1x3"].check(InputSettings(sampling="segment"))


def test_every_checkpoint_of_the_paper_fits_its_published_protocol():
    named = {"5x1": "kinetics-5x1", "5x3": "kinetics-5x3", "1x3": "ssv2-1x3"}
    entries = [entry for entry in ZOO.values() if entry.published_by == "MViTv2 paper" and entry.protocol in named]
    assert len(entries) == 6
    for entry in entries:
        Protocol.parse(named[entry.protocol]).check(entry.preprocessing)


def test_any_number_of_views_fits_any_checkpoint_but_segments_have_one_clip():
    for inputs in (S, L):
        Protocol.parse("3x2").check(inputs)
    Protocol.parse("1x2").check(SSV2)
    with pytest.raises(
        ConfigError, match=r"protocol 4x2 has 4 clips, but data.sampling is segment, .*, which has only one: write 1x2"
    ):
        Protocol.parse("4x2").check(SSV2)


def test_five_clips_start_where_the_published_protocol_says():
    """300 frames at 30 fps and a window of 64: floor(236 / 4) = 59 apart."""
    assert view_indices(300, 30.0, S, 5)[:, 0].tolist() == [0, 59, 118, 177, 236]
    assert view_indices(301, 30.0, S, 5)[:, 0].tolist() == [0, 59, 118, 177, 236], "237 / 4 is rounded down"
    assert view_indices(301, 30.0, S, 1)[:, 0].tolist() == [118], "the middle, 237 / 2, is rounded down"


def test_the_words_say_what_is_done():
    assert NAMED["kinetics-5x1"].in_words(S) == (
        "5 clips of 16 frames, evenly spaced over 64 frames at 30 fps (2.13 s); clip k of n starts at frame "
        "k · floor((N − window) / (n − 1)), k from 0, of the video's N frames. The short side is scaled to 256 pixels, "
        "and the centre of 224×224 pixels is cropped. A video's score is the mean softmax of its 5 views. Every video "
        "counts once; one that cannot be decoded counts as wrong."
    )
    words = NAMED["ssv2-1x3"].in_words(SSV2, multi_label=True)
    assert words.startswith("One clip of 16 frames: the middle one of each of 16 equal parts of the video.")
    assert "left, centre and right (top, centre and bottom of an upright video)" in words and "mean sigmoid" in words
    words = Protocol.parse("1x1").in_words(S)
    assert "from the middle of the video" in words and "the softmax of its one view" in words
    assert "both ends of the longer side" in Protocol.parse("1x2").in_words(S)
