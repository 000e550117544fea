"""CaR's recurrence: masks are proposed for all names and classified, and low scores are dropped.

    names = all names of the vocabulary
    repeat:
        masks  = one mask proposal for each name                     (mask_proposals.py)
        images = the photo with a visual prompt for each mask        (visual_prompts.py)
        scores = probability that image i shows name i               (mask_classifier.py)
        names  = names whose score is above the acceptance threshold (`select`)
    until no name was dropped
    masks = the last proposals, refined by a dense CRF               (crf.py)

Source: Sun et al., "CLIP as RNN: Segment Countless Visual Concepts without Training Endeavor"
(CVPR 2024), algorithm 1; SPEC car 6 and 7.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from car.config import CaRConfig
from car.crf import DenseCRF, crf_image, crf_input, masks_along_edges
from car.mask_classifier import MaskClassifier, NameScorer
from car.mask_proposals import ImageFeatures, MaskProposalGenerator, MaskProposals, SaliencyMaps
from car.visual_prompts import PromptedImages, VisualPrompter
from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder
from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.semantic import check_finite_scores

BACKGROUND_TEMPLATES = ("a clean origami {}.",)
_PLAIN = ("{}",)


@dataclass(frozen=True)
class Step:
    """One step of the recurrence, over the K names that earlier steps kept.

    Attributes:
        names: Indices (K,) of the names in the original list.
        queries: Texts (K,) for which masks were proposed.
        maps: Saliency maps and mask proposals.
        prompted: Images (K,) with visual prompts, the input of the mask classifier.
        score_matrix: Probabilities (K, K) of each name, in columns, for each prompted image, in
            rows. Each row sums to 1.
        kept: Indices into `names` of the names that the step keeps.
    """

    names: tuple[int, ...]
    queries: tuple[str, ...]
    maps: SaliencyMaps
    prompted: PromptedImages
    score_matrix: NDArray[np.float32]
    kept: tuple[int, ...]

    @property
    def scores(self) -> NDArray[np.float32]:
        """Probabilities (K,) that the prompted images show their own names."""
        return np.diagonal(self.score_matrix)


@dataclass(frozen=True)
class KeptNames:
    """The K names that a step keeps, with their masks.

    Attributes:
        names: Indices (K,) of the names in the original list.
        scores: Scores (K,) of the names in the step.
        proposals: Mask proposals of the names. In faithful mode there can be more than K, because
            the original code keeps those of dropped names.
    """

    names: tuple[int, ...]
    scores: NDArray[np.float32]
    proposals: MaskProposals


@dataclass(frozen=True)
class NameMasks:
    """The result of the recurrence for all N names.

    Attributes:
        masks: Masks (N, H, W) bool.
        scores: Scores (N,) of the last step, 0 for names that were dropped.
        marginals: Marginals (N, H, W) float32 of the CRF, 0 for names that were dropped. None
            unless requested.
        summary: Maximum and sum of the marginals (2, H, W) float32. None unless requested.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    marginals: NDArray[np.float32] | None = None
    summary: NDArray[np.float32] | None = None


class PreparedImage:
    """An image with the features that all steps share, each computed once when it is needed.

    Attributes:
        pixels: Image (H, W, 3) uint8 RGB.
        embeddings: CLIP embeddings (E,) of prompted images, by a key of their content.
    """

    def __init__(
        self, pixels: ImageArray, generator: MaskProposalGenerator, device: torch.device
    ) -> None:
        self.pixels, self._generator, self._device = pixels, generator, device
        self.embeddings: dict[bytes, Tensor] = {}

    @cached_property
    def features(self) -> ImageFeatures:
        """The features of the image before the last block of the mask proposal generator."""
        return self._generator.encode(self.pixels)

    @cached_property
    def crf(self) -> DenseCRF:
        """The CRF over the image."""
        return DenseCRF(crf_image(self.pixels), device=self._device)


class CaR:
    """The two networks of CaR and how they are used.

    Args:
        clip: CLIP that proposes masks.
        classifier_clip: CLIP that classifies prompted images. None for the same one.
        config: Settings of the method. None for the defaults.
        cache_dir: Folder for cached text embeddings, see `TextEncoder`.
        dtype: Number format in which prompted images are classified; the tower is converted in
            place, or copied if it also proposes masks. Proposals keep the format of their CLIP:
            regions are cut out of them at thresholds, and in bf16 some names get quite another
            region, which the next steps make worse.
    """

    def __init__(
        self,
        clip: CLIP,
        classifier_clip: CLIP | None = None,
        config: CaRConfig | None = None,
        *,
        cache_dir: str | Path | Literal[False] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.config = config or CaRConfig()
        text = TextEncoder(clip, cache_dir)
        self.mask_proposal_generator = MaskProposalGenerator(clip, text)
        if classifier_clip is None or classifier_clip is clip:
            visual = clip.visual
            if dtype not in (None, visual.proj.dtype):
                visual = copy.deepcopy(visual).to(dtype=dtype)
            self.mask_classifier = MaskClassifier(clip, text, visual)
        else:
            own_text = TextEncoder(classifier_clip, cache_dir)
            visual = classifier_clip.visual.to(dtype=dtype)
            self.mask_classifier = MaskClassifier(classifier_clip, own_text, visual)
        self.device = clip.visual.conv1.weight.device

    def with_config(self, config: CaRConfig) -> CaR:
        """Return the same networks with other settings."""
        other = copy.copy(self)
        other.config = config
        return other

    def prepare(self, image: ImageArray) -> PreparedImage:
        """Prepare an image (H, W, 3) uint8 RGB for any number of recurrences."""
        return PreparedImage(image, self.mask_proposal_generator, self.device)

    @torch.no_grad()
    def judge(self, pictures: Iterable[ImageArray], names: Sequence[str]) -> NDArray[np.float32]:
        """Score N prompted images (H, W, 3) against K names as in a step: (N, K)."""
        scorer = self.mask_classifier.scorer(names, self.config)
        return scorer.scores(self.mask_classifier.encode(pictures))


class Recurrence:
    """The recurrence on one image, which starts with all names and drops some in each step.

    Args:
        car: Networks of the method.
        image: Image in which the names are searched for.
        names: Different names (N,) or, in referring mode, descriptions of one object each.
        config: Settings of the method. None for those of `car`.
        on_step: Function that is called with the recurrence and the step after each step.

    Attributes:
        kept: Names that the last step kept. None before the first step.
        done: Whether no further step is needed.
        result: Result that `finish` returned last.

    Raises:
        InputError: There is no name, or a name occurs twice.
    """

    @torch.no_grad()
    @torch.inference_mode(False)
    def __init__(
        self,
        car: CaR,
        image: PreparedImage,
        names: Sequence[str],
        config: CaRConfig | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        if not names or len(set(names)) < len(names):
            raise InputError(f"the names are {list(names)}; give at least one, and none twice")
        self.car, self.image, self.names = car, image, tuple(names)
        self.config, self.on_step = config or car.config, on_step
        self.kept: KeptNames | None = None
        self.done = False
        self.result: NameMasks | None = None
        self._steps, self._convincing = 0, 0
        self._prompter = VisualPrompter(image.pixels, self.config.visual_prompt_type)
        self._scorer: NameScorer = car.mask_classifier.scorer(names, self.config)
        encode = car.mask_proposal_generator.text.encode_names
        self._background = encode(self.config.bg_cls, BACKGROUND_TEMPLATES)

    @property
    def queries(self) -> tuple[str, ...]:
        """The texts of the next step: the bare names at first, then the kept names in a template.

        Source: SPEC car 6.4.
        """
        if self.kept is None:
            return self.names
        return tuple(
            self.config.cam_text_template.format(self.names[place]) for place in self.kept.names
        )

    def run(
        self, *, return_marginals: bool = False, summed: NDArray[np.bool_] | None = None
    ) -> NameMasks:
        """Repeat steps until none is needed, and finish; see `finish`."""
        while not self.done:
            self.step()
        return self.finish(return_marginals=return_marginals, summed=summed)

    @torch.no_grad()
    @torch.inference_mode(False)  # saliency needs gradients, whatever the caller has switched off
    def step(self) -> Step:
        """Propose masks, classify them, and keep the names above the acceptance threshold."""
        config, classifier = self.config, self.car.mask_classifier
        alive = tuple(range(len(self.names))) if self.kept is None else self.kept.names
        queries = self.queries
        maps = self._propose(queries)
        prompted = PromptedImages(self._prompter, maps.proposals, config.mask_threshold)
        if len(alive) == 1:  # a softmax over one name
            matrix = np.ones((1, 1), dtype=np.float32)
        else:
            seen = classifier.encode(prompted, self.image.embeddings, batch=config.classifier_batch)
            matrix = self._scorer.scores(seen)
        check_finite_scores(maps.refined)
        check_finite_scores(torch.as_tensor(matrix))
        kept = select(np.diagonal(matrix), config.confidence_threshold)
        step = Step(alive, queries, maps, prompted, matrix, kept)
        self._drop_names(step)
        if self.on_step is not None:
            self.on_step(self, step)
        return step

    def skip_to(self, kept: KeptNames) -> None:
        """Take over the names that an equal recurrence kept, and take no further step."""
        self.kept, self.done = kept, True

    @torch.no_grad()
    @torch.inference_mode(False)
    def finish(
        self, *, return_marginals: bool = False, summed: NDArray[np.bool_] | None = None
    ) -> NameMasks:
        """Run the CRF on the masks of the last step, and assign the results to the names.

        In faithful mode the original's order is kept: masks that win no pixel may vanish, so that
        those behind them move up to other names.

        Args:
            return_marginals: also return what the CRF says, which takes much memory.
            summed: (N,) which names the summary of the marginals is of; None for no summary. In
                faithful mode masks that move up to another name count for the one they had.
        """
        kept, count, size = self._last(), len(self.names), self.image.pixels.shape[:2]
        marginals = np.zeros((count, *size), dtype=np.float32) if return_marginals else None
        summary = None if summed is None else np.zeros((2, *size), dtype=np.float32)
        self.result = found = NameMasks(
            np.zeros((count, *size), dtype=bool),
            np.zeros(count, dtype=np.float32),
            marginals,
            summary,
        )
        if not kept.proposals.any():
            if not self.config.faithful:
                found.scores[list(kept.names)] = kept.scores
            return found
        masks, soft = [], []
        for mask, marginal in masks_along_edges(
            self.image.crf, kept.proposals, self.config.bg_factor, together=self._together
        ):
            masks.append(mask)
            if return_marginals:
                soft.append(marginal.cpu().numpy())
            place = len(masks) - 1
            if summed is not None and place < len(kept.names) and summed[kept.names[place]]:
                _sum_up(found, marginal.cpu().numpy())
        places = self._visible(masks) if self.config.faithful else list(range(len(masks)))
        for name, place, score in zip(kept.names, places, kept.scores, strict=False):
            found.masks[name], found.scores[name] = masks[place], score
            if marginals is not None:
                marginals[name] = soft[place]
        return found

    def crf_input(self) -> Tensor:
        """Return the input of the CRF, see `crf.crf_input`."""
        proposals, device = self._last().proposals, self.image.crf.device
        return crf_input(proposals, self.config.bg_factor, together=self._together, device=device)

    def _propose(self, queries: Sequence[str]) -> SaliencyMaps:
        generator, config = self.car.mask_proposal_generator, self.config
        return generator.propose(
            self.image.features,
            generator.text.encode_names(queries, config.text_template or _PLAIN),
            self._background,
            config.clipes_threshold,
            together=self._together,
            faithful=config.faithful,
        )

    def _drop_names(self, step: Step) -> None:
        """Keep the names that a step leaves, and stop the recurrence if none was dropped."""
        kept, proposals = list(step.kept), step.maps.proposals
        if self.kept is not None and not proposals.any():
            proposals = self.kept.proposals  # those of the step before are better than none
        # The original carries the masks of dropped names along, which then get other names.
        if not self.config.faithful and len(kept) != len(proposals):
            proposals = proposals.keep(kept)
        scores = step.scores[kept]
        self.kept = KeptNames(tuple(step.names[place] for place in kept), scores, proposals)
        self._scorer = self._scorer.keep(kept)
        self._steps += 1
        convincing = int((scores > 0).sum())
        self.done = convincing == self._convincing or self._steps == self.config.max_steps
        self._convincing = convincing

    def _last(self) -> KeptNames:
        if self.kept is None:
            raise ValueError("no step was taken; call step() or run() first")
        return self.kept

    @property
    def _together(self) -> bool:
        """Return whether names compete with each other, instead of being segmented one by one."""
        return self.config.mode == "semantic"

    def _visible(self, masks: Sequence[NDArray[np.bool_]]) -> list[int]:
        """Return the places of the masks that the original keeps."""
        visible = [place for place, mask in enumerate(masks) if mask.any()]
        return list(range(max(visible, default=-1) + 1)) if self._together else visible


def _sum_up(found: NameMasks, marginal: NDArray[np.float32]) -> None:
    """Add the marginal (H, W) of a name to the summary, in place."""
    assert found.summary is not None
    best, total = found.summary
    np.maximum(best, marginal, out=best)
    np.add(total, marginal, out=total)


OnStep: TypeAlias = Callable[[Recurrence, Step], None]


def select(scores: NDArray[np.float32], threshold: float) -> tuple[int, ...]:
    """Return the places of scores (K,) above a threshold, or of the first highest if none is."""
    kept = np.flatnonzero(scores > threshold)
    return tuple(kept.tolist()) if len(kept) else (int(scores.argmax()),)
