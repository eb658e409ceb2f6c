"""Whether this installation and machine can do the work: versions, decoders tried on clips made here, GPU, limits.

Each check says what it found and, where something is wrong, the cure. What may be broken is imported where it is looked at,
and looked at in a process of its own: one that raises, crashes or hangs is what it is here to find.
"""

import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mvit_video.download import CACHE_VARIABLE, cache_folder
from mvit_video.errors import ConfigError, DecodeError
from mvit_video.version import __version__

OK, NOTE, BROKEN = "ok", "note", "broken"
CODECS = {"H.264": "libx264", "VP9": "libvpx-vp9", "MPEG-4": "mpeg4", "H.265": "libx265"}
NEEDED = frozenset({"H.264", "VP9", "MPEG-4", "JPEG"})
OPTIONAL = {
    "tensorboard": "train",
    "onnxruntime": "export",
    "onnx": "export",
    "onnxscript": "export",
    "openvino": "benchmark --runner openvino",
    "starlette": "serve",
    "uvicorn": "serve",
    "scikit-learn": "browse --checkpoint",
    "cleanlab": "browse --checkpoint",
}
TRIAL_FRAMES = 6
GREY_STEP = 40  # each frame of the trial clip is this much brighter than the one before
FAR_OFF = GREY_STEP / 4
LEAST_SHARED_MEMORY = 2**30
LEAST_FILES = 1024
SECONDS_FOR_DRIVER = 20
SECONDS_FOR_PART = 180


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: `state` is ok, note (works, with a limit) or broken (something needed does not)."""

    name: str
    found: str
    state: str = OK
    cure: str = ""


def run_checks() -> list[Check]:
    """Every check, in the order in which people read them."""
    own = Check("mvit_video", __version__)
    system = Check("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    apart = [check for part in PARTS for check in check_in_subprocess(part)]
    return [own, system, *_run_checks("packages", _packages), *apart, *_run_checks("limits", _limits)]


def check_in_subprocess(part: str, seconds: float = SECONDS_FOR_PART) -> list[Check]:
    """The checks of one of PARTS, made in another process; the last says how it ended, where it did not end well."""
    command = [sys.executable, "-m", "mvit_video.doctor", part]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, env=environment
        )
        output, code, last = done.stdout, done.returncode, done.stderr.strip().splitlines()[-1:]
    except subprocess.TimeoutExpired as reason:
        output = reason.stdout.decode(errors="replace") if isinstance(reason.stdout, bytes) else reason.stdout or ""
        code, last = None, []
    found = [Check(**json.loads(line)) for line in output.splitlines() if line.startswith("{")]
    if code == 0:
        return found
    how = f"gave no answer within {seconds:.0f} s" if code is None else f"ended with code {code}"
    if code is not None and code < 0:
        how = f"died ({signal.Signals(-code).name})"
    after = f" after '{found[-1].name}'" if found else ""
    what = f"the process that looked at it {how}{after}" + (f": {last[0][:160]}" if last else "")
    _, cure, state = PARTS[part]
    return [*found, Check(part, what, state, cure)]


def _run_checks(name: str, look: Callable[[], Iterator[Check]], cure: str = "", state: str = BROKEN) -> Iterator[Check]:
    """The checks up to one that raises, and what it raised."""
    try:
        yield from look()
    except Exception as reason:
        line = (str(reason).strip() or "no reason given").splitlines()[0]
        yield Check(name, f"cannot be looked at ({type(reason).__name__}: {line[:160]})", state, cure)


def as_dict(checks: list[Check]) -> dict:
    """What --json writes."""
    return {"ok": works(checks), "checks": [asdict(check) for check in checks]}


def works(checks: list[Check]) -> bool:
    """Whether nothing that is needed is broken."""
    return all(check.state != BROKEN for check in checks)


def _packages() -> Iterator[Check]:
    for name in ("decord", "fvcore", "iopath", "safetensors"):
        yield _installed(name)
    for name, verb in OPTIONAL.items():
        yield _installed(name, verb)


def _torch() -> Iterator[Check]:
    """torch, numpy beside it, the cores that they take, and the GPU."""
    import torch

    from mvit_video.model.ops.cpu import cpu_backends

    yield torch_check(torch.__version__)
    yield _numpy()
    yield cores_check(_usable_cores(), os.cpu_count() or 1, torch.get_num_threads())
    yield backends_check(cpu_backends())
    yield from _gpu()


def _numpy() -> Check:
    import numpy as np
    import torch

    return numpy_check(lambda: torch.from_numpy(np.ones(2, np.float32)).sum().item(), np.__version__)


def _torchvision() -> Iterator[Check]:
    from mvit_video.compat import import_pytorchvideo, import_torchvision

    yield _import_check("torchvision", import_torchvision, _torchvision_note)
    yield _import_check("pytorchvideo", import_pytorchvideo, _pytorchvideo_note)


def _av() -> Iterator[Check]:
    """PyAV, and its decoders on clips made here."""
    import av

    libraries = ", ".join(
        f"{name} {'.'.join(map(str, av.library_versions[name]))}"
        for name in ("libavcodec", "libavformat", "libswscale")
    )
    yield av_check(av.__version__, libraries)
    with TemporaryDirectory(prefix="mvit_video_doctor_") as folder:
        yield decoder_check("pyav", "JPEG", trial_pictures(Path(folder) / "frames"))
        for codec in CODECS:
            yield decoder_check("pyav", codec, trial_clip(Path(folder), codec))


def av_check(text: str, libraries: str) -> Check:
    """PyAV from 17.1: 17.0 crashes on broken files, and earlier ones do not tell what a container lists."""
    if _number(text) < (17, 1):
        return Check(
            "av", f"{text} with {libraries}", BROKEN, "videos would fail or crash it: install av 17.1 or newer"
        )
    return Check("av", f"{text} with {libraries}")


def _decord() -> Iterator[Check]:
    with TemporaryDirectory(prefix="mvit_video_doctor_") as folder:
        for codec in CODECS:
            yield decoder_check("decord", codec, trial_clip(Path(folder), codec))


def _number(text: str) -> tuple[int, int]:
    """`2.13.0+cu126` -> (2, 13)."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def torch_check(text: str) -> Check:
    """torch from 2.10: earlier loaders of weights run code that a file brings."""
    if _number(text) < (2, 10):
        return Check(
            "torch", text, BROKEN, "its loader of weights has known security holes: install torch 2.10 or newer"
        )
    return Check("torch", text)


def numpy_check(hand_over: Callable[[], object], text: str) -> Check:
    """numpy, and whether torch takes its arrays: a torch built for numpy 1 refuses those of numpy 2."""
    try:
        hand_over()
    except RuntimeError as reason:
        return Check("numpy", f"{text}, refused by torch ({reason})", BROKEN, "install numpy below 2, or a newer torch")
    return Check("numpy", text)


def _import_check(name: str, load: Callable[[], object], note: Callable[[str], Check]) -> Check:
    try:
        load()
    except ConfigError as reason:
        what, _, cure = str(reason).rpartition(": ")
        return Check(name, what, BROKEN, cure)
    return note(version(name))


def _torchvision_note(text: str) -> Check:
    import torch

    from mvit_video.compat import import_torchvision

    return torchvision_check(torch.__version__, text, import_torchvision("torchvision.extension")._has_ops())


def torchvision_check(torch_version: str, text: str, has_operators: bool) -> Check:
    """torchvision 0.(x + 15) belongs to torch 2.x, and its compiled operators to a build for the same CUDA."""
    major, minor = _number(torch_version)
    wanted = f"0.{minor + 15}" if major == 2 else "the release of the same month"
    cure = f"install torchvision {wanted} from where torch {torch_version} comes from"
    if not has_operators:
        found = f"{text}, its compiled operators do not match torch {torch_version}: repaired as far as is needed here"
        return Check("torchvision", found, NOTE, cure)
    if major == 2 and _number(text) != (0, minor + 15):
        return Check("torchvision", f"{text}, made for another torch than {torch_version}", NOTE, cure)
    return Check("torchvision", text)


def _pytorchvideo_note(text: str) -> Check:
    renamed = _number(version("torchvision")) >= (0, 17)
    return Check(
        "pytorchvideo", f"{text}, repaired for a torchvision that renamed what it imports" if renamed else text
    )


def _installed(name: str, verb: str = "") -> Check:
    try:
        return Check(name, version(name))
    except PackageNotFoundError:
        if verb:
            return Check(name, "not installed", OK, f"`mvit-video {verb}` needs it: run 'pip install {name}'")
        needed = name != "decord"
        return Check(name, "not installed", BROKEN if needed else NOTE, f"run 'pip install {name}'" if needed else "")


def trial_clip(folder: Path, codec: str) -> Path | None:
    """A short clip whose frames get brighter step by step; None where this FFmpeg cannot encode it."""
    import av
    import numpy as np
    from av.video.stream import VideoStream

    path = folder / f"{codec}.{'webm' if codec == 'VP9' else 'mp4'}"
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(CODECS[codec], rate=25)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            if codec == "H.265":
                stream.options = {"x265-params": "log-level=none"}
            for grey in _greys():
                picture = np.full((48, 64, 3), grey, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError):  # ValueError: the encoder is not in this build
        return None
    return path


def trial_pictures(folder: Path) -> Path:
    """The same as a folder of JPEG images."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for number, grey in enumerate(_greys(), 1):
        Image.fromarray(np.full((48, 64, 3), grey, np.uint8)).save(folder / f"{number:05}.jpg")
    return folder


def _greys() -> list[int]:
    return [20 + GREY_STEP * number for number in range(TRIAL_FRAMES)]


def decoder_check(backend: str, codec: str, clip: Path | None, reader: Callable[..., Any] | None = None) -> Check:
    """Whether the frames of a trial clip come out as they were written. Only what needs no decord is needed.

    `reader` stands in for VideoReader.
    """
    from mvit_video.data.video.reader import VideoReader

    name = f"{backend}: {codec}" if codec != "JPEG" else "frame folders: JPEG"
    if clip is None:
        return Check(name, "not tried: this FFmpeg has no encoder for it")
    cure = "run 'pip install --force-reinstall av'" if backend == "pyav" else "use data.decoder=pyav for such files"
    state = BROKEN if backend == "pyav" and codec in NEEDED else NOTE
    try:
        with (reader or VideoReader)(clip, backend=backend) as video:
            frames = video.frames(range(len(video)))
    except DecodeError as reason:
        found = str(reason).removeprefix(f"{clip}: ")
        return Check(name, found, state, "" if "data.decoder=" in found else cure)
    greys = frames.mean((1, 2, 3))
    if len(greys) != TRIAL_FRAMES or abs(greys - _greys()).max() > FAR_OFF:
        return Check(name, f"gives other frames than were written ({len(greys)} of {TRIAL_FRAMES})", state, cure)
    return Check(name, f"{TRIAL_FRAMES} of {TRIAL_FRAMES} frames right")


def _gpu() -> Iterator[Check]:
    import torch

    driver = nvidia_driver()
    if not torch.cuda.is_available():
        yield no_gpu_check(driver, torch.version.cuda)
        return
    for number in range(torch.cuda.device_count()):
        yield gpu_check(number, driver)
    yield kernels_check(torch.device("cuda"))


def nvidia_driver() -> str | None:
    """The driver's version; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_FOR_DRIVER)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def no_gpu_check(driver: str | None, cuda: str | None) -> Check:
    """No GPU is no fault; one that torch cannot use is worth a note."""
    import torch

    if driver is None:
        return Check("GPU", "none: networks run on the CPU")
    if cuda is None:
        cure = "install a CUDA build of torch and of torchvision"
        return Check("GPU", f"driver {driver}, but torch {torch.__version__} is a build for CPUs", NOTE, cure)
    cure = f"update the driver to one for CUDA {cuda}, or install torch for an older CUDA"
    return Check("GPU", f"driver {driver}, but torch for CUDA {cuda} finds no device", NOTE, cure)


def gpu_check(number: int, driver: str | None) -> Check:
    import torch

    properties = torch.cuda.get_device_properties(number)
    bf16 = "bf16" if properties.major >= 8 else "no bf16: precision auto is fp32"
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    found = f"{properties.name}, {memory}, {bf16}, driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
    try:
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        right = float((ones @ ones).sum()) == 64.0**3
    except RuntimeError as reason:
        cure = f"install a torch that is built for this GPU (sm_{properties.major}{properties.minor})"
        return Check(f"GPU {number}", f"{found}: {str(reason).splitlines()[0]}", BROKEN, cure)
    return Check(f"GPU {number}", found) if right else Check(f"GPU {number}", f"{found}: computes wrongly", BROKEN)


def kernels_check(device) -> Check:
    """Whether the networks' own kernels run on a torch.device; without them they do the same, slowly."""
    from mvit_video.model.ops.device import KERNELS_CURE, try_kernels

    _, reason = try_kernels(device)
    return Check("GPU kernels", reason, NOTE, KERNELS_CURE) if reason else Check("GPU kernels", "run")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limits() -> Iterator[Check]:
    if Path("/dev/shm").is_dir():
        yield shared_memory_check(shutil.disk_usage("/dev/shm").free)
    yield files_check(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield cache_check(cache_folder())


def cores_check(usable: int, present: int, threads: int) -> Check:
    found = f"{usable} of {present} usable, torch uses {threads} threads"
    if threads > usable:
        return Check(
            "cores", found, NOTE, f"set OMP_NUM_THREADS={usable}: more threads than cores slow each other down"
        )
    return Check("cores", found)


def backends_check(backends) -> Check:
    """The backends of matrix products and attention on this CPU, from its `ops.cpu.CpuBackends`."""
    return Check("CPU", f"products: {backends.products}; attention: {backends.attention}")


def shared_memory_check(free: int) -> Check:
    found = f"{free / 2**30:.1f} GiB free"
    if free < LEAST_SHARED_MEMORY:
        cure = "start the container with --shm-size=8g or --ipc=host, or set data.workers=0: loader workers need it"
        return Check("shared memory", found, NOTE, cure)
    return Check("shared memory", found)


def files_check(limit: int) -> Check:
    if limit == resource.RLIM_INFINITY:
        return Check("open files", "no limit")
    if limit < LEAST_FILES:
        return Check("open files", f"at most {limit}", NOTE, "run 'ulimit -n 65536' first: loader workers need many")
    return Check("open files", f"at most {limit}")


def cache_check(folder: Path) -> Check:
    """Whether public checkpoints could be kept there; nothing is created."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        cure = f"set {CACHE_VARIABLE} to a folder that can be written"
        return Check("downloads", f"{folder} cannot be written", NOTE, cure)
    return Check("downloads", f"{folder}, {shutil.disk_usage(place).free / 1e9:.0f} GB free")


PARTS: dict[
    str, tuple[Callable[[], Iterator[Check]], str, str]
] = {  # name → checks; cure and state where they come to nothing
    "torch": (_torch, "run 'pip install --force-reinstall torch numpy'", BROKEN),
    "torchvision": (_torchvision, "install the torchvision that matches torch, and pytorchvideo", BROKEN),
    "av": (_av, "run 'pip install --force-reinstall \"av>=17.1\" numpy pillow'", BROKEN),
    "decord": (_decord, "use data.decoder=pyav", NOTE),
}

if __name__ == "__main__":
    for check_ in _run_checks(sys.argv[1], *PARTS[sys.argv[1]]):
        print(json.dumps(asdict(check_)), flush=True)
