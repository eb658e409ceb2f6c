"""The Hub, as a server on loopback with its routes: what is fetched, kept, refused and published."""

import json
import subprocess
import sys
from threading import Event

import pytest
import torch
from conftest import REPOSITORY
from hub_server import Hub, serving

from mvit_video import ModelCard, Predictor, build_model, load_weights, save_checkpoint
from mvit_video.config.load import load_config
from mvit_video.config.schema import InputSettings
from mvit_video.errors import CheckpointError
from mvit_video.model.cswin import CSWin
from mvit_video.model.mvit import MViT
from mvit_video.model.weights.hub import hub_file, pinned

pytest.importorskip("huggingface_hub")
SMALL = {"depths": (1, 1), "embed_dim": 16, "num_heads": 1}
INPUT = InputSettings(num_frames=4, sampling_rate=2, short_side=40, crop_size=32)
SECRET = "hf_" + "S" * 34


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model("mvitv2_s_16x4", num_classes=3, num_frames=4, crop_size=32, **SMALL).eval()
    card = ModelCard(name="mvitv2_s_16x4", arguments=SMALL, classes=("a", "b|c", "=d"), preprocessing=INPUT)
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_checkpoint(file, model, card)
    return file


@pytest.fixture
def hub(weights, monkeypatch, tmp_path):
    """A Hub with one model of two commits, an empty cache, and a token in the environment."""
    hub = Hub()
    hub.commit("lab/small", {"model.safetensors": b"an older file", "pytorch_model.bin": b"pickle"})
    hub.commit("lab/small", {"model.safetensors": weights.read_bytes()})
    with serving(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def test_a_checkpoint_of_the_hub_is_the_file_that_was_put_there_and_is_fetched_once(hub, weights):
    assert hub_file("hf://lab/small").read_bytes() == weights.read_bytes()
    fetched = [path for verb, path in hub.requests if verb == "GET"]
    assert Predictor.from_checkpoint("hf://lab/small").card.classes == ("a", "b|c", "=d")
    assert [path for verb, path in hub.requests if verb == "GET"] == fetched


@pytest.mark.integration
def test_what_was_fetched_is_read_without_a_network(hub, weights, monkeypatch):
    hub_file("hf://lab/small")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_file("hf://lab/small").read_bytes() == weights.read_bytes()
    with pytest.raises(CheckpointError, match="hf://lab/other: it is not in the cache and the Hub cannot be reached"):
        hub_file("hf://lab/other")


def test_a_revision_is_the_file_of_that_commit(hub):
    old = hub.commit_id("lab/small", 0)
    assert hub_file(f"hf://lab/small@{old}").read_bytes() == b"an older file"
    assert pinned("hf://lab/small") == f"hf://lab/small@{hub.commit_id('lab/small')}"
    assert pinned(f"hf://lab/small@{old}") == f"hf://lab/small@{old}"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("hf://lab/none", "the Hub has no 'lab/none', or it is private: check the name, or 'hf auth login'"),
        ("hf://lab/gated", "'lab/gated' is gated: ask for access on its page"),
        ("hf://lab/small@next", "'lab/small' has no revision 'next'"),
        ("hf://lab/small/other.safetensors", "'lab/small' has no file 'other.safetensors'"),
        (
            "hf://lab/small/pytorch_model.bin",
            "only .safetensors files are read from the Hub, since others may hold code",
        ),
        ("hf://small", "names nothing on the Hub: write hf://OWNER/NAME"),
        ("hf://lab/../small", "names nothing on the Hub"),
        ("hf://lab/text", "is not a complete safetensors file"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence_without_the_token(hub, source, sentence):
    hub.commit("lab/gated", {"model.safetensors": b"secret"})
    hub.commit("lab/text", {"model.safetensors": b"no weights at all"})
    hub.gated.add("lab/gated")
    with pytest.raises(CheckpointError) as refused:
        Predictor.from_checkpoint(source)
    text = str(refused.value)
    assert sentence in text and "\n" not in text and SECRET not in text


def test_a_damaged_file_in_the_cache_is_refused(hub):
    file = hub_file("hf://lab/small").resolve()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="its sha256 is not the Hub's, so it is damaged: delete "):
        hub_file("hf://lab/small")


@pytest.mark.integration
def test_a_download_that_breaks_off_keeps_nothing_and_the_next_one_is_whole(hub, weights):
    hub.cut_after = 1000
    with pytest.raises(CheckpointError, match=r"hf://lab/small: cannot be fetched or written \(\w+\): try again"):
        hub_file("hf://lab/small")
    hub.cut_after = None
    assert hub_file("hf://lab/small").read_bytes() == weights.read_bytes()


UPLOAD = """
import sys
from mvit_video.model.mvit import MViT
MViT.from_pretrained(sys.argv[1]).push_to_hub("lab/new")
"""


@pytest.mark.integration
def test_an_upload_killed_in_its_middle_publishes_nothing_and_the_next_one_is_whole(
    hub, weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hub.stalled = Event()
    upload = subprocess.Popen([sys.executable, "-c", UPLOAD, str(weights)])
    assert hub.stalled.wait(120)
    upload.kill()
    upload.wait()
    assert hub.repositories["lab/new"] == [] and list(tmp_path.glob("mvit_video_push_*"))
    hub.stalled = None
    MViT.from_pretrained(weights).push_to_hub("lab/new")
    assert hub.repositories["lab/new"][-1]["model.safetensors"] == weights.read_bytes()
    assert not list(tmp_path.glob("*mvit_video_push_*")), "what the killed one left is gone"


def test_a_network_is_loaded_from_a_name_a_folder_and_a_file_and_only_by_its_own_class(hub, weights, tmp_path):
    clips = torch.randn(1, 3, 4, 32, 32)
    expected = MViT.from_pretrained(weights)
    saved = expected.save_pretrained(tmp_path / "folder")
    for source in ("lab/small", "hf://lab/small", saved, f"lab/small@{hub.commit_id('lab/small')}"):
        model = MViT.from_pretrained(source)
        assert torch.equal(model(clips), expected(clips)) and model.card == expected.card
    with pytest.raises(CheckpointError, match="is a MViT, expected a CSWin"):
        CSWin.from_pretrained(weights)
    with pytest.raises(CheckpointError, match=r"nothing tells the classes: give card=ModelCard"):
        build_model("mvitv2_s_16x4", **SMALL).save_pretrained(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    assert load_weights(model, "hf://lab/small").format == "native"


def test_what_is_published_is_read_back_with_a_page_of_its_run(hub, weights, tmp_path):
    run = tmp_path / "run"
    (run / "evaluation").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {root: /home/someone/dances}\ntrain: {epochs: 7, seed: 3}\n")
    content = {"num_videos": 40, "protocol": "5x1", "top1": 87.5, "intervals_95": {"top1": [73.9, 94.5]}}
    (run / "evaluation/results.json").write_text(json.dumps(content))
    MViT.from_pretrained(weights).push_to_hub("someone/dances", run=run, token=SECRET)
    files = hub.repositories["someone/dances"][-1]
    assert set(files) == {"README.md", "model.safetensors"} and files["model.safetensors"] == weights.read_bytes()
    page = files["README.md"].decode()
    assert "| top1 | 87.5 % | 73.9 to 94.5 |" in page and "40 held-out videos, 5x1 views" in page
    assert "- data: `dances`" in page and "/home" not in page and "`train.epochs`: 7" in page
    assert r"a, b\|c, =d" in page and SECRET not in page
    assert MViT.from_pretrained("someone/dances").card.classes == ("a", "b|c", "=d")


@pytest.mark.integration
def test_a_run_records_the_commit_that_it_started_from(hub, few_videos, tmp_path):
    from mvit_video import train

    words = {
        "data.root": str(few_videos),
        "data.crop_size": 32,
        "data.num_frames": 4,
        "model.weights": "hf://lab/small",
    }
    words |= {
        "model.name": "auto",
        "model.arguments": {},
        "train.epochs": 1,
        "train.clips_per_step": 8,
        "data.workers": 0,
    }
    config = load_config(REPOSITORY / "configs/demo/motion.yaml")
    train(config, tmp_path / "run", device="cpu", **words, **{"evaluation.after_training": False})
    weights = load_config(tmp_path / "run/config.yaml").model.weights
    assert weights == f"hf://lab/small@{hub.commit_id('lab/small')}"
    assert SECRET not in "".join(file.read_text(errors="replace") for file in (tmp_path / "run").rglob("*.json*"))
