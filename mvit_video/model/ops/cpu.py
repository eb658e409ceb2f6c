"""Which functions compute products and attention on this CPU, from what the CPU can do; never from a timing.

A way other than PyTorch's own is taken only on the processors where it was measured to be faster (docs/performance.md).
The choice decides the last bits of a run: training states record it, and `mvit-video doctor` prints it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

CPU_FILE = Path("/proc/cpuinfo")
ZEN_5 = 26  # AMD's family whose units are as wide as AVX-512's registers; those of Zen 4, family 25, are half as wide


@dataclass(frozen=True)
class Cpu:
    """Who made a processor, its family, and whether it has AVX-512, and products of bf16 numbers in it."""

    vendor: str = ""
    family: int = 0
    avx512: bool = False
    avx512_bf16: bool = False


@dataclass(frozen=True)
class Ways:
    """Whether wide fp32 products are oneDNN's, and whether attention in bf16 goes by blocks of queries.

    The standard is PyTorch's own products, and its fused attention kernel.
    """

    onednn: bool = False
    bf16_blocks: bool = False

    @property
    def products(self) -> str:
        return "oneDNN in fp32" if self.onednn else "PyTorch's"

    @property
    def attention(self) -> str:
        types = ["bf16"] * self.bf16_blocks + ["fp32"] * self.onednn
        return f"blocks in {' and '.join(types)}" if types else "fused"


def ways_of(cpu: Cpu) -> Ways:
    """What a CPU takes. MKL, PyTorch's own way on x86, has no AVX-512 code for AMD's; oneDNN has.

    On Zen 4 that wins nothing in fp32.
    """
    amd = cpu.vendor == "AuthenticAMD"
    return Ways(onednn=amd and cpu.avx512 and cpu.family >= ZEN_5, bf16_blocks=amd and cpu.avx512_bf16)


def ways() -> Ways:
    """What is taken here."""
    return _CHOSEN.get() or _of_this_machine()


@contextmanager
def taking(chosen: Ways) -> Iterator[None]:
    """Other ways than this CPU's, in the calling thread: for tests and comparisons."""
    before = _CHOSEN.set(chosen)
    try:
        yield
    finally:
        _CHOSEN.reset(before)


_CHOSEN: ContextVar[Ways | None] = ContextVar("chosen", default=None)


@cache
def _of_this_machine() -> Ways:
    found = ways_of(cpu_of(CPU_FILE.read_text(errors="replace"))) if CPU_FILE.is_file() else Ways()
    return found if hasattr(torch.ops.mkldnn, "_linear_pointwise") else replace(found, onednn=False)


def cpu_of(text: str) -> Cpu:
    """The first processor that the text of Linux's /proc/cpuinfo lists; one that can nothing where there is none."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    family = fields.get("cpu family", "")
    return Cpu(
        fields.get("vendor_id", ""),
        int(family) if family.isdecimal() else 0,
        "avx512f" in flags,
        "avx512_bf16" in flags,
    )


def takes_onednn() -> bool:
    """Whether wide fp32 products are oneDNN's at this moment, which somebody may have turned off in PyTorch."""
    return ways().onednn and bool(torch.backends.mkldnn.enabled)
