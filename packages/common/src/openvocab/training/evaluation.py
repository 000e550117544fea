"""The evaluation inside a training run, which gives the same result for any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openvocab.datasets.samples import SampleSet
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import evaluate_set
from openvocab.segmenter import Segmenter
from openvocab.training.distributed import Processes


def evaluate_in_processes(
    segmenter: Segmenter, sets: Sequence[SampleSet], folder: Path, processes: Processes
) -> list[Result]:
    """Evaluate on data sets, every process on its share of the images.

    Args:
        segmenter: segmenter with the same weights in every process.
        sets: data sets to evaluate on.
        folder: folder for logs and results, which all processes can read.
        processes: the processes.

    Returns:
        The complete result of each set, in every process.
    """
    results = []
    segmenter = _OnAnyDevice(segmenter)
    for data in sets:
        output = folder / data.name
        result = evaluate_set(
            segmenter,
            data,
            output=output,
            shard=(processes.rank, processes.size),
            progress=processes.is_main,
        )
        processes.barrier()
        if not result.complete:  # the others had finished later: read what they logged
            result = evaluate_set(segmenter, data, output=output, progress=False)
        processes.barrier()
        results.append(result)
    return results


class _OnAnyDevice:
    """A segmenter whose card does not say which of several GPUs it uses, which is irrelevant."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.segment = segmenter.segment

    def describe(self) -> dict[str, Any]:
        """Return the lines of the protocol card."""
        described = self.segmenter.describe()
        return {**described, "device": str(described.get("device", "")).partition(":")[0]}


def mean_ious(sets: Sequence[SampleSet], results: Sequence[Result]) -> dict[str, float]:
    """Return the mean IoU of each data set (detectron2's convention, percent), by name."""
    return {
        f"mIoU {data.name}": result.scores("detectron2").miou
        for data, result in zip(sets, results, strict=True)
    }
