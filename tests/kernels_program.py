"""Largest differences of the GPU kernels from the plain functions, as one line of JSON: `python kernels_program.py`.

On a GPU with the kernels compiled, elsewhere through Triton's interpreter (TRITON_INTERPRET=1), which is slow: tiny sizes.
"""

import json
import sys

import torch
from torch import nn

from mvit_video.model import mvit
from mvit_video.model.heads import Heads
from mvit_video.model.ops import device, folding, pooling
from mvit_video.model.ops import triton as kernels
from mvit_video.model.ops.linear import Linear, linear_chunks, mlp
from mvit_video.model.ops.norm import LayerNorm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
kernels.norm.SLOTS = kernels.pool.SLOTS = 8  # programs are loops here
KERNELS = (lambda x: kernels, lambda x: None)


def differences(ours, expected) -> float:
    return max((one - other).abs().max().item() for one, other in zip(ours, expected, strict=True) if one.numel())


def with_gradients(outs, given):
    generator = torch.Generator().manual_seed(1)
    back = [torch.randn(out.shape, generator=generator).to(DEVICE) for out in outs]
    return [*outs, *torch.autograd.grad(outs, given, back)]


def pools(kernel, strides, channels):
    """Filters and norms with weights of their own."""
    made = []
    for stride in strides:
        conv = nn.Conv3d(
            channels, channels, kernel, stride, [size // 2 for size in kernel], groups=channels, bias=False
        )
        norm = nn.LayerNorm(channels, 1e-6)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        made.append((conv.to(DEVICE), norm.to(DEVICE)))
    return made


def pooling_difference(num_cls, thw, kernel, strides) -> float:
    x = torch.randn(1, num_cls + thw[0] * thw[1] * thw[2], len(strides), 2, 6, device=DEVICE, requires_grad=True)
    made = pools(kernel, strides, 6)
    parameters = [tensor for conv, norm in made for tensor in (conv.weight, norm.weight, norm.bias)]
    device.kernels_for = KERNELS[0]
    ours = [part for heads in pooling._pool_parts(x, thw, made) for part in heads[:2]]
    expected = [part for place, pool in enumerate(made) for part in plain_pool(x[:, :, place], thw, *pool)]
    given = [x, *parameters]
    actual = with_gradients(ours, given), with_gradients(expected, given)
    for parameter in parameters[::3]:
        parameter.requires_grad_(False)  # frozen filters
    frozen = [x, *(parameter for parameter in parameters if parameter.requires_grad)]
    ours = [part for heads in pooling._pool_parts(x, thw, made) for part in heads[:2]]
    expected = [part for place, pool in enumerate(made) for part in plain_pool(x[:, :, place], thw, *pool)]
    return max(differences(*actual), differences(with_gradients(ours, frozen), with_gradients(expected, frozen)))


def plain_pool(x, thw, conv, norm):
    num_cls, heads = x.shape[1] - thw[0] * thw[1] * thw[2], x.shape[2]
    grid = x[:, num_cls:].flatten(2).unflatten(1, thw).permute(0, 4, 1, 2, 3)
    weight = conv.weight.repeat(heads, 1, 1, 1, 1)
    grid = nn.functional.conv3d(grid, weight, None, conv.stride, conv.padding, groups=len(weight))
    return norm(x[:, :num_cls]), norm(grid.permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(-1, (heads, -1)))


def folding_difference(num_cls, thw, k_thw, axes) -> float:
    """Queries with tables of their size, and keys, against concatenations."""
    q, k = (tokens(num_cls, size) for size in (thw, k_thw))
    rows = [2 * max(a, b) - 1 for a, b in zip(thw, k_thw, strict=True)]
    tables = [
        torch.randn(count, 5, device=DEVICE, requires_grad=True) if axis in axes else None
        for axis, count in zip("thw", rows, strict=True)
    ]
    sizes = [size + 1 if axis in axes else 0 for size, axis in zip(k_thw, "thw", strict=True)]  # one zero behind each
    assert folding.tables_fit(tables, thw, k_thw)
    device.kernels_for = KERNELS[0]
    ours = [
        folding._fold_queries(q.cls, q.grid, *tables, thw, k_thw, sizes, 24),
        folding._fold_keys(k.cls, k.grid, k_thw, sizes, 0.5, 24),
    ]
    terms = folding.position_terms(q, tables, k_thw)
    padded = [nn.functional.pad(term, (0, 1)).flatten(1, 3) for term in terms]
    width = 24 - 5 - sum(sizes)
    expected = nn.functional.pad(torch.cat([q.grid, *padded], -1), (0, width))
    expected = torch.cat([nn.functional.pad(q.cls, (0, 24 - 5)), expected], 1)
    coordinates = nn.functional.pad(padded_coordinates(k_thw, sizes), (0, width, num_cls, 0))
    plain = torch.cat([k.joined(), coordinates[None, :, None].expand(1, -1, 2, -1)], -1)
    plain = torch.cat([plain[..., :5] * 0.5, plain[..., 5:]], -1)
    given = [part for part in (q.cls, q.grid, *tables, k.cls, k.grid) if part is not None and part.numel()]
    return differences(with_gradients(ours, given), with_gradients([expected, plain], given))


def tokens(num_cls, thw) -> Heads:
    return Heads(
        *(torch.randn(1, n, 2, 5, device=DEVICE, requires_grad=True) for n in (num_cls, thw[0] * thw[1] * thw[2])), thw
    )


def padded_coordinates(k_thw, sizes):
    """One-hot coordinates of each key, a row at a time."""
    out = torch.zeros(k_thw[0] * k_thw[1] * k_thw[2], sum(sizes), device=DEVICE)
    for row, cell in enumerate((t, h, w) for t in range(k_thw[0]) for h in range(k_thw[1]) for w in range(k_thw[2])):
        for axis in range(3):
            if sizes[axis]:
                out[row, sum(sizes[:axis]) + cell[axis]] = 1
    return out


def norm_difference() -> float:
    rows, scale, shift, back = (torch.randn(*size, device=DEVICE) for size in ((37, 6), (6,), (6,), (37, 6)))
    given = [tensor.requires_grad_() for tensor in (rows, scale, shift)]
    expected = nn.functional.layer_norm(rows, (6,), scale, shift, 1e-6)
    ours = kernels.layer_norm(rows.detach(), scale, shift, 1e-6, torch.float32)
    gradients = kernels.layer_norm_backward(rows.detach(), scale.detach(), 1e-6, back)
    sums = kernels.column_sums(back)
    return differences([ours, *gradients, sums], [expected, *torch.autograd.grad(expected, given, back), back.sum(0)])


def linears_difference(turned) -> float:
    """The linear layers behind a norm, where the gradient of their output lies in memory as `turned` makes it."""
    made = nn.ModuleDict(dict(norm=LayerNorm(6, 1e-6), fc1=Linear(6, 10), fc2=Linear(10, 4))).to(DEVICE)
    x = torch.randn(1, 7, 6, device=DEVICE, requires_grad=True)
    found = []
    for kernels_for in KERNELS:
        device.kernels_for = kernels_for
        normed = made.norm(x)
        outs = mlp(normed, made.fc1, made.fc2), *linear_chunks(normed, made.fc1, 2), made.fc1(normed)
        found.append(torch.autograd.grad(sum(turned(out.flatten(0, -3)) for out in outs), [x, *made.parameters()]))
    return differences(*found)


def transposed(out):
    """A scalar whose gradient comes back transposed, as that of a map (B, C, N) does."""
    back = torch.arange(out.numel(), dtype=out.dtype, device=out.device).view(out.transpose(1, 2).shape)
    return (out.transpose(1, 2) * back.sin()).sum()


def network_difference(batch) -> float:
    """A whole network with the kernels against one without, logits and gradients, on a size that its tables are not made for."""
    torch.manual_seed(2)
    model = mvit.MViT(
        num_frames=2, crop_size=8, num_classes=3, depths=(1,), embed_dim=6, kv_stride=(1, 2, 2), patch_kernel=(1, 3, 3),
        patch_stride=(1, 4, 4), dropout_rate=0.0, drop_path_rate=0.0,
    ).to(DEVICE)  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    clips, given = torch.randn(batch, 3, 2, 8, 12, device=DEVICE), list(model.parameters())
    found = []
    for kernels_for in KERNELS:
        device.kernels_for = kernels_for
        found.append(with_gradients([model(clips)], given))
    return differences(*found)


def main() -> None:
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    one, two = (1, 1, 1), (1, 2, 2)
    found = {
        "pooling of q, k and v": pooling_difference(1, (2, 2, 3), (3, 3, 3), [one, two, two]),
        "pooling without class token, strided in time": pooling_difference(0, (3, 3, 2), (3, 3, 3), [(2, 3, 1)]),
        "pooling of images": pooling_difference(1, (1, 4, 5), (1, 3, 3), [two]),
        "folding": folding_difference(1, (2, 3, 2), (2, 2, 1), "thw"),
        "folding without class token and time": folding_difference(0, (2, 1, 3), (2, 2, 2), "hw"),
        "norm": norm_difference(),
        "linears under a transposed gradient": linears_difference(transposed),
        "linears under an expanded gradient": linears_difference(torch.sum),
        "network": network_difference(1),
        "network without clips": network_difference(0),
    }
    print(json.dumps(found))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
