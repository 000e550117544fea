"""The accuracy with which a CLIP names crops of the embedded world, without any segmentation."""

from __future__ import annotations

from typing import TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openvocab.clip.config import PIXEL_MEAN, PIXEL_STD
from openvocab.clip.prompts import TextEncoder
from openvocab.world.crops import Ground, crop
from openvocab.world.names import world_names, world_vocabulary
from openvocab.world.scenes import Split

SPLIT: Split = "val"
SIDE = 64  # of a crop in pixels: about as large as things are in scenes of 128


class Accuracy(TypedDict):
    """Top-1 accuracy in percent over seen and over unseen names."""

    seen: float
    unseen: float


class CropAccuracy(Accuracy):
    """The mean over the grounds on which crops were drawn, and each of them."""

    split: str
    crops_of_each_name: int
    side: int
    grounds: dict[str, Accuracy]


@torch.inference_mode()
def crop_accuracy(encoder: TextEncoder, each: int = 10) -> CropAccuracy:
    """Return top-1 accuracy among all names in percent, on stuff and on flat ground.

    Args:
        encoder: text encoder of the CLIP.
        each: crops of each name on each ground.
    """
    vocabulary, names = world_vocabulary(), world_names()
    texts = encoder.encode_names(vocabulary.names, vocabulary.templates)  # (K, E)
    seen = np.array([name.seen for name in names])
    grounds: dict[str, Accuracy] = {}
    for ground in get_args(Ground):
        hits = np.array([_hits(encoder, texts, name.label, each, ground) for name in names])
        grounds[ground] = {"seen": _percent(hits[seen]), "unseen": _percent(hits[~seen])}
    return {
        "split": SPLIT,
        "crops_of_each_name": each * len(grounds),
        "side": SIDE,
        "grounds": grounds,
        "seen": sum(one["seen"] for one in grounds.values()) / len(grounds),
        "unseen": sum(one["unseen"] for one in grounds.values()) / len(grounds),
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


def _percent(hits: NDArray[np.bool_]) -> float:
    return 100 * float(hits.mean())
