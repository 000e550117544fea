"""The keys that the original's configurations may have; importing this needs no torch."""

from __future__ import annotations

from typing import Any

# detectron2's key under MODEL, our field, and the original's value where a file leaves it out.
MODEL = {
    "SEM_SEG_HEAD.CONVS_DIM": ("convs_dim", 256),
    "SEM_SEG_HEAD.MASK_DIM": ("mask_dim", 256),
    "SEM_SEG_HEAD.EMBED_HIDDEN_DIM": ("embed_hidden_dim", 1024),
    "SEM_SEG_HEAD.EMBED_LAYERS": ("embed_layers", 2),
    "SEM_SEG_HEAD.NUM_CLASSES": ("num_training_classes", 171),
    "MASK_FORMER.HIDDEN_DIM": ("hidden_dim", 256),
    "MASK_FORMER.NUM_OBJECT_QUERIES": ("num_queries", 100),
    "MASK_FORMER.NHEADS": ("heads", 8),
    "MASK_FORMER.DIM_FEEDFORWARD": ("feedforward", 2048),
    "MASK_FORMER.DEC_LAYERS": ("decoder_layers", 6),
    "MASK_FORMER.DROPOUT": ("dropout", 0.1),
    "MASK_FORMER.NO_OBJECT_WEIGHT": ("no_object_weight", 0.1),
    "MASK_FORMER.SIZE_DIVISIBILITY": ("size_divisibility", 32),
    "CLIP_ADAPTER.MASK_PROMPT_DEPTH": ("mask_prompt_depth", 3),
    "PIXEL_MEAN": ("pixel_mean", (123.675, 116.28, 103.53)),
    "PIXEL_STD": ("pixel_std", (58.395, 57.12, 57.375)),
}
SWIN = {
    "EMBED_DIM": ("embed_dim", 96),
    "DEPTHS": ("depths", (2, 2, 6, 2)),
    "NUM_HEADS": ("heads", (3, 6, 12, 24)),
    "WINDOW_SIZE": ("window", 7),
    "DROP_PATH_RATE": ("drop_path", 0.3),
}
REGION = {
    "MASK_THR": ("mask_threshold", 0.4),
    "MASK_FILL": ("mask_fill", "mean"),
    "MASK_EXPAND_RATIO": ("expand_ratio", 1.0),
    "MASK_MATTING": ("matting", False),
    "MASK_PROMPT_FWD": ("mask_prompts", False),
}
ADAPTER = {
    "CLIP_ENSEMBLE": ("clip_ensemble", True),
    "CLIP_ENSEMBLE_WEIGHT": ("ensemble_weight", 0.7),
}
INPUT = {"MIN_SIZE_TEST": ("min_size", 800), "MAX_SIZE_TEST": ("max_size", 1333)}

# The keys that can be changed on a command line, with their types.
OPTIONS: dict[str, Any] = {
    "MODEL.WEIGHTS": str | None,
    **{f"MODEL.{key}": type(default) for key, (_, default) in MODEL.items()},
    **{f"MODEL.SWIN.{key}": type(default) for key, (_, default) in SWIN.items()},
    **{f"MODEL.CLIP_ADAPTER.{key}": type(default) for key, (_, default) in REGION.items()},
    **{f"MODEL.CLIP_ADAPTER.{key}": type(default) for key, (_, default) in ADAPTER.items()},
    **{f"INPUT.{key}": type(default) for key, (_, default) in INPUT.items()},
    "MODEL.PIXEL_MEAN": tuple[float, ...],
    "MODEL.PIXEL_STD": tuple[float, ...],
    "MODEL.SWIN.DEPTHS": tuple[int, ...],
    "MODEL.SWIN.NUM_HEADS": tuple[int, ...],
    "MODEL.CLIP_ADAPTER.TEXT_TEMPLATES": str,
    "MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES": list[str],
    "MODEL.CLIP_ADAPTER.REGION_RESIZED": bool,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": bool,
    "MODEL.MASK_FORMER.ENC_LAYERS": int,
    "MODEL.MASK_FORMER.PRE_NORM": bool,
}
