"""Matrix products in PyTorch's default backend or, on CPUs where it is faster, in oneDNN, in true single precision.

PyTorch dispatches fp32 products to MKL. oneDNN, which it ships too, is called through an operator of its own, so no global
setting changes and layers outside this package are unaffected.
"""

# (N, K) @ (K, O) -> (N, O)

import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_video.model.ops import cpu

MIN_SIZE = 96  # of N, K and O: smaller products are slower in oneDNN
MAX_K = 384  # in one call


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear: x (..., K), weight (O, K) -> (..., O)."""
    rows = x.reshape(-1, x.shape[-1])
    if not uses_onednn(rows, weight.t()):
        return F.linear(x, weight, bias)
    return _onednn_mm(rows, weight.t(), bias).view(*x.shape[:-1], len(weight))


def mm(one: Tensor, other: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """one @ other + bias, written into `out` if given."""
    if uses_onednn(one, other):
        result = _onednn_mm(one, other, bias)
        return result if out is None else out.copy_(result)
    return torch.mm(one, other, out=out) if bias is None else torch.addmm(bias, one, other, out=out)


def add_mm(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other; the total may have a wider dtype."""
    if uses_onednn(one, other):
        total += _onednn_mm(one, other, None)
    elif total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


def uses_onednn(one: Tensor, other: Tensor) -> bool:
    """Whether this product runs in oneDNN: depends on the CPU (`cpu.cpu_backends`), dtype and sizes."""
    if one.dtype != torch.float32 or one.device.type != "cpu" or min(*one.shape, *other.shape) < MIN_SIZE:
        return False
    return cpu.onednn_enabled()


def bmm(one: Tensor, other: Tensor) -> Tensor:
    """one (G, N, K) @ other (G, K, O); oneDNN computes one pair at a time."""
    if len(one) and uses_onednn(one[0], other[0]):
        results = [_onednn_mm(first, second, None) for first, second in zip(one, other, strict=True)]
        return torch.stack(results) if len(results) > 1 else results[0][None]
    return torch.bmm(one, other)


def _onednn_mm(one: Tensor, other: Tensor, bias: Tensor | None) -> Tensor:
    """K is split: oneDNN accumulates all of K sequentially, and rounding errors grow with its length."""
    depth = one.shape[1]
    step = -(-depth // -(-depth // MAX_K))
    total = None
    for start in range(0, depth, step):
        rows, columns = _as_dense(one[:, start : start + step]), _as_dense(other[start : start + step].t())
        if total is None:
            total = torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")
        else:
            total = torch.ops.mkldnn._linear_pointwise.binary(rows, total, columns, None, "add")
    assert total is not None
    return total


def _as_dense(x: Tensor) -> Tensor:
    """x, copied if neither it nor its transpose is contiguous: oneDNN is hundreds of times slower on such strides."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()
