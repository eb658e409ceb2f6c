"""Matrix products: PyTorch's own, or on CPUs where that is faster oneDNN's, in true single precision.

PyTorch hands fp32 products to MKL. oneDNN, which it ships too, is asked for by the name of an operator, so no setting of
the process changes and other people's layers are left alone.
"""

# (N, K) @ (K, O) -> (N, O)

import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_video.model.ops import cpu

LEAST_WIDTH = 96  # of all three sizes of a product: narrower ones are slower in oneDNN
DEEPEST = 384  # of K in one call


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear: x (..., K), weight (O, K) -> (..., O)."""
    rows = x.reshape(-1, x.shape[-1])
    if not is_onednns(rows, weight.t()):
        return F.linear(x, weight, bias)
    return _by_onednn(rows, weight.t(), bias).view(*x.shape[:-1], len(weight))


def product(one: Tensor, other: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """one @ other + bias, written into `out` where it is given."""
    if is_onednns(one, other):
        found = _by_onednn(one, other, bias)
        return found if out is None else out.copy_(found)
    return torch.mm(one, other, out=out) if bias is None else torch.addmm(bias, one, other, out=out)


def add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, where the total may be of a wider type."""
    if is_onednns(one, other):
        total += _by_onednn(one, other, None)
    elif total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


def is_onednns(one: Tensor, other: Tensor) -> bool:
    """Whether oneDNN multiplies these, as the CPU (`cpu.ways`), type and sizes say."""
    if one.dtype != torch.float32 or one.device.type != "cpu" or min(*one.shape, *other.shape) < LEAST_WIDTH:
        return False
    return cpu.takes_onednn()


def products(one: Tensor, other: Tensor) -> Tensor:
    """one (G, N, K) @ other (G, K, O), one pair after the other."""
    if len(one) and is_onednns(one[0], other[0]):
        found = [_by_onednn(first, second, None) for first, second in zip(one, other, strict=True)]
        return torch.stack(found) if len(found) > 1 else found[0][None]
    return torch.bmm(one, other)


def _by_onednn(one: Tensor, other: Tensor, bias: Tensor | None) -> Tensor:
    """In parts of K, since oneDNN adds all of K in one chain, whose rounding errors grow with its length."""
    depth = one.shape[1]
    step = -(-depth // -(-depth // DEEPEST))
    found = None
    for start in range(0, depth, step):
        rows, columns = _dense(one[:, start : start + step]), _dense(other[start : start + step].t())
        if found is None:
            found = torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")
        else:
            found = torch.ops.mkldnn._linear_pointwise.binary(rows, found, columns, None, "add")
    assert found is not None
    return found


def _dense(x: Tensor) -> Tensor:
    """x, or a copy where neither rows nor columns lie together: oneDNN multiplies such hundreds of times slower."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()
