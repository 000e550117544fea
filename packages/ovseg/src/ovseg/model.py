"""OVSeg: MaskFormer predicts mask proposals, and a mask-adapted CLIP classifies them.

The steps are those of figure 2 of the paper:

    image -> MaskFormer -> class-agnostic mask proposals, and embeddings in CLIP's space
          -> each proposal is cut out of the image
          -> the mask-adapted CLIP classifies the regions
          -> the class probabilities of both are combined, and summed over the masks at each pixel

Source: Liang et al., "Open-Vocabulary Semantic Segmentation with Mask-adapted CLIP" (CVPR 2023);
SPEC ovseg 1 to 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openvocab.computation import to_device
from ovseg.config import InferenceConfig, OVSegConfig, SwinConfig
from ovseg.ensemble import Branches, Votes, best_proposals, ensemble, maskformer_only, only_valid
from ovseg.mask_clip import LOGIT_SCALE, CLIPAdapter
from ovseg.pixel_decoder import PixelDecoder
from ovseg.resnet import ResNet
from ovseg.swin import SwinTransformer
from ovseg.transformer_decoder import MaskPredictions, TransformerPredictor


class Proposals(NamedTuple):
    """MaskFormer's output after each of L decoder layers, the last layer last."""

    class_embeddings: Tensor
    """In CLIP's space, not normalised (L, B, Q, D)."""
    class_logits: Tensor
    """Against the classifier, "no object" last (L, B, Q, K + 1)."""
    mask_logits: Tensor
    """At a quarter of the padded size (L, B, Q, H/4, W/4)."""


class MaskFormerHead(nn.Module):
    """Pixel decoder and transformer predictor.

    Source: SPEC ovseg 3.3 and 3.4.
    """

    def __init__(self, config: OVSegConfig) -> None:
        super().__init__()
        channels = config.backbone.channels
        self.pixel_decoder = PixelDecoder(
            channels, convs_dim=config.convs_dim, mask_dim=config.mask_dim
        )
        self.predictor = TransformerPredictor(
            in_channels=channels[-1],
            hidden_dim=config.hidden_dim,
            mask_dim=config.mask_dim,
            embedding_dim=config.clip.embed_dim,
            num_queries=config.num_queries,
            heads=config.heads,
            feedforward=config.feedforward,
            layers=config.decoder_layers,
            dropout=config.dropout,
            embed_hidden_dim=config.embed_hidden_dim,
            embed_layers=config.embed_layers,
        )

    def forward(self, features: Sequence[Tensor], *, all_layers: bool = False) -> MaskPredictions:
        """Predict from the backbone's `[res2, ..., res5]`."""
        convolved = self.pixel_decoder.mask_features.weight.dtype
        queried = self.predictor.query_embed.weight.dtype
        mask_features = self.pixel_decoder([feature.to(convolved) for feature in features])
        predictions: MaskPredictions = self.predictor(
            features[-1].to(queried), mask_features.to(queried), all_layers=all_layers
        )
        return predictions


class ClassWeights(nn.Module):
    """The loss weights of the training classes, which official checkpoints contain as well."""

    empty_weight: Tensor

    def __init__(self, num_classes: int, no_object_weight: float) -> None:
        super().__init__()
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer("empty_weight", weight)


class OVSeg(nn.Module):
    """MaskFormer proposals named by a mask-adapted CLIP. State-dict names are the official ones."""

    def __init__(self, config: OVSegConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone: SwinTransformer | ResNet
        if isinstance(config.backbone, SwinConfig):
            self.backbone = SwinTransformer(config.backbone)
        else:
            self.backbone = ResNet(config.backbone)
        self.sem_seg_head = MaskFormerHead(config)
        self.criterion = ClassWeights(config.num_training_classes, config.no_object_weight)
        self.clip_adapter = CLIPAdapter(config.clip, config.mask_prompt_depth)

    def forward(
        self, images: Sequence[Tensor], classifier: Tensor, *, all_layers: bool | None = None
    ) -> Proposals:
        """Run MaskFormer on a batch.

        Args:
            images: RGB images (3, h, w) with values 0..255, of any sizes. They are padded to a
                common size.
            classifier: Text embeddings (K + 1, D) with "no object" last, from
                `clip_adapter.classifier`.
            all_layers: Whether to predict after the earlier decoder layers as well. None for only
                in training mode.
        """
        if all_layers is None:
            all_layers = self.training
        features = self.backbone(self.preprocess(images))
        predictions = self.sem_seg_head(features, all_layers=all_layers)
        embeddings = predictions.class_embeddings.to(classifier.dtype)
        unit = embeddings / embeddings.norm(dim=-1, keepdim=True)
        logits = LOGIT_SCALE * unit @ classifier.T  # (L, B, Q, K + 1)
        return Proposals(embeddings, logits, predictions.mask_logits)

    def lower(self, dtype: torch.dtype) -> None:
        """Convert what takes most of the time to a number format, in place.

        These are the products of the backbone and of the pixel decoder, and CLIP's image tower. The
        queries stay in fp32, which costs next to nothing: their masks are cut at a threshold, and
        whoever names the pieces cannot mend that.
        """
        if isinstance(self.backbone, SwinTransformer):
            self.backbone.lower(dtype)
        else:
            self.backbone.to(dtype)
        self.sem_seg_head.pixel_decoder.to(dtype)
        self.clip_adapter.clip_model.visual.to(dtype)

    def preprocess(self, images: Sequence[Tensor]) -> Tensor:
        """Normalize images, and zero-pad them on the right and below to one size (B, 3, H, W)."""
        weight = next(self.backbone.parameters())
        scale = torch.tensor([self.config.pixel_mean, self.config.pixel_std])
        mean, std = to_device(scale, weight.device).view(2, 3, 1, 1)
        step = self.config.size_divisibility
        height, width = (-(-max(i.shape[d] for i in images) // step) * step for d in (1, 2))
        batch = weight.new_zeros(len(images), 3, height, width)
        for row, image in zip(batch, images, strict=True):
            normalized = (to_device(image, weight.device).float() - mean) / std
            row[:, : image.shape[1], : image.shape[2]] = normalized.to(weight.dtype)
        return batch

    @torch.no_grad()
    def branches(
        self, image: Tensor, class_logits: Tensor, mask_prob: Tensor, classifier: Tensor
    ) -> Branches:
        """Classify the mask proposals of one image with MaskFormer and with CLIP.

        Args:
            image: RGB image (3, h, w) with values 0..255.
            class_logits: MaskFormer's class logits (Q, K + 1).
            mask_prob: Mask probabilities (Q, h, w).
            classifier: Text embeddings (K + 1, D) with "no object" last.
        """
        class_prob = class_logits.softmax(-1)[:, :-1]  # "no object" takes part, then is dropped
        keep = self._best_scored(class_prob)
        features, valid = self.clip_adapter.encode_proposals(image, mask_prob, keep)
        clip_logits = LOGIT_SCALE * features @ classifier[:-1].T  # (V, K)
        return Branches(class_prob, clip_logits.softmax(-1), valid)

    def _best_scored(self, class_prob: Tensor) -> Tensor | None:
        """Return the proposals (Q,) that CLIP classifies, where `max_regions` limits them."""
        limit = self.clip_adapter.region.max_regions
        if limit is None or limit >= len(class_prob):
            return None
        score = class_prob.amax(1)
        keep = torch.zeros_like(score, dtype=torch.bool)
        keep[score.topk(limit).indices] = True
        print(
            f"max_regions {limit}: {len(score) - limit} of {len(score)} proposals are not shown to "
            f"CLIP; the best of them scores {score[~keep].max():.3f}"
        )
        return keep


def mask_probability(mask_logits: Tensor, padded: Sequence[int], size: Sequence[int]) -> Tensor:
    """Turn the mask logits of one image into mask probabilities at the size of the image.

    The logits are upsampled before the padding is cut off.

    Args:
        mask_logits: Mask logits (Q, H/4, W/4).
        padded: Height and width (H, W) of the padded image.
        size: Height and width (h, w) of the image.

    Returns:
        Mask probabilities (Q, h, w).

    Source: SPEC ovseg 7, "mask path".
    """
    resized = F.interpolate(mask_logits[None].float(), size=tuple(padded), mode="bilinear")[0]
    return resized[:, : size[0], : size[1]].sigmoid()


def vote(branches: Branches, inference: InferenceConfig, names: Sequence[str]) -> Votes:
    """Combine the class probabilities of MaskFormer and CLIP as the configuration says.

    Source: SPEC ovseg 7 and 8, and the recommendations of 16.1.
    """
    if inference.clip_ensemble:
        votes = ensemble(branches, inference.ensemble_weight)
        if inference.mode == "demo":
            votes = only_valid(votes, branches.valid)
    else:
        votes = maskformer_only(branches)
    return best_proposals(votes, names) if inference.mode == "demo" else votes
