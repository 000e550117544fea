"""Segmenting a video: a label map and a line of JSON for each frame, and an overlay video.

Frames are read, segmented and written one after the other, so that memory does not grow with the
length of the video. What a frame shows is known by its timestamp, not by its number, since phones
and screen recorders do not keep their frame rate.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openvocab.drawing.overlay import draw_overlay
from openvocab.errors import InputError, import_extra, one_line
from openvocab.files import atomic_path, write_text
from openvocab.image import DEFAULT_MAX_PIXELS, ImageArray
from openvocab.inference.progress import Progress
from openvocab.inference.summary import Row, Shares, file_state
from openvocab.segmenter import BaseSegmenter, Segmentation, Segmenter, check_thresholds
from openvocab.vocabulary import Vocabulary

VIDEO_SUFFIXES = frozenset((".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"))
VIDEO_KINDS = ("label", "overlay", "json")
STAMP = ".predict.json"  # beside the label maps, where there are any
_TICKS = 1000  # of the overlay's clock in a second


@dataclass(frozen=True)
class Frame:
    """One picture of a video.

    Attributes:
        seconds: its timestamp.
        image: (H, W, 3) uint8, upright.
    """

    seconds: float
    image: ImageArray


def read_frames(
    path: Path, *, every: float = 0.0, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Iterator[Frame]:
    """Yield the frames of a video in order.

    Args:
        path: the file.
        every: skip frames until so many seconds have passed since the last one.
        max_pixels: of a frame.

    Raises:
        InputError: the file is no video or damaged (after the frames that could be read), a frame
            is too large, or PyAV is not installed.
    """
    av = import_extra("av", "video", "reading a video")
    due, count = -math.inf, 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"'{path}' holds no pictures; give a video")
            stream = container.streams.video[0]
            if stream.width * stream.height > max_pixels:
                raise InputError(
                    f"the frames of '{path}' have {stream.width}x{stream.height} pixels, more than "
                    f"the limit of {max_pixels}; shrink it or raise --max-pixels"
                )
            for frame in container.decode(stream):
                seconds = 0.0 if frame.time is None else float(frame.time)
                if seconds < due:
                    continue
                due, count = seconds + every - 1e-6, count + 1
                image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield Frame(seconds, np.ascontiguousarray(image))
    except av.error.FFmpegError as error:
        reason = str(error.strerror or error).rstrip(".")
        raise InputError(
            f"'{path}' cannot be read as a video behind frame {count} ({reason}); "
            "fetch the file again"
        ) from error
    if not count:
        raise InputError(f"'{path}' holds no frame; get the file again")


class LabelSmoother:
    """Lets a label change only where the new one has outvoted it, so that labels flicker less.

    Every pixel keeps one label and its lead, which fades with time: each frame with the same label
    adds to the lead, each with another takes from it, and below zero the label changes. This needs
    two maps, for any number of names.

    Args:
        seconds: in which a lead fades to 1/e. A change is shown about 0.7 times as long after it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._time = 0.0
        self._labels: npt.NDArray[np.int32] | None = None
        self._lead: npt.NDArray[np.float32] | None = None

    def smooth(self, labels: npt.NDArray[np.int32], time: float) -> npt.NDArray[np.int32]:
        """Return the smoothed labels (H, W) of the frame at a time in seconds."""
        if self._labels is None or self._lead is None or self._labels.shape != labels.shape:
            self._labels = labels.copy()
            self._lead = np.ones(labels.shape, np.float32)
        else:
            kept = np.float32(math.exp(-max(0.0, time - self._time) / self.seconds))
            vote = np.where(labels == self._labels, np.float32(1), np.float32(-1))
            lead = kept * self._lead + (1 - kept) * vote
            self._labels = np.where(lead < 0, labels, self._labels)
            self._lead = np.abs(lead)
        self._time = time
        return self._labels.copy()


class OverlayVideo:
    """Writes pictures with timestamps to an MP4 that browsers play.

    Args:
        path: the file.
        size: (height, width) of the pictures; odd ones get a black line.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        av = import_extra("av", "video", "writing a video")
        self._av = av
        self._container = av.open(str(path), "w", format="mp4")
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream = self._container.add_stream(codec, rate=_TICKS)
        self._stream.height, self._stream.width = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._last = -1

    def add(self, picture: ImageArray, seconds: float) -> None:
        """Append a picture (H, W, 3) that is shown from a time on."""
        height, width = self._stream.height, self._stream.width
        padded = np.zeros((height, width, 3), np.uint8)
        padded[: picture.shape[0], : picture.shape[1]] = picture[:height, :width]
        frame = self._av.VideoFrame.from_ndarray(padded, format="rgb24")
        self._last = max(self._last + 1, round(seconds * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is still in the encoder."""
        self._container.mux(self._stream.encode())
        self._container.close()


@dataclass(frozen=True)
class VideoPrediction:
    """A checked order for one video.

    The results of `clip.mp4` are the label maps `clip/000000_labels.png` and so on, a line of JSON
    for each frame in `clip.jsonl`, and `clip_overlay.mp4`.

    Attributes:
        path: the video.
        folder: of the results.
        vocabulary: the names.
        kinds: what to write, of `VIDEO_KINDS`.
        every: seconds between two frames; 0 for all frames.
        smooth: see `LabelSmoother`; 0 for labels as they are.
        max_pixels: of a frame.
        thresholds: arguments of `Segmentation.with_threshold`.
        skip_existing: leave the video alone if an earlier run with the same settings was complete.
        quiet: print no progress.
    """

    path: Path
    folder: Path
    vocabulary: Vocabulary
    kinds: tuple[str, ...] = VIDEO_KINDS
    every: float = 0.0
    smooth: float = 0.0
    max_pixels: int = DEFAULT_MAX_PIXELS
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    skip_existing: bool = False
    quiet: bool = False

    def run(self, segmenter: Segmenter) -> Row | None:
        """Segment the video.

        Returns:
            What the summary says about it; None if an earlier run has completed it.

        Raises:
            InputError: the names cannot be used, or nothing can be read.
        """
        stamp = self._stamp(segmenter)
        if self.skip_existing and self._is_complete(stamp):
            return None
        scores = check_thresholds(**self.thresholds) and not getattr(segmenter, "calibrated", False)
        smoother = LabelSmoother(self.smooth) if self.smooth else None
        start, shares = time.perf_counter(), Shares()
        progress = Progress(0, quiet=self.quiet)
        count, failure = 0, None
        with ExitStack() as stack:
            outputs = _Outputs(self, stack)
            frames = read_frames(self.path, every=self.every, max_pixels=self.max_pixels)
            while True:
                try:
                    frame = next(frames, None)
                except InputError as error:
                    if not count:
                        raise
                    failure = str(error)
                    break
                if frame is None:
                    break
                found = segmenter.segment(frame.image, self.vocabulary, return_scores=scores)
                found = found.with_threshold(**self.thresholds)
                if smoother is not None:
                    labels = smoother.smooth(found.labels, frame.seconds)
                    found = replace(found, labels=labels)
                if not count:  # until the end, label maps of two runs may lie side by side
                    self._stamp_file.unlink(missing_ok=True)
                outputs.write(count, frame, found)
                shares.add(found)
                count += 1
                progress.advance()
            progress.close()
            outputs.close()
        if failure is None:
            write_text(self._stamp_file, stamp)
        return shares.row(self.path, time.perf_counter() - start, failure)

    @property
    def _stamp_file(self) -> Path:
        """The file that says with which settings the results were completed."""
        if "label" in self.kinds:
            return self.folder / self.path.stem / STAMP
        return self.folder / f".{self.path.stem}{STAMP}"

    def _stamp(self, segmenter: Segmenter) -> str:
        """Return what decides the results, as text."""
        vocabulary = self.vocabulary
        if isinstance(segmenter, BaseSegmenter):
            vocabulary = segmenter.vocabulary(vocabulary)
        method = {key: value for key, value in segmenter.describe().items() if key != "device"}
        settings = {
            "file": file_state(self.path),
            "names": vocabulary.sha256(),
            "templates": str(vocabulary.templates),
            "method": method,
            "thresholds": dict(self.thresholds),
            "kinds": self.kinds,
            "every": self.every,
            "smooth": self.smooth,
        }
        return json.dumps(settings) + "\n"

    def _is_complete(self, stamp: str) -> bool:
        results = {"label": "", "overlay": "_overlay.mp4", "json": ".jsonl"}
        files = [self.folder / f"{self.path.stem}{results[kind]}" for kind in self.kinds]
        whole = self._stamp_file.is_file() and all(file.exists() for file in files)
        return whole and self._stamp_file.read_text("utf-8") == stamp


class _Outputs:
    """The files of one video; overlay and JSON appear when all is done."""

    def __init__(self, order: VideoPrediction, stack: ExitStack) -> None:
        self.order, self._stack = order, stack
        self._video: OverlayVideo | None = None
        self._lines: Any = None
        self._count = 0

    def write(self, index: int, frame: Frame, found: Segmentation) -> None:
        """Write the results of one frame."""
        self._count = index + 1
        folder, stem = self.order.folder, self.order.path.stem
        if "label" in self.order.kinds:
            (folder / stem).mkdir(parents=True, exist_ok=True)
            found.save(folder / stem / f"{index:06}_labels.png")
        if "json" in self.order.kinds:
            if self._lines is None:
                path = self._stack.enter_context(atomic_path(folder / f"{stem}.jsonl"))
                self._lines = self._stack.enter_context(path.open("w", encoding="utf-8"))
            line = {"video": one_line(str(self.order.path)), "frame": index}
            content = {**line, "seconds": frame.seconds, **found.to_json()}
            self._lines.write(json.dumps(content, ensure_ascii=False) + "\n")
        if "overlay" in self.order.kinds:
            names = found.vocabulary.names
            picture = draw_overlay(frame.image, found.labels, names, legend=False, max_side=None)
            if self._video is None:
                path = self._stack.enter_context(atomic_path(folder / f"{stem}_overlay.mp4"))
                self._video = OverlayVideo(path, (picture.shape[0], picture.shape[1]))
            self._video.add(picture, frame.seconds)

    def close(self) -> None:
        """End the overlay video, and remove label maps of frames that only an older result has."""
        if self._video is not None:
            self._video.close()
        for path in (self.order.folder / self.order.path.stem).glob("[0-9]*_labels.png"):
            number = path.name.removesuffix("_labels.png")
            if "label" in self.order.kinds and number.isdecimal() and int(number) >= self._count:
                path.unlink()
