"""How to train: length, rate, optimizer, and how a step is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from underdraw.errors import InputError
from underdraw.training.eight_bit import EIGHT_BIT, eight_bit

SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
OPTIMIZERS = ("adamw", "muon", EIGHT_BIT)


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; what is trained is the `Task`.

    `batch` examples make one step, over all processes and all `accumulate` parts. The rate climbs
    over `warmup` steps and follows `schedule` down to zero over the last `decay` of the run. With
    `minutes` the run also ends after that time, and the schedule follows whichever of time and
    steps is further on, so that it comes to its end on a machine of unknown speed; the climb then
    takes no more than a tenth of the run. `workers`
    processes draw the examples of coming steps, for accelerators that would wait for them.

    `threads`, for CPUs, computes each part of a step in so many parts at the same time, each on one
    thread (`training.lanes`); 0 leaves it to PyTorch to share each operation among threads.

    `graph` records a step as a CUDA graph at its first batch and replays it (`training.captured`);
    all batches then have the same shapes, and a loss that is not finite is known two steps later,
    when the weights are put back to what they were. It changes nothing on other devices.

    `precision` is the dtype of autocast: "auto" takes bfloat16 where the device computes in it. On
    CUDA products in float32 use TF32.

    `optimizer`: "adamw", or "muon" (`training.optimizers`), which takes `muon_rate` for matrices
    inside of networks and AdamW with `learning_rate` for all else; both follow the same schedule;
    or "adamw8bit", which keeps AdamW's state in 8 bits (bitsandbytes).
    """

    steps: int
    batch: int = 32
    accumulate: int = 1
    threads: int = 0
    graph: bool = False
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    muon_rate: float = 0.01
    warmup: int = 100
    schedule: str = "cosine"
    decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    ema: float = 0.999
    precision: str = "auto"
    seed: int = 0
    minutes: float | None = None
    workers: int = 0
    checkpoint_minutes: float = 3.0
    checkpoint_steps: int | None = None
    preview_minutes: float = 10.0
    log_steps: int = 25

    def __post_init__(self) -> None:
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name}={getattr(self, name)!r}; allowed: {', '.join(map(repr, allowed))}"
                )
        for name, least in (
            ("steps", 1),
            ("batch", 1),
            ("accumulate", 1),
            ("log_steps", 1),
            ("workers", 0),
            ("threads", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.batch % self.accumulate:
            raise InputError(f"batch={self.batch} does not split into accumulate={self.accumulate}")
        if self.batch % self.parts:
            raise InputError(
                f"batch={self.batch} does not split into accumulate={self.accumulate} times "
                f"threads={self.threads} parts"
            )
        if not 0 <= self.ema < 1:
            raise InputError(f"ema={self.ema} must be in [0, 1)")
        if self.optimizer == EIGHT_BIT:
            eight_bit()  # which may not be installed
        for name in ("learning_rate", "muon_rate", "minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value} must be a positive number")

    @property
    def parts(self) -> int:
        """How many parts a process computes of each step, at the same time or one by one."""
        return self.accumulate * max(1, self.threads)

    def rate(self, step: int, progress: float) -> float:
        """Learning rate of step `step` (from 0) when `progress` in [0, 1] of the run is done."""
        return self.learning_rate * self.share(step, progress)

    def share(self, step: int, progress: float) -> float:
        """What of the highest rates counts at step `step`, in [0, 1]."""
        risen = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.minutes is not None:
            risen = max(risen, min(1.0, 10 * progress))
        left = min(1.0, (1.0 - progress) / self.decay) if self.decay > 0 else 1.0
        falls = {
            "constant": 1.0,
            "linear": left,
            "cosine": 0.5 - 0.5 * math.cos(math.pi * left),
        }
        return risen * falls[self.schedule]


def shorter(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    """A copy of `config` with some fields changed; None leaves a field as it is."""
    return replace(config, **{k: v for k, v in changes.items() if v is not None})
