import json
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import av
import pytest
import torch

from mvit_video import cli, compat, doctor
from mvit_video.data.video.reader import VideoReader
from mvit_video.doctor import BROKEN, NOTE, OK, Check, backends_check
from mvit_video.model.ops.cpu import CpuBackends, cpu_backends


def test_a_whole_installation_works_and_says_so(capsys, tmp_path):
    assert cli.main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
    out = capsys.readouterr().out
    assert "all required parts work" in out and "pyav: H.264" in out
    content = json.loads((tmp_path / "doctor.json").read_text())
    found = {check["name"]: check for check in content["checks"]}
    assert content["ok"] is True and found["torch"]["found"] == torch.__version__
    assert found["pyav: VP9"] == {"name": "pyav: VP9", "found": "6 of 6 frames right", "state": "ok", "cure": ""}
    assert found["CPU"]["found"] == f"products: {cpu_backends().products}; attention: {cpu_backends().attention}"
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    assert f"libavcodec {codec}" in found["av"]["found"]
    wanted = {"numpy", "torchvision", "pytorchvideo", "decord", "fvcore", "iopath", "cores", "open files", "downloads"}
    assert wanted <= found.keys() and {"pyav: MPEG-4", "decord: H.264", "onnxruntime"} <= found.keys()


def test_a_broken_part_is_named_with_its_cure_and_the_exit_code_is_one(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "run_checks", lambda: [Check("av", "1.0 [old]", BROKEN, "run 'pip install x[y]'")])
    assert cli.main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 1
    out = capsys.readouterr().out
    assert "1.0 [old]" in out and "→ run 'pip install x[y]'" in out and "broken: av" in out
    assert json.loads((tmp_path / "doctor.json").read_text())["ok"] is False


def test_a_decoder_that_fails_or_gives_other_frames_is_found_out(tmp_path):
    clip = doctor.trial_clip(tmp_path, "MPEG-4")
    assert doctor.decoder_check("pyav", "MPEG-4", clip).state == OK

    class Darker(VideoReader):
        def frames(self, indices):
            return super().frames(indices) // 2

    check = doctor.decoder_check("pyav", "MPEG-4", clip, Darker)
    assert check.state == BROKEN and "gives other frames than were written" in check.found and "install" in check.cure
    clip.write_bytes(b"no video")
    check = doctor.decoder_check("pyav", "MPEG-4", clip)
    assert check.state == BROKEN and check.found.startswith("cannot be opened as a video")
    check = doctor.decoder_check("decord", "H.265", clip)
    assert check.state == NOTE and check.cure == "use data.decoder=pyav for such files"
    assert doctor.decoder_check("pyav", "H.265", None).found == "not tried: this FFmpeg has no encoder for it"


def test_a_missing_encoder_leaves_a_decoder_untried(tmp_path, monkeypatch):
    monkeypatch.setitem(doctor.CODECS, "VP9", "no_such_encoder")
    assert doctor.trial_clip(tmp_path, "VP9") is None


@pytest.mark.parametrize(
    ("check", "state", "words"),
    [
        (doctor.torch_check("2.9.1+cu126"), BROKEN, ("2.9.1", "install torch 2.10 or newer")),
        (doctor.torch_check("2.10.0"), OK, ("2.10.0",)),
        (doctor.torch_check("3.0.0"), OK, ("3.0.0",)),
        (doctor.av_check("16.1.0", "libavcodec 62.11.100"), BROKEN, ("16.1.0", "install av 17.1 or newer")),
        (doctor.av_check("17.1.0", "libavcodec 62.28.101"), OK, ("17.1.0",)),
        (doctor.torchvision_check("2.13.0+cpu", "0.28.0", True), OK, ("0.28.0",)),
        (doctor.torchvision_check("2.13.0", "0.25.0", True), NOTE, ("made for another torch", "torchvision 0.28 from")),
        (doctor.torchvision_check("2.13.0", "0.28.0", False), NOTE, ("operators do not match torch", "0.28")),
        (doctor.cores_check(2, 8, 8), NOTE, ("2 of 8 usable", "OMP_NUM_THREADS=2")),
        (doctor.cores_check(2, 8, 2), OK, ("torch uses 2 threads",)),
        (doctor.shared_memory_check(64 * 2**20), NOTE, ("0.1 GiB free", "--shm-size=8g", "data.workers=0")),
        (doctor.shared_memory_check(2**31), OK, ("2.0 GiB free",)),
        (doctor.files_check(256), NOTE, ("at most 256", "ulimit -n")),
        (doctor.files_check(1024), OK, ("at most 1024",)),
        (doctor.files_check(-1), OK, ("no limit",)),
        (doctor.no_gpu_check(None, None), OK, ("none: networks run on the CPU",)),
        (doctor.no_gpu_check("570.1", None), NOTE, ("a build for CPUs", "CUDA build of torch")),
        (doctor.no_gpu_check("470.1", "12.6"), NOTE, ("finds no device", "update the driver to one for CUDA 12.6")),
        (doctor.cache_check(Path("/proc/version/x")), NOTE, ("cannot be written", "MVIT_VIDEO_CACHE")),
    ],
)
def test_known_bad_combinations_have_a_cure(check, state, words):
    assert check.state == state
    assert all(word in f"{check.found} {check.cure}" for word in words)
    assert bool(check.cure) == (state != OK)


def test_a_gpu_that_runs_no_kernel_is_a_note_with_the_cure():
    check = doctor.kernels_check(torch.device("cuda", 7))
    assert check.state == NOTE and "Triton runs no kernel on cuda:7" in check.found and "C compiler" in check.cure


def test_a_torch_that_refuses_numpy_is_broken():
    def refuse():
        raise RuntimeError("Numpy is not available")

    check = doctor.numpy_check(refuse, "2.0.1")
    assert check.state == BROKEN and "2.0.1" in check.found and "numpy below 2" in check.cure


def test_packages_that_are_missing_or_cannot_be_imported_are_named(monkeypatch):
    def refuse(*_):
        raise compat._cannot("torchvision", ImportError("libc: too old"), "install the torchvision that matches")

    check = doctor._import_check("torchvision", refuse, None)
    assert check.state == BROKEN and "libc: too old" in check.found
    assert check.cure == "install the torchvision that matches"

    def none(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", none)
    assert doctor._installed("fvcore").state == BROKEN and doctor._installed("decord").state == NOTE
    assert doctor._installed("onnx", "export").cure == "`mvit-video export` needs it: run 'pip install onnx'"


def test_a_driver_is_asked_for_by_its_own_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 570.86.10\necho 570.86.10\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert doctor.nvidia_driver() == "570.86.10"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor.nvidia_driver() is None
    tool.unlink()
    assert doctor.nvidia_driver() is None


def test_the_report_of_a_missing_folder_comes_before_the_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "run_checks", lambda: pytest.fail("looked first"))
    assert cli.main(["doctor", "--json", str(tmp_path / "no/doctor.json")]) == 1
    assert "does not exist" in capsys.readouterr().err


BROKEN_MODULES = {
    "raises": (
        "raise AttributeError('no such thing in this release')",
        "AttributeError: no such thing in this release",
    ),
    "is not there": ("raise ModuleNotFoundError('No module named av')", "ModuleNotFoundError"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"died \(SIGSEGV\)"),
    "ends the program": ("import os; os._exit(3)", "ended with code 3"),
    "hangs": ("import time; time.sleep(60)", "gave no answer within 2 s"),
    "is of an old release": ("__version__, library_versions = '9.0', {}", "KeyError"),
}


@pytest.mark.integration
@pytest.mark.parametrize("kind", BROKEN_MODULES)
def test_doctor_survives_a_package_that(kind, tmp_path, monkeypatch):
    code, words = BROKEN_MODULES[kind]
    (tmp_path / "av.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    [check] = doctor.check_in_subprocess("av", seconds=2 if kind == "hangs" else 60)
    assert (check.name, check.state) == ("av", BROKEN) and re.search(words, check.found)
    assert "pip install --force-reinstall" in check.cure


@pytest.mark.integration
def test_what_was_found_before_a_crash_is_kept(tmp_path, monkeypatch):
    (tmp_path / "PIL.py").write_text("import os; os._exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    first, last = doctor.check_in_subprocess("av")
    assert (first.name, first.state) == ("av", OK) and "after 'av'" in last.found


def test_what_networks_take_on_this_cpu_is_printed():
    assert backends_check(CpuBackends()).found == "products: PyTorch's; attention: fused"
    assert backends_check(CpuBackends(onednn=True, bf16_blocks=True)).found == (
        "products: oneDNN in fp32; attention: blocks in bf16 and fp32"
    )
    assert backends_check(CpuBackends(bf16_blocks=True, few_keys=True)).found == (
        "products: PyTorch's; attention: blocks in bf16 where keys are few"
    )
