"""Attention within groups, against global attention with a mask built by a loop, and the syntax of `token_mixing`."""

from itertools import product

import pytest
import torch

from mvit_video import build_model
from mvit_video.errors import ConfigError
from mvit_video.model.attention import flash_attention, reference_attention
from mvit_video.model.heads import Heads
from mvit_video.model.relative_position import axis_terms, table_rows
from mvit_video.model.token_mixing import (
    ALL,
    Mixing,
    check_mixing,
    mixed_attention,
    parse_mixing,
    plan_groups,
    plan_mixing,
)


def heads(thw, num_cls, num_heads=2, channels=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, thw[0] * thw[1] * thw[2], num_heads, channels)
    cls = torch.randn(2, num_cls, num_heads, channels, dtype=torch.float64, generator=generator)
    return Heads(cls, torch.randn(shape, dtype=torch.float64, generator=generator), thw)


def masked(q, k, v, tables, scale, allowed):
    """The plain formula with −∞ where `allowed` (T·H·W, Kt·Kh·Kw, heads) is False; the class token attends everywhere."""
    queries, keys, values = (part.joined().transpose(1, 2) for part in (q, k, v))
    scores = (queries * scale) @ keys.transpose(-2, -1)
    bias = 0
    terms = axis_terms(q.grid.unflatten(1, q.thw).permute(0, 4, 1, 2, 3, 5), tables, k.thw)
    for axis, term in enumerate(terms):
        shape = [1, 1, 1]
        shape[axis] = k.thw[axis]
        bias = bias + term.unflatten(-1, shape)
    bias = bias.flatten(5).flatten(2, 4)
    num_cls = q.cls.shape[1]
    scores[:, :, num_cls:, num_cls:] += bias.masked_fill(~allowed.permute(2, 0, 1), -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2)


def group_of(kind, size, shift, thw, place, head, num_heads):
    """A key for a token's group; tokens with equal keys attend to each other."""
    if kind == "stripes":
        t, h, w = size
        return (place[0] // t, -1, place[2] // w) if head < num_heads // 2 else (place[0] // t, place[1] // h, -1)
    if kind == "grid":
        return tuple(p % (length // side) for p, length, side in zip(place, thw, size, strict=True))
    return tuple((p + side - s) // side if s else p // side for p, side, s in zip(place, size, shift, strict=True))


def attention_mask(kind, mixing, strides, q, k):
    num_heads = q.grid.shape[2]
    groups = plan_groups(Mixing("window" if kind == "stripes" else kind, mixing.size), strides, q.thw, k.thw)
    sizes = [part.size for part in groups]
    if kind == "stripes":
        ratios = [keys / queries for keys, queries in zip(k.thw, q.thw, strict=True)]
        sizes = [mixing.size, tuple(int(side * ratio) for side, ratio in zip(mixing.size, ratios, strict=True))]
    allowed = torch.zeros(q.grid.shape[1], k.grid.shape[1], num_heads, dtype=torch.bool)
    for head in range(num_heads):
        named = [
            [group_of(kind, size, part.shift, thw, place, head, num_heads) for place in product(*map(range, thw))]
            for size, part, thw in zip(sizes, groups, (q.thw, k.thw), strict=True)
        ]
        allowed[:, :, head] = torch.tensor([[one == other for other in named[1]] for one in named[0]])
    return allowed


CASES = [
    ("window", (2, 4, 4), (1, 1, 1), (1, 1, 1), (4, 8, 8)),
    ("window", (4, 4, 2), (1, 1, 1), (1, 2, 2), (4, 8, 4)),
    ("shifted", (2, 4, 4), (1, 1, 1), (1, 1, 1), (4, 8, 8)),
    ("shifted", (4, 4, 4), (1, 1, 1), (1, 2, 2), (4, 8, 12)),
    ("grid", (2, 4, 4), (1, 1, 1), (1, 1, 1), (4, 8, 8)),
    ("stripes", (4, 2, 2), (1, 1, 1), (1, 2, 2), (4, 8, 6)),
]


@pytest.mark.parametrize("attend", [flash_attention, reference_attention])
@pytest.mark.parametrize("num_cls", [0, 1])
@pytest.mark.parametrize(("kind", "size", "q_stride", "kv_stride", "thw"), CASES)
def test_groups_are_global_attention_with_a_mask(kind, size, q_stride, kv_stride, thw, num_cls, attend):
    k_thw = tuple(length // step for length, step in zip(thw, kv_stride, strict=True))
    q, k, v = heads(thw, num_cls), heads(k_thw, num_cls, seed=1), heads(k_thw, num_cls, seed=2)
    tables = [torch.randn(table_rows(a, b), 8, dtype=torch.float64) for a, b in zip(thw, k_thw, strict=True)]
    mixing, strides = Mixing(kind, size), (q_stride, kv_stride)
    expected = masked(q, k, v, tables, 0.4, attention_mask(kind, mixing, strides, q, k))
    torch.testing.assert_close(
        mixed_attention(attend, mixing, strides, q, k, v, tables, 0.4), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("kind", ["window", "shifted", "grid"])
def test_one_window_over_the_whole_grid_is_global_attention(kind):
    thw, k_thw = (4, 6, 5), (4, 3, 5)
    q, k, v = heads(thw, 1), heads(k_thw, 1, seed=1), heads(k_thw, 1, seed=2)
    tables = [torch.randn(table_rows(a, b), 8, dtype=torch.float64) for a, b in zip(thw, k_thw, strict=True)]
    strides = ((1, 1, 1), (1, 2, 1))
    expected = mixed_attention(flash_attention, ALL, strides, q, k, v, tables, 0.3)
    actual = mixed_attention(flash_attention, Mixing(kind, (8, 8, 8)), strides, q, k, v, tables, 0.3)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_the_last_windows_are_zero_padded_and_padding_is_attended_to():
    """A grid of 3 in windows of 2: the last window's second key is zero, so its value counts with the score of positions."""
    q, k, v = heads((1, 3, 2), 0), heads((1, 3, 2), 0, seed=1), heads((1, 3, 2), 0, seed=2)
    found = mixed_attention(
        flash_attention, Mixing("window", (1, 2, 2)), ((1, 1, 1), (1, 1, 1)), q, k, v, [None] * 3, 1.0
    )
    zeros = torch.zeros_like(k.grid[:, :2])
    last = [Heads(part.cls, torch.cat([part.grid[:, 4:], zeros], 1), (1, 2, 2)) for part in (q, k, v)]
    torch.testing.assert_close(found[:, 4:], reference_attention(*last, [None] * 3, 1.0)[:, :2])


def test_kinds_alternate_from_the_first_block_of_each_stage():
    plan = plan_mixing("window 8x7x7, shifted 8x7x7", (1, 2, 3))
    assert [mixing.kind for mixing in plan] == ["window", "window", "shifted", "window", "shifted", "window"]
    assert plan[0].size == (8, 7, 7)
    assert [each.kind for each in plan_mixing(["all", "grid 2x4x4", "stripes 8x2"], (1, 1, 1))] == [
        "all",
        "grid",
        "stripes",
    ]
    assert plan_mixing("stripes 8x2", (1,))[0].size == (8, 2, 2)


def test_hwin_sees_everything_in_the_last_block_of_each_later_stage():
    kinds = [mixing.kind for mixing in plan_mixing("hwin", (1, 2, 3, 2))]
    assert kinds == ["hwin", "hwin", "global", "hwin", "hwin", "global", "hwin", "global"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("windw 8x7x7", ["'windw'", "did you mean", "window", "shifted"]),
        ("window", ["3 whole numbers", "window 8x7x7"]),
        ("window 8x7", ["3 whole numbers"]),
        ("stripes 8x7x7", ["2 whole numbers", "stripes 8x7"]),
        ("window 0x7x7", ["3 whole numbers"]),
        ("all 8x7x7", ["takes no size"]),
        ("", ["''", "choose from all"]),
    ],
)
def test_unknown_kinds_are_named(text, parts):
    with pytest.raises(ConfigError) as refusal:
        parse_mixing(text)
    for part in parts:
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    "given",
    [["all", "all"], [], 7, 7.5, None, True, [["window 4x4x4"], "all", "all"], {"a": "all", "b": "all", "c": "all"}],
)
def test_what_is_neither_one_text_nor_one_for_each_stage_is_refused_as_it_was_given(given):
    with pytest.raises(ConfigError) as refusal:
        build_model("mvitv2_nano_8x3", token_mixing=given)
    assert str(refusal.value).startswith(
        f"token_mixing={given!r}: expected one text such as 'window 8x7x7', or a list of 3"
    )


def test_windows_that_keys_do_not_divide_name_the_nearest_that_do():
    with pytest.raises(
        ConfigError, match=r"side of 7: keys are strided by 4 where queries are strided by 1.*nearest 4 or 8"
    ):
        check_mixing(Mixing("window", (8, 7, 7)), (1, 1, 1), (1, 4, 4), 1)
    with pytest.raises(ConfigError, match="multiples of 8, the nearest 8"):
        check_mixing(Mixing("window", (8, 7, 7)), (1, 1, 1), (1, 8, 8), 1)
    check_mixing(Mixing("window", (8, 7, 7)), (1, 2, 2), (1, 2, 2), 1)


def test_stripes_need_an_even_number_of_heads():
    with pytest.raises(ConfigError, match=r"even number of heads.*num_heads=2"):
        check_mixing(Mixing("stripes", (8, 7, 7)), (1, 1, 1), (1, 1, 1), 1)


def small(token_mixing, **arguments):
    torch.manual_seed(0)
    sizes = dict(
        depths=(1, 2, 2), num_frames=8, crop_size=64, num_heads=2, embed_dim=32, kv_stride=(1, 4, 4), num_classes=5
    )
    model = build_model("mvitv2_nano_8x3", token_mixing=token_mixing, **(sizes | arguments)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
    return model


MIXINGS = [
    "hwin",
    "window 4x8x8",
    "window 2x4x4, shifted 2x4x4",
    "grid 4x4x4",
    "stripes 4x4",
    ["all", "shifted 4x4x4", "all"],
]


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("cls_token", [True, False])
def test_no_clips_give_no_logits(mixing, cls_token):
    assert small(mixing, cls_token=cls_token)(torch.zeros(0, 3, 8, 64, 64)).shape == (0, 5)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_network_of_groups_is_differentiable_and_takes_other_sizes(mixing):
    model = small(mixing)
    logits = model(torch.randn(2, 3, 8, 80, 96))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_network_of_groups_is_the_same_by_the_plain_formula(mixing):
    clip = torch.randn(1, 3, 8, 64, 64)
    models = [small(mixing, attention=attention) for attention in ("flash", "reference")]
    with torch.no_grad():
        torch.testing.assert_close(models[0](clip), models[1](clip), rtol=1e-4, atol=1e-5)


def test_groups_have_the_parameters_of_all_and_windows_over_everything_its_logits():
    clip = torch.randn(1, 3, 8, 64, 64)
    everything, windows = small("all"), small("window 8x16x16")
    windows.load_state_dict(everything.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(windows(clip), everything(clip), rtol=1e-6, atol=1e-6)
        assert (small("window 2x4x4")(clip) - everything(clip)).abs().max() > 1e-4
