"""Labels for videos from one ONNX file: needs av, numpy and onnxruntime or openvino, neither torch nor mvit_video.

    mvit-video export --checkpoint model.safetensors --format onnx --output model.onnx
    python examples/onnx_runner.py model.onnx video.mp4 another.mp4
    python examples/onnx_runner.py model.onnx video.mp4 --provider OpenVINO --precision bf16

Prints a line of JSON for each video. Frames, scaling, crops and scores are those of `mvit-video predict`, so the answers
are the same. A video with damage anywhere is refused; that a file is cut short, or lacks a part that FFmpeg jumps over, is for
`mvit-video verify` to find. This file is meant to be copied and changed.
"""

# N frames of a video, T frames of a clip, H/W pixels, V views (clips × crops), K classes

import argparse
import json
import math
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise

import av
import numpy as np

PROVIDERS = {"TensorRT": "TensorrtExecutionProvider", "CUDA": "CUDAExecutionProvider", "CPU": "CPUExecutionProvider"}
CONTAINERS = "mov,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,ogg,asf,gif,yuv4mpegpipe,mxf,dv,ivf"  # FFmpeg's names
MOST_PIXELS = 36_000_000
LEAP = 10  # seconds from one frame of a broadcast to the next that are a jump of its clock


def installed() -> list[str]:
    """The providers that this machine's packages have: onnxruntime's, and OpenVINO."""
    known = import_module("onnxruntime").get_available_providers() if find_spec("onnxruntime") else []
    return [name for name, long in PROVIDERS.items() if long in known] + ["OpenVINO"] * bool(find_spec("openvino"))


def load(path: str, provider: str, precision: str):
    """(clips (B, 3, T, H, W) -> logits (B, K), the file's metadata, its batch or None for any). ValueError for what is not here."""
    if provider not in installed():
        known = ", ".join(installed()) or "nothing: pip install onnxruntime or openvino"
        raise ValueError(f"provider {provider} is not installed here: choose from {known}")
    if precision != "fp32" and provider != "OpenVINO":
        raise ValueError(f"--precision {precision} is for OpenVINO: {provider} computes in what the file says")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file")
    try:
        return in_openvino(path, precision) if provider == "OpenVINO" else in_onnxruntime(path, provider)
    except ValueError:
        raise
    except Exception as reason:  # onnxruntime's errors have no class in common
        raise ValueError(f"{path}: {provider} cannot read it ({type(reason).__name__}): is it an ONNX file?") from None


def in_onnxruntime(path: str, provider: str):
    """A provider takes what it can of the network, those behind it the rest."""
    behind = list(PROVIDERS)[list(PROVIDERS).index(provider) :]
    wanted = [PROVIDERS[name] for name in behind if name in installed()]
    session = import_module("onnxruntime").InferenceSession(path, providers=wanted)
    if wanted[0] not in session.get_providers():
        raise ValueError(f"provider {provider} is installed but does not start: see onnxruntime's message, or use CPU")
    batch = session.get_inputs()[0].shape[0]
    metadata = session.get_modelmeta().custom_metadata_map

    def logits(clips):
        return session.run(["logits"], {"clips": clips})[0]

    return logits, metadata, batch if isinstance(batch, int) else None


def in_openvino(path: str, precision: str):
    """OpenVINO on the CPU. In bf16 it rounds the factors of products, for which some CPUs have instructions."""
    core = import_module("openvino").Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("--precision bf16: this CPU does not compute in it: use fp32")
    network = core.read_model(path)
    hints = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(network, "CPU", hints)
    batch = network.input(0).partial_shape[0]
    metadata = network.get_rt_info(["framework"]).astype(dict) if network.has_rt_info(["framework"]) else {}
    metadata = {name: text.astype(str) for name, text in metadata.items()}

    def logits(clips):
        return compiled({"clips": clips})["logits"].copy()  # the next call writes into the same memory

    return logits, metadata, batch.get_length() if batch.is_static else None


class Runner:
    """The network of an ONNX file that `mvit-video export` has written, and what its metadata says about its input."""

    def __init__(self, path: str, provider: str = "CPU", precision: str = "fp32") -> None:
        self.logits, metadata, batch = load(path, provider, precision)
        if "mvit_video" not in metadata:
            raise ValueError(f"{path}: was not written by mvit-video export --format onnx")
        self.batch, card = batch or 1, json.loads(metadata["mvit_video"])
        self.classes, self.settings = card["classes"], card["preprocessing"]
        self.fusion = card.get("fusion", "mean")
        self.activation = sigmoid if card.get("multi_label") else softmax
        clips, _, crops = card["protocol"].rpartition("-")[2].partition("x")  # 5x1, or kinetics-5x1
        self.num_clips, self.num_crops = int(clips), int(crops)

    def scores(self, path: str) -> np.ndarray:
        """The softmax (sigmoid, for several labels) of all views of a video, their mean or largest: (K,)."""
        views = self.views(path)
        short = -len(views) % self.batch  # a file of a fixed batch gets the last view again, whose answers are left out
        padded = np.concatenate([views, np.repeat(views[-1:], short, 0)])
        logits = [self.logits(padded[place : place + self.batch]) for place in range(0, len(padded), self.batch)]
        scores = self.activation(np.concatenate(logits)[: len(views)].astype(np.float64))
        return scores.max(0) if self.fusion == "max" else scores.mean(0)

    def views(self, path: str) -> np.ndarray:
        """Every clip of a video at every crop, normalised: float32 (V, 3, T, H, W)."""
        count, fps = count_frames(path)
        wanted = [self.frame_numbers(count, fps, clip) for clip in range(self.num_clips)]
        frames = {number: self.scaled(frame) for number, frame in read_frames(path, set(np.concatenate(wanted)))}
        if missing := set(np.concatenate(wanted).tolist()) - frames.keys():
            raise ValueError(f"{path}: frame {min(missing)} of {count} cannot be decoded")
        views = []
        for numbers in wanted:
            clip = np.stack([frames[number] for number in numbers.tolist()], 1)  # (3, T, H, W)
            views += [self.crop(clip, position) for position in {1: [1], 2: [0, 2], 3: [0, 1, 2]}[self.num_crops]]
        return np.stack(views)

    def frame_numbers(self, count: int, fps: float, clip: int) -> np.ndarray:
        """Which of a video's frames make one of its test clips: (T,)."""
        length, settings = self.settings["num_frames"], self.settings
        if settings["sampling"] == "segment":
            edges = np.round((count - 1) / length * np.arange(length + 1)).astype(int)
            return (edges[:-1] + edges[1:]) // 2
        window = length * settings["sampling_rate"] * fps / settings["target_fps"]
        room = max(count - window, 0.0)
        start = room // 2 if self.num_clips == 1 else clip * (room // (self.num_clips - 1))
        if settings["dense_step"] == "stride":
            numbers = start + window / length * np.arange(length)
        else:
            numbers = np.linspace(start, start + window - 1, length)
        return np.clip(numbers, 0, count - 1).astype(int)

    def scaled(self, frame: np.ndarray) -> np.ndarray:
        """A frame (H, W, 3) as large as its crops need it, normalised: float32 (3, h, w)."""
        height, width = self.scaled_size(*frame.shape[:2])
        picture = resize(resize(frame.astype(np.float32) / 255, height, 0), width, 1)
        mean, std = np.float32(self.settings["mean"]), np.float32(self.settings["std"])
        return ((picture - mean) / std).transpose(2, 0, 1)

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width with the shorter side at short_side, or, where a crop would stick out of that, at more."""
        short, (tall, wide) = self.settings["short_side"], self.crop_size()
        scaled = max(short, math.floor(height / width * short)), max(short, math.floor(width / height * short))
        if scaled[0] >= tall and scaled[1] >= wide:
            return scaled
        if width * tall > height * wide:
            return tall, max(math.floor(width / height * tall), wide)
        return max(math.floor(height / width * wide), tall), wide

    def crop_size(self) -> tuple[int, int]:
        size = self.settings["crop_size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    def crop(self, clip: np.ndarray, position: int) -> np.ndarray:
        """Position 0, 1 or 2 along the side with more room, centred on the other: (3, T, h, w) -> (3, T, H, W)."""
        tall, wide = self.crop_size()
        spare_height, spare_width = clip.shape[-2] - tall, clip.shape[-1] - wide
        top, left = math.ceil(spare_height / 2), math.ceil(spare_width / 2)
        if position != 1 and spare_height > spare_width:
            top = 0 if position == 0 else spare_height
        elif position != 1:
            left = 0 if position == 0 else spare_width
        return clip[..., top : top + tall, left : left + wide]


def resize(picture: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation along one axis between the centres of the pixels, without smoothing before it."""
    before = picture.shape[axis]
    if before == size:
        return picture
    place = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(before / size) - 0.5, 0)
    first = place.astype(int)
    share = (place - first).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    second = np.minimum(first + 1, before - 1)
    return picture.take(first, axis) * (1 - share) + picture.take(second, axis) * share


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))


def open_video(path: str):
    """The container and its default video stream that is no cover image; only local files of known containers."""
    container = av.open(path, options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS})
    kinds = av.stream.Disposition
    streams = [stream for stream in container.streams.video if not stream.disposition & kinds.attached_pic]
    stream = next((each for each in streams if each.disposition & kinds.default), streams[0] if streams else None)
    if stream is None or stream.codec_context is None:
        container.close()
        raise ValueError(f"{path}: no video stream that can be decoded")
    if stream.codec_context.width * stream.codec_context.height > MOST_PIXELS:
        container.close()
        raise ValueError(f"{path}: its frames are above the limit of {MOST_PIXELS:,} pixels")
    stream.codec_context.thread_count = 1
    if stream.codec_context.name != "h264":  # whose decoder marks damage; others only log some of it
        stream.codec_context.options = {"err_detect": "explode"}
    return container, stream


def decoded(path: str, container, stream, clock: list):
    """Every frame from the first whole one on, in the order in which FFmpeg's decoder gives them, which is what counts.

    Its `pts` is the number of its packet; `clock` is filled with the (decoding time, time) of each packet.
    """
    first, whole, decoder = None, False, stream.codec_context
    for packet in container.demux(stream):
        if packet.size:
            if first is None and packet.is_keyframe:  # which an edit list may hide
                first, whole = len(clock), packet.is_discard
            clock.append((packet.dts, packet.pts))
            packet.pts = len(clock) - 1
        if first is None and packet.size:
            continue  # refers to what is not in the file
        for frame in decoder.decode(packet if packet.size else None):
            whole = whole or frame.pts == first
            if whole and frame.is_corrupt:
                raise ValueError(f"{path}: a frame is damaged")
            if whole:
                yield frame


def count_frames(path: str) -> tuple[int, float]:
    """Frames, by decoding all of them, and the mean rate in frames per second."""
    container, stream = open_video(path)
    with container:
        clock: list = []
        packets = [frame.pts for frame in decoded(path, container, stream, clock)]
        rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
        broadcast = container.format.name in ("mpegts", "mpeg")
        seconds = span(clock, packets, LEAP / stream.time_base if broadcast else math.inf) * float(stream.time_base)
    if not packets:
        raise ValueError(f"{path}: no frames")
    return len(packets), mean_rate(len(packets), seconds, rates)


def span(clock: list, packets: list[int], leap: float) -> float:
    """Ticks from the first to the last of the frames in these packets; where the clock jumps it goes on by the usual step."""
    pieces, piece, before = [], 0, None
    for decoding, _ in clock:
        if None not in (decoding, before) and not 0 <= decoding - before < leap:
            piece += 1
        pieces.append(piece)
        before = decoding
    if len(packets) < 2 or any(clock[packet][1] is None for packet in packets):
        return 0.0
    shown = sorted((pieces[packet], clock[packet][1]) for packet in packets)
    steps = [later - earlier for (one, earlier), (other, later) in pairwise(shown) if one == other]
    joints = shown[-1][0] - shown[0][0]
    return float(sum(steps) + joints * np.median(steps)) if steps else 0.0


def mean_rate(count: int, seconds: float, stated: list[float]) -> float:
    """The stated rate where the times agree with it to a frame or a percent, else theirs; 30 without both.

    `seconds` from the first to the last frame: where the rate varies, or the file states none of its own, a container's
    rate says little.
    """
    if seconds <= 0:
        return stated[0] if stated else 30.0
    measured = (count - 1) / seconds
    return next((rate for rate in stated if abs(rate / measured - 1) <= 1 / count + 0.01), measured)


def read_frames(path: str, wanted: set[int]):
    """(number, uint8 (H, W, 3) RGB, upright) of the wanted frames, in order."""
    container, stream = open_video(path)
    with container:
        turns, mirrored = 0, False
        for number, frame in enumerate(decoded(path, container, stream, [])):
            if number == 0:  # holds for all: FFmpeg puts what a stream says once on one frame
                turns, mirrored = orientation(frame)
            if number in wanted:
                picture = frame.to_ndarray(format="rgb24")
                yield number, np.rot90(picture[::-1] if mirrored else picture, turns)
            if number >= max(wanted):
                return


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Quarter turns to the left, after an image was turned upside down if it is stored mirrored."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    return round(frame.rotation / 90) % 4, a * d < b * c


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="an ONNX file that `mvit-video export` has written")
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--provider", default="CPU", choices=[*PROVIDERS, "OpenVINO"], help="what runs the file")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of OpenVINO")
    arguments = parser.parse_args()
    try:
        runner, failed = Runner(arguments.model, arguments.provider, arguments.precision), False
    except ValueError as reason:
        sys.exit(f"error: {reason}")
    for path in arguments.videos:
        try:
            scores = runner.scores(path)
        except (ValueError, av.FFmpegError) as reason:
            text = f"{path}: {reason.strerror}" if isinstance(reason, av.FFmpegError) else str(reason)
            print(json.dumps({"path": path, "error": text}, ensure_ascii=False))
            failed = True
            continue
        best = np.argsort(-scores, kind="stable")[: arguments.top]
        labels = [{"label": runner.classes[place], "score": float(scores[place])} for place in best]
        print(json.dumps({"path": path, "predictions": labels}, ensure_ascii=False))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
