"""The keys that the original's configurations may have; importing this needs no torch."""

from __future__ import annotations

from typing import Any

# The keys of original configurations that `san.config.from_detectron2` reads, with their types.
OPTIONS: dict[str, Any] = {
    "MODEL.WEIGHTS": str | None,
    "MODEL.SAN.CLIP_MODEL_NAME": str,
    "MODEL.SAN.CLIP_PRETRAINED_NAME": str,
    "MODEL.SAN.CLIP_RESOLUTION": float,
    "MODEL.SAN.FEATURE_LAST_LAYER_IDX": int,
    "MODEL.SAN.NUM_CLASSES": int,
    "MODEL.SAN.NO_OBJECT_WEIGHT": float,
    "MODEL.SAN.CLIP_TEMPLATE_SET": str,
    "MODEL.SAN.ASYMETRIC_INPUT": bool,
    "MODEL.SAN.SIZE_DIVISIBILITY": int,
    "MODEL.SAN.SEM_SEG_POSTPROCESS_BEFORE_INFERENCE": bool,
    "MODEL.SAN.SOS_TOKEN_FORMAT": str,
    "MODEL.SAN.REC_DOWNSAMPLE_METHOD": str,
    "MODEL.SIDE_ADAPTER.VIT_NAME": str,
    "MODEL.SIDE_ADAPTER.IMAGE_SIZE": int,
    "MODEL.SIDE_ADAPTER.NUM_QUERIES": int,
    "MODEL.SIDE_ADAPTER.FUSION_MAP": list[str],
    "MODEL.SIDE_ADAPTER.DEEP_SUPERVISION_IDXS": list[int],
    "MODEL.SIDE_ADAPTER.ATTN_BIAS.NUM_HEADS": int,
    "MODEL.SIDE_ADAPTER.ATTN_BIAS.NUM_LAYERS": int,
    "MODEL.SIDE_ADAPTER.ATTN_BIAS.EMBED_CHANNELS": int,
    "MODEL.SIDE_ADAPTER.ATTN_BIAS.MLP_CHANNELS": int,
    "MODEL.SIDE_ADAPTER.ATTN_BIAS.MLP_NUM_LAYERS": int,
    "MODEL.SIDE_ADAPTER.ATTN_BIAS.RESCALE_ATTN_BIAS": bool,
    "INPUT.MIN_SIZE_TEST": int,
    "INPUT.MAX_SIZE_TEST": int,
}
