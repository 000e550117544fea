"""The methods behind the page: each loaded once, and one picture at a time on the device.

Whoever asks waits for the one worker, and no longer than the time limit; a picture that is too
large for scores of so many names gets its label map without them.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from openvocab.app.analysis import NameEvidence, Scores, evidence_of, margin_of
from openvocab.app.asked import Asked
from openvocab.app.limits import Limits
from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.methods import Explained, Method
from openvocab.segmenter import Segmentation, Segmenter
from openvocab.vocabulary import NOTHING, WORLD, Vocabulary

_Result = TypeVar("_Result")
SCORE_UNIT = 1000
MOST_SCORE = 65  # `whole` holds no larger ones, and no method has them
_MOST_SCORES = 100_000_000  # numbers of a score volume (K, H, W): 400 MB


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found in a picture, and what it cost.

    Attributes:
        method: its key.
        weights: what it was loaded from.
        result: the label map, without scores, but with confidence where the method is calibrated.
        certainty: (H, W) float32, see `Segmentation.certainty`; None if scores were too much.
        margin: (H, W) float32, how far it lies above the second best.
        evidence: for each name, where it scored best and who won there.
        seconds: that the method took, without waiting.
        memory: the most bytes that the process (CUDA: the device) held meanwhile, if known.
        notices: what the method warned of.
    """

    method: str
    weights: str
    result: Segmentation
    certainty: Scores | None
    margin: Scores | None
    evidence: tuple[NameEvidence, ...]
    seconds: float
    memory: int | None
    notices: tuple[str, ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether `certainty` is a probability."""
        return self.result.named is not None

    def with_threshold(self, *, none_of_these: float = 0, min_score: float = 0) -> Segmentation:
        """Return the result without uncertain pixels, and then without uncertain names.

        This is `Segmentation.with_threshold` in whole numbers, see `whole`.

        Raises:
            InputError: there is a threshold, but there are no scores.
        """
        if none_of_these <= 0 and min_score <= 0:
            return self.result
        if self.certainty is None:
            raise InputError(
                "this picture has no scores that could be compared with a threshold, since it has "
                "too many pixels for so many names; shrink it or give fewer names"
            )
        judged = self.certainty if self.result.named is None else self.result.named
        below = whole(judged) < round(none_of_these * SCORE_UNIT)
        labels = np.where(below, np.int32(NOTHING), self.result.labels)
        own = whole(self.certainty).astype(np.int64)
        for label in np.unique(labels[labels != NOTHING]):
            mask = labels == label
            if own[mask].sum() < round(min_score * SCORE_UNIT) * int(mask.sum()):
                labels[mask] = NOTHING
        return replace(self.result, labels=labels)


@dataclass
class _Slot:
    """A method's place in memory."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    segmenter: Segmenter | None = None


class Engine:
    """Runs the methods for the page, one picture at a time.

    Attributes:
        methods: by key, in the order of the page.
        weights: what each is loaded from; "world" for the embedded world.
        limits: what a request may be.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        weights: Mapping[str, str],
        options: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Prepare everything without loading a model.

        Args:
            methods: by key.
            weights: what each is loaded from, by key.
            options: with which each is loaded, such as its device.
            limits: of a request.
        """
        self.methods, self.weights = dict(methods), dict(weights)
        self.options = {"device": "cpu"} | dict(options or {})
        self.limits = limits or Limits()
        self._slots = {key: _Slot() for key in self.methods}
        self._closed = False
        self._loader: threading.Thread | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    def warm(self) -> None:
        """Load the methods one after the other in the background; a failure is told when asked."""

        def load_all() -> None:
            for key in self.methods:
                try:
                    if not self._closed:
                        self.segmenter(key)
                except Exception:
                    continue  # whoever asks for this method is told; the others still work

        self._loader = threading.Thread(target=load_all, name="load", daemon=True)
        self._loader.start()

    def segmenter(self, key: str) -> Segmenter:
        """Return a method's segmenter, loaded on first use.

        Raises:
            InputError: there is no such method, or its weights cannot be used.
        """
        if key not in self.methods:
            known = ", ".join(self.methods)
            raise InputError(f"there is no method {key!r} on this page; it shows {known}")
        slot = self._slots[key]
        with slot.lock:
            if slot.segmenter is None:
                slot.segmenter = self.methods[key].load(self.weights[key], **self.options)
        return slot.segmenter

    def is_loaded(self, key: str) -> bool:
        """Return whether a method is in memory."""
        return self._slots[key].segmenter is not None

    def vocabulary(self, key: str, asked: Asked) -> Vocabulary:
        """Return the names as a method encodes them."""
        return asked.vocabulary(self.methods[key].templates)

    def segment(self, key: str, image: ImageArray, asked: Asked) -> Found:
        """Segment a picture (H, W, 3) when the device is free.

        Raises:
            InputError: the method cannot do it, or it took too long.
        """
        segmenter, vocabulary = self.segmenter(key), self.vocabulary(key, asked)
        return self._in_turn(lambda: self._segment(key, segmenter, image, vocabulary))

    def explain(self, key: str, image: ImageArray, asked: Asked) -> Sequence[Explained]:
        """Show step by step what a method does with a picture (H, W, 3).

        Raises:
            InputError: the method shows nothing, cannot do it, or it took too long.
        """
        segmenter, explain = self.segmenter(key), self.methods[key].explain
        if explain is None:
            raise InputError(
                f"{self.methods[key].title} does not show its steps; choose another method"
            )
        vocabulary = self.vocabulary(key, asked)
        return self._in_turn(lambda: explain(segmenter, image, vocabulary))

    def embeddings(self, key: str, asked: Asked) -> npt.NDArray[np.float32] | None:
        """Return the text embedding of each name (K, C), or None if the method shows none."""
        encoder = getattr(self.segmenter(key), "text", None)
        if encoder is None:
            return None
        vocabulary = self.vocabulary(key, asked)

        def encode() -> npt.NDArray[np.float32]:
            found = encoder.encode_names(vocabulary.names, vocabulary.templates)
            return np.asarray(found.float().cpu().numpy())

        return self._in_turn(encode)

    def close(self, seconds: float) -> bool:
        """Take no more, let what was taken end for some seconds, and tell whether it did."""
        end = time.monotonic() + seconds
        self._closed = True
        last = self._worker.submit(lambda: None)
        self._worker.shutdown(wait=False)
        wait([last], timeout=seconds)
        if self._loader is not None:
            self._loader.join(max(0.0, end - time.monotonic()))
        return last.done() and (self._loader is None or not self._loader.is_alive())

    def _in_turn(self, work: Callable[[], _Result]) -> _Result:
        if self._closed:
            raise InputError("the page is being stopped; try again later")
        future: Future[_Result] = self._worker.submit(work)
        try:
            return future.result(timeout=self.limits.seconds)
        except FutureTimeout:
            future.cancel()
            raise InputError(
                f"this took more than {self.limits.seconds:g} seconds and was given up; use a "
                "smaller picture or fewer names, or try again when fewer people wait"
            ) from None

    def _segment(
        self, key: str, segmenter: Segmenter, image: ImageArray, vocabulary: Vocabulary
    ) -> Found:
        scored = len(vocabulary.words) * image.shape[0] * image.shape[1] <= _MOST_SCORES
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _restart_peak(self.options["device"])
            start = time.perf_counter()
            result = segmenter.segment(image, vocabulary, return_scores=scored)
            seconds = time.perf_counter() - start
        memory = _peak(self.options["device"])
        notices = dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning)
        scores = result.scores
        calibrated = result.confidence is not None
        certainty = result.certainty() if calibrated or scored else None
        return Found(
            method=key,
            weights=shown_weights(self.weights[key]),
            result=replace(
                result, scores=None, confidence=certainty if calibrated else None, extra={}
            ),
            certainty=certainty,
            margin=None if scores is None else margin_of(scores),
            evidence=()
            if scores is None
            else tuple(evidence_of(result.labels, scores, vocabulary.names)),
            seconds=seconds,
            memory=memory,
            notices=tuple(notices),
        )


def whole(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return scores in whole thousandths, rounded down.

    The page compares these with a threshold, in the browser and for its files, so that both agree
    on every pixel.
    """
    return np.clip(np.floor(scores.astype(np.float64) * SCORE_UNIT), 0, 65535).astype(np.uint16)


def shown_weights(source: str) -> str:
    """Name weights without the server's folders."""
    if source == WORLD:
        return "the embedded world"
    return ", ".join(Path(part).name for part in source.split(","))


def _restart_peak(device: str) -> None:
    """Start to count the peak of memory anew, where the system can do that."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5", "ascii")
        except OSError:
            pass  # the peak then is that of the process's life


def _peak(device: str) -> int | None:
    """Return the most bytes held since `_restart_peak`, or None where that is not told."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text("ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return None
