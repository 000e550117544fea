"""SAN as a segmenter, which turns images and names into label maps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from openvocab.clip.prompts import TextEncoder
from openvocab.computation import Precision, choose_device, dtype_of
from openvocab.files import sha256_of
from openvocab.image import ImageArray, resize_shortest_edge
from openvocab.inference.confidence import (
    calibration_file,
    calibration_line,
    grid_evidence,
    load_calibration,
    rated,
)
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.semantic import (
    MaskGeometry,
    semantic_scores,
    vocabulary_labels,
    vocabulary_scores,
)
from openvocab.vocabulary import Vocabulary
from openvocab.weights.pretrained import Pretrained
from openvocab.weights.training_names import training_names
from san.config import SANConfig, SANInference
from san.model import SAN, SANPrediction
from san.weights import find_checkpoint, load_network, metadata_of, save_network

_BATCH = 4  # images of one size that go through the network together


def load_san(
    weights: str | Path | None = None,
    *,
    config: SANConfig | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,
    inference: SANInference | None = None,
    options: Mapping[str, Any] | None = None,
) -> SANSegmenter:
    """Load SAN with its weights and return a segmenter.

    Args:
        weights: "san_vit_b_16" or "san_vit_large_14" (fetched on first use), "world" for the small
            SAN of the embedded world, which this package carries, a checkpoint of the original or
            of ours, a folder that `save_pretrained` wrote, `hf:ORG/NAME` for such a folder on the
            Hub, or `huggingface:<file>`; None is "san_vit_b_16".
        config: the architecture of a checkpoint that is neither published nor tells it.
        device: "cpu", "cuda", "cuda:1", "mps", ...; "auto" is cuda, then mps, then cpu.
        precision: number format of the two image towers: "fp32", "bf16" or "fp16".
        compile: compile the network with torch.compile; needs a C++ compiler on a CPU.
        inference: rules of inference; None: those in the checkpoint, or the published ones.
        options: keys of the original release, nested, over both, such as
            `{"INPUT": {"MIN_SIZE_TEST": 512}}`.

    Raises:
        InputError: the weights are not here, unreadable, or do not fit, or there is no such device.
    """
    device = choose_device(device)
    path = find_checkpoint("san_vit_b_16" if weights is None else weights)
    network, inference = load_network(path, config, inference, options)
    segmenter = SANSegmenter(
        network,
        inference,
        device=device,
        precision=precision,
        compile=compile,
        weights_sha256=sha256_of(path),
    )
    segmenter.trained_on = training_names(path)
    load_calibration(segmenter, calibration_file(path))
    return segmenter


class SANSegmenter(Pretrained, BaseSegmenter):
    """Segments images of any size with any names.

    result = segmenter.segment("photo.jpg", ["cat", "sofa"])
    """

    method_key = "san"
    batch_size = _BATCH

    def __init__(
        self,
        network: SAN,
        inference: SANInference | None = None,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
        compile: bool = False,
        weights_sha256: str | None = None,
        cache_dir: str | Path | Literal[False] | None = None,
    ) -> None:
        """Wrap a network.

        Args:
            network: the network; it is moved to the device and its image towers to the precision,
                in place.
            inference: rules of inference; None: the published ones.
            device: device to run on.
            precision: number format of the two image towers; names are always encoded in fp32.
            compile: whether to compile the image towers, see `load_san`.
            weights_sha256: hash of the checkpoint, for the protocol card.
            cache_dir: folder for text embeddings, see `TextEncoder`.
        """
        self.network = network.eval().requires_grad_(False).to(device)
        self.config, self.precision = network.config, precision
        self.inference = inference or SANInference()
        self.templates = self.inference.templates
        self.text = TextEncoder(network.clip, cache_dir)
        self.weights_sha256 = weights_sha256 or "unsaved"
        network.clip.visual.to(dtype_of(precision))
        network.side_adapter.to(dtype_of(precision))
        self._forward = torch.compile(network) if compile else network

    @torch.inference_mode()
    def scores_at(
        self, image: ImageArray, vocabulary: Vocabulary, output_size: tuple[int, int]
    ) -> Tensor:
        """Score the vocabulary's words on an image in its own size, without resizing it first.

        Args:
            image: (h, w, 3) uint8 RGB, of the size that the network shall see.
            vocabulary: the W words.
            output_size: (H, W) of the result.

        Returns:
            (W, *output_size) float32, not negative.
        """
        prediction, padded = self._predict([image], self._classifier(vocabulary))
        geometry = MaskGeometry(
            padded, _size(image), output_size, self.inference.resize_masks_first
        )
        return _scores(prediction, 0, geometry)

    def describe(self) -> dict[str, Any]:
        """Return the lines of the protocol card that describe this segmenter."""
        config, inference = self.config, self.inference
        return {
            "method": "SAN",
            "variant": f"CLIP ViT, width {config.clip.vision.width}, patch "
            f"{config.clip.vision.patch_size}, {config.num_queries} queries",
            "weights_sha256": self.weights_sha256,
            "resize_rule": f"short side {inference.short_side}, long side <= {inference.max_side}, "
            "Pillow bilinear on uint8, halves round up",
            "post_processing": "mask logits resized to the image, then sigmoid x class probability"
            if inference.resize_masks_first
            else "scores at network size, then resized",
            "precision": self.precision,
            "device": str(next(self.network.parameters()).device),
            "calibration": calibration_line(self),
        }

    def stored_settings(self) -> dict[str, Any]:
        """Return architecture and settings, see `Pretrained`."""
        return metadata_of(self.network, self.inference)

    def write_weights(self, files: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Write the checkpoint, see `Pretrained`."""
        save_network(self.network, files[0], self.inference, metadata)

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Resize, predict in batches of one padded size, label at the original size."""
        resized = [self.resize(image) for image in images]
        classifier = self._classifier(vocabulary)
        results: dict[int, Segmentation] = {}
        for batch in self._batches(resized):
            prediction, padded = self._predict([resized[index] for index in batch], classifier)
            for row, index in enumerate(batch):
                geometry = self._geometry(padded, resized[index], images[index])
                results[index] = self._label(prediction, row, geometry, vocabulary, return_scores)
        return [results[index] for index in range(len(images))]

    def predict(
        self, image: ImageArray, vocabulary: Vocabulary
    ) -> tuple[SANPrediction, MaskGeometry]:
        """Return the masks and classes of one image (H, W, 3), and the geometry of its pixels."""
        resized = self.resize(image)
        prediction, padded = self._predict([resized], self._classifier(vocabulary))
        return prediction, self._geometry(padded, resized, image)

    def resize(self, image: ImageArray) -> ImageArray:
        """Resize an image (H, W, 3) by the rule of `SANInference`."""
        return resize_shortest_edge(image, self.inference.short_side, self.inference.max_side)

    def _geometry(
        self, padded: tuple[int, int], resized: ImageArray, image: ImageArray
    ) -> MaskGeometry:
        return MaskGeometry(padded, _size(resized), _size(image), self.inference.resize_masks_first)

    def _batches(self, images: list[ImageArray]) -> Iterator[list[int]]:
        """Group images with equal padded sizes, so that no result depends on the other images."""
        unit = self.config.size_divisibility
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            groups[tuple(math.ceil(side / unit) for side in _size(image))].append(index)
        for members in groups.values():
            yield from (members[i : i + _BATCH] for i in range(0, len(members), _BATCH))

    @torch.inference_mode()
    def _classifier(self, vocabulary: Vocabulary) -> Tensor:
        """Return the class embeddings (W + 1, E) of a vocabulary's words and "no object"."""
        text = self.text.encode_names(vocabulary.words, vocabulary.templates)
        return self.network.classifier(text)

    @torch.inference_mode()
    def _predict(
        self, images: list[ImageArray], classifier: Tensor
    ) -> tuple[SANPrediction, tuple[int, int]]:
        """Run the network on resized images; also return the padded size (H, W)."""
        batch = self.network.preprocess([torch.from_numpy(im).permute(2, 0, 1) for im in images])
        prediction = self._forward(batch, classifier)[-1]
        return prediction, (batch.shape[2], batch.shape[3])

    @torch.inference_mode()
    def _label(
        self,
        prediction: SANPrediction,
        row: int,
        geometry: MaskGeometry,
        vocabulary: Vocabulary,
        return_scores: bool,
    ) -> Segmentation:
        """Turn one image's prediction into labels, and scores if they are asked for."""
        prob = prediction.class_logits[row].softmax(-1)  # (Q, W + 1)
        labels = vocabulary_labels(
            prob[:, :-1], prob[:, -1], prediction.mask_logits[row], geometry, vocabulary
        )
        scores = None
        if return_scores:
            scores = vocabulary_scores(_scores(prediction, row, geometry), vocabulary)
        found = Segmentation(labels=labels, vocabulary=vocabulary, scores=scores)
        masks = prediction.mask_logits[row]
        return rated(self, found, lambda: grid_evidence(prob[:, :-1], masks, geometry, vocabulary))


def _scores(prediction: SANPrediction, row: int, geometry: MaskGeometry) -> Tensor:
    """Return the full volume of word scores (W, H0, W0)."""
    prob = prediction.class_logits[row].softmax(-1)[:, :-1]
    return semantic_scores(prob, prediction.mask_logits[row], geometry)


def _size(image: ImageArray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
