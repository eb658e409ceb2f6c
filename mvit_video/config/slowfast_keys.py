"""PySlowFast's keys: their defaults, their counterparts here, and which need none.

Defaults are those of its slowfast/config/defaults.py, which apply to every key that a file omits.
"""

from typing import Any

CLIPS_OF_BASE_LR = 512
TRAINING_KEYS = (
    "TRAIN.",
    "SOLVER.",
    "MIXUP.",
    "AUG.",
    "DATA.TRAIN_JITTER",
    "DATA.INV_UNIFORM",
    "MODEL.LOSS",
    "NUM_SHARDS",
)
LIST_FILES = {
    "kinetics": ("train.csv", "val.csv"),
    "ssv2": ("something-something-v2-train.json", "something-something-v2-validation.json"),
    "charades": ("train.csv", "val.csv"),  # a row for each frame
}

# Sizes by (depths, width, heads); everything else is the same in the published files.
SIZES: dict[str, tuple[list[int], int, int]] = {
    "t": ([1, 2, 5, 2], 96, 1),
    "s": ([1, 2, 11, 2], 96, 1),
    "b": ([2, 3, 16, 3], 96, 1),
    "l": ([2, 6, 36, 4], 144, 2),
    "h": ([4, 8, 60, 8], 192, 3),
}
MVITV2: dict[str, Any] = dict(
    patch_kernel=[3, 7, 7],
    patch_stride=[2, 4, 4],
    pool_kernel=[3, 3, 3],
    q_stride=[1, 2, 2],
    kv_stride=[1, 8, 8],
    mlp_ratio=4.0,
    dropout_rate=0.5,
    head_init_scale=1.0,
    cls_token=True,
    pooling=None,
    width_growth="attention",
    positions="relative",
    residual_pooling=True,
    pool_all_queries=True,
)
MVITV1 = MVITV2 | dict(width_growth="mlp", positions="absolute", residual_pooling=False, pool_all_queries=False)

# Network arguments that come from one key: key, default, argument.
ARGUMENTS: tuple[tuple[str, Any, str], ...] = (
    ("MVIT.EMBED_DIM", 96, "embed_dim"),
    ("MVIT.NUM_HEADS", 1, "num_heads"),
    ("MVIT.MLP_RATIO", 4.0, "mlp_ratio"),
    ("MVIT.PATCH_KERNEL", [3, 7, 7], "patch_kernel"),
    ("MVIT.PATCH_STRIDE", [2, 4, 4], "patch_stride"),
    ("MVIT.POOL_KVQ_KERNEL", "stride", "pool_kernel"),
    ("MVIT.POOL_KV_STRIDE_ADAPTIVE", None, "kv_stride"),
    ("MVIT.CLS_EMBED_ON", True, "cls_token"),
    ("MVIT.RESIDUAL_POOLING", False, "residual_pooling"),
    ("MVIT.DROPPATH_RATE", 0.1, "drop_path_rate"),
    ("MODEL.DROPOUT_RATE", 0.5, "dropout_rate"),
    ("MVIT.HEAD_INIT_SCALE", 1.0, "head_init_scale"),
)

BLOCK_KEYS = tuple(
    f"MVIT.{key}"
    for key in (
        "POOL_Q_STRIDE",
        "POOL_KV_STRIDE",
        "PATCH_PADDING",
        "DIM_MUL_IN_ATT",
        "USE_MEAN_POOLING",
        "USE_ABS_POS",
        "SEP_POS_EMBED",
        "REL_POS_SPATIAL",
        "REL_POS_TEMPORAL",
    )
)

# Copied unchanged: key, default, our setting; the second table only with TRAIN.ENABLE.
COPIED: dict[str, tuple[Any, str]] = {
    "DATA.NUM_FRAMES": (8, "data.num_frames"),
    "DATA.TARGET_FPS": (30, "data.target_fps"),
    "DATA.TRAIN_CROP_SIZE": (224, "data.crop_size"),
}
COPIED_IN_TRAINING: dict[str, tuple[Any, str]] = {
    "DATA.RANDOM_FLIP": (True, "data.flip"),
    "SOLVER.MAX_EPOCH": (300, "train.epochs"),
    "SOLVER.WARMUP_EPOCHS": (0.0, "train.warmup_epochs"),
    "SOLVER.WEIGHT_DECAY": (1e-4, "train.weight_decay"),
    "SOLVER.LAYER_DECAY": (1.0, "train.layer_decay"),
    "SOLVER.CLIP_GRAD_L2NORM": (None, "train.clip_gradient"),
    "TRAIN.EVAL_PERIOD": (10, "train.validate_every_epochs"),
    "MODEL.ACT_CHECKPOINT": (False, "train.activation_checkpointing"),
    "RNG_SEED": (1, "train.seed"),
}

# Only one value is supported: PySlowFast's default, that value, and what it means.
FIXED: dict[str, tuple[Any, Any, str]] = {
    "MVIT.MODE": ("conv", "conv", "queries, keys and values are pooled by convolutions"),
    "MVIT.POOL_FIRST": (False, False, "pooling comes after the projection"),
    "MVIT.QKV_BIAS": (True, True, "the projections of attention have biases"),
    "MVIT.NORM": ("layernorm", "layernorm", "norms are layer norms"),
    "MVIT.NORM_STEM": (False, False, "no norm follows the patch embedding"),
    "MVIT.DROPOUT_RATE": (0.0, 0.0, "dropout is before the head only"),
    "MVIT.PATCH_2D": (False, False, "patches are cut in three dimensions"),
    "MVIT.REL_POS_ZERO_INIT": (False, False, "position tables are initialised randomly"),
    "MVIT.LAYER_SCALE_INIT_VALUE": (0.0, 0.0, "branches are not scaled"),
    "MVIT.USE_FIXED_SINCOS_POS": (False, False, "positions are learned"),
    "MVIT.REV.ENABLE": (False, False, "blocks are not reversible"),
    "DATA.INPUT_CHANNEL_NUM": ([3], [3], "clips have three channels"),
    "DETECTION.ENABLE": (False, False, "whole clips are classified, not boxes"),
}
FIXED_IN_TRAINING: dict[str, tuple[Any, Any, str]] = {
    "MVIT.ZERO_DECAY_POS_CLS": (True, False, "position tables and the class token are decayed"),
    "SOLVER.ZERO_WD_1D_PARAM": (False, True, "biases and norms are not decayed"),
    "SOLVER.LR_POLICY": ("cosine", "cosine", "the rate falls along half a cosine"),
    "SOLVER.COSINE_AFTER_WARMUP": (False, True, "the cosine starts after the warm-up"),
    "SOLVER.CLIP_GRAD_VAL": (None, None, "gradients are clipped by their norm"),
    "SOLVER.LARS_ON": (False, False, "LARS is not supported"),
    "SOLVER.DAMPENING": (0.0, 0.0, "momentum is not dampened"),
    "SOLVER.NESTEROV": (True, True, "SGD's momentum is Nesterov's"),
    "AUG.RE_MODE": ("pixel", "pixel", "erased boxes are filled with noise"),
    "AUG.RE_COUNT": (1, 1, "one box is erased"),
    "AUG.RE_SPLIT": (False, False, "any clip may be erased"),
    "DATA.TRAIN_JITTER_MOTION_SHIFT": (False, False, "a clip's crop does not move"),
    "DATA.TRAIN_JITTER_FPS": (0.0, 0.0, "frame rates are not jittered"),
    "DATA.TRAIN_CROP_NUM_TEMPORAL": (1, 1, "AUG.NUM_SAMPLE is what repeats videos"),
    "DATA.TRAIN_CROP_NUM_SPATIAL": (1, 1, "AUG.NUM_SAMPLE is what repeats videos"),
    "DATA.COLOR_RND_GRAYSCALE": (0.0, 0.0, "clips are never made grey"),
    "MODEL.DETACH_FINAL_FC": (False, False, "set train.trainable=head for a linear probe"),
    "MODEL.FROZEN_BN": (False, False, "MViT has no batch norm"),
    "TRAIN.CHECKPOINT_TYPE": ("pytorch", "pytorch", "Caffe2 checkpoints are not read"),
}

FIXED_IN_PRETRAINING: dict[str, tuple[Any, Any, str]] = {
    "MASK.ENABLE": (False, True, "the network is pre-trained"),
    "MASK.HEAD_TYPE": ("separate", "separate", "each predicting block has a linear head of its own"),
    "MASK.SCALE_INIT_BY_DEPTH": (False, False, "weights are initialised alike in all blocks"),
    "MASK.MAE_ON": (False, False, "hidden tokens are replaced, not left out"),
    "MASK.MAE_RND_MASK": (False, False, "cells are hidden, not single tokens"),
    "AUG.GEN_MASK_LOADER": (False, True, "masks are drawn with the clips"),
}

# Keys or whole sections that need no counterpart, and why.
IGNORED: dict[str, str] = {
    "TRAIN.CHECKPOINT_PERIOD": "in epochs there; train.checkpoint_every_steps is in steps",
    "TRAIN.AUTO_RESUME": "`train --resume auto`",
    "TRAIN.CHECKPOINT_EPOCH_RESET": "model.weights always starts at the first epoch",
    "TRAIN.CHECKPOINT_INFLATE": "image weights are recognised",
    "TRAIN.CHECKPOINT_IN_INIT": "image weights are recognised",
    "TEST.ENABLE": "`mvit-video evaluate`",
    "TEST.DATASET": "data.test",
    "TEST.BATCH_SIZE": "evaluation.views_per_batch changes speed only",
    "TEST.CHECKPOINT_FILE_PATH": "`evaluate --checkpoint`",
    "TEST.CHECKPOINT_TYPE": "formats are recognised",
    "TEST.SAVE_RESULTS_PATH": "`evaluate --output`",
    "DATA.DECODING_BACKEND": "data.decoder",
    "DATA.DECODING_SHORT_SIZE": "frames are decoded at full size",
    "DATA.PATH_LABEL_SEPARATOR": "separators are recognised",
    "DATA.TRAIN_PCA_EIGVAL": "there is no PCA jitter in MViT's training",
    "DATA.TRAIN_PCA_EIGVEC": "there is no PCA jitter in MViT's training",
    "DATA.LOADER_CHUNK_SIZE": "lists are read at once",
    "DATA.LOADER_CHUNK_OVERALL_SIZE": "lists are read at once",
    "DATA.SKIP_ROWS": "headers are recognised",
    "AUG.INTERPOLATION": "RandAugment is bicubic",
    "MVIT.SEPARATE_QKV": "the same network; separate projections in its files are joined",
    "MODEL.NUM_CLASSES": "the classes of data.train",
    "MODEL.HEAD_ACT": "scores are the softmax of the logits, with several labels their sigmoid",
    "MODEL.FC_INIT_STD": "weights are initialised from a normal distribution, std 0.02",
    "MODEL.DROPCONNECT_RATE": "only for other networks",
    "SOLVER.BASE_LR_SCALE_NUM_SHARDS": "rates always scale with the clips of a step",
    "SOLVER.GAMMA": "only for other schedules",
    "SOLVER.STEP_SIZE": "only for other schedules",
    "SOLVER.STEPS": "only for other schedules",
    "SOLVER.LRS": "only for other schedules",
    "SOLVER.WARMUP_FACTOR": "replaced by WARMUP_START_LR",
    "DATA_LOADER": "set data.workers for your machine",
    "PREFETCH": "set data.workers for your machine",
    "NUM_GPUS": "--device, and the number of torchrun processes",
    "SHARD_ID": "set by the launcher",
    "DIST_BACKEND": "follows from the device",
    "OUTPUT_DIR": "`train --output`",
    "LOG_PERIOD": "every step is recorded",
    "LOG_MODEL_INFO": "the plan is printed at the start",
    "BN": "MViT has no batch norm",
    "TENSORBOARD": "metrics.jsonl",
    "BENCHMARK": "`mvit-video benchmark`",
    **dict.fromkeys(
        ("RESNET", "X3D", "NONLOCAL", "SLOWFAST", "MULTIGRID", "AVA"), "only for other networks and datasets"
    ),
}
