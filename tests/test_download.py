"""Downloads, from a server on this machine's loopback only."""

import hashlib
import http.server
import os
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
import torch
from tiny_models import tiny_video

from mvit_video import download, load_weights
from mvit_video.errors import CheckpointError
from mvit_video.model.weights.zoo import ZOO
from mvit_video.paths import local_file

CONTENT = b"weights" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; counts what is asked for; a file under /cut/ ends early."""

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:100] if self.path.startswith("/cut/") else content)

    def log_message(self, *words):
        """Silence."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked = {"/zoo/x.pyth": CONTENT, "/cut/x.pyth": CONTENT}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.cache = tmp_path / "cache" / f"127.0.0.1_{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(url):
    return local_file(url, CheckpointError)


def test_a_file_is_fetched_once_and_its_digest_is_recorded_beside_it(server):
    for _ in range(2):
        assert fetch(server.url + "/zoo/x.pyth").read_bytes() == CONTENT
    assert server.asked == ["/zoo/x.pyth"]
    place = server.cache / "zoo/x.pyth"
    assert (server.cache / "zoo/x.pyth.sha256").read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  x.pyth\n"
    assert fetch(server.url + "/zoo/x.pyth") == place
    assert [file.name for file in place.parent.iterdir() if file.name.startswith(".")] == []


def test_weights_load_from_an_address(server, tmp_path):
    source, model = tiny_video(seed=1), tiny_video(seed=2)
    torch.save({"model_state": source.state_dict()}, tmp_path / "x.pyth")
    server.files["/w.pyth"] = (tmp_path / "x.pyth").read_bytes()
    report = load_weights(model, server.url + "/w.pyth")
    assert report.source == server.url + "/w.pyth"
    assert torch.equal(model.state_dict()["norm.weight"], source.state_dict()["norm.weight"])


def test_a_cached_file_that_changed_is_refused(server):
    place = fetch(server.url + "/zoo/x.pyth")
    place.write_bytes(CONTENT[:-1] + b"S")
    with pytest.raises(
        CheckpointError, match=rf"its sha256 starts with \w{{8}}, at the first download .* delete {place}"
    ):
        fetch(server.url + "/zoo/x.pyth")


def test_a_second_download_of_another_content_is_refused_and_not_kept(server):
    place = fetch(server.url + "/zoo/x.pyth")
    place.unlink()
    server.files["/zoo/x.pyth"] = b"something else"
    with pytest.raises(CheckpointError, match=rf"did not: delete {place}.sha256 if the change is meant$"):
        fetch(server.url + "/zoo/x.pyth")
    assert not place.exists()


def test_a_file_in_a_cache_that_only_others_may_write_to_is_used(server, monkeypatch):
    """Such as one that an administrator fills for a cluster: without a record there is nothing to compare with."""
    place = server.cache / "zoo/x.pyth"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == place.parent and mode == os.W_OK))
    assert fetch(server.url + "/zoo/x.pyth") == place and server.asked == []
    assert [file.name for file in place.parent.iterdir()] == ["x.pyth"]


def test_digits_in_the_name_are_compared_with_the_content_where_the_host_promises_them(server, monkeypatch):
    monkeypatch.setattr(download, "DIGESTS_IN_NAMES", ("127.0.0.1",))
    digits = hashlib.sha256(CONTENT).hexdigest()[:8]
    server.files |= {f"/good-{digits}.pth": CONTENT, "/bad-0123abcd.pth": CONTENT}
    assert fetch(f"{server.url}/good-{digits}.pth").read_bytes() == CONTENT
    bad, place = f"{server.url}/bad-0123abcd.pth", server.cache / "bad-0123abcd.pth"
    message = f"its sha256 starts with {digits}, its name says 0123abcd: it is damaged or not the published file, so "
    with pytest.raises(CheckpointError, match=f"{message}fetch it again$"):
        fetch(bad)
    assert not place.exists() and not (server.cache / "bad-0123abcd.pth.sha256").exists()
    place.write_bytes(CONTENT)
    with pytest.raises(CheckpointError, match=f"{message}delete {place} and fetch it again$"):
        fetch(bad)


def test_a_date_in_the_name_of_any_other_host_is_no_digest(server):
    server.files["/mine-20250101.safetensors"] = CONTENT
    for _ in range(2):
        assert fetch(server.url + "/mine-20250101.safetensors").read_bytes() == CONTENT
    assert urlsplit(ZOO["mvitv2_s_16x4_k400_torchvision"].url).hostname in download.DIGESTS_IN_NAMES


def test_a_download_that_ends_early_leaves_nothing(server):
    with pytest.raises(CheckpointError, match=r"cannot be fetched \(the connection ended after 100 of 7,000 bytes\)"):
        fetch(server.url + "/cut/x.pyth")
    assert not any(file.name != "x.pyth.lock" for file in (server.cache / "cut").iterdir())


def test_an_address_without_a_file_says_where_to_put_it(server):
    with pytest.raises(
        CheckpointError, match=rf"\(HTTP Error 404.*\): get this file .* put it at {server.cache}/no.pyth"
    ):
        fetch(server.url + "/no.pyth")


def test_without_a_network_one_sentence_says_which_file_to_put_where_and_putting_it_there_works(tmp_path, monkeypatch):
    def no_network(*words, **more):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path))
    place = tmp_path / "dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_S_in1k.pyth"
    model = tiny_video()
    message = (
        "https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_S_in1k.pyth: cannot be fetched "
        f"(<urlopen error Network is unreachable>): get this file by other means, put it at {place}, and call again"
    )
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, "mvitv2_s_in1k")
    assert str(caught.value) == message
    torch.save(model.state_dict(), place)
    assert load_weights(model, "mvitv2_s_in1k").source == "mvitv2_s_in1k"


def test_a_cache_that_cannot_be_made_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        CheckpointError, match=r"file/host: cannot be created .*: set MVIT_VIDEO_CACHE to another folder$"
    ):
        fetch("http://host/x.pyth")


@pytest.mark.parametrize(
    "address",
    [
        "http://host/../../etc/passwd",
        "http://host/%2e%2e/x",
        "http://host/",
        "http:///x",
        "http://../x.pth",
        "http://./x.pth",
        "http://user@../x.pth",
        "http://[x/y.pth",
        "http://host/%00.pth",
        "http://h\0/x.pth",
    ],
)
def test_an_address_never_leads_out_of_the_cache(address, tmp_path, monkeypatch):
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"names no file, wanted an address such as https://host/folder/file.pyth"
    ):
        fetch(address)
