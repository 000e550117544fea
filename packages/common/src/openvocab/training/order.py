"""The samples and the random numbers of each step, as functions of seed and position.

Nothing here has a state, so a run that was killed goes on with the very same data, and any number
of processes and loader workers sees the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]  # position in the endless sequence, index into the data set


class EndlessShuffle:
    """The sample at each position of an endless sequence; every epoch is a permutation."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.samples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, epoch)).permutation(self.samples)
        return int(self._order[offset])


class StepBatches(Sampler[list[Key]]):
    """The micro-batches of one process, from step `start` on.

    Step s takes the positions s * batch .. (s + 1) * batch - 1; each process takes a contiguous
    part of them, and splits it once more for gradient accumulation.
    """

    def __init__(
        self,
        order: EndlessShuffle,
        *,
        batch: int,
        start: int,
        steps: int,
        rank: int = 0,
        processes: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.order, self.batch, self.start, self.steps = order, batch, start, steps
        self.rank, self.accumulate = rank, accumulate
        self.micro = batch // (processes * accumulate)

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.steps):
            first = step * self.batch + self.rank * self.accumulate * self.micro
            for part in range(self.accumulate):
                begin = first + part * self.micro
                yield [(p, self.order[p]) for p in range(begin, begin + self.micro)]


def generator_of(seed: int, position: int) -> np.random.Generator:
    """Return the source of everything random about the sample at a position."""
    return np.random.default_rng((seed, position))


def seed_of(seed: int, *place: int) -> int:
    """Return a seed for a place in the run: a step and a process, or a position; in 0..2^63-1."""
    return int(np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)[0]) >> 1
