"""Token mixers side by side: what is counted, by hand; the page is made from its numbers; the commands run."""

import json
from argparse import Namespace
from math import prod

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, silent

from mvit_video import build_model
from mvit_video.benchmark import mixers
from mvit_video.benchmark.mixers import MIXERS, attention_multiply_adds, mixer_arguments
from mvit_video.benchmark.mixers_page import drawing, mixers_page

NANO = "mvitv2_nano_8x3"
RECORD = REPOSITORY / "docs/mixers.json"


def by_hand(groups):
    """q·kᵀ and p·v take queries × keys × d each, positions queries × (sum of the key sides) × d: for all heads together."""
    total = 0
    for width, num_cls, queries, keys, count in groups:
        n, m = prod(queries), prod(keys)
        total += count * width * (2 * (n + num_cls) * (m + num_cls) + n * sum(keys))
    return total / 1e9


def test_multiply_adds_of_attention_are_those_of_its_products_and_positions():
    grids = [((4, 12, 12), (4, 3, 3)), ((4, 6, 6), (4, 6, 6)), ((4, 6, 6), (4, 3, 3)), ((4, 3, 3), (4, 6, 6))]
    blocks = [(width, 1, *both, 1) for width, both in zip((32, 64, 64, 128), grids, strict=True)]
    assert attention_multiply_adds(NANO, {}, (8, 48, 48)) == pytest.approx(by_hand(blocks))


def test_multiply_adds_of_windows_are_those_of_each_window():
    """Without a class token: 16 windows, then 4, of 4×3×3 queries and as many keys, four times as many where a stage starts."""
    arguments = mixer_arguments("window", NANO) | {"cls_token": False}
    assert arguments["token_mixing"] == "window 4x3x3"
    side, wide = (4, 3, 3), (4, 6, 6)
    blocks = [(32, 0, side, side, 16), (64, 0, side, wide, 4), (64, 0, side, side, 4), (128, 0, side, wide, 1)]
    assert attention_multiply_adds(NANO, arguments, (8, 48, 48)) == pytest.approx(by_hand(blocks))


def test_every_mixer_makes_a_network_of_the_same_widths_with_as_many_keys_a_query():
    for network, window in ((NANO, "4x3x3"), (mixers.S.network, "8x7x7")):
        plain = build_model(network).stage_dims if network == NANO else None
        for mixer in MIXERS:
            arguments = mixer_arguments(mixer, network)
            if "window" in mixer:
                assert f"window {window}" in arguments["token_mixing"]
            if plain is not None:
                model = build_model(network, **arguments).eval()
                assert model.stage_dims == plain
                with torch.no_grad():
                    assert model(torch.zeros(1, 3, 8, 48, 48)).isfinite().all()
    assert mixer_arguments("stripes", mixers.S.network)["token_mixing"] == [
        f"stripes 8x{width}" for width in (1, 2, 2, 7)
    ]


def test_drawings_are_those_of_the_partitions():
    assert drawing("window") == ["a a b b", "a a b b", "c c d d", "c c d d"]
    assert drawing("shifted") == ["a b b c", "d e e f", "d e e f", "g h h i"]
    assert drawing("grid") == ["a b a b", "c d c d", "a b a b", "c d c d"]
    assert drawing("columns") == ["a b c d"] * 4
    assert drawing("rows") == ["a a a a", "b b b b", "c c c c", "d d d d"]


def test_the_committed_page_is_made_from_the_committed_numbers():
    record = json.loads(RECORD.read_text())
    assert {*record["mixers"]} == {*MIXERS}
    assert mixers_page(record) == (REPOSITORY / "docs/mixers.md").read_text(encoding="utf-8")


def test_a_page_of_some_numbers_has_the_mean_and_spread_of_the_seeds_and_empty_cells():
    seeds = {
        str(seed): {
            "top1": top1,
            "shuffled": [20.0, 40.0],
            "epochs": 12,
            "settings": [],
            "machine": {"cpu": "EPYC" if seed else "Xeon", "torch": "2.13.0"},
        }
        for seed, top1 in enumerate((90, 94, 98))
    }
    page = mixers_page({"accuracy": {"demo": {"all": seeds}}})
    assert f"| all | 94.0 ± {np.std([90, 94, 98], ddof=1):.1f} | 30.0 ± 0.0 | 3 | 12 |" in page
    assert "| stripes |  |  |  |  |" in page and "What it says" not in page
    assert "Trained on: EPYC, torch 2.13.0 (2 trainings); Xeon, torch 2.13.0 (1 training)." in page


def test_settings_are_in_the_command_where_all_trainings_had_them_and_else_beside_the_epochs():
    def page_of(*settings: list[str]) -> str:
        training = {"top1": 50.0, "shuffled": [20.0], "epochs": 48, "machine": {"cpu": "Xeon", "torch": "2.13.0"}}
        seeds = {str(seed): training | {"settings": own} for seed, own in enumerate(settings)}
        return mixers_page({"accuracy": {"utd": {"all": seeds}}})

    alike, mixed = page_of(["train.epochs=48"], ["train.epochs=48"]), page_of([], ["train.epochs=48"])
    assert "data.root=DIR train.epochs=48 --accuracy utd`" in alike and "| 2 | 48 |" in alike
    assert "data.root=DIR --accuracy utd`" in mixed and "| 2 | 48, 48 train.epochs=48 |" in mixed


def test_wrong_sizes_are_refused_in_one_sentence(capsys, tmp_path):
    assert mixers.main([str(tmp_path / "m.json"), "--costs", "--time", "16-224", "--mixers", "hwin"]) == 1
    assert "size '16-224': write frames and pixels, as in 16x224" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


@pytest.mark.integration
def test_costs_are_counted_for_all_sizes_and_measured_for_some():
    record, options = {}, Namespace(time=["8x48"], repeats=2, mixers=["all", "window"])
    mixers.add_costs(record, options, silent, mixers.Comparison(NANO, 48, ((8, 48), (16, 64))))
    for found in (record["mixers"]["all"], record["mixers"]["window"]):
        assert found["attention"].keys() == {"8x48", "16x64"}
        assert len(found["measured"]["8x48"]["seconds"]) == 2 and found["measured"]["8x48"]["peak_bytes"] > 0
    assert "| all | 1.00 (1.00–1.00) | " in mixers_page(record)


@pytest.mark.integration
def test_trainings_are_evaluated_with_shuffled_frames_too_and_none_is_done_twice(few_videos, tmp_path):
    record, page = tmp_path / "mixers.json", tmp_path / "page.md"
    words = [record, f"data.root={few_videos}", "train.epochs=1", "train.clips_per_step=8", "data.workers=0"]
    words = [*map(str, words), "--accuracy", "demo", "--runs", str(tmp_path / "runs"), "--mixers", "stripes"]
    words += ["--seeds", "0"]
    assert mixers.main(words) == 0
    first = json.loads(record.read_text())
    done = first["accuracy"]["demo"]["stripes"]["0"]
    assert len(done["shuffled"]) == 2 and done["epochs"] == 1 and 0 <= done["top1"] <= 100
    before = (tmp_path / "runs/demo/stripes/0/model.safetensors").stat().st_mtime_ns
    assert mixers.main([*words, "--page", str(page)]) == 0
    assert json.loads(record.read_text()) == first
    settings = "train.epochs=1 train.clips_per_step=8 data.workers=0"
    assert f"data.root=DIR {settings} --accuracy demo`" in page.read_text() and "| 1 | 1 |" in page.read_text()
    assert (tmp_path / "runs/demo/stripes/0/model.safetensors").stat().st_mtime_ns == before
