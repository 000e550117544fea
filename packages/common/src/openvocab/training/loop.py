"""The training loop for any task and any number of processes, which can resume at any time.

A step is a function of (weights, optimiser, step number): its data, its random numbers and its
learning rate follow from the seed and the number. So a checkpoint needs no generator states, and
a resumed run continues to the bit.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from openvocab.computation import dtype_of
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.reading.json_files import read_json_file
from openvocab.training.checkpoints import BEST, FINAL, Checkpoints
from openvocab.training.distributed import Processes
from openvocab.training.log import TrainingLog, peak_memory_mb
from openvocab.training.losses import Losses
from openvocab.training.order import EndlessShuffle, StepBatches, seed_of
from openvocab.training.schedule import set_rates, take_over_moments
from openvocab.training.settings import RunConfig
from openvocab.training.task import Batch, Task
from openvocab.weights.state_dict import METADATA, metadata_text

TERMINATED = 128 + signal.SIGTERM
BEST_FILE = "best.json"


class NotFiniteError(InputError):
    """A loss or a gradient is not finite; the inputs of the step were saved."""


class Trainer(Generic[Batch]):
    """The trainer, which runs a task to its end.

    Args:
        task: task to train.
        config: settings of the run.
        steps: number of steps of the whole run.
        samples: size of the data set.
        processes: the processes.
    """

    def __init__(
        self,
        task: Task[Batch],
        config: RunConfig,
        *,
        steps: int,
        samples: int,
        processes: Processes,
    ) -> None:
        self.task, self.config, self.steps, self.processes = task, config, steps, processes
        parts = processes.size * config.grad_accum
        if config.batch % parts:
            raise InputError(
                f"a batch of {config.batch} cannot be split over {processes.size} processes with "
                f"{config.grad_accum} accumulated parts; give a multiple of {parts}"
            )
        if samples < 1:
            raise InputError("there are no training samples; check the data set")
        self.order = EndlessShuffle(samples, config.seed)
        self.checkpoints = Checkpoints(config.output, config.keep)
        scaled = config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=scaled)
        self.start = 0
        self.log: TrainingLog | None = None  # of the main process
        task.module.to(processes.device)
        self._terminated = False

    def resume(self) -> None:
        """Load the newest checkpoint of the output folder, if there is one.

        Raises:
            InputError: all checkpoints are damaged, or belong to another model.
        """
        found = self.checkpoints.latest()
        if found is None:
            return
        path, state = found
        self.task.load_state_dict(state["model"])
        take_over_moments(self.task.optimizer, state["optimizer"])
        if state["scaler"]:  # none of a run in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.start = state["iteration"] + 1
        if self.processes.is_main:  # the run may have been killed between these files
            self.checkpoints.point_to(path)
            self._mark_if_last(path, self.start)
        if self.processes.is_main:
            print(f"resumed {path}: {self.start} of {self.steps} steps are done", file=sys.stderr)

    def run(self) -> int:
        """Train to the end.

        Returns:
            The exit code: 0, or 143 if SIGTERM asked to stop, after saving.

        Raises:
            NotFiniteError: the loss is no number any more.
            InputError: the last checkpoint cannot be written.
        """
        config, processes = self.config, self.processes
        config.output.mkdir(parents=True, exist_ok=True)
        if processes.is_main:
            self.checkpoints.remove_leftovers()
            print(self._announcement(), file=sys.stderr)
        if config.activation_checkpoints:
            for block in self.task.checkpointed:
                _recompute(block)
        if processes.is_main:
            names = (config.wandb_project, config.wandb_name) if config.wandb_project else None
            self.log = TrainingLog(config.output, start=self.start, steps=self.steps, wandb=names)
        before = signal.signal(signal.SIGTERM, self._terminate)
        try:
            return self._run()
        finally:
            signal.signal(signal.SIGTERM, before)
            if self.log is not None:
                self.log.close()

    def _run(self) -> int:
        module = self._distributed()
        if self._evaluation_is_missing():
            self._evaluate(self.start, self.checkpoints.path(self.start))
        with _loading(self._loader()) as batches:
            stopped = self._train(module, batches)
        if stopped:
            return TERMINATED
        if self.processes.is_main:
            self.task.export(self.config.output)
        self.processes.barrier()
        return 0

    def _train(self, module: nn.Module, batches: Iterator[Any]) -> bool:
        """Run all steps; return whether SIGTERM stopped it before the last one."""
        config = self.config
        for step in range(self.start, self.steps):
            began = time.perf_counter()
            parts = [_to(_next(batches), self.processes.device) for _ in range(config.grad_accum)]
            loaded = time.perf_counter()
            losses, stop = self._step(module, step, parts)
            self._tell(step, losses, time.perf_counter() - began, loaded - began)
            done = step + 1
            evaluates = self._is_due(done, config.eval_period)
            if stop or evaluates or self._is_due(done, config.checkpoint_period):
                path = self._save(done)
                if path is None and done == self.steps:
                    raise InputError(
                        f"the last checkpoint could not be written to {config.output}; make room "
                        "and repeat the command with --resume"
                    )
                if evaluates and not stop and path is not None:
                    self._evaluate(done, path)
            if stop and done < self.steps:
                if self.processes.is_main:
                    print(f"stopped by SIGTERM after step {done}; go on with --resume")
                return True
        return False

    def _step(
        self, module: nn.Module, step: int, parts: list[Batch]
    ) -> tuple[dict[str, float], bool]:
        """Run one step; return its losses over the whole batch, and whether to stop."""
        task, config = self.task, self.config
        torch.manual_seed(seed_of(config.seed, step, self.processes.rank))
        set_rates(task.optimizer, task.schedule.factor(step))
        task.optimizer.zero_grad(set_to_none=True)
        common = task.prepare(parts, self.processes)
        found = [
            self._backward(module, part, task.part(common, index), last=part is parts[-1])
            for index, part in enumerate(parts)
        ]
        values = torch.stack([torch.stack(list(part.values())) for part in found]).double().mean(0)
        own = dict(zip(found[0], values.tolist(), strict=True))
        flag = float(self._terminated)
        summed = self.processes.sum([*own.values(), flag])
        losses = {n: v / self.processes.size for n, v in zip(own, summed[:-1], strict=True)}
        losses = {"loss": sum(losses.values()), **losses}
        if not math.isfinite(losses["loss"]):
            self._fail(step, "loss", losses, parts, own)
        self.scaler.unscale_(task.optimizer)
        trained = [p for group in task.optimizer.param_groups for p in group["params"]]
        limit = config.clip_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(trained, limit))
        if not math.isfinite(norm) and self._scale() <= 1:
            self._fail(step, "gradient", losses, parts, own)
        self.scaler.step(task.optimizer)
        self.scaler.update()
        with torch.no_grad():
            task.after_step()
        return losses | {"grad_norm": norm}, summed[-1] > 0

    def _scale(self) -> float:
        """Return the factor of the losses; above 1, an overflowing gradient is no failure."""
        return float(self.scaler.get_scale())

    def _backward(self, module: nn.Module, part: Batch, common: Any, *, last: bool) -> Losses:
        """Add the gradient of a micro-batch; processes exchange gradients after the last one."""
        wait: AbstractContextManager[None] = nullcontext()
        if isinstance(module, DistributedDataParallel) and not last:
            wait = module.no_sync()
        device, precision = self.processes.device.type, self.config.precision
        with wait:
            with torch.autocast(device, dtype_of(precision), enabled=precision != "fp32"):
                losses: Losses = module(part, common)
            total = torch.stack(list(losses.values())).sum() / self.config.grad_accum
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach() for name, loss in losses.items()}

    def _distributed(self) -> nn.Module:
        module = self.task.module.train()
        self.task.begin(self.processes.device)
        if self.processes.size == 1:
            return module
        devices = [self.processes.device] if self.processes.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    def _loader(self) -> DataLoader[Any]:
        config = self.config
        return DataLoader(
            self.task.data,
            batch_sampler=StepBatches(
                self.order,
                batch=config.batch,
                start=self.start,
                steps=self.steps,
                rank=self.processes.rank,
                processes=self.processes.size,
                accumulate=config.grad_accum,
            ),
            collate_fn=self.task.collate,
            num_workers=config.workers,
            worker_init_fn=_outlive_sigterm,
            pin_memory=self.processes.device.type == "cuda",
        )

    def _save(self, done: int) -> Path | None:
        """Write a checkpoint from the main process; return it in all, or None if it failed."""
        path = self.checkpoints.path(done)
        written = self.processes.is_main and self._write(done)
        return path if any(self.processes.sum([float(written)])) else None

    def _write(self, done: int) -> bool:
        state = {
            "model": dict(self.task.state_dict()),
            METADATA: metadata_text(self.task.metadata()),
            "optimizer": self.task.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        path = self.checkpoints.save(done, state)
        if path is not None:
            self._mark_if_last(path, done)
        return path is not None

    def _mark_if_last(self, path: Path, done: int) -> None:
        """Name the last checkpoint."""
        if done == self.steps:
            self.checkpoints.mark(path, FINAL)

    def _evaluate(self, done: int, path: Path) -> None:
        """Score the weights, and keep the best.

        The scores are logged only at the end, so that logged scores mean that the evaluation is
        complete.
        """
        scores = self.task.evaluate(
            self.config.output / "evaluation" / f"{done:07d}", self.processes
        )
        self.task.module.train()
        if self.log is None or not scores:
            return
        score, record = next(iter(scores.values())), self.config.output / BEST_FILE
        if score > _best_score(record):
            self.checkpoints.mark(path, BEST)
            write_text(record, json.dumps({"iteration": done - 1, "score": score, **scores}))
        self.log.write(done - 1, scores)

    def _evaluation_is_missing(self) -> bool:
        """Return whether the run ended between the checkpoint it resumes from and its scores."""
        due = self.start > 0 and self._is_due(self.start, self.config.eval_period)
        missing = self.log is not None and due and not self.log.has_scores(self.start - 1)
        return any(self.processes.sum([float(missing)]))

    def _is_due(self, done: int, period: int) -> bool:
        return bool(period) and (done % period == 0 or done == self.steps)

    def _tell(
        self, step: int, losses: Mapping[str, float], seconds: float, data_seconds: float
    ) -> None:
        """Move the bar, and log what is due at this step."""
        if self.log is None:
            return
        speed = {
            "images_per_second": self.config.batch / seconds,
            "memory_mb": peak_memory_mb(self.processes.device),
        }
        self.log.step(losses["loss"], **speed)
        if (step + 1) % self.config.log_period == 0 or step + 1 == self.steps:
            rate = self.task.optimizer.param_groups[0]["lr"]
            times = {"lr": rate, "time": seconds, "data_time": data_seconds}
            self.log.write(step, {**losses, **times, **speed})

    def _fail(
        self,
        step: int,
        what: str,
        losses: Mapping[str, float],
        parts: Sequence[Batch],
        own: Mapping[str, float],
    ) -> None:
        """Save the inputs of the processes whose loss is not finite (or of all), and stop."""
        if self.log is not None:
            self.log.write(step, losses)
        path = self.config.output / f"not_finite_{step:07d}_rank{self.processes.rank}.pt"
        if what == "gradient" or not math.isfinite(sum(own.values())):
            batches = [_to(part, torch.device("cpu")) for part in parts]
            torch.save({"iteration": step, "losses": dict(own), "batches": batches}, path)
        self.processes.barrier()
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        raise NotFiniteError(
            f"the {what} of step {step} is not finite ({', '.join(bad) or 'gradient norm'}); its "
            f"inputs are in {path.parent}/not_finite_{step:07d}_rank*.pt: lower the learning rate, "
            "or use bf16 or fp32, and go on with --resume"
        )

    def _announcement(self) -> str:
        config, processes = self.config, self.processes
        trained = [p for g in self.task.optimizer.param_groups for p in g["params"]]
        each = config.batch // (processes.size * config.grad_accum)
        rates = sorted({group["initial_lr"] for group in self.task.optimizer.param_groups})
        return (
            f"batch {config.batch} = {processes.size} processes x {config.grad_accum} accumulated "
            f"x {each} images, learning rate {', '.join(f'{rate:g}' for rate in rates)}; "
            f"{sum(p.numel() for p in trained) / 1e6:.2f} M trainable parameters, steps "
            f"{self.start}..{self.steps}, {config.precision} on {processes.device}"
        )

    def _terminate(self, *_: int | FrameType | None) -> None:
        self._terminated = True


def _best_score(record: Path) -> float:
    """Return the best score so far; minus infinity before there is one."""
    if not record.is_file():
        return -math.inf
    known = read_json_file(record, "best score")
    score = known.get("score") if isinstance(known, dict) else None
    if not isinstance(score, int | float):
        raise InputError(f"{record} holds no score; delete it, and go on with --resume")
    return score


@contextmanager
def _loading(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Keep the loader's worker processes until the block ends, in whatever way it ends.

    Workers outlive the SIGTERM by which the interpreter would end them, and be waited for.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()


def _outlive_sigterm(worker: int) -> None:
    """Ignore SIGTERM in a worker, since schedulers send it to all processes of a job at once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _next(batches: Iterator[Any]) -> Any:
    """Return the next micro-batch.

    Raises:
        InputError: a sample cannot be used; torch adds the worker's traceback, which is cut off.
    """
    try:
        return next(batches)
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition(f"{InputError.__name__}: ")[2]) from None


def _to(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a nested batch."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [_to(value, device) for value in batch]
    return batch


def _recompute(block: nn.Module) -> None:
    """Store only the input of a block, and compute its inside again in the backward pass."""
    forward = block.forward

    def recomputing(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    block.forward = recomputing


def check_fresh(folder: Path, *, resume: bool) -> None:
    """Refuse to start a new run in a folder that holds the checkpoints of another run.

    Raises:
        InputError: the folder holds other checkpoints, and `resume` is not set.
    """
    found = Checkpoints(folder).numbered()
    if found and not resume:
        raise InputError(
            f"{folder} already holds {found[-1].name}; add --resume to go on, or choose another "
            "output folder"
        )
