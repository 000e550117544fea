"""Segmenting a folder: images are read ahead and results are written behind the network.

    reading threads ──► batches ──► network ──► writing threads
                                                    └─► journal ──► summary

The number of images on the way is bounded, and so are their pixels: memory does not grow with the
number of images.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from openvocab.errors import InputError, NamesError, is_out_of_memory, one_line
from openvocab.formats.writers import remove_older_files
from openvocab.image import DEFAULT_MAX_PIXELS, ImageArray, read_image
from openvocab.inference.exports import Exported, Exports
from openvocab.inference.outputs import Files, write_results
from openvocab.inference.progress import Progress
from openvocab.inference.summary import Journal, Row, file_state, write_summary
from openvocab.segmenter import BaseSegmenter, Segmentation, Segmenter, check_thresholds
from openvocab.vocabulary import Vocabulary

SOME_FAILED = 1
_PIXELS = 48_000_000  # that wait in each queue, unless one image has more
_READERS, _WRITERS = 2, max(2, min(4, os.cpu_count() or 1))
_LISTED = 50  # failures that are listed again at the end
# Of these no other image fares better.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Loaded:
    """An image that was read, or why not."""

    path: Path
    image: ImageArray | None
    failure: str
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """A checked order: which images, which names, which files to write.

    Attributes:
        outputs: for each image, the file to write for each kind.
        vocabulary: the names.
        folder: of the results, where names, journal and summary go; None if there is one picture.
        max_pixels: larger images are bad images.
        thresholds: arguments of `Segmentation.with_threshold`.
        skip_existing: leave images alone whose results an earlier run has completed.
        quiet: print nothing but failures.
        names: of the results of each image, from `openvocab.inference.outputs.result_names`.
        streams: videos and rasters that belong to the run, in order, for its summary.
        formats: of other tools, keys of `openvocab.formats.writers.FORMATS`, to write as well.
    """

    outputs: dict[Path, Files]
    vocabulary: Vocabulary
    folder: Path | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    skip_existing: bool = False
    quiet: bool = False
    names: dict[Path, str] = field(default_factory=dict)
    streams: tuple[Path, ...] = ()
    formats: tuple[str, ...] = ()

    def run(self, segmenter: Segmenter, streamed: Iterable[Row] = ()) -> int:
        """Predict all images, then report those that could not be used.

        Args:
            segmenter: the method.
            streamed: rows of the summary for videos and rasters, which are segmented while this is
                gone through, before the images.

        Returns:
            0, or 1 if there was a bad image, video or raster.

        Raises:
            InputError: a result cannot be written, the names cannot be used, or results that are
                to be kept were made with other settings.
        """
        return _Run(self, segmenter).run(streamed)


class _Run:
    """One run of a `Prediction`; its attributes change while it runs."""

    def __init__(self, order: Prediction, segmenter: Segmenter) -> None:
        self.order, self.segmenter = order, segmenter
        self.method = segmenter.describe()
        calibrated = getattr(segmenter, "calibrated", False)
        limited = check_thresholds(**order.thresholds)
        saved = any("scores" in files for files in order.outputs.values())
        self.scores = saved or (limited and not calibrated)
        self.rated = self.scores or calibrated
        self.failures: list[str] = []
        self.journal = self._open_journal()
        self.exports = None if self.journal is None else self._plan_exports(self.journal)
        self.pictures: Sequence[str] = getattr(segmenter, "pictures", ())
        self.progress: Progress

    def run(self, streamed: Iterable[Row]) -> int:
        """See `Prediction.run`."""
        start = time.perf_counter()
        try:
            for row in streamed:
                self._keep(row)
            self._predict()
        finally:
            if self.journal is not None and self.journal.started:
                assert self.order.folder is not None
                seconds = time.perf_counter() - start
                names = (_name(path) for path in (*self.order.streams, *self.order.outputs))
                write_summary(self.order.folder, self.journal, names, seconds)
        if self.exports is not None:
            self.exports.write_run(self.order.outputs)
        if self.order.outputs:
            self._report()
        return SOME_FAILED if self.failures else 0

    def _keep(self, row: Row) -> None:
        """Take note of a video or raster, whose failure has been printed."""
        if row.failure is not None:
            self.failures.append(row.failure)
        if self.journal is not None:
            self.journal.add(row)

    def _predict(self) -> None:
        todo = [path for path in self.order.outputs if not self._is_complete(path)]
        self.progress = Progress(len(self.order.outputs), quiet=self.order.quiet)
        self.progress.skipped = len(self.order.outputs) - len(todo)
        try:
            self._stream(todo)
        finally:
            self.progress.close()

    def _stream(self, todo: list[Path]) -> None:
        size = 1 if self.scores else 4 * getattr(self.segmenter, "batch_size", 1)
        with (
            ThreadPoolExecutor(_READERS, "reading") as readers,
            _Queue[Row](_WRITERS, size + 2 * _WRITERS, self._finish) as writing,
        ):
            for batch in _batches(_read_ahead(readers, todo, size, self.order.max_pixels), size):
                for loaded, found, seconds in self._segment(batch):
                    work = _Work(self, loaded, found, seconds)
                    writing.put(work, found.labels.size)

    def _segment(self, batch: list[Loaded]) -> Iterator[tuple[Loaded, Segmentation, float]]:
        """Segment images together, or one by one where that fails, so that only bad ones fail."""
        start = time.perf_counter()
        images = [loaded.image for loaded in batch if loaded.image is not None]
        for loaded in batch:
            if loaded.image is None:
                self._fail(loaded.path, loaded.failure, loaded.seconds)
        good = [loaded for loaded in batch if loaded.image is not None]
        if len(good) > 1:
            try:
                results = self.segmenter.segment(
                    [*images], self.order.vocabulary, return_scores=self.scores
                )
            except NamesError:
                raise
            except (InputError, MemoryError, RuntimeError) as error:
                if not isinstance(error, InputError) and not is_out_of_memory(error):
                    raise
                results = None
            if results is not None:
                each = (time.perf_counter() - start) / len(good)
                yield from ((one, found, each) for one, found in zip(good, results, strict=True))
                return
        for loaded in good:
            found = self._segment_one(loaded)
            if found is not None:
                yield loaded, found, time.perf_counter() - start
            start = time.perf_counter()

    def _segment_one(self, loaded: Loaded) -> Segmentation | None:
        assert loaded.image is not None
        try:
            return self.segmenter.segment(
                loaded.image, self.order.vocabulary, return_scores=self.scores
            )
        except NamesError:
            raise
        except InputError as error:
            self._fail(loaded.path, str(error), loaded.seconds)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = loaded.image.shape[:2]
            self._fail(
                loaded.path,
                f"'{loaded.path}' ({width}x{height}) needs more memory than there is; shrink it or "
                "ask for fewer names",
                loaded.seconds,
            )
        return None

    def write(self, loaded: Loaded, found: Segmentation, seconds: float) -> Row:
        """Apply the thresholds and write the results; called in a writing thread."""
        assert loaded.image is not None
        start = time.perf_counter()
        found = found.with_threshold(**self.order.thresholds)
        files = self.order.outputs[loaded.path]
        failure, exported = None, Exported()
        try:
            if self.journal is not None:
                self.journal.start()
            if self.exports is not None:
                exported = self.exports.of_image(loaded.path, loaded.image, found)
            pictures = {
                self._picture(loaded.path, name): picture
                for name, picture in found.extra.get("pictures", {}).items()
            }
            write_results(
                loaded.path, loaded.image, found, self.method, files, pictures, exported.files
            )
            for folder in exported.folders:
                written = [path for path, _ in exported.files if path.parent == folder]
                remove_older_files(folder, written)
        except OSError as error:
            reason = error.strerror or error
            failure = f"cannot write results of '{loaded.path}': {reason}"
            if error.errno in _DISK:
                raise InputError(failure) from error
        row = Row(
            _name(loaded.path),
            round(loaded.seconds + seconds + time.perf_counter() - start, 4),
            {} if failure else found.areas(),
            found.mean_certainty() if self.rated and not failure else {},
            failure,
            file_state(loaded.path),
            **({} if failure else exported.kept),
        )
        if self.journal is not None:
            self.journal.add(row)
        return row

    def _finish(self, row: Row) -> None:
        """Take note of an image that was written; called in the main thread."""
        if row.failure is None:
            self.progress.advance()
        else:
            self._note_failure(row.failure)

    def _fail(self, path: Path, reason: str, seconds: float) -> None:
        self._note_failure(reason)
        if self.journal is not None:
            row = Row(_name(path), round(seconds, 4), failure=one_line(reason))
            self.journal.add(row)

    def _note_failure(self, reason: str) -> None:
        self.failures.append(one_line(reason))
        self.progress.fail(reason)

    def _open_journal(self) -> Journal | None:
        folder = self.order.folder
        if folder is None:
            return None
        vocabulary = self.order.vocabulary
        if isinstance(self.segmenter, BaseSegmenter):
            vocabulary = self.segmenter.vocabulary(vocabulary)
        method = {key: value for key, value in self.method.items() if key != "device"}
        settings = {
            "names": vocabulary.sha256(),
            "templates": str(vocabulary.templates),
            "background": str(vocabulary.background),
            "method": method,
            "thresholds": dict(self.order.thresholds),
        }
        return Journal(folder, settings, vocabulary.names, keep=self.order.skip_existing)

    def _plan_exports(self, journal: Journal) -> Exports | None:
        if not self.order.formats or not self.order.outputs:
            return None
        return Exports(journal, self.order.formats, self.order.names)

    def _is_complete(self, path: Path) -> bool:
        if not self.order.skip_existing or self.journal is None:
            return False
        row = self.journal.row(_name(path))
        state = file_state(path)
        return (
            row is not None
            and row.failure is None
            and state is not None
            and row.state is not None
            and tuple(row.state) == state
            and all(file.is_file() for file in self.order.outputs[path].values())
            and all(self._picture(path, name).is_file() for name in self.pictures)
            and (self.exports is None or self.exports.are_complete(row))
        )

    def _report(self) -> None:
        total, skipped = len(self.order.outputs), self.progress.skipped
        if self.failures:
            more = len(self.failures) - _LISTED
            lines = self.failures[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
            print(f"{len(self.failures)} could not be used:", *lines, sep="\n  ", file=sys.stderr)
        if not self.order.quiet:
            before = f", {skipped} of them by an earlier run" if skipped else ""
            done = total - self.progress.failed
            print(f"{done} of {total} images done{before}, results in '{self._place()}'")

    def _picture(self, path: Path, name: str) -> Path:
        """Return the file of a method's own picture of an image, beside its other results."""
        if self.order.folder is not None:
            stem = self.order.folder / self.order.names[path]
        else:
            stem = self.order.outputs[path]["overlay"].with_suffix("")
        return stem.with_name(f"{stem.name}_{name}.png")

    def _place(self) -> str:
        files = [file for own in self.order.outputs.values() for file in own.values()]
        if not files:
            return str(self.order.folder)
        return os.path.commonpath([file.parent for file in files])


@dataclass(frozen=True)
class _Work:
    """The writing of one image's results, as a value that a thread can call."""

    run: _Run
    loaded: Loaded
    found: Segmentation
    seconds: float

    def __call__(self) -> Row:
        return self.run.write(self.loaded, self.found, self.seconds)


class _Queue(Generic[Result]):
    """Work for threads behind the caller, which waits when too much of it has piled up.

    Args:
        workers: how many threads.
        most: how many pieces of work may wait.
        finish: is called with each result, in order, in the caller's thread.
    """

    def __init__(self, workers: int, most: int, finish: Callable[[Result], None]) -> None:
        self._pool = ThreadPoolExecutor(workers, "writing")
        self._most, self._finish = most, finish
        self._waiting: deque[tuple[Future[Result], int]] = deque()

    def put(self, work: Callable[[], Result], pixels: int) -> None:
        """Hand work over; raise what earlier work has raised."""
        self._waiting.append((self._pool.submit(work), pixels))
        while self._waiting and (self._waiting[0][0].done() or self._is_full()):
            self._finish(self._waiting.popleft()[0].result())

    def _is_full(self) -> bool:
        pixels = sum(size for _, size in self._waiting)
        return len(self._waiting) > self._most or (pixels > _PIXELS and len(self._waiting) > 1)

    def __enter__(self) -> _Queue[Result]:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Finish what was handed over, also when the caller was interrupted."""
        self._pool.shutdown(wait=True)
        while self._waiting:
            done = self._waiting.popleft()[0]
            if error is None or done.exception() is None:
                self._finish(done.result())


def _read_ahead(
    readers: ThreadPoolExecutor, paths: list[Path], ahead: int, max_pixels: int
) -> Iterator[Loaded]:
    """Yield the images in order, while threads read those that come next."""
    waiting: deque[Future[Loaded]] = deque()
    rest = iter(paths)
    try:
        while True:
            while len(waiting) < ahead + _READERS and _pixels(waiting) < _PIXELS:
                path = next(rest, None)
                if path is None:
                    break
                waiting.append(readers.submit(_load, path, max_pixels))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _pixels(waiting: deque[Future[Loaded]]) -> int:
    images = [future.result().image for future in waiting if future.done()]
    return sum(image.size // 3 for image in images if image is not None)


def _load(path: Path, max_pixels: int) -> Loaded:
    start = time.perf_counter()
    image, failure = None, ""
    try:
        image = read_image(path, max_pixels=max_pixels)
    except InputError as error:
        failure = str(error)
    except MemoryError:
        failure = f"'{path}' needs more memory than there is; shrink it"
    return Loaded(path, image, failure, time.perf_counter() - start)


def _batches(images: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Group images to segment together: at most `size`, and not too many pixels.

    The first groups are small, so that results appear soon also where a method is slow.
    """
    batch: list[Loaded] = []
    pixels, most = 0, 1
    for loaded in images:
        batch.append(loaded)
        pixels += 0 if loaded.image is None else loaded.image.size // 3
        if len(batch) >= most or pixels > _PIXELS // 2:
            yield batch
            batch, pixels, most = [], 0, min(size, 2 * most)
    if batch:
        yield batch


def _name(path: Path) -> str:
    """Return what an image is called in journal and summary."""
    return one_line(str(path))
