"""Masked crops with nouns, from proposals that CLIP matches with nouns or from true masks.

Source: OVSeg paper section 3.2 ("collecting diverse mask-category pairs from captions"); the
original release has no code for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from openvocab.computation import choose_device
from openvocab.datasets.label_check import check_labels, check_same_size
from openvocab.datasets.samples import Sample, SampleSet
from openvocab.errors import InputError
from openvocab.image import ImageArray, list_images, read_image, resize_shortest_edge
from openvocab.training.segmentation_data import open_training_set
from openvocab.training.settings import DataConfig
from openvocab.vocabulary import Vocabulary
from ovseg.config import RegionConfig
from ovseg.mask_clip import MaskCLIP
from ovseg.nouns import nouns_by_path, nouns_of_captions, read_captions, read_nouns
from ovseg.pairs import PairWriter, paint_crop
from ovseg.segmenter import OVSegSegmenter
from ovseg.weights import load_ovseg

Crop = tuple[ImageArray, str]
_ANYTHING = Vocabulary(("object",))


def match_nouns(
    features: Tensor, nouns: Tensor, areas: Tensor, *, per_noun: int, min_area: float
) -> list[tuple[int, int]]:
    """Assign to every noun the proposals that match it best.

    Args:
        features: unit-length embeddings of V proposals (V, E).
        nouns: unit-length embeddings of N nouns (N, E).
        areas: shares of the image that the proposals cover (V,), 0..1.
        per_noun: number of proposals for each noun.
        min_area: smaller proposals are left out.

    Returns:
        Pairs (proposal, noun), nouns in order, best first.
    """
    usable = (areas >= min_area).nonzero().squeeze(1)
    similarity = features[usable] @ nouns.T  # (V', N)
    best = similarity.topk(min(per_noun, len(usable)), dim=0).indices  # (per_noun, N)
    return [
        (int(usable[proposal]), noun)
        for noun in range(len(nouns))
        for proposal in best[:, noun].tolist()
    ]


class ProposalMatcher:
    """Makes proposals in an image and matches them with nouns.

    Args:
        segmenter: a stage-1 model.
        clip: CLIP that names the proposals; it is not yet adapted, so it has no mask prompts.
        per_noun: proposals for each noun.
        min_area: smallest share of the image that a proposal covers.
        expand_ratio: factor by which the sides of a crop are longer than those of its mask's box.
    """

    def __init__(
        self,
        segmenter: OVSegSegmenter,
        clip: MaskCLIP,
        *,
        per_noun: int,
        min_area: float,
        expand_ratio: float = 1.0,
    ) -> None:
        inference = replace(segmenter.inference, clip_ensemble=False)  # only its masks are used
        self.segmenter = segmenter.with_inference(inference)
        self.clip, self.per_noun, self.min_area = clip, per_noun, min_area
        self.threshold = inference.region.mask_threshold
        self.region = RegionConfig(
            mask_threshold=self.threshold, mask_prompts=False, expand_ratio=expand_ratio
        )

    @torch.inference_mode()
    def crops(self, image: ImageArray, nouns: Sequence[str]) -> list[Crop]:
        """Return painted crops of an image (H, W, 3) with their nouns."""
        resized = self.segmenter.resize(image)
        probability = self.segmenter.look(resized, _ANYTHING).mask_prob()  # (Q, h, w)
        pixels = torch.from_numpy(resized).permute(2, 0, 1).to(probability.device)
        self.clip.region = self.region  # the segmenter may use the same CLIP in its own way
        features, valid = self.clip.encode_proposals(pixels, probability)
        masks = probability[valid] > self.threshold
        chosen = match_nouns(
            features,
            self.clip.embed_names(nouns),
            masks.flatten(1).float().mean(1),
            per_noun=self.per_noun,
            min_area=self.min_area,
        )
        ratio = self.region.expand_ratio
        return [(paint_crop(resized, masks[q].cpu().numpy(), ratio), nouns[n]) for q, n in chosen]


def labelled_crops(
    image: ImageArray,
    label: NDArray[Any],
    names: Sequence[str],
    short: int,
    max_size: int,
    expand_ratio: float = 1.0,
) -> list[Crop]:
    """Return a crop for each class in a label map, at the size of the model's input."""
    resized = resize_shortest_edge(image, short, max_size)
    height, width = resized.shape[:2]
    rows = (np.arange(height) + 0.5) * label.shape[0] / height
    columns = (np.arange(width) + 0.5) * label.shape[1] / width
    small = label[rows.astype(int)][:, columns.astype(int)]
    present = [value for value in np.unique(small) if 0 <= value < len(names)]
    return [
        (paint_crop(resized, small == value, expand_ratio), names[value].strip())
        for value in present
    ]


def collect_crops(
    writer: PairWriter, work: Iterable[tuple[str, Iterable[Crop] | None]], total: int
) -> None:
    """Write the pairs of all images; None stands for an image whose pairs are already written."""
    for name, crops in tqdm(work, total=total, unit="image", disable=None):
        if crops is not None:
            writer.add(name, crops)
    path = writer.finish()
    print(f"{len(writer.pairs)} pairs of {len(writer.done)} images: {path}")


def _from_nouns(
    nouns: Mapping[Path, Sequence[str]], folder: Path, matcher: ProposalMatcher, done: set[str]
) -> Iterator[tuple[str, list[Crop] | None]]:
    for path, words in nouns.items():
        name = path.relative_to(folder).with_suffix("").as_posix().replace("/", "__")
        if name in done:
            yield name, None
        else:
            yield name, matcher.crops(read_image(path), words) if words else []


def _from_labels(
    data: SampleSet, short: int, max_size: int, expand_ratio: float, done: set[str]
) -> Iterator[tuple[str, list[Crop] | None]]:
    for sample in data.samples:
        name = _file_name(sample)
        if name in done:
            yield name, None
            continue
        image, label = read_image(sample.image), data.read_label(sample)
        check_same_size(sample, image, label)
        names = data.vocabulary.names
        yield name, labelled_crops(image, label, names, short, max_size, expand_ratio)


def _file_name(sample: Sample) -> str:
    return sample.id.replace("/", "__")


def collect_from_labels(args: argparse.Namespace) -> None:
    """Collect pairs from label maps, as the arguments of `ovseg.collect_pairs` say."""
    data = open_training_set(
        DataConfig(args.dataset, args.data_root, label_offset=args.label_offset)
        if args.labels is None
        else DataConfig(
            None, None, args.images, args.labels, args.names, label_offset=args.label_offset
        )
    )
    check_labels(data, samples=data.samples[: args.limit], progress=True)
    writer = PairWriter(args.output)
    work = _from_labels(data, args.min_size, args.max_size, args.expand_ratio, writer.done)
    collect_crops(writer, _first(work, args.limit), args.limit or len(data.samples))


def collect_from_words(args: argparse.Namespace) -> None:
    """Collect pairs from captions or nouns, as the arguments of `ovseg.collect_pairs` say."""
    if args.images is None or (args.captions is None) == (args.nouns is None):
        raise InputError(
            "give --images with either --captions or --nouns; or --dataset, or --images with "
            "--labels and --names"
        )
    if not args.images.is_dir():
        raise InputError(f"--images is '{args.images}'; give a folder of images")
    if args.weights is None:
        raise InputError("--weights is missing: proposals need a stage-1 OVSeg checkpoint")
    if args.per_noun < 1:
        raise InputError(f"--per-noun is {args.per_noun}; give at least 1")
    if args.nouns is not None:
        nouns = read_nouns(args.nouns)
    else:
        nouns = nouns_of_captions(read_captions(args.captions), args.captions_per_image)
    words = nouns_by_path(list_images([args.images])[: args.limit], args.images, nouns)
    device = choose_device(args.device)
    segmenter = load_ovseg(args.weights, config=args.config_file, device=device)
    clip: MaskCLIP = segmenter.model.clip_adapter
    if args.clip is not None:
        clip = MaskCLIP.load(args.clip).to(device)
    matcher = ProposalMatcher(
        segmenter,
        clip,
        per_noun=args.per_noun,
        min_area=args.min_area,
        expand_ratio=args.expand_ratio,
    )
    writer = PairWriter(args.output)
    collect_crops(writer, _from_nouns(words, args.images, matcher, writer.done), len(words))


def _first(
    work: Iterator[tuple[str, list[Crop] | None]], limit: int | None
) -> Iterator[tuple[str, list[Crop] | None]]:
    for count, item in enumerate(work):
        if limit is not None and count >= limit:
            return
        yield item
