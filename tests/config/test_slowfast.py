"""PySlowFast's MViT files as ours. The texts below are written here, with the values that the published files have."""

import json

import pytest
import torch
import yaml
from conftest import REPOSITORY
from shared_files import shared

from mvit_video import build_model, cli
from mvit_video.benchmark.measure import count_parameters
from mvit_video.config.load import load_config
from mvit_video.config.schema import Config
from mvit_video.config.slowfast import convert_slowfast
from mvit_video.config.slowfast_keys import MVITV1, MVITV2, SIZES
from mvit_video.data.dataset import view_indices
from mvit_video.errors import ConfigError
from mvit_video.model.registry import build_masked, model_entry

STARTS = {"s": (16, [1, 3, 14]), "b": (24, [2, 5, 21]), "l": (48, [2, 8, 44])}
IMAGENET = {"MEAN": [0.485, 0.456, 0.406], "STD": [0.229, 0.224, 0.225]}


def network(size: str, drop_path: float, **changes) -> dict:
    """MVIT of a published MViTv2 file: lists over all blocks, some of the triples as texts."""
    depth, starts = STARTS[size]
    doubled = [[start, 2.0] for start in starts]
    return {
        "DEPTH": depth, "EMBED_DIM": 144 if size == "l" else 96, "NUM_HEADS": 2 if size == "l" else 1,
        "DIM_MUL": doubled, "HEAD_MUL": doubled, "DIM_MUL_IN_ATT": True, "RESIDUAL_POOLING": True,
        "POOL_Q_STRIDE": [[block, 1, 2, 2] if block in starts else [block, 1, 1, 1] for block in range(depth)],
        "POOL_KVQ_KERNEL": [3, 3, 3], "POOL_KV_STRIDE_ADAPTIVE": [1, 8, 8],
        "PATCH_KERNEL": "(3, 7, 7)", "PATCH_STRIDE": "(2, 4, 4)", "PATCH_PADDING": "(1, 3, 3)",
        "USE_ABS_POS": False, "REL_POS_SPATIAL": True, "REL_POS_TEMPORAL": True, "ZERO_DECAY_POS_CLS": False,
        "MLP_RATIO": 4.0, "QKV_BIAS": True, "NORM": "layernorm", "MODE": "conv", "CLS_EMBED_ON": True,
        "DROPOUT_RATE": 0.0, "DROPPATH_RATE": drop_path,
    } | changes  # fmt: skip


def file_of(dataset: str, size: str, frames: int, rate: int, drop_path: float, clips_x_crops: str) -> dict:
    """What the files of a dataset share."""
    crop, jitter = (312, [356, 446]) if size == "l" else (224, [256, 320])
    clips, crops = clips_x_crops.split("x")
    return {
        "TRAIN": {"ENABLE": True, "DATASET": dataset, "BATCH_SIZE": 16, "CHECKPOINT_PERIOD": 10, "AUTO_RESUME": True},
        "DATA": {
            "DECODING_BACKEND": "torchvision", "NUM_FRAMES": frames, "SAMPLING_RATE": rate, "TRAIN_JITTER_SCALES": jitter,
            "TRAIN_CROP_SIZE": crop, "TEST_CROP_SIZE": crop, "INPUT_CHANNEL_NUM": [3], **(IMAGENET if size == "l" else {}),
        },
        "MVIT": network(size, drop_path),
        "AUG": {
            "ENABLE": True, "COLOR_JITTER": 0.4, "AA_TYPE": "rand-m7-n4-mstd0.5-inc1", "INTERPOLATION": "bicubic",
            "RE_PROB": 0.25, "RE_MODE": "pixel", "RE_COUNT": 1, "RE_SPLIT": False,
        },
        "MIXUP": {
            "ENABLE": True, "ALPHA": 0.8, "CUTMIX_ALPHA": 1.0, "PROB": 1.0, "SWITCH_PROB": 0.5, "LABEL_SMOOTH_VALUE": 0.1,
        },
        "MODEL": {
            "NUM_CLASSES": 400, "ARCH": "mvit", "MODEL_NAME": "MViT", "LOSS_FUNC": "soft_cross_entropy", "DROPOUT_RATE": 0.5,
        },
        "TEST": {
            "ENABLE": True, "DATASET": dataset, "BATCH_SIZE": 64, "NUM_ENSEMBLE_VIEWS": int(clips),
            "NUM_SPATIAL_CROPS": int(crops),
        },
        "DATA_LOADER": {"NUM_WORKERS": 8, "PIN_MEMORY": True},
        "NUM_GPUS": 8, "NUM_SHARDS": 1, "RNG_SEED": 0, "OUTPUT_DIR": ".",
    }  # fmt: skip


def kinetics(size: str, frames: int, rate: int, drop_path: float) -> dict:
    file = file_of("kinetics", size, frames, rate, drop_path, "5x1")
    file["TRAIN"] |= {"EVAL_PERIOD": 10}
    file["AUG"] |= {"NUM_SAMPLE": 2}
    relative = {"TRAIN_JITTER_SCALES_RELATIVE": [0.08, 1.0], "TRAIN_JITTER_ASPECT_RELATIVE": [0.75, 1.3333]}
    file["DATA"] |= {"USE_OFFSET_SAMPLING": True, **relative}
    file["SOLVER"] = {
        "OPTIMIZING_METHOD": "adamw", "BASE_LR": 0.0001, "BASE_LR_SCALE_NUM_SHARDS": True, "LR_POLICY": "cosine",
        "COSINE_AFTER_WARMUP": True, "COSINE_END_LR": "1e-6", "WARMUP_START_LR": "1e-6", "WARMUP_EPOCHS": 30.0,
        "MAX_EPOCH": 200, "MOMENTUM": 0.9, "WEIGHT_DECAY": 0.05, "ZERO_WD_1D_PARAM": True, "CLIP_GRAD_L2NORM": 1.0,
    }  # fmt: skip
    return file


def ssv2(size: str, frames: int, rate: int, drop_path: float, lr: float) -> dict:
    file = file_of("ssv2", size, frames, rate, drop_path, "1x3")
    file["TRAIN"] |= {"EVAL_PERIOD": 2, "CHECKPOINT_TYPE": "pytorch", "CHECKPOINT_EPOCH_RESET": True}
    file["AUG"] |= {"NUM_SAMPLE": 1}
    file["DATA"] |= {"INV_UNIFORM_SAMPLE": True, "RANDOM_FLIP": False, "REVERSE_INPUT_CHANNEL": True}
    file["MODEL"] |= {"NUM_CLASSES": 174}
    file["BN"] = {"USE_PRECISE_STATS": False, "NUM_BATCHES_PRECISE": 200}
    file["PREFETCH"] = {"NUM_LOADERS": 3}
    file["SOLVER"] = {
        "OPTIMIZING_METHOD": "sgd", "BASE_LR": lr, "BASE_LR_SCALE_NUM_SHARDS": True, "LR_POLICY": "cosine",
        "COSINE_AFTER_WARMUP": True, "COSINE_END_LR": "1e-6", "WARMUP_START_LR": "1e-4", "WARMUP_EPOCHS": 3.0,
        "MAX_EPOCH": 100, "MOMENTUM": 0.9, "WEIGHT_DECAY": "1e-4", "ZERO_WD_1D_PARAM": True,
    }  # fmt: skip
    return file


def kinetics_l() -> dict:
    """The published one is for evaluation only."""
    file = kinetics("l", 40, 3, 0.75) | {"TRAIN": {"ENABLE": False}}
    del file["SOLVER"], file["AUG"]["NUM_SAMPLE"]
    file["TEST"] |= {"NUM_SPATIAL_CROPS": 3, "BATCH_SIZE": 8}
    file["MODEL"] |= {"ACT_CHECKPOINT": True}
    return file


def ssv2_l() -> dict:
    file = ssv2("l", 40, 3, 0.75, 0.00125)
    file["TRAIN"] |= {"BATCH_SIZE": 8, "CHECKPOINT_IN_INIT": True}
    file["MVIT"] |= {"POOL_FIRST": False}
    file["MIXUP"] |= {"PROB": 0.0}
    file["SOLVER"] |= {"MAX_EPOCH": 40, "CLIP_GRAD_L2NORM": 2.0, "WARMUP_START_LR": "1e-6"}
    file["MODEL"] |= {"ACT_CHECKPOINT": True}
    return file


def converted(tmp_path, tree: dict):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(tree))
    return convert_slowfast(tmp_path / "theirs.yaml")


def differences(ours: Config, theirs: Config, section: str) -> dict:
    one, other = (config.model_dump()[section] for config in (ours, theirs))
    return {key: (one[key], other[key]) for key in one if one[key] != other[key]}


SCALED = {
    "clips_per_step": (512, 32),
    "clips_per_pass": (16, None),
    "warmup_lr": (1e-6, 1.6e-5),
    "end_lr": (1e-6, 1.6e-5),
}
SGD = {"clips_per_step": (512, 16), "clips_per_pass": (16, None), "base_lr": (0.02, 0.08), "warmup_lr": (1e-4, 3.2e-3)}
SGD |= {"end_lr": (1e-6, 3.2e-5)}
RATIO = ((0.75, 4 / 3), (0.75, 1.3333))
PLANNED = {"planned_videos": (240_000, None), "planned_classes": (400, None)}
KINETICS = {"root": ("datasets/kinetics400", "."), "crop_ratio": RATIO, **PLANNED}
SSV2 = {"root": ("datasets/ssv2", "."), "planned_videos": (168_913, None), "planned_classes": (174, None)}


@pytest.mark.parametrize(
    ("recipe", "tree", "parameters", "of_train", "of_data"),
    [
        ("kinetics400/mvitv2_s_16x4", kinetics("s", 16, 4, 0.2), 34_537_744, SCALED, KINETICS),
        ("kinetics400/mvitv2_b_32x3", kinetics("b", 32, 3, 0.3), 51_230_128, SCALED | {"clips_per_pass": (8, None)}, KINETICS),
        ("ssv2/mvitv2_s_16x4", ssv2("s", 16, 4, 0.4, 0.0025), 34_537_744, SGD, SSV2),
        (
            "ssv2/mvitv2_b_32x3",
            ssv2("b", 32, 3, 0.4, 0.0015),
            51_230_128,
            SGD | {"clips_per_pass": (8, None), "base_lr": (0.012, 0.048)},
            SSV2,
        ),
        (
            "ssv2/mvitv2_l_40x3",
            ssv2_l(),
            213_390_112,
            SGD | {"clips_per_step": (512, 8), "clips_per_pass": (2, None), "warmup_lr": (1e-6, 6.4e-5), "end_lr": (1e-6, 6.4e-5)},
            SSV2,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_published_file_is_the_shipped_recipe_but_for_what_its_header_names(
    tmp_path, recipe, tree, parameters, of_train, of_data
):
    """Rates of the files are for the clips of one machine; the recipes' are for 512, and SGD's are the paper's."""
    ours, theirs = load_config(REPOSITORY / f"configs/{recipe}.yaml"), converted(tmp_path, tree).config()
    assert differences(ours, theirs, "train") == of_train
    assert differences(ours, theirs, "data") == of_data
    assert differences(ours, theirs, "evaluation") == {}
    assert set(differences(ours, theirs, "model")) <= {"weights"}
    with torch.device("meta"):
        model = build_model(theirs.model.name, num_classes=400, num_frames=theirs.data.num_frames,
                            crop_size=theirs.data.crop_size, **theirs.model.arguments)  # fmt: skip
    assert count_parameters(model) == parameters


def test_a_file_for_evaluation_gives_everything_but_training(tmp_path):
    ours = load_config(REPOSITORY / "configs/kinetics400/mvitv2_l_40x3.yaml")
    conversion = converted(tmp_path, kinetics_l())
    theirs = conversion.config()
    assert "train" not in conversion.tree()
    augmentation = ("flip", "repeated_aug", "randaugment", "erasing")
    assert set(differences(ours, theirs, "data")) == {"root", *augmentation, *PLANNED}
    assert differences(ours, theirs, "evaluation") == {}
    assert set(differences(ours, theirs, "model")) == {"weights"}
    assert conversion.of_fate("ignored")["AUG.RE_PROB"] == "TRAIN.ENABLE is False, so training keys do not matter"


def test_means_of_pictures_that_pyslowfast_reads_as_bgr_are_turned_round(tmp_path):
    conversion = converted(tmp_path, ssv2_l())
    assert conversion.settings["data.mean"] == IMAGENET["MEAN"][::-1]
    assert conversion.settings["data.std"] == IMAGENET["STD"][::-1]
    assert conversion.fates["DATA.MEAN"] == ("derived", "data.mean = [0.406, 0.456, 0.485]")
    assert converted(tmp_path, kinetics_l()).settings["data.mean"] == IMAGENET["MEAN"]


@pytest.mark.parametrize(("tree", "turned"), [(kinetics("s", 16, 4, 0.2), True), (ssv2_l(), False)])
def test_a_network_that_is_shown_bgr_is_not_converted(tmp_path, tree, turned):
    tree["DATA"] |= {"REVERSE_INPUT_CHANNEL": turned}
    with pytest.raises(ConfigError, match=rf"DATA.REVERSE_INPUT_CHANNEL \(is {turned}, so the network's input is BGR"):
        converted(tmp_path, tree)


def test_mvitv1_is_recognised_by_its_positions(tmp_path):
    tree = kinetics("s", 16, 4, 0.2)
    for key in ("USE_ABS_POS", "REL_POS_SPATIAL", "REL_POS_TEMPORAL", "DIM_MUL_IN_ATT", "RESIDUAL_POOLING"):
        del tree["MVIT"][key]  # left to PySlowFast's defaults
    tree["MVIT"] |= {"SEP_POS_EMBED": True, "POOL_Q_STRIDE": [[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]]}
    settings = converted(tmp_path, tree).settings
    assert settings["model.name"] == "mvitv1_b_16x4" and settings["model.arguments"] == {"drop_path_rate": 0.2}


FORMS = {
    "masked_ssl__k400_MVITv2_S_16x4_FT": (
        "mvitv2_s_16x4",
        dict(
            dropout_rate=0.0, head_init_scale=0.001, width_growth="mlp", pooling="mean_without_cls", drop_path_rate=0.1
        ),
        "maskfeat_s_16x4_finetuned",
    ),
    "Kinetics__MVIT_B_32x3_CONV": (
        "mvitv1_b_32x3",
        dict(depths=[2, 3, 16, 3], pool_kernel="stride", drop_path_rate=0.3),
        "mvitv1_b_32x3_as_in_public_yaml",
    ),
}


@pytest.mark.parametrize("file", FORMS)
def test_the_form_of_a_published_file_is_that_of_its_weights(file):
    name, arguments, keys = FORMS[file]
    config = convert_slowfast(shared(f"reference/slowfast_yaml/{file}.yaml")).config()
    assert (config.model.name, config.model.arguments) == (name, arguments)
    assert config.data.randaugment == f"rand-m7-n{2 if 'FT' in file else 4}-mstd0.5-inc1"  # none said: timm's two
    expected = json.loads(shared("reference/maskfeat/checkpoint_keys_ssl.json").read_text())[keys]["keys"]
    with torch.device("meta"):
        model = build_model(name, num_frames=config.data.num_frames, crop_size=config.data.crop_size, **arguments)
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == expected


def test_strides_may_differ_by_stage(tmp_path):
    tree = kinetics("s", 16, 4, 0.2)
    tree["MVIT"]["POOL_Q_STRIDE"][14] = [14, 1, 1, 1]
    arguments = converted(tmp_path, tree).settings["model.arguments"]
    assert arguments["q_stride"] == [[1, 2, 2], [1, 2, 2], [1, 1, 1]]
    assert build_model("mvitv2_s_16x4", **arguments).blocks[15].attn.rel_pos_h.shape[0] == 27  # as in MaskFeat's file


def test_a_size_without_a_name_is_written_out(tmp_path):
    tree = kinetics("s", 16, 4, 0.2)
    doubled = [[1, 2.0], [3, 2.0]]
    strides = [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 2, 2]]
    tree["MVIT"] |= {"DEPTH": 4, "DIM_MUL": doubled, "HEAD_MUL": doubled, "POOL_Q_STRIDE": strides, "EMBED_DIM": 64}
    tree["MVIT"] |= {"MLP_RATIO": 3.0, "CLS_EMBED_ON": False}
    arguments = converted(tmp_path, tree).settings["model.arguments"]
    expected = {"depths": [1, 2, 1], "embed_dim": 64, "mlp_ratio": 3.0, "cls_token": False, "drop_path_rate": 0.2}
    assert arguments == expected
    assert len(build_model("mvitv2_s_16x4", **arguments).blocks) == 4


def test_the_named_sizes_are_those_that_the_registry_has():
    """The converter may not import the networks; here its tables are compared with them."""
    names = {"t": ["16x4"], "s": ["16x4"], "b": ["32x3"], "l": ["16x4", "40x3"], "h": ["16x4"]}
    for letter, (depths, dim, heads) in SIZES.items():
        for clips in names[letter]:
            check_variant(f"mvitv2_{letter}_{clips}", MVITV2 | {"depths": depths, "embed_dim": dim, "num_heads": heads})
    depths, dim, heads = SIZES["s"]
    for clips in ("16x4", "32x3"):
        check_variant(f"mvitv1_b_{clips}", MVITV1 | {"depths": depths, "embed_dim": dim, "num_heads": heads})


def check_variant(name: str, expected: dict) -> None:
    actual = model_entry(name).defaults
    assert {
        key: list(value) if isinstance(value, tuple) else value for key, value in actual.items() if key in expected
    } == expected


def test_every_key_has_one_fate_and_is_told(tmp_path):
    tree = kinetics("s", 16, 4, 0.2)
    conversion = converted(tmp_path, tree)
    keys = {f"{section}.{key}" for section, part in tree.items() if isinstance(part, dict) for key in part}
    assert conversion.fates.keys() == keys | {"NUM_GPUS", "NUM_SHARDS", "RNG_SEED", "OUTPUT_DIR"}
    assert {fate: conversion.fates[key][0] for fate, key in EXAMPLES.items()} == {fate: fate for fate in EXAMPLES}
    lines = conversion.report().splitlines()
    assert "  SOLVER.MAX_EPOCH: train.epochs = 200" in lines
    assert "  SOLVER.BASE_LR: train.base_lr = 0.0016" in lines
    assert "  DATA.NUM_FRAMES: data.num_frames = 16" in lines
    assert "  TRAIN.BATCH_SIZE: train.clips_per_step = 32" in lines
    assert [line for line in lines if not line.startswith(" ")] == [
        f"{len(conversion.of_fate(fate))} {fate}" for fate in ("kept", "renamed", "derived", "ignored")
    ]


EXAMPLES = {"kept": "SOLVER.WEIGHT_DECAY", "renamed": "AUG.AA_TYPE", "derived": "MVIT.DIM_MUL", "ignored": "OUTPUT_DIR"}


PUBLISHED = {
    "ImageNet__MVITv2_T": "TRAIN.DATASET (is 'imagenet', but only kinetics, ssv2",
    "Kinetics__MVIT_B_16x4_CONV": "",
    "Kinetics__MVIT_B_32x3_CONV": "",
    "Kinetics__MVITv2_B_32x3": "",
    "Kinetics__MVITv2_S_16x4": "",
    "SSv2__MVITv2_L_40x3": "",
    "SSv2__MVITv2_S_16x4": "",
    "masked_ssl__k400_MVITv2_S_16x4_FT": "",
    "masked_ssl__k400_MVITv2_S_16x4_MaskFeat_PT": "",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_that_pyslowfast_publishes_is_converted_or_lacks_a_feature_here(name):
    """Most of them have keys that stand twice. PyYAML's own reader takes the last ones, as PySlowFast does."""
    file = shared(f"reference/slowfast_yaml/{name}.yaml")
    if PUBLISHED[name]:
        with pytest.raises(ConfigError) as caught:
            convert_slowfast(file)
        assert PUBLISHED[name] in str(caught.value) and "unknown key" not in str(caught.value)
        return
    conversion, plain = convert_slowfast(file), yaml.safe_load(file.read_text())
    keys = {f"{section}.{key}" for section, part in plain.items() if isinstance(part, dict) for key in part}
    assert conversion.fates.keys() == keys | {key for key, part in plain.items() if not isinstance(part, dict)}
    config = conversion.config()
    assert config.train.epochs == plain["SOLVER"]["MAX_EPOCH"] and config.data.num_frames == plain["DATA"]["NUM_FRAMES"]
    with torch.device("meta"):
        model = build_model(config.model.name, num_classes=400, num_frames=config.data.num_frames,
                            crop_size=config.data.crop_size, **config.model.arguments)  # fmt: skip
    assert len(model.blocks) == plain["MVIT"]["DEPTH"]


PRETRAINING = "masked_ssl__k400_MVITv2_S_16x4_MaskFeat_PT"


def test_maskfeats_pre_training_is_converted_to_the_shipped_recipe():
    """Whose rates are for 512 clips; the network has the tensors of the published file."""
    ours = load_config("kinetics400/maskfeat_s_16x4_pretrain")
    theirs = convert_slowfast(shared(f"reference/slowfast_yaml/{PRETRAINING}.yaml")).config()
    assert theirs.pretrain == ours.pretrain
    mine = {"clips_per_step", "clips_per_pass", "end_lr", "validate_every_epochs"}
    differ = {name for name, value in ours.train if value != getattr(theirs.train, name)}
    assert differ <= mine and theirs.train.end_lr == pytest.approx(ours.train.end_lr)
    for name in (
        "num_frames",
        "crop_size",
        "crop_area",
        "flip",
        "randaugment",
        "erasing",
        "repeated_aug",
        "short_side",
    ):
        assert getattr(theirs.data, name) == getattr(ours.data, name), name
    expected = json.loads(shared("reference/maskfeat/checkpoint_keys_ssl.json").read_text())
    with torch.device("meta"):
        model = build_masked(theirs.model.name, **theirs.model.arguments)
    actual = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert actual == {
        k: v for k, v in expected["maskfeat_s_16x4_pretrained"]["keys"].items() if not k.startswith("hogs.")
    }


@pytest.mark.parametrize(
    ("line", "changed", "told"),
    [
        ("PRED_HOG: True", "PRED_HOG: False", {"target": "pixels"}),
        ("PRETRAIN_DEPTH: [15]", "PRETRAIN_DEPTH: [7, 15]", {"predict_from": (7, 15)}),
        ("MASK_FRAMES: False", "MASK_FRAMES: True", {"mask": "frames"}),
        ("MASK_WINDOW_SIZE: [8, 7, 7]", "MASK_WINDOW_SIZE: [8, 14, 14]", {"mask_cell": 16}),
        (
            "PRETRAIN_DEPTH: [15]",
            "PRETRAIN_DEPTH: [7]",
            r"PRETRAIN_DEPTH \(is \[7\], but the last block, 15, must be among",
        ),
        (
            "MASK_WINDOW_SIZE: [8, 7, 7]",
            "MASK_WINDOW_SIZE: [4, 7, 7]",
            r"WINDOW_SIZE \(is \[4, 7, 7\], expected \[8, N, N\]",
        ),
        ('HEAD_TYPE: "separate"', "HEAD_TYPE: separate_xformer", r"HEAD_TYPE \(is 'separate_xformer', but each"),
    ],
)
def test_what_is_hidden_and_predicted_is_converted_or_refused(tmp_path, line, changed, told):
    text = shared(f"reference/slowfast_yaml/{PRETRAINING}.yaml").read_text()
    assert line in text
    (tmp_path / "theirs.yaml").write_text(text.replace(line, changed))
    if isinstance(told, str):
        with pytest.raises(ConfigError, match=told):
            convert_slowfast(tmp_path / "theirs.yaml")
    else:
        found = convert_slowfast(tmp_path / "theirs.yaml").config().pretrain
        assert {name: getattr(found, name) for name in told} == told


def test_the_last_of_equal_keys_counts_and_the_report_says_so(tmp_path):
    text = yaml.safe_dump(kinetics("s", 16, 4, 0.2)).replace("  MAX_EPOCH: 200\n", "  MAX_EPOCH: 200\n  MAX_EPOCH: 7\n")
    (tmp_path / "theirs.yaml").write_text(text)
    conversion, line = convert_slowfast(tmp_path / "theirs.yaml"), text.splitlines().index("  MAX_EPOCH: 7") + 1
    assert conversion.settings["train.epochs"] == 7
    assert conversion.report().startswith(
        f"duplicate key SOLVER.MAX_EPOCH (lines {line - 1} and {line}): the last one counts\n"
    )
    (tmp_path / "theirs.yaml").write_text("SOLVER: {MAX_EPOCH: 3, BASE_LR: 5}\n" + text)
    assert convert_slowfast(tmp_path / "theirs.yaml").settings["train.epochs"] == 7, "a section replaces the one before"


def test_several_numbers_of_test_clips_become_the_largest(tmp_path):
    tree = kinetics("s", 16, 4, 0.2) | {"TASK": "ssl_eval"}
    tree["TEST"] |= {"NUM_TEMPORAL_CLIPS": [1, 10, 5]}
    conversion = converted(tmp_path, tree)
    assert conversion.settings["evaluation.protocol"] == "10x1"
    assert "pass it as model.weights" in conversion.of_fate("ignored")["TASK"]
    with pytest.raises(ConfigError, match=r"TASK \(is 'ssl', but training is supervised\)"):
        converted(tmp_path, tree | {"TASK": "ssl"})


def test_machines_of_a_file_count_in_its_clips(tmp_path):
    tree = kinetics("s", 16, 4, 0.2) | {"NUM_SHARDS": 16}
    scaled = converted(tmp_path, tree).settings
    assert (scaled["train.clips_per_step"], scaled["train.base_lr"]) == (512, 1.6e-3)
    tree["SOLVER"]["BASE_LR_SCALE_NUM_SHARDS"] = False
    assert converted(tmp_path, tree).settings["train.base_lr"] == 1e-4


def test_without_mixup_pyslowfast_smooths_no_labels(tmp_path):
    tree = kinetics("s", 16, 4, 0.2)
    tree["MIXUP"]["ENABLE"] = False
    tree["AUG"]["ENABLE"] = False
    settings = converted(tmp_path, tree).settings
    assert [settings[f"train.{name}"] for name in ("mixup", "cutmix", "label_smoothing")] == [0, 0, 0]
    assert settings["data.randaugment"] is None and settings["data.erasing"] == 0


def test_mixed_precision_weights_and_a_data_folder_are_taken_over(tmp_path):
    tree = kinetics("s", 16, 4, 0.2)
    tree["TRAIN"] |= {"MIXED_PRECISION": True, "CHECKPOINT_FILE_PATH": "k400.pyth"}
    tree["DATA"] |= {"PATH_TO_DATA_DIR": "/data/k400"}
    settings = converted(tmp_path, tree).settings
    assert (settings["train.precision"], settings["model.weights"], settings["data.root"]) == (
        "fp16",
        "k400.pyth",
        "/data/k400",
    )


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("MVIT", {"MODE": "max"}, "MVIT.MODE (is 'max', but queries, keys and values are pooled by convolutions)"),
        ("MVIT", {"REV": {"ENABLE": True}}, "MVIT.REV.ENABLE (is True, but blocks are not reversible)"),
        (
            "MVIT",
            {"POOL_KV_STRIDE_ADAPTIVE": None},
            "MVIT.POOL_KV_STRIDE_ADAPTIVE (only adaptive strides are supported",
        ),
        ("MVIT", {"HEAD_MUL": [[1, 2.0]]}, "MVIT.HEAD_MUL (heads and width must double together"),
        ("MVIT", {"POOL_Q_STRIDE": [[2, 1, 2, 2]]}, "MVIT.POOL_Q_STRIDE (queries must be pooled in all blocks or"),
        ("MVIT", {"USE_ABS_POS": True}, "MVIT.USE_ABS_POS (positions must be relative in space and time, or absolute"),
        ("MVIT", {"PATCH_PADDING": [2, 4, 4]}, "MVIT.PATCH_PADDING (is [2, 4, 4], but patches are padded by half"),
        ("MODEL", {"LOSS_FUNC": "bce"}, "MODEL.LOSS_FUNC (is 'bce', but the loss must be the cross entropy)"),
        ("DATA", {"MULTI_LABEL": True}, "MODEL.LOSS_FUNC (is 'soft_cross_entropy', but with DATA.MULTI_LABEL the loss"),
        ("DATA", {"ENSEMBLE_METHOD": "min"}, "DATA.ENSEMBLE_METHOD (is 'min', but the views of a video are summed or"),
        (
            "SOLVER",
            {"OPTIMIZING_METHOD": "adam"},
            "SOLVER.OPTIMIZING_METHOD (is 'adam', but only sgd and",
        ),
        (
            "SOLVER",
            {"LR_POLICY": "steps_with_relative_lrs"},
            "SOLVER.LR_POLICY (is 'steps_with_relative_lrs', but the rate",
        ),
        ("SOLVER", {"WEIGHT_DEKAY": 1}, "SOLVER.WEIGHT_DEKAY (unknown key)"),
        (
            "DATA",
            {"TEST_CROP_SIZE": 256},
            "DATA.TEST_CROP_SIZE (is 256, but training and evaluation share one crop size, here 224)",
        ),
        (
            "TRAIN",
            {"DATASET": "ava"},
            "TRAIN.DATASET (is 'ava', but only kinetics, ssv2 and charades are converted)",
        ),
        ("DETECTION", {"ENABLE": True}, "DETECTION.ENABLE (is True, but whole clips are classified, not boxes)"),
    ],
)
def test_what_has_no_counterpart_stops_with_its_key(tmp_path, section, change, message):
    tree = kinetics("s", 16, 4, 0.2)
    tree[section] = tree.get(section, {}) | change
    with pytest.raises(ConfigError) as caught:
        converted(tmp_path, tree)
    assert str(caught.value).startswith(f"{tmp_path / 'theirs.yaml'}: unsupported keys: {message}")
    assert str(caught.value).endswith("; change or remove them") and "\n" not in str(caught.value)


def test_a_file_of_another_network_or_dataset_is_told_of_nothing_else(tmp_path):
    tree = kinetics("s", 16, 4, 0.2) | {"SLOWFAST": {"ALPHA": 4}, "UNKNOWN": {"KEY": 1}}
    tree["TRAIN"]["DATASET"] = "jester"
    with pytest.raises(
        ConfigError, match=r"unsupported keys: TRAIN.DATASET \(is 'jester', but only kinetics, .*\); change or"
    ):
        converted(tmp_path, tree)
    del tree["MODEL"]["MODEL_NAME"]
    with pytest.raises(ConfigError) as caught:
        converted(tmp_path, tree | {"MODEL": {"ARCH": "slowfast"}})
    assert str(caught.value) == (
        f"{tmp_path / 'theirs.yaml'}: only MViT is converted, and MODEL.ARCH and MODEL.MODEL_NAME are 'slowfast' and "
        "'SlowFast' (by default 'slowfast' and 'SlowFast'): pass the configuration of an MViT"
    )


def test_a_default_of_pyslowfast_may_be_what_is_unsupported(tmp_path):
    tree = kinetics("s", 16, 4, 0.2)
    del tree["SOLVER"]["COSINE_AFTER_WARMUP"]
    with pytest.raises(
        ConfigError, match=r"SOLVER.COSINE_AFTER_WARMUP \(by default; is False, but the cosine starts after"
    ):
        converted(tmp_path, tree)


def test_a_value_of_another_form_is_one_sentence(tmp_path):
    tree = kinetics("s", 16, 4, 0.2)
    tree["MVIT"]["DIM_MUL"] = "twice"
    with pytest.raises(ConfigError, match=r"theirs.yaml: contains a value of a type that PySlowFast does not use \("):
        converted(tmp_path, tree)
    tree = kinetics("s", 16, 4, 0.2)
    tree["TRAIN"]["BATCH_SIZE"] = "sixteen"
    tree["AUG"]["NUM_SAMPLE"] = 0
    with pytest.raises(ConfigError) as caught:
        converted(tmp_path, tree)
    for told in ("TRAIN.BATCH_SIZE (is 'sixteen', but", "AUG.NUM_SAMPLE (is 0, but a whole number from 1"):
        assert told in str(caught.value)
    tree["TRAIN"]["ENABLE"] = "no"
    with pytest.raises(ConfigError, match=r"TRAIN.ENABLE \(is 'no', but True or False is needed\)"):
        converted(tmp_path, tree)


def test_base_files_are_followed_as_in_pyslowfast(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(kinetics("s", 16, 4, 0.2)))
    (tmp_path / "theirs.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_EPOCH: 7}\n")
    settings = convert_slowfast(tmp_path / "theirs.yaml").settings
    assert settings["train.epochs"] == 7 and settings["model.name"] == "mvitv2_s_16x4"


def test_the_verb_writes_a_file_that_trains_and_never_over_another(capsys, tmp_path):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(ssv2("s", 16, 4, 0.4, 0.0025)))
    words = ["convert-config", str(tmp_path / "theirs.yaml"), "--output", str(tmp_path / "ours.yaml")]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert "unsupported" not in captured.out and "MIXUP.ALPHA: train.mixup = 0.8" in captured.out
    assert load_config(tmp_path / "ours.yaml") == convert_slowfast(tmp_path / "theirs.yaml").config()
    assert "#   DATA.REVERSE_INPUT_CHANNEL: the network's input is RGB" in (tmp_path / "ours.yaml").read_text()
    assert cli.main(words) == 1
    assert "ours.yaml: exists: choose another --output, or pass --overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0

    (tmp_path / "theirs.yaml").write_text("MODEL: {ARCH: slowfast}\n")
    assert cli.main(["convert-config", str(tmp_path / "theirs.yaml"), "--output", str(tmp_path / "new.yaml")]) == 1
    assert not (tmp_path / "new.yaml").exists()


def test_several_labels_and_the_largest_score_of_the_views_are_converted(tmp_path):
    tree = kinetics("s", 16, 4, 0.2)
    tree["DATA"] |= {"MULTI_LABEL": True, "ENSEMBLE_METHOD": "max"}
    tree["MODEL"] |= {"LOSS_FUNC": "bce_logit", "HEAD_ACT": "sigmoid"}
    settings = converted(tmp_path, tree).settings
    assert settings["train.loss"] == "binary_cross_entropy" and settings["evaluation.fusion"] == "max"


def charades() -> dict:
    """An MViT with what the published files for Charades say of data, loss and views."""
    tree = kinetics("s", 16, 4, 0.2)
    tree["TRAIN"] |= {"DATASET": "charades"}
    tree["TEST"] |= {"DATASET": "charades", "NUM_ENSEMBLE_VIEWS": 10, "NUM_SPATIAL_CROPS": 3}
    tree["MODEL"] |= {"NUM_CLASSES": 157, "LOSS_FUNC": "bce_logit", "HEAD_ACT": "sigmoid"}
    tree["MIXUP"]["ENABLE"] = False
    del tree["AUG"]["NUM_SAMPLE"]
    tree["DATA"] |= {"MULTI_LABEL": True, "ENSEMBLE_METHOD": "max", "INV_UNIFORM_SAMPLE": True}
    tree["DATA"] |= {"TRAIN_JITTER_SCALES": [256, 340], "REVERSE_INPUT_CHANNEL": True, "MEAN": [0.4, 0.45, 0.5]}
    tree["DATA"] |= {"PATH_TO_DATA_DIR": "charades/lists", "PATH_PREFIX": "charades/frames"}
    return tree


def test_charades_is_converted_with_its_frame_lists_its_sampling_and_its_views(tmp_path):
    conversion = converted(tmp_path, charades())
    wanted = {
        "data.root": "charades/frames", "data.train": "../lists/train.csv", "data.val": "../lists/val.csv",
        "data.decoder": "frames", "data.dense_step": "stride", "data.sampling_rate": 4, "data.target_fps": 30.0,
        "data.mean": [0.5, 0.45, 0.4], "data.crop": "jitter", "data.jitter_scales": [256, 340], "data.randaugment": None,
        "data.erasing": 0.0, "train.loss": "binary_cross_entropy", "evaluation.protocol": "10x3", "evaluation.fusion": "max",
    }  # fmt: skip
    assert {name: conversion.settings[name] for name in wanted} == wanted
    assert "PySlowFast takes those of the clip's frames" in conversion.fates["TRAIN.DATASET"][1]
    assert conversion.fates["AUG.AA_TYPE"] == ("ignored", "PySlowFast's Charades does not augment so")
    repeating = charades()
    repeating["AUG"] |= {"NUM_SAMPLE": 2}
    settings = converted(tmp_path, repeating).settings
    assert "data.repeated_aug" not in settings
    assert settings["train.clips_per_step"] == conversion.settings["train.clips_per_step"]
    beside = charades()
    del beside["DATA"]["PATH_PREFIX"]
    settings = converted(tmp_path, beside).settings
    assert (settings["data.root"], settings["data.train"]) == ("charades/lists", "train.csv")
    beside["DATA"] |= {"MULTI_LABEL": False}
    with pytest.raises(ConfigError, match=r"DATA.MULTI_LABEL \(is False, but videos of Charades have several labels\)"):
        converted(tmp_path, beside)


def test_test_clips_of_charades_are_those_of_pyslowfast_but_for_an_earlier_start(tmp_path):
    settings = converted(tmp_path, charades()).config().data.input
    frames, rate = settings.num_frames, settings.sampling_rate
    for length in (3, 61, 64, 65, 200, 733, 2000):
        for clip, ours in enumerate(view_indices(length, 30.0, settings, 10)):
            gap = max(length - ((frames - 1) * rate + 1), 0) / 9
            start = round(gap * clip)
            theirs = [max(min(start + place * rate, length - 1), 0) for place in range(frames)]
            shift = start - ours[0]
            assert 0 <= shift < 10 + rate
            assert [max(min(number - shift, length - 1), 0) for number in theirs if number < length - 1] == [
                mine for mine, number in zip(ours, theirs, strict=True) if number < length - 1
            ]
