"""Checkpoints of tiny random models, written by `save_pretrained` as real ones are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

LABELS = ("cat", "sofa, couch", "wall-other-merged", "traffic light")
_CHARACTERS = [chr(code) for code in range(33, 127)]
_TOKENS = [*_CHARACTERS, *(f"{c}</w>" for c in _CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
_START, _END = len(_TOKENS) - 2, len(_TOKENS) - 1


@pytest.fixture(scope="session")
def tf() -> Any:
    return pytest.importorskip(
        "transformers",
        minversion="5.24",
        reason="the example needs the package transformers: pip install 'transformers>=5.24,<6'",
    )


@pytest.fixture(scope="session")
def checkpoint(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny model; each is made once."""
    made: dict[str, Path] = {}

    def folder(key: str) -> Path:
        if key not in made:
            made[key] = tmp_path_factory.mktemp(key)
            torch.manual_seed(0)
            model, processor = _MAKERS[key](tf, made[key])
            model.save_pretrained(made[key])
            processor.save_pretrained(made[key])
        return made[key]

    return folder


def tokenizer(tf: Any) -> Any:
    """Return a tokenizer of CLIP that knows single characters only."""
    return tf.CLIPTokenizer(vocab={token: i for i, token in enumerate(_TOKENS)}, merges=[])


def _text(positions: int) -> dict[str, Any]:
    return {
        "vocab_size": len(_TOKENS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "bos_token_id": _START,
        "eos_token_id": _END,
        "pad_token_id": _END,
    }


def _clipseg(tf: Any, folder: Path) -> tuple[Any, Any]:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = tf.CLIPSegConfig(
        text_config=_text(77),
        vision_config=vision,
        projection_dim=16,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    images = tf.ViTImageProcessor(size={"height": 32, "width": 32})
    return tf.CLIPSegForImageSegmentation(config), tf.CLIPSegProcessor(images, tokenizer(tf))


def _sam3(tf: Any, folder: Path) -> tuple[Any, Any]:
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }
    small = {"hidden_size": 16, "num_attention_heads": 2}
    layers = {**small, "num_layers": 1, "intermediate_size": 16}
    config = tf.Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={**_text(32), "model_type": "clip_text_model", "projection_dim": 16},
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 5},
        mask_decoder_config=small,
    )
    images = tf.Sam3ImageProcessor(size={"height": 56, "width": 56})
    return tf.Sam3Model(config), tf.Sam3Processor(images, tokenizer(tf))


def _labels() -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: index for index, name in enumerate(LABELS)},
    }


def _swin(tf: Any) -> Any:
    return tf.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        image_size=32,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


_DECODER: dict[str, Any] = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 16,
    "num_queries": 5,
}


def _mask2former(tf: Any, folder: Path) -> tuple[Any, Any]:
    config = tf.Mask2FormerConfig(
        backbone_config=_swin(tf), feature_size=32, mask_feature_size=32, **_DECODER, **_labels()
    )
    images = tf.Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 192})
    return tf.Mask2FormerForUniversalSegmentation(config), images


def _oneformer(tf: Any, folder: Path) -> tuple[Any, Any]:
    config = tf.OneFormerConfig(
        backbone_config=_swin(tf),
        conv_dim=32,
        mask_dim=32,
        query_dec_layers=1,
        text_encoder_width=16,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=len(_TOKENS),
        text_encoder_n_ctx=2,
        **_DECODER,
        **_labels(),
    )
    known = {str(i): {"isthing": 1, "name": name} for i, name in enumerate(LABELS)}
    (folder / "classes.json").write_text(json.dumps(known))
    images = tf.OneFormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 192},
        repo_path=str(folder),
        class_info_file="classes.json",
        num_text=3,
    )
    model = tf.OneFormerForUniversalSegmentation(config)
    return model, tf.OneFormerProcessor(images, tokenizer(tf))


def _eomt(**processor: Any) -> Callable[[Any, Path], tuple[Any, Any]]:
    def make(tf: Any, folder: Path) -> tuple[Any, Any]:
        config = tf.EomtConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            num_upscale_blocks=1,
            num_blocks=1,
            num_queries=5,
            num_register_tokens=1,
            **_labels(),
        )
        return tf.EomtForUniversalSegmentation(config), tf.EomtImageProcessor(**processor)

    return make


_MAKERS: dict[str, Callable[[Any, Path], tuple[Any, Any]]] = {
    "clipseg": _clipseg,
    "sam3": _sam3,
    "mask2former": _mask2former,
    "oneformer": _oneformer,
    # The published checkpoints come in two kinds: crops of the image, or the padded whole.
    "eomt": _eomt(size={"shortest_edge": 32, "longest_edge": None}, do_split_image=True),
    "eomt-padded": _eomt(size={"shortest_edge": 32, "longest_edge": 32}, do_pad=True),
}
