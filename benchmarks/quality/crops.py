"""How well a CLIP names crops of the embedded world, before any segmentation."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from openvocab.clip.config import PIXEL_MEAN, PIXEL_STD
from openvocab.clip.prompts import TextEncoder
from openvocab.world import crop, world_names, world_vocabulary
from openvocab.world.crops import Ground

SPLIT = "val"
SIDE = 64  # of a crop in pixels: about as large as things are in scenes of 128


@torch.inference_mode()
def crop_accuracy(encoder: TextEncoder, each: int = 10) -> dict[str, Any]:
    """Return top-1 accuracy among all names in percent, on stuff and on flat ground.

    Args:
        encoder: of the CLIP.
        each: crops of each name on each ground.
    """
    vocabulary, names = world_vocabulary(), world_names()
    texts = encoder.encode_names(vocabulary.names, vocabulary.templates)  # (K, E)
    seen = np.array([name.seen for name in names])
    grounds = {}
    for ground in get_args(Ground):
        hits = np.array([_hits(encoder, texts, name.label, each, ground) for name in names])
        grounds[ground] = {"seen": _percent(hits[seen]), "unseen": _percent(hits[~seen])}
    means = {
        part: sum(g[part] for g in grounds.values()) / len(grounds) for part in ("seen", "unseen")
    }
    return {
        "split": SPLIT,
        "crops_of_each_name": each * len(grounds),
        "side": SIDE,
        "grounds": grounds,
        **means,
    }


def _hits(encoder: TextEncoder, texts: Tensor, label: int, each: int, ground: Ground) -> list[bool]:
    clip, name = encoder.clip, world_names()[label].name
    pixels = np.stack([crop(name, i, SPLIT, SIDE, ground=ground) for i in range(each)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(texts) / 255  # (N, 3, S, S)
    mean, std = (
        torch.tensor(values).to(texts)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD)
    )
    features = clip.encode_image((images - mean) / std).float()
    return (features @ texts.T).argmax(dim=1).eq(label).tolist()


def _percent(hits: np.ndarray) -> float:
    return 100 * float(hits.mean())
