import itertools
from math import prod

import pytest
import torch
from tiny_models import randomise, tiny_video

from mvit_video import build_model
from mvit_video.errors import ConfigError, InputError
from mvit_video.model.layers import DropPath
from mvit_video.model.mvit import Block, MViTArguments

TINY = dict(depths=(1, 1, 2), embed_dim=16, num_heads=2, num_frames=4, crop_size=32, num_classes=5, kv_stride=(1, 4, 4))


def tiny(seed=0, dtype=torch.float32, **changes):
    torch.manual_seed(seed)
    model = build_model("mvitv2_s_16x4", **(TINY | dict(drop_path_rate=0.0, dropout_rate=0.0) | changes)).to(dtype)
    for parameter in model.parameters():  # the initial weights are small: make every part matter
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def same_weights(**changes):
    return [tiny(attention=kind, **changes) for kind in ("flash", "reference")]


SIZES = [(4, 32, 32), (2, 32, 32), (3, 16, 16), (7, 33, 47), (6, 64, 40), (3, 20, 52)]
PICTURES = dict(num_frames=1, patch_kernel=(1, 7, 7), patch_stride=(1, 4, 4), pool_kernel=(1, 3, 3))
PICTURE_SIZES = [(1, 32, 32), (1, 33, 47), (1, 16, 64), (3, 24, 20)]
BOTH_PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])


def output_and_gradients(run, model, given):
    """Of the sum of squares of what `run` makes of `given`, with respect to it and to every parameter, by name."""
    given = given.clone().requires_grad_()
    output = run(model, given)
    output.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"output": output, "input": given.grad} | gradients


def assert_equal_within(tolerance, ours, plain):
    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        assert (ours[name] - expected).abs().max().item() < tolerance * max(1.0, expected.abs().max().item()), name


@pytest.mark.parametrize(
    ("network", "size"),
    [*(({}, size) for size in SIZES), *((PICTURES, size) for size in PICTURE_SIZES)],
    ids=[*map(str, SIZES), *(f"image {size}" for size in PICTURE_SIZES)],
)
@pytest.mark.parametrize("cls_token", [True, False])
@BOTH_PRECISIONS
def test_flash_attention_equals_the_plain_formula_in_outputs_and_all_gradients(
    network, size, cls_token, dtype, tolerance
):
    models = same_weights(dtype=dtype, cls_token=cls_token, **network)
    clips = torch.randn(2, 3, *size, dtype=dtype)
    ours, plain = (output_and_gradients(lambda model, given: model(given), model, clips) for model in models)
    assert len(ours) == 2 + len(list(models[0].parameters()))
    assert_equal_within(tolerance, ours, plain)


@pytest.mark.integration
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("cls_token", [1, 0], ids=["class token", "none"])
@BOTH_PRECISIONS
def test_at_every_stage_of_s_the_attention_equals_the_plain_formula(stage, cls_token, dtype, tolerance):
    """Widths, heads, grids and strides of 4 frames of 224 pixels, at the block that starts the stage."""
    plan = MViTArguments(depths=(1, 1, 1, 1), num_frames=4).block_plans()[stage]
    assert (plan.dim_attention, plan.num_heads) == (96 * 2**stage, 2**stage)
    tokens = torch.randn(1, cls_token + prod(plan.grid), plan.dim, dtype=dtype)

    def run(block, given):
        return block.attn(block.norm1(given), plan.grid) / tokens.shape[1] ** 0.5

    results = []
    for kind in ("flash", "reference"):
        style = MViTArguments(cls_token=bool(cls_token), attention=kind).block_style()
        block = randomise(Block(plan, style), seed=stage)
        results.append(output_and_gradients(run, block.to(dtype), tokens))
    assert {"attn.rel_pos_t", "attn.rel_pos_h", "attn.pool_k.weight", "attn.qkv.weight"} <= results[0].keys()
    assert_equal_within(tolerance, *results)


def test_residual_pooling_leaves_the_class_token_out():
    x = torch.randn(1, 33, 16)
    block = tiny().blocks[0]
    on = block.attn(x, (2, 4, 4))
    block.attn.residual_pooling = False
    off = block.attn(x, (2, 4, 4))
    assert torch.equal(on[:, 0], off[:, 0]) and not torch.allclose(on[:, 1:], off[:, 1:])


def test_the_shortcut_of_a_stage_start_is_a_max_over_overlapping_windows():
    block = tiny().blocks[1]
    x = torch.randn(1, 1 + 2 * 5 * 6, 16)
    pooled, thw = block.pool_skip(x, (2, 5, 6))
    assert thw == (2, 3, 3)
    assert torch.equal(pooled[:, 0], x[:, 0])
    grid = x[0, 1:].view(2, 5, 6, 16)
    for t, h, w in itertools.product(range(2), range(3), range(3)):
        window = grid[t, max(2 * h - 1, 0) : 2 * h + 2, max(2 * w - 1, 0) : 2 * w + 2]
        assert torch.equal(pooled[0, 1 + t * 9 + h * 3 + w], window.amax((0, 1)))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mvitv2_t_16x4", 23_801_104),
        ("mvitv2_s_16x4", 34_537_744),
        ("mvitv2_b_32x3", 51_230_128),
        ("mvitv2_l_40x3", 213_390_112),
        ("mvitv2_h_16x4", 666_363_856),
        ("mvitv1_b_16x4", 36_610_672),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_position_tables_have_the_published_rows():
    with torch.device("meta"):
        small, large = build_model("mvitv2_s_16x4"), build_model("mvitv2_l_40x3")
    rows = [len(block.attn.rel_pos_h) for block in small.blocks]
    assert rows == [111, 55, 55, *[27] * 12, 13]
    assert {len(block.attn.rel_pos_t) for block in small.blocks} == {15}
    assert [len(large.blocks[place].attn.rel_pos_w) for place in (7, 8, 43, 44, 45, 47)] == [77, 37, 37, 37, 17, 17]


def test_drop_path_grows_linearly_from_zero():
    rates = [block.drop_path.rate for block in tiny(drop_path_rate=0.3).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 3, 2))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (out == out[:, :1, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    branch = torch.ones(4000, 3, 2)
    assert torch.equal(layer.eval()(branch), branch)


def test_drop_path_scales_half_precision_branches_in_single_precision():
    torch.manual_seed(0)
    branch = torch.full((64, 1, 1), 0.9, dtype=torch.bfloat16, requires_grad=True)
    out = DropPath(0.3)(branch)
    scaled = (branch[0].float() / (1 - 0.3)).to(torch.bfloat16).item()
    assert out.dtype == torch.bfloat16 and set(out.flatten().tolist()) == {0.0, scaled}
    out.float().sum().backward()
    assert torch.equal(branch.grad != 0, out != 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cls_token", [True, False])
def test_a_network_of_half_precision_trains_with_stochastic_depth(dtype, cls_token):
    model = tiny(dtype=dtype, cls_token=cls_token, drop_path_rate=0.5).train()
    logits = model(torch.randn(2, 3, 4, 32, 32, dtype=dtype))
    logits.float().sum().backward()
    assert logits.dtype == dtype and model.patch_embed.proj.weight.grad.isfinite().all()


@pytest.mark.parametrize("rates", [dict(), dict(drop_path_rate=0.9, dropout_rate=0.9)])
def test_evaluation_is_deterministic_whatever_the_dropout(rates):
    model, clips = tiny(**rates).eval(), torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(model(clips), model(clips))
    assert torch.equal(model(clips), tiny(drop_path_rate=0.0, dropout_rate=0.0).eval()(clips))


def test_training_with_dropout_is_random():
    model, clips = tiny(dropout_rate=0.5).train(), torch.randn(2, 3, 4, 32, 32)
    assert not torch.equal(model(clips), model(clips))


def test_initial_weights_are_those_of_the_recipe():
    """A normal of σ .02: cut at 2 σ its σ would be .0176, and cut at 2 by PyTorch before 2.13 it holds single 2s."""
    torch.manual_seed(0)
    weights = []
    for name, value in build_model("mvitv2_t_16x4", num_classes=10).named_parameters():
        if value.ndim > 1:
            assert value.std().item() == pytest.approx(0.02, abs=0.1 / (2 * value.numel()) ** 0.5), name  # 5 of its σ
            weights.append(value.flatten())
        else:
            assert (value == (1 if name.endswith("weight") else 0)).all(), name
    together = torch.cat(weights)
    assert together.std().item() == pytest.approx(0.02, abs=2e-5)
    assert 0.08 < together.abs().max() < 0.14


@pytest.mark.parametrize("cls_token", [True, False])
def test_a_batch_of_no_clips_gives_no_logits_and_gradients_of_zero(cls_token):
    for model in same_weights(cls_token=cls_token):
        logits = model(torch.zeros(0, 3, 4, 32, 32))
        logits.sum().backward()
        assert logits.shape == (0, 5) and not model.blocks[0].attn.qkv.weight.grad.any()


def test_batches_do_not_mix():
    model, clips = tiny().eval(), torch.randn(3, 3, 4, 32, 32)
    assert torch.allclose(model(clips)[1], model(clips[1:2])[0], atol=1e-5)


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_filters_as_long_as_their_strides_give_equal_outputs_and_gradients_on_both_paths(positions):
    pair = same_weights(
        pool_kernel="stride", positions=positions, q_stride=((1, 2, 2), (2, 1, 1)), pool_all_queries=False
    )
    flash, plain = (output_and_gradients(lambda m, x: m(x), model, torch.ones(1, 3, 4, 32, 32)) for model in pair)
    assert_equal_within(1e-4, flash, plain)


@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize("width_growth", ["attention", "mlp"])
def test_features_are_the_stage_maps(cls_token, width_growth):
    model = tiny(cls_token=cls_token, width_growth=width_growth).eval()
    clips = torch.randn(2, 3, 5, 36, 28)
    maps = model.forward_features(clips)
    grids = [(3, 9, 7), (3, 5, 4), (3, 3, 2)]
    assert [tuple(stage.shape) for stage in maps] == [
        (2, dim, *grid) for dim, grid in zip(model.stage_dims, grids, strict=True)
    ]
    assert model.stage_dims == ((16, 32, 64) if width_growth == "attention" else (32, 64, 64))
    if not cls_token:
        assert torch.allclose(
            model.head(model.norm(maps[-1].flatten(2).transpose(1, 2)).mean(1)), model(clips), atol=1e-5
        )


def test_a_model_made_for_one_frame_takes_pictures():
    model = tiny(
        num_frames=1, patch_kernel=(1, 7, 7), patch_stride=(1, 4, 4), pool_kernel=(1, 3, 3), cls_token=False
    ).eval()
    pictures = torch.randn(2, 3, 32, 40)
    assert torch.equal(model(pictures), model(pictures[:, :, None]))
    assert not any("rel_pos_t" in name for name, _ in model.named_parameters())


def test_a_crop_may_be_given_as_height_and_width():
    model = tiny(crop_size=(32, 48))
    assert len(model.blocks[0].attn.rel_pos_h) == 15 and len(model.blocks[0].attn.rel_pos_w) == 23
    assert model(torch.randn(1, 3, 4, 32, 48)).shape == (1, 5)


def test_activation_checkpointing_changes_no_gradient():
    clips = torch.randn(2, 3, 4, 32, 32)
    gradients = []
    for switch in (False, True):
        model = tiny(activation_checkpointing=switch, drop_path_rate=0.5).train()
        torch.manual_seed(1)
        model(clips).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (torch.zeros(3, 4, 32, 32), r"clips have shape \(3, 4, 32, 32\), expected \(batch, 3, frames, height, width\)"),
        (torch.zeros(1, 4, 3, 32, 32), r"clips have shape \(1, 4, 3, 32, 32\), expected \(batch, 3,"),
        (torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8), "clips are torch.uint8, expected floating point values"),
        (torch.zeros(1, 3, 1, 32, 32), r"clips of \(1, 32, 32\) .* smaller than one patch step \(2, 4, 4\)"),
        (torch.zeros(1, 3, 4, 32, 3), "smaller than one patch step"),
    ],
)
def test_clips_of_a_wrong_shape_are_refused(clips, message):
    with pytest.raises(InputError, match=message):
        tiny(num_frames=8)(clips)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(depths=(1, 0)), r"depths=\(1, 0\): expected a list of whole numbers, blocks of each stage, from 1$"),
        (dict(depths=()), r"depths=\(\): expected a list of whole numbers, blocks of each stage, from 1$"),
        (
            dict(depths=[1] * 20),
            r"depths=.*: the last of 20 stages would be 8,388,608 wide, at most 65,536: use fewer stages",
        ),
        (dict(depths=3), r"depths=3: expected a list of whole numbers, blocks of each stage, from 1$"),
        (dict(kv_stride=(1, 8)), r"kv_stride=\(1, 8\): expected 3 whole numbers from 1$"),
        (dict(kv_stride=(0, 8, 8)), r"kv_stride=\(0, 8, 8\): expected 3 whole numbers from 1$"),
        (
            dict(q_stride="122"),
            r"q_stride='122': expected 3 whole numbers from 1, or a list of 3 for each of the 2 stage starts$",
        ),
        (dict(patch_kernel=3), r"patch_kernel=3: expected 3 whole numbers from 1$"),
        (
            dict(crop_size=(32, 32, 32)),
            r"crop_size=\(32, 32, 32\): expected a whole number from 1, or two: height and width$",
        ),
        (dict(crop_size=0), r"crop_size=0: expected a whole number from 1, or two: height and width$"),
        (dict(q_stride=[(1, 2, 2)]), r"q_stride=\[\(1, 2, 2\)\]: .*, or a list of 3 for each of the 2 stage starts$"),
        (dict(q_stride=[(1, 2, 2), 2, (1, 2, 2)]), r"or a list of 3 for each of the 2 stage starts$"),
        (dict(pool_kernel="strided"), r"pool_kernel='strided': expected 3 odd whole numbers from 1, or 'stride'$"),
        (dict(pool_kernel="stride", kv_stride=(1, 3, 3)), r"kv_stride=\(1, 3, 3\): expected 1 or even steps"),
        (dict(pool_kernel="stride", positions="lepe"), r"positions='lepe' needs pool_kernel as three lengths"),
        (dict(pooling="max"), r"pooling='max': choose from cls, mean, mean_without_cls$"),
        (
            dict(pooling="cls", cls_token=False),
            r"pooling='cls' needs a class token: set cls_token=True, or pooling to mean$",
        ),
        (dict(head_init_scale=0), r"head_init_scale=0: expected a number above 0$"),
        (dict(pool_kernel=(3, 2, 3)), r"pool_kernel=\(3, 2, 3\): expected odd lengths, so that a window has a middle$"),
        (
            dict(q_stride=(1, 3, 2)),
            r"q_stride=\(1, 3, 2\): expected 1 or even steps, so that the shortcut's windows of step",
        ),
        (
            dict(depths=(True, 1)),
            r"depths=\(True, 1\): expected a list of whole numbers, blocks of each stage, from 1$",
        ),
        (dict(num_heads=0), "num_heads=0: expected a whole number from 1$"),
        (dict(num_classes=True), "num_classes=True: expected a whole number from 1$"),
        (dict(num_classes=0), "num_classes=0: expected a whole number from 1$"),
        (dict(num_frames="8"), "num_frames='8': expected a whole number from 1$"),
        (dict(drop_path_rate=1.5), "drop_path_rate=1.5: expected a number from 0 to below 1$"),
        (dict(dropout_rate="half"), "dropout_rate='half': expected a number from 0 to below 1$"),
        (dict(mlp_ratio=-1), "mlp_ratio=-1: expected a number above 0$"),
        (dict(mlp_ratio="abc"), "mlp_ratio='abc': expected a number above 0$"),
        (dict(mlp_ratio=float("inf")), "mlp_ratio=inf: expected a number above 0$"),
        (dict(cls_token="no"), "cls_token='no': expected true or false$"),
        (dict(cls_token=2), "cls_token=2: expected true or false$"),
        (dict(residual_pooling="false"), "residual_pooling='false': expected true or false$"),
        (dict(pool_all_queries=None), "pool_all_queries=None: expected true or false$"),
        (dict(activation_checkpointing=1), "activation_checkpointing=1: expected true or false$"),
        (dict(embed_dim=15), "embed_dim=15 is not a multiple of num_heads=2"),
        (dict(attention=["flash"]), r"attention='\['flash'\]': choose from flash, reference"),
        (dict(attention="slow"), "attention='slow': choose from flash, reference"),
        (dict(positions="none"), "positions='none': choose from relative, lepe, absolute"),
        (dict(width_growth="head"), "width_growth='head': choose from attention, mlp"),
        (dict(num_frames=1), r"num_frames and crop_size \(1, 32, 32\) are smaller than one patch step"),
        (dict(mlp_ratio=1e11), "cannot be built as large as its arguments say .*memory.*: lower them$"),
        (dict(depth=(1, 1)), r"model argument 'depth' is unknown \(did you mean 'depths'\?\): choose from activation_"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**arguments)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"model 'mvitv2_s_16x' is unknown \(did you mean 'mvitv2_s_16x4'\?\): choose from"
    ):
        build_model("mvitv2_s_16x")


def test_the_head_is_initialised_at_its_scale_and_nothing_else_changes():
    states = []
    for scale in (1.0, 0.001):
        torch.manual_seed(0)
        states.append(build_model("mvitv2_s_16x4", **TINY, head_init_scale=scale).state_dict())
    for name, own in states[0].items():
        assert torch.equal(own * 0.001 if name == "head.projection.weight" else own, states[1][name]), name


@pytest.mark.parametrize("cls_token", [True, False])
def test_what_is_pooled_is_the_mean_of_all_tokens_or_the_norm_of_that_of_the_patches(cls_token):
    clips, tokens, found = torch.randn(2, 3, 8, 32, 32), [], {}
    for pooling in ("mean", "mean_without_cls"):
        network = tiny_video(pooling=pooling, cls_token=cls_token)
        network.blocks[-1].register_forward_hook(lambda module, inputs, output: tokens.append(output[0]))
        found[pooling] = network.pooled(clips)
    patches = tokens[1][:, int(cls_token) :]
    assert torch.allclose(found["mean"], network.norm(tokens[0]).mean(1), atol=1e-6)
    assert torch.allclose(found["mean_without_cls"], network.norm(patches.mean(1)), atol=1e-6)


@pytest.mark.parametrize("network", [tiny_video(), tiny_video(cls_token=False)], ids=["class token", "mean"])
def test_the_pooled_feature_is_what_the_head_sees(network):
    """Of the last map, normed: the class token, or the mean of all tokens. Both forms of the call give the same bits."""
    clips, seen = torch.randn(2, 3, 8, 32, 32), []
    handles = [network.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))]
    tokens = []
    handles.append(network.norm.register_forward_hook(lambda module, inputs, output: tokens.append(output)))
    with torch.no_grad():
        logits, feature = network(clips, with_feature=True)
        assert torch.equal(network(clips), logits) and torch.equal(network.pooled(clips), feature)
    for handle in handles:
        handle.remove()
    assert torch.equal(seen[0], feature) and feature.shape == (2, network.stage_dims[-1])
    assert torch.allclose(feature, tokens[0][:, 0] if network.cls_token is not None else tokens[0].mean(1))
