"""From masks and their classes to a score, or a label, for every pixel.

All three methods end in `score[k, y, x] = sum over q of p[q, k] * s[q, y, x]` with non-negative
class probabilities p and soft masks s. Labels never need the full (K, H, W) volume: they are found
tile by tile, and in each tile only among the names that can win there. That is exact: bilinear
resizing averages, so in a tile every mask lies between the smallest and largest of the few grid
cells that reach into it, and a name whose best case is below another's worst case cannot win.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from openvocab.computation import to_device
from openvocab.errors import InputError
from openvocab.vocabulary import Vocabulary

# Pixels of a tile's side: small enough for tight bounds, large enough for efficient products.
TILE = 32
# Sums of rounded products differ by parts in a million between orders of summation; a name this
# close to the best (relative to the best) is still compared pixel by pixel.
_SLACK = 1e-4
# Masks and scores of the tiles in work stay below this many numbers, which a CPU's cache can hold.
_BLOCK = 1 << 20
# Words times pixels of a strip of resized maps.
_STRIP = 1 << 24


@dataclass(frozen=True)
class MaskGeometry:
    """How mask logits on a grid become masks on the output image.

    Attributes:
        padded: (H, W) of the network's input, to which the grid is resized,
        valid: (h, w) of it that are image, the rest is cut off,
        output: (H0, W0) of the result, to which that is resized.
        resize_logits: resize logits to the output and take their sigmoid last (SAN), or take the
            sigmoid at the network's size and resize the result (OVSeg).
    """

    padded: tuple[int, int]
    valid: tuple[int, int]
    output: tuple[int, int]
    resize_logits: bool = True


def semantic_scores(class_prob: Tensor, mask_logits: Tensor, geometry: MaskGeometry) -> Tensor:
    """Compute the score of every name at every pixel, by the originals' operations.

    Args:
        class_prob: (Q, K), not negative.
        mask_logits: (Q, hs, ws).
        geometry: sizes on the way to the output.

    Returns:
        (K, H0, W0) float32.
    """
    check_finite_scores(class_prob, mask_logits)
    height, width = geometry.valid
    masks = _resize(mask_logits[None].float(), geometry.padded)[..., :height, :width]
    if geometry.resize_logits:
        masks = _resize(masks, geometry.output).sigmoid()
        return torch.einsum("qk,qhw->khw", class_prob.float(), masks[0])
    scores = torch.einsum("qk,qhw->khw", class_prob.float(), masks[0].sigmoid())
    return _resize(scores[None], geometry.output)[0]


def semantic_labels(
    class_prob: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    threshold: float | None = None,
    tile: int = TILE,
) -> Tensor:
    """Find the name with the highest score at every pixel; ties go to the lowest index.

    Args:
        class_prob: (Q, K), not negative.
        mask_logits: (Q, hs, ws).
        geometry: sizes on the way to the output.
        threshold: pixels whose best score is below it get -1.
        tile: side in pixels of the pieces that are handled one by one.

    Returns:
        (H0, W0) int64; memory is bounded for any number of names and pixels.
    """
    check_finite_scores(class_prob, mask_logits)
    class_prob, mask_logits = class_prob.float().contiguous(), mask_logits.float()
    if mask_logits.device.type != "cpu":
        return _labels_by_strips(class_prob, mask_logits, geometry, threshold)
    rows = _axis(mask_logits.shape[1], 0, geometry, tile)
    columns = _axis(mask_logits.shape[2], 1, geometry, tile)
    labels = torch.empty(geometry.output, dtype=torch.int64, device=mask_logits.device)
    contested: list[_Tile] = []
    for row in rows:
        lowest, highest = _bounds(mask_logits, row, columns)  # (Q, tiles) each
        winners, candidates = _candidates(class_prob, lowest, highest, threshold)
        for column, winner, names in zip(columns, winners, candidates, strict=True):
            if names is None:
                labels[row.output, column.output] = winner
            else:
                contested.append(_Tile(row, column, names))
    for group in _groups(contested, len(mask_logits)):
        masks = _tile_masks(mask_logits, group)
        best = _best_names(class_prob, [tile.names for tile in group], masks, threshold)
        for tile_labels, member in zip(best, group, strict=True):
            target = labels[member.row.output, member.column.output]
            target.copy_(tile_labels.view_as(target))
    return labels


def _labels_by_strips(
    class_prob: Tensor, mask_logits: Tensor, geometry: MaskGeometry, threshold: float | None
) -> Tensor:
    """Find the best names by comparing all at every pixel: (H0, W0).

    For devices that multiply fast, and on which asking which names can win costs a wait for each
    tile; here the CPU waits for nothing.
    """
    column = _axis(mask_logits.shape[2], 1, geometry, geometry.output[1])[0]
    wide = [to_device(part, mask_logits.device) for part in (column.first, column.second)]
    width = max(len(part) for part in wide)
    step = max(1, _STRIP // (max(class_prob.shape) * width))
    strips = []
    for row in _axis(mask_logits.shape[1], 0, geometry, step):
        high = [to_device(part, mask_logits.device) for part in (row.first, row.second)]
        masks = high[0] @ mask_logits[:, row.grid, column.grid] @ wide[0].T
        masks = masks.sigmoid_()  # (Q, ny, nx)
        if not geometry.resize_logits:
            masks = high[1] @ masks @ wide[1].T
        scores, names = (class_prob.T @ masks.flatten(1)).max(dim=0)  # the first of equal ones
        strips.append(names if threshold is None else names.where(scores >= threshold, -1))
    return torch.cat(strips).view(geometry.output)


def check_finite_scores(*scores: Tensor) -> None:
    """Refuse scores that are not numbers, since comparisons would turn them into confident labels.

    Raises:
        InputError: there is a NaN or an infinity, as where half precision overflows.
    """
    total = torch.stack([part.sum(dtype=torch.float32) for part in scores if part.numel()]).sum()
    if not bool(total.isfinite()):
        raise InputError(
            "the scores of this image are not finite: the numbers overflow in this precision, or "
            "the weights are damaged; use --precision fp32, and if that does not help, other "
            "weights"
        )


def vocabulary_labels(
    class_prob: Tensor,
    no_object: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    vocabulary: Vocabulary,
) -> NDArray[np.int32]:
    """Label pixels with the names of a vocabulary, by its background policy.

    Args:
        class_prob: (Q, W) of the vocabulary's words.
        no_object: (Q,) of the learned "no object", used only where the policy says "learned".
        mask_logits: (Q, hs, ws).
        geometry: sizes on the way to the output.
        vocabulary: tells what each word stands for.

    Returns:
        (H0, W0), indices into `vocabulary.names`, or -1 for nothing.
    """
    policy, labels = vocabulary.background, vocabulary.word_labels
    nothing = vocabulary.background_label
    if policy.kind == "learned":
        class_prob = torch.cat([class_prob, no_object[:, None].to(class_prob)], dim=1)
        labels = np.append(labels, np.int32(nothing))
    winners = semantic_labels(class_prob, mask_logits, geometry, threshold=policy.value)
    labels = np.append(labels, np.int32(nothing))  # where a winner of -1 points
    found: NDArray[np.int32] = labels[winners.cpu().numpy()]
    return found


def vocabulary_scores(scores: Tensor, vocabulary: Vocabulary) -> NDArray[np.float32]:
    """Reduce scores of words (W, H, W) to those of names (K, H, W): a name's best word counts.

    A class "background" that is won by a threshold scores that threshold everywhere.
    """
    result = torch.zeros(len(vocabulary), *scores.shape[1:], device=scores.device)
    for score, label in zip(scores, vocabulary.word_labels.tolist(), strict=True):
        if label >= 0:
            torch.maximum(result[label], score, out=result[label])
    if vocabulary.background.value is not None and vocabulary.background_label >= 0:
        result[vocabulary.background_label] = vocabulary.background.value
    array: NDArray[np.float32] = result.cpu().numpy()
    return array


def label_word_maps(
    maps: Tensor,
    output: tuple[int, int],
    vocabulary: Vocabulary,
    to_scores: Callable[[Tensor], Tensor],
    *,
    return_scores: bool,
) -> tuple[NDArray[np.int32], NDArray[np.float32] | None]:
    """Resize one map for each word to the image, and label pixels by the background policy.

    This is for methods that compare each place of a grid with each word. It goes strip by strip, so
    that without scores memory is bounded for any number of words and pixels.

    Args:
        maps: (W, h, w) of the vocabulary's words, larger where a word fits better.
        output: (H, W) of the image.
        vocabulary: vocabulary whose policy "threshold" applies to scores; "learned" has no meaning
            here.
        to_scores: function that makes scores of resized maps (W, r, W); it must keep their order at
            each pixel.
        return_scores: whether to return scores.

    Returns:
        Labels (H, W), indices into `vocabulary.names` or -1, and scores (K, H, W) or None.
    """
    rows = to_device(bilinear_matrix(maps.shape[1], output[0]), maps.device).to(maps)
    columns = to_device(bilinear_matrix(maps.shape[2], output[1]), maps.device).to(maps)
    threshold = vocabulary.background.value
    word_labels = np.append(vocabulary.word_labels, np.int32(vocabulary.background_label))
    labels, scores = np.empty(output, np.int32), []
    step = max(1, _STRIP // (len(maps) * output[1]))
    for start in range(0, output[0], step):
        strip = rows[start : start + step] @ maps @ columns.T  # (W, r, width)
        winners = strip.cpu().numpy().argmax(axis=0)  # the first of equal ones
        if return_scores or threshold is not None:
            strip = to_scores(strip)
        if threshold is not None:
            winners[(strip.amax(dim=0) < threshold).cpu().numpy()] = -1  # the appended label
        labels[start : start + step] = word_labels[winners]
        if return_scores:
            scores.append(vocabulary_scores(strip, vocabulary))
    return labels, np.concatenate(scores, axis=1) if return_scores else None


@dataclass(frozen=True)
class _Interval:
    """A run of output rows (or columns), and the rows of the grid from which it is computed.

    Attributes:
        output: the run.
        grid: the rows of the grid that reach into it.
        first: (n, grid rows) resizes them to what the sigmoid is taken of: the run itself, or the
            rows of the network's input that are needed for it.
        second: (output rows, n) resizes those to the run; (output rows, 0) if they are the run.
    """

    output: slice
    grid: slice
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class _Tile:
    """A tile in which more than one name may win, with the places (n,) of these names."""

    row: _Interval
    column: _Interval
    names: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the sizes that tiles must share to be computed together."""
        return (
            *self.row.second.shape,
            *self.row.first.shape,
            *self.column.second.shape,
            *self.column.first.shape,
        )

    @property
    def pixels(self) -> int:
        """Return the count of numbers that one mask of this tile takes at the largest stage."""
        return max(
            len(self.row.first) * len(self.column.first),
            len(self.row.second) * len(self.column.second),
        )


def _groups(tiles: list[_Tile], queries: int) -> Iterator[list[_Tile]]:
    """Group tiles of one shape and similar numbers of names, within a bound on memory."""
    tiles = sorted(tiles, key=lambda tile: (tile.shape, len(tile.names)))
    for _, same in itertools.groupby(tiles, key=lambda tile: tile.shape):
        group: list[_Tile] = []
        for tile in same:
            depth = max(queries, len(tile.names))  # the longest list of names so far
            if group and (len(group) + 1) * tile.pixels * depth > _BLOCK:
                yield group
                group = []
            group.append(tile)
        yield group


def _axis(cells: int, axis: int, geometry: MaskGeometry, tile: int) -> list[_Interval]:
    """Cut one axis of the output into runs of at most `tile` pixels."""
    size, valid = geometry.output[axis], geometry.valid[axis]
    to_network = bilinear_matrix(cells, geometry.padded[axis])[:valid]
    to_output = bilinear_matrix(valid, size)
    intervals = []
    for start in range(0, size, tile):
        output = slice(start, min(start + tile, size))
        network = _support(to_output[output])
        grid = _support(to_network[network])
        first, second = to_network[network, grid], to_output[output, network]
        if geometry.resize_logits:
            first, second = second @ first, second[:, :0]
        intervals.append(_Interval(output, grid, first, second))
    return intervals


def bilinear_matrix(source: int, target: int) -> Tensor:
    """Return the weights (target, source) of bilinear resizing along one axis.

    As `F.interpolate(mode="bilinear", align_corners=False)` without antialiasing.
    """
    identity = torch.eye(source)[:, :, None]  # each unit vector is resized
    weights = F.interpolate(identity[None], size=(target, 1), mode="bilinear", align_corners=False)
    return weights[0, :, :, 0].T.contiguous()


def _support(weights: Tensor) -> slice:
    """Return the run of columns in which any of the rows (n, source) has weight."""
    used = (weights != 0).any(dim=0).nonzero()
    return slice(int(used[0]), int(used[-1]) + 1)


def _bounds(mask_logits: Tensor, row: _Interval, columns: list[_Interval]) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest mask values (Q, tiles) in each tile of a row of tiles."""
    band = mask_logits[:, row.grid]
    low, high = band.amin(dim=1), band.amax(dim=1)  # (Q, ws)
    lowest = torch.stack([low[:, column.grid].amin(dim=1) for column in columns], dim=1)
    highest = torch.stack([high[:, column.grid].amax(dim=1) for column in columns], dim=1)
    return lowest.sigmoid(), highest.sigmoid()


def _candidates(
    class_prob: Tensor, lowest: Tensor, highest: Tensor, threshold: float | None
) -> tuple[list[int], list[Tensor | None]]:
    """Find the names that can win in each tile.

    Returns:
        A possible winner of every tile, and the names in question; None where it is the only one.
    """
    best_case = class_prob.T @ highest  # (K, tiles)
    floor, winners = (class_prob.T @ lowest).max(dim=0)
    possible = best_case >= floor * (1 - _SLACK)
    unclear = possible.sum(dim=0) > 1
    if threshold is not None:
        unclear |= floor < threshold * (1 + _SLACK)
    names = [
        possible[:, index].nonzero()[:, 0] if contested else None
        for index, contested in enumerate(unclear.tolist())
    ]
    return winners.tolist(), names


def _tile_masks(mask_logits: Tensor, group: list[_Tile]) -> Tensor:
    """Compute the soft masks (tiles, Q, y * x) of tiles of one shape."""
    patches = torch.stack([mask_logits[:, tile.row.grid, tile.column.grid] for tile in group])
    rows = torch.stack([tile.row.first for tile in group]).to(patches)
    columns = torch.stack([tile.column.first for tile in group]).to(patches)
    masks = _along_axes(rows, patches, columns).sigmoid_()  # (tiles, Q, ny, nx)
    if group[0].row.second.shape[1]:
        second_rows = torch.stack([tile.row.second for tile in group]).to(masks)
        second_columns = torch.stack([tile.column.second for tile in group]).to(masks)
        masks = _along_axes(second_rows, masks, second_columns)
    return masks.flatten(2)


def _along_axes(rows: Tensor, maps: Tensor, columns: Tensor) -> Tensor:
    """Apply the matrices (T, y, i) and (T, x, j) of each tile to its maps (T, Q, i, j)."""
    narrow = maps.flatten(1, 2) @ columns.transpose(1, 2)  # (T, Q * i, x)
    return rows[:, None] @ torch.unflatten(narrow, 1, (maps.shape[1], maps.shape[2]))


def _best_names(
    class_prob: Tensor, names: list[Tensor], masks: Tensor, threshold: float | None
) -> Tensor:
    """Return the best of each tile's candidates at its pixels: (tiles, y * x).

    Shorter lists are filled with their own first name: of equal scores the first wins.
    """
    most = max(len(own) for own in names)
    padded = torch.stack([torch.cat([own, own[:1].expand(most - len(own))]) for own in names])
    best_score = torch.full((len(names), masks.shape[2]), -1.0, device=masks.device)
    best_name = torch.zeros_like(best_score, dtype=torch.int64)
    for chunk in torch.split(padded, max(1, _BLOCK // best_score.numel()), dim=1):
        prob = class_prob.T[chunk]  # (tiles, names, Q)
        score, index = (prob @ masks).max(dim=1)  # (tiles, pixels) each; the first of equal ones
        better = score > best_score  # earlier names win ties
        best_score = torch.where(better, score, best_score)
        best_name = torch.where(better, chunk.gather(1, index), best_name)
    return best_name if threshold is None else best_name.where(best_score >= threshold, -1)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
