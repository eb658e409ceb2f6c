import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from numbered_video import write_numbered
from tiny_checkpoint import write_tiny

from mvit_video import cli
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
    [wanted] = predictor(video)
    assert [(row["label"], pytest.approx(row["score"])) for row in answer["labels"]] == list(wanted.predictions)
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
    assert page.result(reply["key"])["error"] == "long.mp4: lasts 4 s, this page takes videos of at most 3 s"
    before = set(page.folder.iterdir())
    connection = http.client.HTTPConnection("127.0.0.1", page.port)
    connection.request("POST", "/jobs", headers={"Content-Length": "2000001"})
    answer = connection.getresponse()
    assert answer.status == 413 and b"is larger than 2 MB, the most that this page takes" in answer.read()
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


def test_other_sites_and_other_names_of_this_machine_are_refused(page, video):
    status, reply = page.send(video, Origin="http://evil.example")
    assert status == 403 and reply["error"] == "videos are taken from this page only"
    assert page.send(video, Origin=f"http://127.0.0.1:{page.port}")[0] == 202
    assert page.ask("GET", "/", Host="evil.example")[0] == 400
    status, _, headers = page.ask("GET", "/")
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    wait_for(lambda: all(job.is_over for job in page.jobs._jobs.values()))


def test_the_queue_has_an_end_and_one_job_runs_at_a_time(predictor, video, monkeypatch):
    gate, at_once, most = threading.Event(), [], []

    def slow(path, longest):
        at_once.append(path)
        most.append(len(at_once))
        gate.wait(PATIENCE)
        at_once.remove(path)

    monkeypatch.setattr(serve_jobs, "_check_length", slow)
    page = Page(predictor, Limits(2_000_000, 60.0, queue=2))
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
    """The width that the page takes in a window of `width`; a picture of it goes to the folder $SCREENSHOTS."""
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
    wait_for(lambda: "5 classes. Videos of up to 2 MB and 3 s." in text_of(browser, "about"))
    drop_file(browser, video)
    wait_for(lambda: text_of(browser, "labels"))
    [wanted] = predictor(video)
    shown = text_of(browser, "labels").splitlines()
    assert shown[:2] == [wanted.label, f"{wanted.score:.3f}"] and text_of(browser, "name") == "numbered.mp4"
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
    assert "opens the page to everyone who can reach this machine, without a password" in capsys.readouterr().err
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


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=lambda by: by.name)
def test_a_page_that_is_stopped_leaves_no_upload(free_port, video, tmp_path, by):
    checkpoint = str(write_tiny(tmp_path / "model.safetensors"))
    (tmp_path / "temporary").mkdir()
    words = ["serve", "--checkpoint", checkpoint, "--port", str(free_port), "--device", "cpu"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mvit_video", *words], env=os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    )
    try:
        connection = http.client.HTTPConnection("127.0.0.1", free_port, timeout=PATIENCE)
        wait_for(lambda: answers(free_port))
        connection.request("POST", "/jobs", Path(video).read_bytes())
        assert connection.getresponse().status == 202
        assert any((tmp_path / "temporary").glob("mvit_video_serve_*/*"))
        server.send_signal(by)
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
    assert not any((tmp_path / "temporary").glob("mvit_video_serve_*"))


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
