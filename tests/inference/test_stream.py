"""Live sources: pipes faster and slower than real time, a server on this machine's loopback, and what is refused."""

import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest
from numbered_video import write_numbered
from tiny_predictor import nano_card, nano_model, nano_predictor
from torch import nn

from mvit_video.data.video.live import FrameNumbers
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import ConfigError, DecodeError
from mvit_video.inference import stream
from mvit_video.inference.stream import live_predictions, live_source
from mvit_video.inference.timeline import label_timeline
from mvit_video.model.weights.files import save_checkpoint

WINDOWS = (216 - 24) // 6 + 1  # of the long demonstration video


class Slow(nn.Module):
    """A network that takes its time."""

    def __init__(self, seconds):
        super().__init__()
        self.network, self.seconds = nano_model(), seconds

    def forward(self, clips):
        time.sleep(self.seconds)
        return self.network(clips)


def packed(path, container):
    """A video's packets in another container, as bytes."""
    content = io.BytesIO()
    with av.open(str(path)) as source, av.open(content, "w", format=container) as copy:
        track = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = track
                copy.mux(packet)
    return content.getvalue()


@pytest.fixture
def pipe(tmp_path):
    """A named pipe and a function that feeds it bytes over some seconds."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def feed(content, seconds=0.0, parts=50):
        def write():
            try:
                with open(path, "wb", buffering=0) as file:
                    size = -(-len(content) // parts)
                    for start in range(0, len(content), size):
                        file.write(content[start : start + size])
                        time.sleep(seconds / parts)
            except BrokenPipeError:
                pass

        threading.Thread(target=write, daemon=True).start()
        return live_source(str(path))

    return feed


@pytest.fixture
def long_video(few_videos):
    return few_videos / "long.mp4"


@pytest.mark.integration
@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_a_pipe_slower_than_the_network_gives_what_the_file_gives(pipe, long_video, container, monkeypatch):
    monkeypatch.setattr(stream, "MAX_WAITING", 100)  # the machine that tests may be slow
    predictor = nano_predictor()
    found = list(live_predictions(predictor, pipe(packed(long_video, container), seconds=2.0)))
    timeline = label_timeline(predictor, long_video)
    assert len(found) == WINDOWS == len(timeline.times) and found[-1].dropped == 0
    for prediction, time_of, scores in zip(found, timeline.times, timeline.scores, strict=True):
        assert prediction.time == pytest.approx(time_of + 0.8, abs=2e-3)
        assert prediction.label == predictor.card.classes[scores.argmax()]
        assert prediction.score == pytest.approx(scores.max(), abs=1e-3)
        assert 0 < prediction.latency < 20


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_a_network_that_falls_behind_drops_the_oldest_windows_and_counts_them(pipe, long_video, container, monkeypatch):
    most = 0
    put = stream._Waiting.put

    def watched(waiting, window):
        nonlocal most
        put(waiting, window)
        most = max(most, len(waiting._windows))

    monkeypatch.setattr(stream._Waiting, "put", watched)
    predictor = nano_predictor(model=Slow(0.4))
    found = list(live_predictions(predictor, pipe(packed(long_video, container))))
    assert most == stream.MAX_WAITING
    assert found[-1].dropped > 5 and len(found) + found[-1].dropped == WINDOWS
    times = [prediction.time for prediction in found]
    assert times == sorted(times) and times[-1] == pytest.approx(14.4, abs=2e-3)  # the newest is never dropped
    assert max(prediction.latency for prediction in found) < 3 * (stream.MAX_WAITING + 1) * 0.4 + 1


def test_latency_counts_from_the_arrival_of_a_windows_last_frame(pipe, long_video):
    predictor = nano_predictor(model=Slow(0.3))
    first = next(predictions := live_predictions(predictor, pipe(packed(long_video, "mpegts"), seconds=20)))
    predictions.close()
    assert 0.3 <= first.latency < 3


def test_closing_the_predictions_ends_the_reading(pipe, long_video):
    before = threading.active_count()
    predictions = live_predictions(nano_predictor(), pipe(packed(long_video, "mpegts"), seconds=1.0))
    next(predictions)
    predictions.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_stream_shorter_than_a_window_is_one_prediction(pipe, few_videos, tmp_path):
    from mvit_video.data.synthetic import write_video

    write_video(tmp_path / "a.mp4", np.zeros((6, 64, 80, 3), np.uint8), 15)
    [prediction] = live_predictions(nano_predictor(), pipe(packed(tmp_path / "a.mp4", "matroska")))
    assert prediction.time == pytest.approx(6 / 15, abs=1e-3)


def test_a_stream_that_begins_in_the_middle_and_is_damaged_goes_on(pipe, tmp_path):
    """Bytes are cut off at its start and overwritten in its middle: frames there are left out, the others come."""
    write_numbered(tmp_path / "a.mp4", 200, options={"g": "25", "bf": "0"})
    content = bytearray(packed(tmp_path / "a.mp4", "mpegts"))
    content[80_000:83_000] = os.urandom(3000)
    found = list(live_predictions(nano_predictor(), pipe(bytes(content[10_000:]), seconds=1.0)))
    assert len(found) >= 8 and found[-1].time > 5


def test_what_is_no_video_is_one_sentence(pipe, tmp_path):
    with pytest.raises(DecodeError, match=r"pipe: cannot be opened as a video stream"):
        list(live_predictions(nano_predictor(), pipe(os.urandom(100_000))))


@pytest.mark.integration
def test_a_picture_above_the_limit_is_never_decoded(pipe, tmp_path):
    content = io.BytesIO()
    with av.open(content, "w", format="mpegts") as container:
        track = container.add_stream("libx264", rate=10)
        track.width, track.height, track.pix_fmt, track.options = 8192, 8192, "yuv420p", {"preset": "ultrafast"}
        for _ in range(2):
            container.mux(
                track.encode(av.VideoFrame.from_ndarray(np.zeros((8192 * 3 // 2, 8192), np.uint8), "yuv420p"))
            )
        container.mux(track.encode())
    with pytest.raises(DecodeError, match=r"frames of 8192×8192 pixels are above the limit of 36,000,000 pixels"):
        list(live_predictions(nano_predictor(), pipe(content.getvalue())))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content[self.path])))
        self.end_headers()
        self.wfile.write(self.server.content[self.path])

    def log_message(self, *words):
        """Silence."""


@pytest.fixture
def server(long_video, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.content = [], {"/live.ts": packed(long_video, "mpegts")}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_address_is_opened_only_where_that_is_allowed(server):
    with pytest.raises(ConfigError, match=r"pass --allow-network to open it$"):
        live_source(server.url + "/live.ts")
    assert server.asked == []
    found = list(live_predictions(nano_predictor(), live_source(server.url + "/live.ts", allow_network=True)))
    assert len(found) + found[-1].dropped == WINDOWS and set(server.asked) == {"/live.ts"}


@pytest.mark.parametrize("name", ["/list.m3u8", "/list.sdp", "/list.txt"])
def test_a_playlist_leads_nowhere(server, name):
    """Of several kinds, under an allowed address: the listener that they point at hears nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    server.content[name] = {
        "/list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://{address}/x.ts\n",
        "/list.sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video {address.split(':')[1]} RTP/AVP 96\n",
        "/list.txt": f"ffconcat version 1.0\nfile http://{address}/x.ts\n",
    }[name].encode()
    with pytest.raises(DecodeError, match="cannot be opened as a video stream"):
        list(live_predictions(nano_predictor(), live_source(server.url + name, allow_network=True)))
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/dev/video99", "no such camera or pipe: a stream is a device such as /dev/video0"),
        ("concat:a|b", "no such camera or pipe"),
        ("ftp://host/x", "'ftp' is not a supported stream: choose from http, https, rtsp"),
        ("file:///etc/passwd", "'file' is not a supported stream"),
        ("rtsp://host/x", "pass --allow-network to open it"),
        ("/tmp", "is neither a camera nor a pipe"),
        (__file__, "is a file: predict it with --timeline"),
    ],
)
def test_sources_of_other_kinds_are_refused(name, message):
    with pytest.raises(ConfigError) as caught:
        live_source(name)
    assert message in str(caught.value)


def test_numbers_follow_the_times_and_survive_a_clock_that_jumps():
    numbers = FrameNumbers(10.0)
    times = [5.0, 5.1, 5.2, 5.5, 5.52, None, 5.7, 3.0, 3.1, 9e9, 9e9 + 0.1]
    assert [numbers.next(time) for time in times] == [0, 1, 2, 5, None, 6, 7, 8, 9, 10, 11]


@pytest.mark.integration
def test_the_verb_writes_json_lines_until_it_is_interrupted(few_videos, tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", nano_model(), nano_card())
    words = [
        sys.executable,
        "-m",
        "mvit_video",
        "predict",
        "--stream",
        "-",
        "--checkpoint",
        str(tmp_path / "m.safetensors"),
    ]
    # a shell's background jobs, and so tests run as one, ignore SIGINT: the command shall not inherit that
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    process.stdin.write(packed(few_videos / "long.mp4", "mpegts"))
    process.stdin.flush()  # and kept open: the source falls silent
    first = json.loads(process.stdout.readline())
    assert set(first) == {"time", "label", "score", "latency", "dropped"}
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0  # before communicate() closes its input, which would be another end
    _, err = process.communicate()
    assert "interrupted" in err.decode() and "standard input: " in err.decode() and "windows dropped" in err.decode()


def test_the_long_video_is_what_these_tests_count_on(long_video):
    assert len(VideoReader(long_video)) == 216
