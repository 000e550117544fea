"""The numbers of attention heads of known CLIPs, which the shapes of tensors do not determine.

The rule of one head for each 64 channels holds up to ViT-L and is wrong for larger models, which
would then compute other features.

Source: the published architectures of OpenAI's CLIP and of open_clip.
"""

from __future__ import annotations

from openvocab.errors import InputError

# (width, layers) of a tower: its heads.
IMAGE_HEADS = {
    (384, 12): 6,  # ViT-S
    (512, 12): 8,  # ViT-M
    (768, 12): 12,  # ViT-B
    (896, 12): 14,  # ViT-B-plus
    (1024, 24): 16,  # ViT-L
    (1280, 32): 16,  # ViT-H
    (1408, 40): 16,  # ViT-g
    (1664, 48): 16,  # ViT-bigG
    (1792, 56): 16,  # ViT-e
}
TEXT_HEADS = {
    (256, 10): 4,
    (384, 12): 6,
    (512, 12): 8,
    (640, 12): 10,
    (768, 12): 12,
    (1024, 24): 16,
    (1280, 32): 20,
    (1280, 36): 20,
}


def known_heads(image: tuple[int, int], text: tuple[int, int], *, origin: str) -> tuple[int, int]:
    """Return the heads of an image and a text tower of a published architecture.

    Args:
        image: (width, layers) of the image tower.
        text: (width, layers) of the text tower.
        origin: description of where the weights come from, for the error.

    Raises:
        InputError: no published CLIP has such a tower.
    """
    for tower, size, table in (("image", image, IMAGE_HEADS), ("text", text, TEXT_HEADS)):
        if size not in table:
            raise InputError(
                f"{origin} does not say how many heads it has, and no published CLIP has a "
                f"{tower} tower of width {size[0]} with {size[1]} layers; pass "
                "heads=(of the image tower, of the text tower), or store them in its metadata"
            )
    return IMAGE_HEADS[image], TEXT_HEADS[text]
