"""CaR as a segmenter, which turns images and names into label maps.

Source: SPEC car 8.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from car.config import (
    METADATA,
    CaRConfig,
    clips_of,
    named_config,
    settings_of,
)
from car.labels import merge_descriptions, paint, raise_scores
from car.recurrence import CaR, OnStep, PreparedImage, Recurrence
from car.sam import MaskGenerator, match_masks
from openvocab.clip import load_clip
from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder
from openvocab.clip.weights import choices_of
from openvocab.computation import Precision, choose_device, dtype_of
from openvocab.config import config_to_dict
from openvocab.errors import InputError
from openvocab.image import ImageArray, ImageSource, read_image, resample_image
from openvocab.inference.confidence import (
    SUFFIX,
    Evidence,
    calibration_file,
    calibration_line,
    load_calibration,
    rated,
    use_calibration,
)
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.semantic import MaskGeometry
from openvocab.vocabulary import BACKGROUND_NAME, Vocabulary
from openvocab.weights.folders import SECOND_WEIGHTS, WEIGHTS
from openvocab.weights.pretrained import Pretrained
from openvocab.weights.state_dict import save_state_dict

_SHORTEST = 32  # thin images are not shrunk below this, if the long side can be afforded


def load_car(
    weights: str | Path | None = None,
    *,
    config: CaRConfig | str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,
) -> CaRSegmenter:
    """Load the CLIPs and return a segmenter.

    Args:
        weights: the name of a configuration, such as "world" or "voc21", which brings its settings
            along; a folder that `save_pretrained` wrote, or `hf:ORG/NAME` for one on the Hub, which
            brings its settings too; or what `load_clip` takes, once for both tasks, or twice with a
            comma between: first the CLIP that proposes masks, then the CLIP that classifies them.
            None: the CLIPs that `config` names.
        config: the settings, or the name of a configuration; None: those that `weights` names,
            else the defaults.
        device: "auto" for cuda, then mps, then cpu, whichever is there; or "cpu", "cuda:1", ...
        precision: number format in which prompted images are classified: "fp32", "bf16" or "fp16".
        compile: compile the image towers with torch.compile; needs a C++ compiler on a CPU.

    Raises:
        InputError: the weights are not here or unreadable, or the device does not exist.
    """
    chosen = _choose_config(weights, config)
    stored = _calibration_of(chosen)
    device = choose_device(device)
    clip = load_clip(chosen.clip, device=device)
    same = chosen.classifier_clip == chosen.clip
    judge = clip if same else load_clip(chosen.classifier_clip, device=device)
    segmenter = CaRSegmenter(clip, judge, chosen, precision=precision, compile=compile)
    if stored is not None:
        load_calibration(segmenter, stored)
    return segmenter


def _calibration_of(chosen: CaRConfig) -> Path | None:
    """Return the path of a calibration: of a configuration with these settings, or of the CLIP.

    Other settings give other evidence, for which a configuration's calibration is not fitted.
    """
    folder = Path(str(resources.files("car").joinpath("configs")))
    for stored in sorted(folder.glob(f"*{SUFFIX}")):
        if named_config(stored.name.removesuffix(SUFFIX)).car == chosen:
            return stored
    first = Path(chosen.clip)
    return calibration_file(first) if first.is_file() else None


def _choose_config(weights: str | Path | None, config: CaRConfig | str | None) -> CaRConfig:
    """Return the settings, with the CLIPs that `load_car` is to load."""
    if weights is None:
        return named_config(config).car if isinstance(config, str) else config or CaRConfig()
    if config is None:
        config = settings_of(weights) or CaRConfig()
    settings = named_config(config).car if isinstance(config, str) else config
    return replace(settings, **clips_of(str(weights)))


class CaRSegmenter(Pretrained, BaseSegmenter):
    """Segments images with any names, without any training.

    Attributes:
        mask_generator: source of other masks, such as SAM; they replace the masks of CaR that they
            fit.
        on_start: called with each recurrence before its first step.
        on_step: called with the recurrence and the step after each step.
    """

    method_key = "car"
    templates = "car"
    confidence_features = ("log_best", "log_total")  # a name's share says little among the few left

    def __init__(
        self,
        clip: CLIP,
        classifier_clip: CLIP | None = None,
        config: CaRConfig | None = None,
        *,
        precision: Precision = "fp32",
        compile: bool = False,
        cache_dir: str | Path | Literal[False] | None = None,
    ) -> None:
        """Wrap two CLIPs.

        Args:
            clip: proposes masks.
            classifier_clip: CLIP that scores prompted images; None takes the other one.
            config: the settings.
            precision: number format in which prompted images are classified, most of the work;
                mask proposals, names and the CRF stay in fp32, see `CaR`.
            compile: whether to compile the image towers, see `load_car`.
            cache_dir: folder for text embeddings, see `TextEncoder`.
        """
        self.config, self.precision = config or CaRConfig(), precision
        clips = [clip] if classifier_clip in (None, clip) else [clip, classifier_clip]
        prints = [one.fingerprint() for one in clips if one is not None]
        self.weights_sha256 = hashlib.sha256(" ".join(prints).encode()).hexdigest()
        dtype = dtype_of(precision)
        self.car = CaR(clip, classifier_clip, self.config, cache_dir=cache_dir, dtype=dtype)
        if compile:
            for block in (*self.car.mask_proposal_generator.trunk, *self.car.mask_classifier.trunk):
                block.compile()
        self.mask_generator: MaskGenerator | None = None
        self.on_start: Callable[[Recurrence], None] | None = None
        self.on_step: OnStep | None = None

    @property
    def text(self) -> TextEncoder:
        """The encoder of the names that the mask classifier compares with the prompted images."""
        return self.car.mask_classifier.text

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment images by names; see `BaseSegmenter.segment_arrays`.

        Pixels that none of the names wins belong to the class "background", or are -1 where there
        is none. Background words of the vocabulary replace the configured ones. Scores are the (K,
        H, W) probabilities of the CRF.
        """
        return [self._segment(image, vocabulary, return_scores) for image in images]

    def _segment(
        self, image: ImageArray, vocabulary: Vocabulary, return_scores: bool
    ) -> Segmentation:
        """Segment the names in one pass, or stuff in one pass and things in another."""
        small = shrink(image, self.config.max_side)
        prepared, size = self.car.prepare(small), small.shape[:2]
        words, ids = words_to_find(vocabulary)
        labels = np.full(size, vocabulary.background_label, dtype=np.int32)
        scores = np.zeros((len(vocabulary), *size), np.float32) if return_scores else None
        evidence = self._blank_evidence(size, image)
        for config, chosen in self._plan(vocabulary, words, ids):
            recurrence = self._start(prepared, [words[place] for place in chosen], config)
            found = recurrence.run(
                return_marginals=return_scores,
                summed=None if evidence is None else _is_name(ids[chosen], vocabulary),
            )
            paint(labels, self._snap(small, found.masks), found.scores, ids[chosen])
            if scores is not None and found.marginals is not None:
                raise_scores(scores, found.marginals, ids[chosen])
            if evidence is not None and found.summary is not None:
                np.maximum(evidence.best, found.summary[0], out=evidence.best)
                np.add(evidence.total, found.summary[1], out=evidence.total)
        if scores is not None and vocabulary.background_label >= 0:
            scores[vocabulary.background_label] = 1 - scores.max(axis=0)
        result = Segmentation(_enlarge(labels, image), vocabulary, _enlarge_scores(scores, image))
        return result if evidence is None else rated(self, result, lambda: evidence)

    def _blank_evidence(self, size: tuple[int, int], image: ImageArray) -> Evidence | None:
        """Return evidence for an image without any found name, or None where nobody needs it."""
        if self.calibration is None and self.on_evidence is None:
            return None
        output = (image.shape[0], image.shape[1])
        best, total = np.zeros(size, np.float32), np.zeros(size, np.float32)
        return Evidence(best, total, MaskGeometry(size, size, output))

    def _start(self, image: PreparedImage, names: Sequence[str], config: CaRConfig) -> Recurrence:
        recurrence = Recurrence(self.car, image, names, config, self.on_step)
        if self.on_start is not None:
            self.on_start(recurrence)
        return recurrence

    def with_config(self, config: CaRConfig) -> CaRSegmenter:
        """Return a segmenter of the same CLIPs with other settings."""
        other = copy(self)
        other.config, other.car = config, self.car.with_config(config)
        use_calibration(other, self.calibration)
        return other

    def find_object(self, image: ImageSource, sentences: Sequence[str]) -> NDArray[np.bool_]:
        """Segment the one object that all sentences describe: (H, W) bool.

        Raises:
            InputError: the image cannot be read, or there is no sentence.
        """
        pixels = read_image(image)
        asked = tuple(dict.fromkeys(sentence for sentence in sentences if sentence.strip()))
        if not asked:
            raise InputError("there is no sentence that describes the object; give at least one")
        prepared = self.car.prepare(shrink(pixels, self.config.max_side))
        found = self._start(prepared, asked, self.config).run()
        merged = merge_descriptions(found.masks, found.scores)
        return _enlarge(merged.astype(np.int32), pixels) > 0

    def weight_files(self) -> tuple[str, ...]:
        """Return a file for each CLIP, see `Pretrained`."""
        return (WEIGHTS, SECOND_WEIGHTS)[: len(self._clips())]

    def stored_settings(self) -> dict[str, Any]:
        """Return the settings, in which the CLIPs are files of the folder, see `Pretrained`."""
        if self.mask_generator is not None:
            raise InputError(
                "this CaR uses the masks of SAM, which no folder can hold; save it without a "
                "`mask_generator`, and give it again when loading"
            )
        files = self.weight_files()
        config = replace(self.config, clip=files[0], classifier_clip=files[-1])
        return {METADATA: config_to_dict(config), **choices_of(self._clips()[0].config)}

    def write_weights(self, files: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Write the CLIPs, see `Pretrained`."""
        for clip, file in zip(self._clips(), files, strict=True):
            save_state_dict(file, clip.state_dict(), {**metadata, **choices_of(clip.config)})

    def card_lines(self) -> dict[str, Any]:
        """Return the protocol with the names of files of CLIPs, but not where they lie."""
        config = self.config
        names = [Path(clip).name for clip in (config.clip, config.classifier_clip)]
        return {**self.describe(), "variant": f"proposals {names[0]}, classifier {names[1]}"}

    def sha256_of_written(self, files: Sequence[Path]) -> str:
        """Return the fingerprint of the CLIPs, which no writing changes."""
        return self.weights_sha256

    def _clips(self) -> list[CLIP]:
        """Return the proposing CLIP, and the classifying one if it is another."""
        proposer, classifier = self.car.mask_proposal_generator.clip, self.car.mask_classifier.clip
        return [proposer] if proposer is classifier else [proposer, classifier]

    def describe(self) -> dict[str, Any]:
        """Return the lines of the protocol card that describe this segmenter."""
        config = self.config
        limit = "native size" if config.max_side is None else f"long side <= {config.max_side}"
        return {
            "method": "CaR",
            "variant": f"proposals {config.clip}, classifier {config.classifier_clip}",
            "weights_sha256": self.weights_sha256,
            "thresholds": {
                "confidence": config.confidence_threshold,
                "clipes": config.clipes_threshold,
                "mask": config.mask_threshold,
            },
            "resize_rule": f"{limit}, then up to multiples of 16, bicubic",
            "post_processing": "dense CRF, 10 iterations, bg_factor "
            f"{config.bg_factor:g}, stuff_bg_factor {config.stuff_bg_factor:g}"
            + ("" if self.mask_generator is None else ", masks of SAM"),
            "precision": self.precision,
            "device": str(self.car.device),
            "calibration": calibration_line(self),
            "mode": config.mode,
            "faithful": config.faithful,
            "max_steps": config.max_steps,
            "visual_prompts": "+".join(config.visual_prompt_type),
            "stuff_visual_prompts": "+".join(config.stuff_visual_prompt_type),
            "semantic_templates": config.semantic_templates,
            "text_template": config.text_template,
            "background_queries": list(config.bg_cls),
        }

    def _snap(self, image: ImageArray, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Replace masks by those of SAM that fit, if there is a SAM."""
        if self.mask_generator is None:
            return masks
        candidates = self.mask_generator(image)
        config = self.config
        return np.stack(
            [match_masks(m, candidates, config.iom_thres, config.min_pred_threshold) for m in masks]
        )

    def _plan(
        self, vocabulary: Vocabulary, words: list[str], ids: NDArray[np.int32]
    ) -> list[tuple[CaRConfig, list[int]]]:
        """Return the settings and words of each pass; later passes paint over earlier ones."""
        config = _with_background_words(self.config, vocabulary)
        everything = list(range(len(words)))
        if vocabulary.things is None or not config.two_passes:
            return [(config, everything)]
        things = [i for i in everything if ids[i] >= 0 and vocabulary.things[ids[i]]]
        stuff = [i for i in everything if i not in set(things)]
        plan = [
            (config.stuff_pass(tuple(words[i] for i in things)), stuff),
            (config, things),
        ]
        return [(settings, places) for settings, places in plan if places]


def shrink(image: ImageArray, max_side: int | None) -> ImageArray:
    """Shrink an image (H, W, 3) so that its long side is at most `max_side`, with a warning.

    Thin images stay at least 32 pixels wide as long as that takes no more memory than a square.
    """
    if max_side is None:
        return image
    height, width = image.shape[:2]
    scale = max(
        max_side / max(height, width),
        min(_SHORTEST / min(height, width), max_side / (height * width) ** 0.5),
    )
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    warnings.warn(
        f"the image of {width}x{height} pixels is segmented at {size[0]}x{size[1]}, since max_side "
        f"is {max_side}; labels are enlarged to its own size",
        stacklevel=2,
    )
    return np.asarray(resample_image(Image.fromarray(image), size, Image.Resampling.BICUBIC))


def words_to_find(vocabulary: Vocabulary) -> tuple[list[str], NDArray[np.int32]]:
    """Return the words to look for, each once, and their labels.

    "background" is not among them, since it is what is left where nothing else wins.
    """
    if vocabulary.background.kind in ("threshold", "learned"):
        raise InputError(
            f"CaR has no background by {vocabulary.background.kind}: it leaves to the background "
            "what no name wins; use a vocabulary with the policy 'none' or 'names'"
        )
    own_words = set(vocabulary.background.words)
    found: dict[str, int] = {}
    for word, label in zip(vocabulary.words, vocabulary.word_labels, strict=True):
        if word != BACKGROUND_NAME and word not in own_words:
            found.setdefault(word, int(label))
    if not found:
        raise InputError(
            f"the vocabulary holds nothing but {', '.join(vocabulary.names)}; name something to "
            "look for"
        )
    return list(found), np.array(list(found.values()), dtype=np.int32)


def _is_name(ids: NDArray[np.int32], vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Return which labels (N,) are names, and neither -1 nor the background."""
    return np.asarray((ids >= 0) & (ids != vocabulary.background_label))


def _with_background_words(config: CaRConfig, vocabulary: Vocabulary) -> CaRConfig:
    words = tuple(word for word in vocabulary.background.words if word != BACKGROUND_NAME)
    if not words:
        return config
    return replace(config, bg_cls=words)


def _places(small: int, large: int) -> NDArray[np.intp]:
    """Return which of `small` pixels lies under the center of each of `large` pixels."""
    return ((np.arange(large) + 0.5) * small / large).astype(np.intp)


def _enlarge(labels: NDArray[np.int32], image: ImageArray) -> NDArray[np.int32]:
    """Enlarge labels to the size of an image."""
    if labels.shape == image.shape[:2]:
        return labels
    rows = _places(labels.shape[0], image.shape[0])
    return labels[rows[:, None], _places(labels.shape[1], image.shape[1])[None]]


def _enlarge_scores(
    scores: NDArray[np.float32] | None, image: ImageArray
) -> NDArray[np.float32] | None:
    if scores is None or scores.shape[1:] == image.shape[:2]:
        return scores
    rows = _places(scores.shape[1], image.shape[0])
    return scores[:, rows[:, None], _places(scores.shape[2], image.shape[1])[None]]
