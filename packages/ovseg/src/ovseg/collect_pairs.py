"""Collect masked crops with nouns: `python -m ovseg.collect_pairs --images DIR --nouns FILE ...`.

Each noun of an image's caption gets the proposals that CLIP finds most like it; or, from a labelled
data set, every class that an image shows gets its true mask.

Source: OVSeg paper section 3.2 ("collecting diverse mask-category pairs from captions"); the
original release has no code for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from openvocab.cli import run
from openvocab.computation import add_device_argument, choose_device
from openvocab.datasets.label_check import check_labels, check_same_size
from openvocab.datasets.samples import Sample, SampleSet
from openvocab.errors import InputError
from openvocab.image import ImageArray, list_images, read_image, resize_shortest_edge
from openvocab.training.segmentation_data import open_training_set
from openvocab.training.settings import DataConfig
from openvocab.vocabulary import Vocabulary
from ovseg.config import RegionConfig
from ovseg.mask_clip import MaskCLIP
from ovseg.pairs import PairWriter, paint_crop
from ovseg.segmenter import OVSegSegmenter
from ovseg.weights import load_ovseg

Crop = tuple[ImageArray, str]
_DETERMINERS = frozenset(("a", "an", "the", "this", "that", "some", "his", "her", "its", "their"))
_ANYTHING = Vocabulary(("object",))


def match_nouns(
    features: Tensor, nouns: Tensor, areas: Tensor, *, per_noun: int, min_area: float
) -> list[tuple[int, int]]:
    """Give every noun its best proposals.

    Args:
        features: unit-length embeddings of V proposals (V, E).
        nouns: unit-length embeddings of N nouns (N, E).
        areas: shares of the image that the proposals cover (V,), 0..1.
        per_noun: how many proposals a noun gets.
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
        clip: names the proposals; not yet adapted, so without mask prompts.
        per_noun: proposals for each noun.
        min_area: smallest share of the image that a proposal covers.
        expand_ratio: how much longer the sides of a crop are than those of its mask's box.
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
    """Return a crop for each class that a label map shows, at the size the model would see."""
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


def read_nouns(file: Path) -> dict[str, list[str]]:
    """Read nouns by image: JSON `{"a.jpg": ["dog", ...]}`, or lines `a.jpg<TAB>dog, grass`.

    Raises:
        InputError: the file cannot be read, or is neither.
    """
    text = _read_text(file)
    if file.suffix == ".json":
        content = _parse_json(text, file)
        if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
            raise InputError(f"{file} must map image names to lists of nouns")
        return {str(image): _unique(map(str, nouns)) for image, nouns in content.items()}
    lines = _tabbed_lines(text, file, "its nouns")
    return {image: _unique(nouns.split(",")) for image, nouns in lines}


def read_captions(file: Path) -> dict[str, list[str]]:
    """Read captions by image: COCO's JSON, or lines `a.jpg<TAB>A dog runs.`.

    Raises:
        InputError: the file cannot be read, or is neither.
    """
    text = _read_text(file)
    found: dict[str, list[str]] = defaultdict(list)
    if file.suffix != ".json":
        for image, caption in _tabbed_lines(text, file, "its caption"):
            found[image].append(caption)
        return dict(found)
    content = _parse_json(text, file)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise InputError(f"{file} is not COCO's captions: it needs images and annotations")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        found[names[annotation["image_id"]]].append(annotation["caption"])
    return dict(found)


def nouns_of_captions(captions: Mapping[str, Sequence[str]], limit: int) -> dict[str, list[str]]:
    """Find the noun phrases of the first `limit` captions of each image, with spaCy.

    Raises:
        InputError: spaCy or its English model is not installed.
    """
    try:
        import spacy

        parse = spacy.load("en_core_web_sm", disable=["ner"])
    except (ImportError, OSError):
        raise InputError(
            "captions need spaCy and its model en_core_web_sm (pip install spacy, then python -m "
            "spacy download en_core_web_sm); or give the nouns yourself with --nouns FILE"
        ) from None
    texts = [(caption, image) for image, all_ in captions.items() for caption in all_[:limit]]
    found: dict[str, list[str]] = defaultdict(list)
    for document, image in parse.pipe(texts, as_tuples=True):
        found[image] += [without_determiner(chunk.text) for chunk in document.noun_chunks]
    return {image: _unique(nouns) for image, nouns in found.items()}


def without_determiner(phrase: str) -> str:
    """Take "the" and its like off the front of a noun phrase, in lower case."""
    words = phrase.lower().split()
    while words and words[0] in _DETERMINERS:
        words.pop(0)
    return " ".join(words)


def collect(
    writer: PairWriter, work: Iterable[tuple[str, Iterable[Crop] | None]], total: int
) -> None:
    """Write the pairs of all images; None stands for one that is done."""
    for name, crops in tqdm(work, total=total, unit="image", disable=None):
        if crops is not None:
            writer.add(name, crops)
    path = writer.finish()
    print(f"{len(writer.pairs)} pairs of {len(writer.done)} images: {path}")


def nouns_by_path(
    images: Sequence[Path], folder: Path, nouns: Mapping[str, Sequence[str]]
) -> dict[Path, Sequence[str]]:
    """Find the nouns of each image, by its path in the folder, its file name or its stem.

    Raises:
        InputError: no image has any.
    """
    found: dict[Path, Sequence[str]] = {}
    for path in images:
        inside = path.relative_to(folder).as_posix()
        keys = (inside, path.name, path.stem)
        found[path] = next((nouns[key] for key in keys if nouns.get(key)), ())
    if not any(found.values()):
        known = ", ".join(list(nouns)[:3]) or "none"
        raise InputError(
            f"no image of {folder} has a noun; the names that do are {known}; the list must name "
            "images as their files are called"
        )
    return found


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


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is no UTF-8 text; convert it") from None


def _parse_json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is no JSON: {error}") from None


def _tabbed_lines(text: str, file: Path, what: str) -> Iterator[tuple[str, str]]:
    """Yield an image and what stands behind the tab, for each line that is not blank."""
    for number, line in enumerate(text.splitlines(), start=1):
        image, tab, rest = line.partition("\t")
        if line.strip() and not tab:
            raise InputError(f"{file}, line {number}: expected an image, a tab, and {what}")
        if tab:
            yield image, rest


def _unique(nouns: Iterable[str]) -> list[str]:
    stripped = (" ".join(noun.split()) for noun in nouns)
    return list(dict.fromkeys(noun for noun in stripped if noun))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(prog="python -m ovseg.collect_pairs", description=__doc__)
    words = result.add_argument_group("from captions or nouns")
    words.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    words.add_argument("--captions", type=Path, metavar="FILE", help="COCO's JSON, or a TSV")
    words.add_argument("--captions-per-image", type=int, default=1, metavar="N")
    words.add_argument("--nouns", type=Path, metavar="FILE", help="nouns by image: JSON, or a TSV")
    words.add_argument("--weights", type=Path, metavar="FILE", help="a stage-1 OVSeg checkpoint")
    words.add_argument("--config-file", metavar="FILE", help="its configuration")
    words.add_argument(
        "--clip", metavar="NAME", help="what names the proposals (default: the checkpoint's CLIP)"
    )
    words.add_argument("--per-noun", type=int, default=1, metavar="N", help="proposals per noun")
    words.add_argument("--min-area", type=float, default=0.001, metavar="SHARE")
    labels = result.add_argument_group("from labels")
    labels.add_argument("--dataset", metavar="NAME", help="a known data set")
    labels.add_argument("--data-root", type=Path, metavar="DIR")
    labels.add_argument("--labels", type=Path, metavar="DIR", help="label maps of --images")
    labels.add_argument("--names", type=Path, metavar="FILE", help="names of the labels")
    labels.add_argument(
        "--label-offset", type=int, default=0, metavar="N", help="-1 where labels count from 1"
    )
    labels.add_argument("--min-size", type=int, default=640, help="short side of the images")
    labels.add_argument("--max-size", type=int, default=2560, help="their longest long side")
    result.add_argument(
        "--expand-ratio", type=float, default=1.0, metavar="FACTOR",
        help="how much longer the sides of a crop are than those of its mask's box; as "
        "--region.expand-ratio of the model that will use the CLIP (default: 1)",
    )  # fmt: skip
    result.add_argument("--output", type=Path, default=Path("pairs"), metavar="DIR")
    result.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    add_device_argument(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Collect pairs; a second call goes on where the first was stopped."""
    args = build_parser().parse_args(argv)
    if not args.expand_ratio >= 1:
        raise InputError(f"--expand-ratio is {args.expand_ratio}; give a number of at least 1")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit is {args.limit}; give at least 1")
    if args.dataset is not None or args.labels is not None:
        _collect_labels(args)
    else:
        _collect_words(args)
    return 0


def _collect_labels(args: argparse.Namespace) -> None:
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
    collect(writer, _first(work, args.limit), args.limit or len(data.samples))


def _collect_words(args: argparse.Namespace) -> None:
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
    collect(writer, _from_nouns(words, args.images, matcher, writer.done), len(words))


def _first(
    work: Iterator[tuple[str, list[Crop] | None]], limit: int | None
) -> Iterator[tuple[str, list[Crop] | None]]:
    for count, item in enumerate(work):
        if limit is not None and count >= limit:
            return
        yield item


if __name__ == "__main__":
    sys.exit(run(main))
