"""Downloads, from a server on this machine's loopback only."""

import errno
import gzip
import hashlib
import http.server
import os
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_video

from mvit_video import build_model, download, load_weights
from mvit_video.download import cache_path, local_file
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.model.weights.convert import load_network
from mvit_video.model.weights.zoo import ZOO
from mvit_video.paths import unfinished

CONTENT = b"weights" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; counts what is asked for; a file under /cut/ ends early, one under /endless/ tells no length,
    and one under /packed/ says that it is packed."""

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        if not self.path.startswith("/endless/"):
            self.send_header("Content-Length", str(len(content)))
        if self.path.startswith("/packed/"):
            self.send_header("Content-Encoding", "gzip")
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
    message = f"its sha256 starts with {digits}, its name says 0123abcd: it is damaged or not the published file: "
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


def kept(server):
    """All files of the cache."""
    return [file.name for file in server.cache.parent.rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    "page",
    [
        b"<html>log in first</html>",
        b"\n <!DOCTYPE HTML>\n<title>Sign in</title>",
        b"\xef\xbb\xbf<HEAD></HEAD>",
        b'<?xml version="1.0"?><Error/>',
    ],
)
@pytest.mark.parametrize("name", ["x.pyth", "x.csv"])
def test_a_page_that_comes_in_place_of_a_file_is_refused_each_time_and_not_kept(server, page, name):
    server.files[f"/{name}"] = page
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"the server sent a web page instead, .*download it by other means to .*/x\."
        ):
            fetch(f"{server.url}/{name}")
        assert kept(server) == []


def test_a_page_that_lies_in_the_cache_already_is_named_with_its_place(server):
    place = server.cache / "x.pyth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"<html>log in first</html>")
    with pytest.raises(CheckpointError, match=rf"{place} is a web page and not the file: delete it to fetch the file"):
        load_weights(tiny_video(), server.url + "/x.pyth")


def test_a_file_that_comes_packed_or_empty_is_refused_and_not_kept(server):
    server.files |= {"/packed/x.pyth": gzip.compress(CONTENT), "/empty.pyth": b"", "/endless/empty.pyth": b""}
    for path, why in (
        ("/packed/x.pyth", "packed, by gzip"),
        ("/empty.pyth", "nothing"),
        ("/endless/empty.pyth", "nothing"),
    ):
        with pytest.raises(CheckpointError, match=rf"cannot be fetched \(the server (sends|sent).* {why}\)"):
            fetch(server.url + path)
    assert kept(server) == []


def weights_files(folder):
    """The same weights in the three forms that are read."""
    state = tiny_video(seed=1).state_dict()
    torch.save(state, folder / "zip.pyth")
    torch.save(state, folder / "pickle.pyth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "safetensors.pyth")
    return {file.name: file.read_bytes() for file in folder.glob("*.pyth")}


@pytest.mark.parametrize("form", ["zip.pyth", "pickle.pyth", "safetensors.pyth"])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_half_a_file_of_weights_of_untold_length_is_refused_and_not_kept(server, tmp_path, form, share):
    content = weights_files(tmp_path)[form]
    server.files[f"/endless/{form}"] = content[: int(len(content) * share)]
    model, url = tiny_video(seed=2), f"{server.url}/endless/{form}"
    with pytest.raises(
        CheckpointError, match=rf"{url}: is not a complete (PyTorch|safetensors) file .*download it again$"
    ):
        load_weights(model, url)
    assert kept(server) == []
    server.files[f"/endless/{form}"] = content
    assert len(load_weights(model, url).copied) == len(model.state_dict())
    assert kept(server) == [form, f"{form}.sha256"] or kept(server) == [f"{form}.sha256", form]


def test_other_bytes_than_weights_are_not_kept_as_weights(server):
    server.files["/x.pyth"] = gzip.compress(CONTENT)
    with pytest.raises(CheckpointError, match=r"x.pyth: is neither a PyTorch nor a safetensors file"):
        load_weights(tiny_video(), server.url + "/x.pyth")
    assert kept(server) == []


def test_weights_in_the_cache_that_cannot_be_read_are_named_with_their_place(server):
    place = server.cache / "x.pyth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"\x80 damaged")
    with pytest.raises(CheckpointError, match=rf"x.pyth: is damaged, or a pickle .*; the file is {place}$"):
        load_weights(tiny_video(), server.url + "/x.pyth")


def test_what_killed_downloads_have_left_goes_with_the_next_one(server):
    place = server.cache / "zoo/x.pyth"
    place.parent.mkdir(parents=True)
    unfinished(place).write_bytes(b"half")
    other = unfinished(place.with_name("y.pyth"))
    other.write_bytes(b"of a download that may be under way")
    fetch(server.url + "/zoo/x.pyth")
    assert sorted(kept(server)) == sorted(["x.pyth", "x.pyth.sha256", other.name])


def test_several_processes_fetch_a_file_once(server):
    with ThreadPoolExecutor(8) as pool:
        places = set(pool.map(fetch, [server.url + "/zoo/x.pyth"] * 8))
    assert len(places) == 1 and server.asked == ["/zoo/x.pyth"]


def test_a_cache_without_room_is_told_as_such(server, monkeypatch):
    def full(self, *words, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    told = (
        r"x.pyth: cannot be written \(No space left on device\): make room, or set MVIT_VIDEO_CACHE to another folder"
    )
    with pytest.raises(CheckpointError, match=told):
        fetch(server.url + "/zoo/x.pyth")


def test_a_file_is_hashed_once_in_a_process_while_it_stays_the_same(server, monkeypatch):
    place = fetch(server.url + "/zoo/x.pyth")
    hashed, plain = [], download.file_sha256
    monkeypatch.setattr(download, "file_sha256", lambda file: (hashed.append(file), plain(file))[1])
    hour_ago = time.time() - 3600
    os.utime(place, (hour_ago, hour_ago))
    for _ in range(3):
        fetch(server.url + "/zoo/x.pyth")
    assert hashed == [place]
    place.write_bytes(CONTENT[::-1])
    with pytest.raises(CheckpointError, match="at the first download it did not"):
        fetch(server.url + "/zoo/x.pyth")


def test_loading_a_public_checkpoint_hashes_its_file_once(tmp_path, monkeypatch):
    """Also one that was put into the cache a moment ago."""
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path))
    monkeypatch.setitem(ZOO, "tiny", ZOO["mvitv2_s_16x4_k400"].model_copy(update={"url": "https://host/tiny.pyth"}))
    place = cache_path("https://host/tiny.pyth")
    place.parent.mkdir(parents=True)
    torch.save(build_model("mvitv2_nano_8x3").state_dict(), place)
    hashed, plain = [], download.file_sha256
    monkeypatch.setattr(download, "file_sha256", lambda file: (hashed.append(file), plain(file))[1])
    load_network("tiny")
    assert hashed == [place]


def test_an_address_without_a_file_says_where_to_put_it(server):
    with pytest.raises(CheckpointError, match=rf"\(HTTP Error 404.*\): download it .* to {server.cache}/no.pyth"):
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
        f"(<urlopen error Network is unreachable>): download it by other means to {place}, and run again"
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
        CheckpointError, match=r"names no file, expected an address such as https://host/folder/file.pyth"
    ):
        fetch(address)


@pytest.mark.parametrize(("error", "name"), [(CheckpointError, "model.safetensors"), (ConfigError, "config.yaml")])
def test_for_the_folder_of_a_run_the_file_in_it_is_named(tmp_path, error, name):
    with pytest.raises(error, match=r": is a folder, expected a file$"):
        local_file(tmp_path, error)
    (tmp_path / name).touch()
    with pytest.raises(error, match=rf": is a folder, expected a file: pass {tmp_path / name}$"):
        local_file(tmp_path, error)
