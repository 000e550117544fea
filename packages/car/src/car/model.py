"""CaR: mask proposals and their doubts, repeated until no name leaves.

    names = all
    repeat:
        masks  = where CLIP sees each of the names                (saliency.py)
        images = the photo with each mask pointed out             (visual_prompts.py)
        scores = does image i show name i, rather than the others (classifier.py)
        names  = those that convince
    until none has left
    labels = masks that follow the edges of the image             (crf.py)

Source: Sun et al., "CLIP as RNN: Segment Countless Visual Concepts without Training Endeavor"
(CVPR 2024), algorithm 1; SPEC car 6 and 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from car.classifier import MaskClassifier
from car.config import CaRConfig
from car.crf import DenseCRF, crf_image, with_background
from car.saliency import ImageFeatures, Proposals, Saliency, SaliencyMaps
from car.visual_prompts import VisualPrompter
from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder
from openvocab.errors import InputError
from openvocab.image import ImageArray

BACKGROUND_TEMPLATES = ("a clean origami {}.",)
_PLAIN = ("{}",)
_FIELDS = 8  # CRFs of single names that are inferred together


@dataclass(frozen=True)
class Step:
    """One turn of the recurrence, over the K names that are still in it.

    Attributes:
        names: (K,) places of the names in the original list.
        queries: (K,) texts that were looked for.
        maps: what the saliency says.
        prompted: (K,) images that the classifier saw, if they were kept.
        score_matrix: (K, K) of prompted images and names, rows sum to 1.
        kept: places in `names` of those that stay.
    """

    names: tuple[int, ...]
    queries: tuple[str, ...]
    maps: SaliencyMaps
    prompted: tuple[ImageArray, ...]
    score_matrix: NDArray[np.float32]
    kept: tuple[int, ...]

    @property
    def scores(self) -> NDArray[np.float32]:
        """(K,) how well each prompted image shows its own name."""
        return np.diagonal(self.score_matrix)


@dataclass(frozen=True)
class Survivors:
    """What a step leaves: K names with their masks.

    Attributes:
        names: (K,) places of the names in the original list.
        scores: (K,) of the step.
        proposals: K masks, or more where the original carries those of dropped names along.
    """

    names: tuple[int, ...]
    scores: NDArray[np.float32]
    proposals: Proposals


@dataclass(frozen=True)
class Found:
    """What the recurrence ends with, for N names.

    Attributes:
        masks: (N, H, W) bool.
        scores: (N,) of the last step, 0 for names that were dropped.
        marginals: (N, H, W) float32 of the CRF, 0 for names that were dropped; if asked for.
        first: what the first step left.
        steps: all of them, if asked for.
        crf_probability: with the steps: what the CRF was given (..., L, H, W), background first;
            None where nothing was found.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    marginals: NDArray[np.float32] | None = None
    first: Survivors | None = None
    steps: tuple[Step, ...] = ()
    crf_probability: Tensor | None = None


class Scene:
    """An image with what all steps and passes share; each part is computed once, when needed."""

    def __init__(self, image: ImageArray, saliency: Saliency, device: torch.device) -> None:
        self.image, self._saliency, self._device = image, saliency, device
        self.embeddings: dict[bytes, Tensor] = {}  # of prompted images, by content

    @cached_property
    def features(self) -> ImageFeatures:
        """The image behind the trunk of the mask proposer."""
        return self._saliency.encode(self.image)

    @cached_property
    def crf(self) -> DenseCRF:
        """The CRF over the image."""
        return DenseCRF(crf_image(self.image), device=self._device)


class CaR:
    """The recurrence.

    Args:
        clip: proposes masks; any CLIP.
        classifier_clip: scores prompted images; None takes the same.
        config: how.
        cache_dir: of text embeddings, see `TextEncoder`.
    """

    def __init__(
        self,
        clip: CLIP,
        classifier_clip: CLIP | None = None,
        config: CaRConfig | None = None,
        *,
        cache_dir: str | Path | Literal[False] | None = None,
    ) -> None:
        self.config = config or CaRConfig()
        judge = clip if classifier_clip is None else classifier_clip
        self.saliency = Saliency(clip, faithful=self.config.faithful)
        self.classifier = MaskClassifier(judge, batch=self.config.classifier_batch)
        self.proposer_text = TextEncoder(clip, cache_dir)
        self.classifier_text = (
            self.proposer_text if judge is clip else TextEncoder(judge, cache_dir)
        )
        self.device = clip.visual.conv1.weight.device

    def scene(self, image: ImageArray) -> Scene:
        """Prepare an image (H, W, 3) uint8 RGB for any number of calls of `find`."""
        return Scene(image, self.saliency, self.device)

    @torch.no_grad()
    def judge(
        self, pictures: Iterable[ImageArray], names: Sequence[str], config: CaRConfig | None = None
    ) -> NDArray[np.float32]:
        """Score N prompted images (H, W, 3) against K names as a step does: (N, K)."""
        texts = self._classifier_texts(names, config or self.config)
        return texts.score(self.classifier, self.classifier.encode(pictures))

    @torch.no_grad()
    @torch.inference_mode(False)  # saliency needs gradients, whatever the caller has switched off
    def find(
        self,
        scene: Scene,
        names: Sequence[str],
        config: CaRConfig | None = None,
        *,
        return_marginals: bool = False,
        keep_steps: bool = False,
    ) -> Found:
        """Find names in an image.

        Args:
            scene: from `scene`.
            names: N names or, in referring mode, descriptions of one object; no name twice.
            config: None for the model's own.
            return_marginals: also return what the CRF says, which takes much memory.
            keep_steps: also return all steps with their pictures, and the CRF's input.

        Raises:
            InputError: no name, or a name twice.
        """
        config = config or self.config
        if not names or len(set(names)) < len(names):
            raise InputError(f"the names are {list(names)}; give at least one, and none twice")
        alive = list(range(len(names)))
        queries = list(names)
        texts = self._classifier_texts(names, config)
        background = self.proposer_text.encode_names(config.bg_cls, BACKGROUND_TEMPLATES)
        prompter = VisualPrompter(scene.image, config.visual_prompt_type)
        carried: Proposals | None = None
        count, taken, steps = 0, 0, []
        first: Survivors | None = None
        while True:
            taken += 1
            step = self._step(
                scene, alive, queries, background, texts, prompter, config, keep_steps
            )
            if keep_steps:
                steps.append(step)
            kept = list(step.kept)
            masks = self._masks(step.maps.proposals, carried)
            # The original carries the masks of dropped names along, which then get other names.
            all_stay = config.faithful or len(kept) == len(masks)
            carried = masks if all_stay else masks.keep(kept)
            alive = [alive[place] for place in kept]
            queries = [config.cam_text_template.format(names[index]) for index in alive]
            texts = texts.keep(kept)
            scores = step.scores[kept]
            left = Survivors(tuple(alive), scores, carried)
            first = first or left
            convincing = int((scores > 0).sum())
            if convincing == count or taken == config.max_steps:
                break
            count = convincing
        found = replace(self.end(scene, left, len(names), config, return_marginals), first=first)
        if keep_steps:
            recorded = self._crf_input(carried, config) if carried.any() else None
            found = replace(found, steps=tuple(steps), crf_probability=recorded)
        return found

    def _step(
        self,
        scene: Scene,
        alive: list[int],
        queries: list[str],
        background: Tensor,
        texts: _ClassifierTexts,
        prompter: VisualPrompter,
        config: CaRConfig,
        keep_pictures: bool,
    ) -> Step:
        """Propose, prompt, score and select once."""
        embedded = self.proposer_text.encode_names(queries, config.text_template or _PLAIN)
        maps = self.saliency.maps(
            scene.features,
            embedded,
            background,
            config.clipes_threshold,
            together=config.mode == "semantic",
        )
        pictures: Iterable[ImageArray] = (
            prompter(mask, config.mask_threshold) for mask in maps.proposals
        )
        kept_pictures = tuple(pictures) if keep_pictures else ()
        if len(alive) == 1:  # a softmax over one name
            matrix = np.ones((1, 1), dtype=np.float32)
        else:
            seen = self.classifier.encode(kept_pictures or pictures, scene.embeddings)
            matrix = texts.score(self.classifier, seen)
        kept = select(np.diagonal(matrix), config.confidence_threshold)
        return Step(tuple(alive), tuple(queries), maps, kept_pictures, matrix, kept)

    @staticmethod
    def _masks(proposals: Proposals, carried: Proposals | None) -> Proposals:
        """Return this step's masks, or those of the step before if all of this one are empty."""
        return proposals if carried is None or proposals.any() else carried

    def _classifier_texts(self, names: Sequence[str], config: CaRConfig) -> _ClassifierTexts:
        templates = config.classifier_templates
        if templates is not None:
            features = self.classifier_text.names_per_template(names, templates)
            return _ClassifierTexts(features)
        sentences = [config.cam_text_template.format(name) for name in names]
        features = self.classifier_text.encode_texts(sentences)[None]
        if config.faithful:
            return _FaithfulSentences(features, sentences, self.classifier_text)
        return _ClassifierTexts(features, plain=True)

    def _crf_input(self, proposals: Proposals, config: CaRConfig) -> Tensor:
        """Return the CRF's input: one of K + 1 labels (K + 1, H, W), or K of 2 (K, 2, H, W)."""
        if config.mode == "semantic":
            return with_background(proposals, config.bg_factor, self.device)
        alone = [with_background([mask], config.bg_factor, self.device) for mask in proposals]
        return torch.stack(alone)

    def _masks_along_edges(
        self, crf: DenseCRF, proposals: Proposals, config: CaRConfig
    ) -> Iterator[tuple[NDArray[np.bool_], Tensor]]:
        """Run the CRF, and yield the mask (H, W) and the marginal (H, W) of each of K names.

        Names that do not compete with each other need not be in memory at once.
        """
        if config.mode == "semantic":
            q = crf.marginals(self._crf_input(proposals, config))  # (K + 1, H, W)
            labels = q.argmax(dim=0).cpu().numpy()
            for label in range(1, len(q)):
                yield labels == label, q[label]
            return
        for start in range(0, len(proposals), _FIELDS):
            some = proposals[start : start + _FIELDS]
            for q in crf.marginals(self._crf_input(some, config)):  # (2, H, W)
                yield q.argmax(dim=0).cpu().numpy() == 1, q[1]

    @torch.no_grad()
    def end(
        self,
        scene: Scene,
        left: Survivors,
        count: int,
        config: CaRConfig,
        return_marginals: bool = False,
    ) -> Found:
        """Run the CRF on what a step left, and give its masks to the names they belong to.

        In faithful mode the original's order is kept: masks that win no pixel may vanish, so that
        those behind them move up to other names.

        Args:
            scene: the image.
            left: the names and their masks.
            count: N, of all names.
            config: how.
            return_marginals: also keep what the CRF says.
        """
        proposals, alive, scores = left.proposals, list(left.names), left.scores
        size = scene.image.shape[:2]
        marginals = np.zeros((count, *size), dtype=np.float32) if return_marginals else None
        found = Found(
            np.zeros((count, *size), dtype=bool), np.zeros(count, dtype=np.float32), marginals
        )
        if not proposals.any():
            if not config.faithful:
                found.scores[alive] = scores
            return found
        masks, soft = [], []
        for mask, marginal in self._masks_along_edges(scene.crf, proposals, config):
            masks.append(mask)
            if return_marginals:
                soft.append(marginal.cpu().numpy())
        places = list(range(len(masks)))
        if config.faithful:
            visible = [place for place in places if masks[place].any()]
            together = config.mode == "semantic"
            places = places[: max(visible, default=-1) + 1] if together else visible
        for index, place, score in zip(alive, places, scores, strict=False):
            found.masks[index], found.scores[index] = masks[place], score
            if marginals is not None:
                marginals[index] = soft[place]
        return found


@dataclass(frozen=True)
class _ClassifierTexts:
    """Text embeddings (T, K, E) of the names that are left, in T templates.

    Attributes:
        features: the embeddings.
        plain: one softmax over the only template, no second one over the sum.
    """

    features: Tensor
    plain: bool = False

    def keep(self, kept: list[int]) -> _ClassifierTexts:
        """Return the texts of the names that stay."""
        return _ClassifierTexts(self.features[:, kept], self.plain)

    def score(self, classifier: MaskClassifier, features: Tensor) -> NDArray[np.float32]:
        """Score image embeddings (K, E) against the texts: (K, K)."""
        if self.plain:
            scores = classifier.per_template(features, self.features)[0]
        else:
            scores = classifier.scores(features, self.features)
        matrix: NDArray[np.float32] = scores.cpu().numpy()
        return matrix


class _FaithfulSentences(_ClassifierTexts):
    """The original's sentences without templates: keeping some of them keeps single characters.

    Source: SPEC car 6, "bug without templates".
    """

    def __init__(self, features: Tensor, sentences: list[str], encoder: TextEncoder) -> None:
        super().__init__(features, plain=True)
        object.__setattr__(self, "sentences", sentences)
        object.__setattr__(self, "encoder", encoder)

    sentences: list[str]
    encoder: TextEncoder

    def keep(self, kept: list[int]) -> _ClassifierTexts:
        """Return the kept places' characters of every sentence, one "template" each."""
        shortest = min(self.sentences, key=len)
        if max(kept) >= len(shortest):
            raise InputError(
                f"the original crashes here: it takes character {max(kept)} of {shortest!r}; "
                "give fewer sentences or leave faithful mode"
            )
        rows = [[sentence[place] for place in kept] for sentence in self.sentences]
        flat = self.encoder.encode_texts([character for row in rows for character in row])
        return _ClassifierTexts(flat.view(len(rows), len(kept), -1))


def select(scores: NDArray[np.float32], threshold: float) -> tuple[int, ...]:
    """Return the places of scores (K,) above a threshold, or of the first highest if none is."""
    kept = np.flatnonzero(scores > threshold)
    return tuple(kept.tolist()) if len(kept) else (int(scores.argmax()),)
