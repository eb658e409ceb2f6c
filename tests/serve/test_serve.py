import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import av
import pytest
import uvicorn
from numbered_video import write_numbered
from processes import decoding_processes, gone_within, launchers
from tiny_checkpoint import write_tiny

from mvit_video import cli
from mvit_video.data.video.guard import Guard
from mvit_video.errors import DecodeError
from mvit_video.inference.predictor import Predictor
from mvit_video.serve import jobs as serve_jobs
from mvit_video.serve.app import build_app
from mvit_video.serve.jobs import Jobs, Limits

PATIENCE = 120.0
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Page:
    """A server in a thread of this process, and a plain client that sends addresses as they are."""

    def __init__(self, predictor, limits):
        self.jobs = Jobs(predictor, limits)
        self.folder = self.jobs.folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = uvicorn.Config(
            build_app(self.jobs, "127.0.0.1"), port=self.port, log_level="error", server_header=False
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_for(lambda: self.server.started)

    def close(self):
        self.server.should_exit = True
        self.thread.join()
        self.jobs.close()

    def ask(self, method, address, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, address, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, answer.headers

    def send(self, path, name="video.mp4", **headers):
        status, content, _ = self.ask("POST", "/jobs", Path(path).read_bytes(), X_File_Name=name, **headers)
        return status, json.loads(content)

    def result(self, key):
        def over():
            answer = json.loads(self.ask("GET", f"/jobs/{key}")[1])
            return answer if answer["state"] in ("done", "failed") else None

        return wait_for(over)


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited too long")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.from_checkpoint(write_tiny(tmp_path_factory.mktemp("tiny") / "model.safetensors"), "cpu")


@pytest.fixture(scope="module")
def page(predictor):
    page = Page(predictor, Limits(upload_bytes=2_000_000, seconds=3.0, queue=2))
    yield page
    page.close()
    assert not page.folder.exists()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("video") / "numbered.mp4", 40)


def test_an_uploaded_video_gets_the_predictors_labels_and_all_pictures(page, predictor, video):
    status, reply = page.send(video, name="my%20video%C3%A9.mp4")
    assert status == 202
    answer = page.result(reply["key"])
    assert answer["state"] == "done" and answer["name"] == "my videoé.mp4" and not answer["notes"]
    [expected] = predictor(video)
    assert [(row["label"], pytest.approx(row["score"])) for row in answer["labels"]] == list(expected.predictions)
    assert answer["files"] == list(serve_jobs.SHOWN)
    starts = {"png": b"\x89PNG", "mp4": b"ftyp", "csv": b"start,end,label,score", "srt": b"00:00:00,000 -->"}
    for name in answer["files"]:
        status, content, headers = page.ask("GET", f"/jobs/{reply['key']}/{name}")
        assert status == 200 and starts[name[-3:]] in content[:40], name
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert not list(page.folder.rglob("upload"))


def test_what_is_no_video_is_a_sentence_without_paths_of_the_server(page, tmp_path):
    (tmp_path / "notes.txt").write_text("no video")
    _, reply = page.send(tmp_path / "notes.txt", name="notes.txt")
    answer = page.result(reply["key"])
    assert answer["state"] == "failed" and answer["files"] == [] and answer["labels"] == []
    assert answer["error"].startswith("notes.txt: cannot be opened as a video")
    assert str(page.folder) not in json.dumps(answer) and "/tmp" not in json.dumps(answer)


def test_long_and_large_videos_are_refused(page, tmp_path):
    long = write_numbered(tmp_path / "long.mp4", 90)
    assert page.send(long)[0] == 202
    _, reply = page.send(long, name="long.mp4")
    assert page.result(reply["key"])["error"] == "long.mp4: lasts 4 s, above this page's limit of 3 s"
    before = set(page.folder.iterdir())
    connection = http.client.HTTPConnection("127.0.0.1", page.port)
    connection.request("POST", "/jobs", headers={"Content-Length": "2000001"})
    answer = connection.getresponse()
    assert answer.status == 413 and b"is larger than 2 MB, the limit of this page" in answer.read()
    chunks = (b"x" * 100_000 for _ in range(30))  # no length is stated: counted as it comes
    connection = http.client.HTTPConnection("127.0.0.1", page.port)
    try:
        connection.request("POST", "/jobs", chunks, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before all was sent
    wait_for(lambda: set(page.folder.iterdir()) <= before)


def test_no_file_of_the_server_can_be_reached(page, video, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    (page.folder / "timeline.png").write_text("the secret")
    _, reply = page.send(video, name="../../../../etc/cron.d/x.mp4")
    key = reply["key"]
    assert page.result(key)["name"] == "x.mp4"
    back = "../" * 12
    tries = [
        f"/{back}etc/passwd", f"/jobs/{back}{secret}", f"/jobs/{key}/{back}{secret}", f"/jobs/{key}//{secret}",
        f"/jobs/{key}/..%2f..%2f..%2f..%2f..{str(secret).replace('/', '%2f')}", f"/jobs/{key}/%2e%2e/timeline.png",
        "/jobs/../timeline.png/timeline.png", "/jobs/./timeline.png", "/jobs/%2e%2e/timeline.png",
        f"/jobs/{key}/upload", f"/jobs/{key}/timeline.json", f"/jobs/{key}/explain.json", f"/jobs/{key}/..\\timeline.png",
        f"/jobs/{key}/timeline.png%00", f"file://{secret}", "/page.html", "/serve.py", f"/jobs/{page.folder.name}/timeline.png",
        f"//{secret}", f"/{secret}", "/jobs", "/docs", "/static/../page.js",
    ]  # fmt: skip
    for address in tries:
        status, content, _ = page.ask("GET", address)
        assert status in (400, 404, 405), address
        assert b"the secret" not in content and b"root:" not in content, address
    assert not Path("/etc/cron.d/x.mp4").exists()
    folders = {path.name for path in page.folder.iterdir() if path.is_dir()}
    assert key not in folders and all(len(name) == 32 for name in folders)


def test_every_part_that_scrolls_can_be_reached_and_is_named_for_keyboard_and_screen_reader():
    page = Path(serve_jobs.__file__).with_name("page.html").read_text()
    parts = re.findall(r'<div class="scroll"[^>]*>', page)
    assert len(parts) == page.count('class="scroll"') == 2
    assert all('tabindex="0"' in part and 'role="region"' in part and "aria-label=" in part for part in parts)


def test_other_sites_and_other_names_of_this_machine_are_refused(page, video):
    status, reply = page.send(video, Origin="http://evil.example")
    assert status == 403 and reply["error"] == "uploads are accepted from this page only"
    assert page.send(video, Origin=f"http://127.0.0.1:{page.port}")[0] == 202
    assert page.ask("GET", "/", Host="evil.example")[0] == 400
    status, _, headers = page.ask("GET", "/")
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    wait_for(lambda: all(job.is_over for job in page.jobs._jobs.values()))


class WatchedLimits(Limits):
    """Limits whose check is in the hands of a test: of what is done with each video, it is the first thing."""

    def check(self, path, guard):
        self.watch(path, guard)


def watched_limits(watch, **changes):
    limits = WatchedLimits(**{"upload_bytes": 2_000_000, "seconds": 60.0, "queue": 4} | changes)
    object.__setattr__(limits, "watch", watch)  # the class is frozen
    return limits


@pytest.mark.integration
def test_the_queue_has_an_end_and_one_job_runs_at_a_time(predictor, video):
    gate, at_once, most = threading.Event(), [], []

    def slow(path, guard):
        at_once.append(path)
        most.append(len(at_once))
        gate.wait(PATIENCE)
        at_once.remove(path)

    page = Page(predictor, watched_limits(slow, queue=2))
    try:
        keys = [page.send(video)[1]["key"] for _ in range(2)]
        wait_for(lambda: at_once)
        assert json.loads(page.ask("GET", f"/jobs/{keys[1]}")[1]) | {"state": "waiting", "ahead": 1} == json.loads(
            page.ask("GET", f"/jobs/{keys[1]}")[1]
        )
        status, reply = page.send(video)
        assert status == 429 and reply["error"] == "the queue is full: try again when a video is done"
        gate.set()
        assert all(page.result(key)["state"] == "done" for key in keys) and most == [1, 1]
        assert page.send(video)[0] == 202
    finally:
        gate.set()
        page.close()
    assert not page.folder.exists()


def hang(path, guard):
    """The decoder of this video stops for ever, in the midst of its work."""
    with guard.open(path) as reader:
        os.kill(reader.process, signal.SIGSTOP)
        reader.frames([0])


@pytest.mark.integration
def test_a_video_on_which_the_decoder_hangs_costs_itself_and_the_next_one_is_answered(predictor, video):
    paths = []

    def first_hangs(path, guard):
        paths.append(path)
        if len(paths) == 1:
            hang(path, guard)

    page = Page(predictor, watched_limits(first_hangs, decode_timeout=1.0))
    try:
        keys = [page.send(video, name=name)[1]["key"] for name in ("hangs.mp4", "innocent.mp4")]
        assert re.match(r"hangs.mp4: the decoder did not answer within [01]\.?\d* s$", page.result(keys[0])["error"])
        assert page.result(keys[1])["state"] == "done"
    finally:
        page.close()


def test_a_page_whose_decoder_hangs_ends_at_once(predictor, video):
    page, before = Page(predictor, watched_limits(hang, decode_timeout=600.0)), decoding_processes()
    page.send(video)
    wait_for(lambda: decoding_processes() - before)
    start = time.monotonic()
    page.close()
    assert time.monotonic() - start < 5 and not page.folder.exists() and decoding_processes() <= before


def test_a_video_that_takes_too_long_is_ended_and_the_next_one_is_answered(predictor, video):
    paths = []

    def first_hangs(path, guard):
        paths.append(path)
        if len(paths) == 1:
            hang(path, guard)

    page = Page(predictor, watched_limits(first_hangs, decode_timeout=600.0, work_seconds=1.0))
    try:
        key = page.send(video, name="slow.mp4")[1]["key"]
        assert page.result(key)["error"] == ("slow.mp4: was stopped after 1 s, the time limit of this page")
        object.__setattr__(page.jobs.limits, "work_seconds", 600.0)
        assert page.result(page.send(video)[1]["key"])["state"] == "done"
    finally:
        page.close()


def test_a_mistake_of_ours_is_told_on_the_page_and_in_the_servers_output(predictor, video, caplog):
    def mistake(path, guard):
        raise ValueError("a mistake of ours")

    page = Page(predictor, watched_limits(mistake))
    try:
        answer = page.result(page.send(video, name="v.mp4")[1]["key"])
    finally:
        page.close()
    assert answer["error"] == "v.mp4: failed inside (ValueError): see the server's output"
    assert "v.mp4: failed inside" in caplog.text and "ValueError: a mistake of ours" in caplog.text
    assert 'raise ValueError("a mistake of ours")' in caplog.text, "with the traceback"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"frame_pixels": 6911}, "its frames of 144×48 pixels are above the limit of 6,911 pixels"),
        ({"frame_rate": 0.5}, "has 40 frames, this page takes at most 30"),
        ({"full_hd_rate": 0.002}, "has 40 frames of 144×48 pixels, this page takes at most 36 of that size"),
        ({"seconds": 1.0}, "lasts 2 s, above this page's limit of 1 s"),
    ],
)
def test_pixels_frames_and_seconds_of_a_video_are_bounded_before_any_work(video, changes, sentence):
    limits = Limits(**{"upload_bytes": 1, "seconds": 60.0, "queue": 1} | changes)
    with pytest.raises(DecodeError, match=re.escape(f"{video}: {sentence}")):
        limits.check(str(video), Guard(max_pixels=limits.frame_pixels))
    Limits(1, 60.0, 1).check(str(video), Guard())


@pytest.mark.parametrize(
    "origin",
    ["http://[::1", "", "null", "http://", "//", "http://127.0.0.1:99999999", "\xff\xfe", "http://\x00", "x" * 9000],
)
def test_any_origin_is_answered_and_a_foreign_one_refused(page, origin):
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=PATIENCE)
    connection.putrequest("POST", "/jobs")
    connection.putheader("Content-Length", "1")
    connection.putheader("Origin", origin.encode("latin-1"))
    connection.endheaders(b"x")
    answer = connection.getresponse()
    assert answer.status in (400, 403) and answer.read()
    assert page.ask("GET", "/about")[0] == 200


@pytest.mark.integration
def test_uploads_of_a_server_that_was_killed_are_deleted_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, sys; sys.path[:] = sys.argv[2:]; import tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from mvit_video.serve.jobs import Jobs, Limits; job = Jobs(None, Limits(1, 1.0, 1)).open('v.mp4')\n"
        "job.upload.touch(); print(job.upload, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), *sys.path], stdout=subprocess.PIPE, text=True)
    left = Path(killed.stdout.strip())
    assert left.exists()
    limits = Limits(1, 1.0, 1)
    living, other = Jobs(None, limits), Jobs(None, limits)
    assert not left.exists() and living.folder.exists() and other.folder.exists()
    for jobs in (living, other):
        assert jobs.close()
    assert not list(tmp_path.iterdir())


def test_only_the_newest_results_are_kept(page, tmp_path):
    (tmp_path / "x").write_text("no")
    keys = []
    for _ in range(serve_jobs.KEPT_JOBS + 2):
        keys.append(page.send(tmp_path / "x")[1]["key"])
        page.result(keys[-1])
    wait_for(lambda: page.ask("GET", f"/jobs/{keys[1]}")[0] == 404)
    assert page.ask("GET", f"/jobs/{keys[-1]}")[0] == 200
    wait_for(lambda: len([path for path in page.folder.iterdir() if path.is_dir()]) == serve_jobs.KEPT_JOBS)


@pytest.fixture(scope="module")
def browser():
    if not (BROWSER and DRIVER):
        pytest.skip("no chromium with its driver: run 'apt-get install chromium chromium-driver'")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


DROP = """
const [input, target] = [document.getElementById("file"), document.getElementById("drop")];
const data = new DataTransfer();
data.items.add(input.files[0]);
target.dispatchEvent(new DragEvent("dragover", {dataTransfer: data, bubbles: true, cancelable: true}));
target.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
"""
CHOSEN_ONLY = (
    "document.getElementById('file').addEventListener('change', e => e.stopImmediatePropagation(), {capture: true})"
)


def drop_file(browser, path):
    """Give the file to the page's input without its noticing, then drop that very file on it."""
    browser.execute_script(CHOSEN_ONLY)
    browser.find_element("id", "file").send_keys(str(path))
    browser.execute_script(DROP)


def text_of(browser, place):
    return browser.find_element("id", place).text


def look(browser, width):
    """The width that the page takes in a window of `width`; an image of it goes to the folder $SCREENSHOTS."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    taken, height = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    )
    if folder := os.environ.get("SCREENSHOTS"):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics | {"height": height})
        browser.save_screenshot(f"{folder}/page-{width}.png")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return taken


def test_a_dropped_video_shows_its_label_timeline_and_heat_map(browser, page, predictor, video):
    browser.get(f"http://127.0.0.1:{page.port}/")
    wait_for(lambda: "5 classes, computed in fp32. Videos of up to 2 MB and 3 s." in text_of(browser, "about"))
    drop_file(browser, video)
    wait_for(lambda: text_of(browser, "labels"))
    [expected] = predictor(video)
    shown = text_of(browser, "labels").splitlines()
    assert shown[:2] == [expected.label, f"{expected.score:.3f}"] and text_of(browser, "name") == "numbered.mp4"
    loaded = "return [...document.images].filter(one => one.naturalWidth > 300).map(one => one.id)"
    wait_for(lambda: browser.execute_script(loaded) == ["timeline-picture", "heat-picture"])
    wait_for(lambda: browser.execute_script("return document.getElementById('annotated').videoHeight") >= 240)
    for width in (420, 1300):
        assert look(browser, width) <= width
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_dropped_text_shows_the_reason_on_the_page(browser, page, tmp_path):
    (tmp_path / "<b>notes.mp4").write_text("no video")
    browser.get(f"http://127.0.0.1:{page.port}/")
    drop_file(browser, tmp_path / "<b>notes.mp4")
    wait_for(lambda: text_of(browser, "error"))
    assert text_of(browser, "error").startswith("<b>notes.mp4: cannot be opened as a video")
    assert not browser.find_element("id", "results").is_displayed()


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_another_host_is_warned_about_and_bad_ports_are_refused(capsys, free_port, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: started.append(sockets[0].getsockname()))
    words = ["serve", "--checkpoint", str(write_tiny(tmp_path / "model.safetensors")), "--port", str(free_port)]
    assert cli.main(words) == 0
    err = capsys.readouterr().err
    assert f"open http://127.0.0.1:{free_port} in a browser" in err and "error" not in err
    assert cli.main([*words, "--host", "0.0.0.0"]) == 0
    assert "anyone who can reach this machine can use the page, without a password" in capsys.readouterr().err
    assert started == [("127.0.0.1", free_port), ("0.0.0.0", free_port)]
    with pytest.raises(SystemExit):
        cli.main(["serve", "--port", "70000"])
    assert "'70000' is not a port from 1 to 65535" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_sentence_before_the_network_is_read(capsys, page):
    assert cli.main(["serve", "--checkpoint", "none.pyth", "--port", str(page.port)]) == 1
    assert capsys.readouterr().err == (
        f"error: port {page.port} of 127.0.0.1 cannot be opened (Address already in use): "
        "choose another --port or --host\n"
    )


@pytest.fixture
def started(free_port, tmp_path):
    """Starts a server in a process of its own, whose temporary files are in `temporary`."""
    servers = []

    def start(*words):
        checkpoint = str(write_tiny(tmp_path / "model.safetensors"))
        (tmp_path / "temporary").mkdir()
        command = [sys.executable, "-m", "mvit_video", "serve", "--checkpoint", checkpoint, "--device", "cpu", *words]
        environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
        with open(tmp_path / "log", "w") as log:
            servers.append(subprocess.Popen([*command, "--port", str(free_port)], env=environment, stderr=log))
        wait_for(lambda: answers(free_port))
        return servers[0]

    yield start
    for server in servers:
        server.kill()
        server.wait()


@pytest.mark.integration
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=lambda by: by.name)
def test_a_page_that_is_stopped_ends_within_seconds_whatever_is_open_and_leaves_nothing(
    started, free_port, video, tmp_path, by
):
    """A video in work, another one that waits, one whose upload has begun, and connections with half a header or nothing."""
    server = started()
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", free_port, timeout=PATIENCE)
        connection.request("POST", "/jobs", Path(video).read_bytes())
        assert connection.getresponse().status == 202
    address = ("127.0.0.1", free_port)
    upload, half, silent = (socket.create_connection(address) for _ in range(3))
    upload.sendall(b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nab")
    half.sendall(b"POST /jobs HTTP/1.1\r\nHost: 127.0")
    entries = (tmp_path / "temporary").glob
    wait_for(lambda: sum(entry.is_dir() for entry in entries("mvit_video_serve_*/*")) == 3)  # a folder for each job
    processes = launchers(server.pid) | decoding_processes(server.pid)
    server.send_signal(by)
    start = time.monotonic()
    assert server.wait(PATIENCE) == 0
    assert time.monotonic() - start < 5
    assert all(gone_within(process, 5) for process in processes)
    assert not any((tmp_path / "temporary").iterdir())
    assert "Traceback" not in (tmp_path / "log").read_text()
    for one in (upload, half, silent):
        one.close()


@pytest.mark.integration
def test_a_small_upload_of_giant_frames_is_refused_at_once_and_takes_no_memory(started, free_port, tmp_path):
    """A few kilobytes of H.264 can be three seconds of 5888x5888."""
    server = started()
    with av.open(str(tmp_path / "giant.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 5888, 5888, "yuv420p"
        frame = av.VideoFrame(5888, 5888, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for number in range(9):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    connection = http.client.HTTPConnection("127.0.0.1", free_port, timeout=PATIENCE)
    connection.request("POST", "/jobs", (tmp_path / "giant.mp4").read_bytes(), {"X-File-Name": "giant.mp4"})
    key = json.loads(connection.getresponse().read())["key"]

    def over():
        connection.request("GET", f"/jobs/{key}")
        answer = json.loads(connection.getresponse().read())
        return answer if answer["state"] in ("done", "failed") else None

    before, start = peak_megabytes(server.pid), time.monotonic()
    assert wait_for(over)["error"] == (
        "giant.mp4: its frames of 5888×5888 pixels are above the limit of 9,437,184 pixels"
    )
    assert time.monotonic() - start < 15 and peak_megabytes(server.pid) - before < 100


def peak_megabytes(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


SLOW = """
import http.client, os, signal, sys, threading, time
import torch
from torch import nn
from tiny_predictor import nano_predictor
from mvit_video.serve.app import bound, serve
from mvit_video.serve.jobs import Jobs, Limits
class Slow(nn.Module):
    def forward(self, clips):
        os.kill(os.getpid(), signal.SIGTERM)
        print(time.time(), flush=True)
        time.sleep(60)
        return torch.zeros(len(clips), 8)
def send():
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    connection.request("POST", "/jobs", open(sys.argv[2], "rb").read())
    connection.getresponse().read()
place, jobs = bound("127.0.0.1", int(sys.argv[1])), Jobs(nano_predictor(model=Slow()), Limits(10**6, 60.0, 2))
threading.Timer(1.0, send).start()
serve(jobs, "127.0.0.1", place)
"""


@pytest.mark.integration
def test_a_page_ends_within_seconds_while_the_network_is_at_work(free_port, video, tmp_path):
    """A forward pass cannot be interrupted: the process ends with it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", SLOW, str(free_port), str(video)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0 and time.time() - float(done.stdout) < 5
    assert not any(tmp_path.iterdir())
