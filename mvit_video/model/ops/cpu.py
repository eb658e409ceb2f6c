"""Which backends compute matrix products and attention on this CPU. Chosen by what the CPU supports, never by timing it.

PyTorch's defaults are replaced only on processors where that was measured to be faster (docs/performance.md). The choice
affects the last bits of a run: training states record it, and `mvit-video doctor` prints it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
ZEN_5 = 26  # AMD family with full-width AVX-512 units; Zen 4 (family 25) has half-width ones


@dataclass(frozen=True)
class Cpu:
    """Vendor and family of a processor, and whether it has AVX-512, AVX512_BF16 and AMX's bf16 tiles."""

    vendor: str = ""
    family: int = 0
    avx512: bool = False
    avx512_bf16: bool = False
    amx_bf16: bool = False


@dataclass(frozen=True)
class CpuBackends:
    """Whether large fp32 products run in oneDNN, and whether bf16 attention is block-wise: always, or for few keys only.

    The defaults are PyTorch's own products and its fused attention kernel.
    """

    onednn: bool = False
    bf16_blocks: bool = False
    few_keys: bool = False

    @property
    def products(self) -> str:
        return "oneDNN in fp32" if self.onednn else "PyTorch's"

    @property
    def attention(self) -> str:
        bf16 = "bf16 where keys are few" if self.few_keys else "bf16"
        types = [bf16] * self.bf16_blocks + ["fp32"] * self.onednn
        return f"blocks in {' and '.join(types)}" if types else "fused"


def backends_for(cpu: Cpu) -> CpuBackends:
    """The backends for a CPU. MKL, PyTorch's default on x86, has no AVX-512 code path for AMD; oneDNN has one.

    On Zen 4 that gains nothing in fp32. With AMX the fused kernel's bf16 backward is slow for few keys.
    """
    amd = cpu.vendor == "AuthenticAMD"
    onednn = amd and cpu.avx512 and cpu.family >= ZEN_5
    return CpuBackends(onednn, bf16_blocks=(amd and cpu.avx512_bf16) or cpu.amx_bf16, few_keys=cpu.amx_bf16)


def cpu_backends() -> CpuBackends:
    """The backends in use."""
    return _OVERRIDE.get() or _detected()


@contextmanager
def use_backends(backends: CpuBackends) -> Iterator[None]:
    """Override this CPU's backends in the current context: for tests and comparisons."""
    token = _OVERRIDE.set(backends)
    try:
        yield
    finally:
        _OVERRIDE.reset(token)


_OVERRIDE: ContextVar[CpuBackends | None] = ContextVar("backends", default=None)


@cache
def _detected() -> CpuBackends:
    backends = backends_for(parse_cpuinfo(CPUINFO.read_text(errors="replace"))) if CPUINFO.is_file() else CpuBackends()
    return backends if hasattr(torch.ops.mkldnn, "_linear_pointwise") else replace(backends, onednn=False)


def parse_cpuinfo(text: str) -> Cpu:
    """The first processor in the text of Linux's /proc/cpuinfo; the default `Cpu` if there is none."""
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
        "amx_bf16" in flags,
    )


def onednn_enabled() -> bool:
    """Whether large fp32 products run in oneDNN now: `torch.backends.mkldnn` can turn it off."""
    return cpu_backends().onednn and bool(torch.backends.mkldnn.enabled)
