"""One training loop for every network of the family, on one process or several.

A step depends on nothing but the seed, its number and the weights: examples, noise and dropout are
drawn from generators made for that step. So a checkpoint holds no random state, and a run that was
stopped and resumed gives the same bits as one that was not.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from underdraw.backends import hardware
from underdraw.errors import InputError, NonFiniteError
from underdraw.training import checkpoints
from underdraw.training.captured import Captured, PendingFigures, quick_products
from underdraw.training.config import TrainingConfig
from underdraw.training.curve import Curve
from underdraw.training.ema import Average
from underdraw.training.lanes import Lanes, check_lanes
from underdraw.training.optimizers import Optimizers
from underdraw.training.parallel import Group, alone
from underdraw.training.workers import Batch, check_workers, drawn_ahead

Figures = dict[str, "float | Tensor"]
"""Numbers by name. Tensors with one number may stay on the device: to read one is to wait for it,
and the loop reads all of a step at once. Of a step that is recorded (`TrainingConfig.graph`) they
all are such tensors, since nothing else changes when it is played again."""


@dataclass(frozen=True)
class Draw:
    """Which examples a process draws for a step: numbers `first` to `first + count - 1` of the
    endless shuffled stream, with a random stream of their own."""

    first: int
    count: int
    rng: np.random.Generator

    def generator(self) -> torch.Generator:
        """A PyTorch generator seeded from `rng`."""
        return torch.Generator().manual_seed(int(self.rng.integers(2**62)))


class Task(Protocol):
    """What is trained."""

    modules: Mapping[str, nn.Module]
    """The networks whose parameters with `requires_grad` are trained, by name."""

    def draw(self, draw: Draw) -> Batch:
        """The examples of a step, and everything random in it, drawn by `draw.rng` and
        `draw.generator()`, never by global generators. Tensors on the host; no device is touched,
        since with `workers` another process may be the one that draws."""
        ...

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Mean loss over the batch, and what else is worth a column in the curve."""
        ...

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """Look at the averaged weights: write pictures, measure. Called on the first process."""
        ...


class Stopped(KeyboardInterrupt):
    """The run was interrupted after its checkpoint was saved; the message says how to go on."""


def train(
    task: Task,
    config: TrainingConfig,
    folder: str | Path,
    *,
    resume: bool = True,
    device: str | torch.device = "cpu",
    stop_after: int | None = None,
    progress: bool | None = None,
) -> Average:
    """Train `task` and return the averaged weights.

    Args:
        folder: gets `state.pt` (atomic), `curve.csv`, `curve.png` and the previews.
        resume: go on from `folder / "state.pt"` where there is one, with the same bits as if the
            run had not been interrupted; False starts anew.
        stop_after: stop before this step as if interrupted, saving a checkpoint.
        progress: show a bar; None: where standard error is a terminal.

    Raises:
        Stopped: on Ctrl-C or a termination signal, after a checkpoint was saved.
        NonFiniteError: the loss is NaN or infinite; no weight was changed by it.
        InputError: the checkpoint belongs to another task, `batch` does not fit the processes, or
            another run is training in `folder`.
    """
    group = Group.join()
    if config.batch % (group.size * config.parts):
        raise InputError(
            f"batch={config.batch} does not split among {group.size} processes with "
            f"accumulate={config.accumulate} and threads={config.threads}"
        )
    check_workers(config.workers)
    check_lanes(config.threads, torch.device(device), task.modules)
    folder, place = Path(folder), torch.device(device)
    with alone(folder, "training"):
        with quick_products(place), closing(_Run(task, config, folder, place, group)) as run:
            if resume and (folder / checkpoints.NAME).exists():
                run.restore(checkpoints.load(folder / checkpoints.NAME))
            with _bar(config, run.step, progress, group) as bar, _signals() as signalled:
                while run.progress() < 1:
                    asked = bool(signalled) or run.step == stop_after
                    if run.advance(asked):
                        run.save()
                        raise Stopped(
                            f"stopped before step {run.step}; the checkpoint is in {folder}, "
                            "the same command goes on from there"
                        )
                    bar.update()
                    if not math.isnan(run.latest):  # of a captured step it is not known at once
                        bar.set_postfix(loss=f"{run.latest:.4f}", refresh=False)
                    run.housekeeping()
        run.save()
        run.preview()
    return run.average


LATE = 2
"""Steps after which figures of a captured step are read: the device has then always work left."""


class _Run:
    """The state of a run."""

    def __init__(
        self, task: Task, config: TrainingConfig, folder: Path, device: torch.device, group: Group
    ) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.device, self.group = device, group
        for module in task.modules.values():
            module.to(device).train()
        named = {
            f"{name}.{key}": p
            for name, module in task.modules.items()
            for key, p in module.named_parameters()
            if p.requires_grad
        }
        if not named:
            raise InputError("the task has no parameter that requires a gradient")
        self.parameters = list(named.values())
        self.average = Average(named, config.ema)
        self.lanes = Lanes(config.threads) if config.threads else None
        each = map if self.lanes is None else self.lanes.map
        self.optimizers = Optimizers(named, config, device, each)
        self.precision = resolve_precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=self.precision is torch.float16 and device.type == "cuda"
        )
        self.captured: Captured | None = None
        if config.graph and device.type == "cuda":
            self.captured = Captured(self.gradients, self.parameters)
        self.pending = PendingFigures(self.parameters, late=LATE if self.captured else 0)
        self.figures: list[str] = []
        self.noted: dict[int, dict[str, float]] = {}
        self.latest = math.nan
        self.step, self.done = 0, 0.0
        self.started = self.saved = self.previewed = time.monotonic()
        self.curve = Curve(folder, config.log_steps)
        self.ahead: Iterator[Batch] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of training, earlier parts of the run included."""
        return self.done + time.monotonic() - self.started

    def progress(self, elapsed: float | None = None) -> float:
        """How much of the run is done, in [0, 1]."""
        share = self.step / self.config.steps
        if self.config.minutes is not None:
            elapsed = self.group.first(self.elapsed) if elapsed is None else elapsed
            share = max(share, elapsed / (60 * self.config.minutes))
        return min(share, 1.0)

    def advance(self, stop: bool) -> bool:
        """One step; whether any process was asked to stop, in which case nothing was done."""
        if self.group.any(stop):
            return True
        config, group = self.config, self.group
        batch = self.drawn()
        if self.captured is not None:
            self.captured.record(batch, self.device)
        torch.manual_seed(self.stream(self.step)[0])  # for dropout inside networks
        if self.captured is None:
            self.optimizers.clear()
            figures = self.gradients(_to(batch, self.device))
        else:
            figures = self.captured(batch).clone()  # it lies in the same place again
        figures[:1] = group.average_gradients(self.parameters, figures[:1])
        share = config.share(self.step, self.progress())
        self.optimizers.unscale(self.scaler)
        if config.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
            figures = torch.cat([figures, norm.detach().float().view(1)])
        self.noted[self.step] = {"seconds": self.elapsed, "rate": share * config.learning_rate}
        self.pending.add(self.step, figures)
        self.read_figures()
        self.optimizers.step(share, self.scaler)
        self.scaler.update()
        self.step += 1
        self.average.update(self.step)
        return False

    def gradients(self, batch: dict[str, Any]) -> Tensor:
        """Compute the gradients of a step; the means of its figures, the loss first, on the device.
        Their names are in `figures`."""
        parts = _split(batch, self.config.batch // self.group.size, self.config.parts)
        if self.lanes is not None:
            told = self.lanes.add_gradients(self.loss, parts, self.parameters)
        else:
            told = []
            for part in parts:
                loss, figures = self.loss(part)
                loss.backward()
                told.append(figures)
        self.figures = list(told[0])
        return _means(told)

    def read_figures(self, wait: bool = False) -> None:
        """Take in what is known of the figures of steps; with `wait`, of all there were.

        Raises:
            NonFiniteError: a loss is not finite.
        """
        for step, figures in self.pending.known(wait):
            noted, first = self.noted.pop(step), self.numbers(step)[0]
            if not math.isfinite(figures[0]):
                raise NonFiniteError(
                    f"step {step}: the loss is {figures[0]}; no weight was changed. Lower "
                    f"learning_rate={self.config.learning_rate}, or look at examples {first} and on"
                )
            self.latest = figures[0]
            if self.group.rank == 0:
                images = (step + 1) * self.config.batch
                values = dict(zip([*self.figures, "gradient"], figures, strict=False))
                self.curve.add(step + 1, noted["seconds"], images, noted["rate"], values)

    def loss(self, part: Batch) -> tuple[Tensor, Figures]:
        """What a part adds to the loss of its step, and its figures."""
        with autocast(self.device, self.precision):
            loss, told = self.task.loss(part)
        return self.scaler.scale(loss / self.config.parts), {"loss": loss.detach(), **told}

    def numbers(self, step: int) -> tuple[int, int]:
        """The first example of this process's part of a step, and how many there are."""
        count = self.config.batch // self.group.size
        return step * self.config.batch + self.group.rank * count, count

    def draw(self, step: int) -> Batch:
        """What this process learns from in a step."""
        return self.task.draw(Draw(*self.numbers(step), self.stream(step)[1]))

    def stream(self, step: int) -> tuple[int, np.random.Generator]:
        """A seed for what is random inside the networks at a step, and for its examples."""
        rng = np.random.default_rng([self.config.seed, step, self.group.rank])
        return int(rng.integers(2**62)), rng

    def drawn(self) -> Batch:
        """The examples of this step, drawn here and now or by workers before."""
        if not self.config.workers:
            return self.draw(self.step)
        if self.ahead is None:
            steps = range(self.step, self.config.steps)
            pinned = self.device.type == "cuda"
            self.ahead = drawn_ahead(self.draw, steps, self.config.workers, pinned)
        return next(self.ahead)

    def close(self) -> None:
        """End the workers, and the threads, and give back the memory of what was recorded."""
        self.ahead = self.captured = None
        if self.lanes is not None:
            self.lanes.close()

    def housekeeping(self) -> None:
        """Checkpoints and previews when they are due."""
        now, config = time.monotonic(), self.config
        every = config.checkpoint_steps
        if now - self.saved > 60 * config.checkpoint_minutes or (every and self.step % every == 0):
            self.save()
        if now - self.previewed > 60 * config.preview_minutes:
            self.preview()

    def save(self) -> None:
        """Write the checkpoint, on the first process; the old one stays whole until it is there."""
        self.read_figures(wait=True)
        self.saved = time.monotonic()
        if self.group.rank:
            return
        self.curve.flush()
        checkpoints.save(
            self.folder / checkpoints.NAME,
            {
                "config": asdict(self.config),
                "step": self.step,
                "elapsed": self.elapsed,
                "modules": {name: m.state_dict() for name, m in self.task.modules.items()},
                "average": self.average.state_dict(),
                **self.optimizers.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; length, rate and intervals may differ from when it was made."""
        path = self.folder / checkpoints.NAME
        if set(state["modules"]) != set(self.task.modules):
            raise InputError(
                f"{path} holds {sorted(state['modules'])}; this task "
                f"trains {sorted(self.task.modules)}. Choose another folder, or resume=False"
            )
        try:
            fixed = {name: state["config"][name] for name in ("batch", "seed")}
            fixed["optimizer"] = state["config"].get("optimizer", "adamw")
            for name, value in fixed.items():
                if value != getattr(self.config, name):
                    raise InputError(
                        f"{name}={getattr(self.config, name)!r}, but the checkpoint in "
                        f"{self.folder} was made with {value!r}; use that, or resume=False"
                    )
            self._take(state)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:  # of PyTorch's
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} does not fit the networks that are trained "
                f"({' '.join(str(error).split())[:200]}); choose another folder, or resume=False"
            ) from error
        self.curve.rewind(self.step)

    def _take(self, state: dict[str, Any]) -> None:
        for name, module in self.task.modules.items():
            module.load_state_dict(state["modules"][name])
        self.average.load_state_dict(state["average"])
        self.optimizers.load_state_dict(state)
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.done = state["step"], state["elapsed"]

    def preview(self) -> None:
        """Let the task look at its averaged weights, if they are numbers."""
        self.read_figures(wait=True)
        self.previewed = time.monotonic()
        if self.group.rank:
            return
        for module in self.task.modules.values():
            module.eval()
        with torch.no_grad(), self.average.applied():
            measured = self.task.preview(self.folder, self.step)
        for module in self.task.modules.values():
            module.train()
        self.curve.note(self.step, measured)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast; `"auto"` is bfloat16 where the device computes in it."""
    if name != "auto":
        return getattr(torch, name)
    fast = hardware.fastest_dtype(str(device)) == "bfloat16"
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Layers compute in `dtype` where that is faster and safe; in float32 nothing is changed."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def _to(batch: Batch, device: torch.device) -> dict[str, Any]:
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }


def _means(parts: list[Figures]) -> Tensor:
    """Means over the parts of a step, which must tell the same; in the order of the first."""
    names = list(parts[0])
    if any(set(part) != set(names) for part in parts):
        raise InputError(f"parts of a step tell different figures: {[sorted(p) for p in parts]}")
    values = [torch.as_tensor(part[name]).detach().float() for part in parts for name in names]
    device = values[0].device  # the loss's
    return torch.stack([v.to(device) for v in values]).view(len(parts), -1).mean(0)


def _split(batch: dict[str, Any], count: int, parts: int) -> Iterator[dict[str, Any]]:
    size = count // parts
    for start in range(0, count, size):
        yield {name: value[start : start + size] for name, value in batch.items()}


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that asked for an end so far; a second one ends the process at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where no signal arrives either
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(config: TrainingConfig, step: int, wanted: bool | None, group: Group) -> Any:
    shown = sys.stderr.isatty() if wanted is None else wanted
    return tqdm(total=config.steps, initial=step, unit="step", disable=group.rank > 0 or not shown)
