"""A run of the loop over a `PictureTask`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from underdraw.errors import InputError
from underdraw.formats import json_text
from underdraw.pipelines.components.registry import uncompiled
from underdraw.training import checkpoints
from underdraw.training.adapters.learners import Learner
from underdraw.training.adapters.task import PictureTask
from underdraw.training.config import TrainingConfig
from underdraw.training.ema import Average
from underdraw.training.loop import resolve_precision, train
from underdraw.training.parallel import alone
from underdraw.weights.save import write_json

LEARNER = "learner.json"
"""What learns in a folder: shapes alone do not tell a word from another, nor an alpha."""


def learn(
    task: PictureTask,
    run: TrainingConfig,
    folder: str | Path,
    resume: bool,
    progress: bool | None,
) -> Average:
    """Train `task` where its pipeline computes, in a folder that is there; arguments and errors as
    of `loop.train`."""
    unet = task.learner.unet()[0]
    before = unet.gradient_checkpointing
    unet.gradient_checkpointing = before or task.config.gradient_checkpointing
    write_json(Path(folder) / LEARNER, dict(task.learner.told))
    try:
        return train(task, run, folder, resume=resume, device=task.vae.device, progress=progress)
    finally:
        unet.gradient_checkpointing = before


@contextmanager
def learning(learner: Learner, folder: str | Path, resume: bool) -> Iterator[None]:
    """Have a folder for one run of a learner, which it may have begun before.

    Raises:
        InputError: another run is at work there, or something else learned there.
    """
    with alone(folder, LEARNER):
        _require_same(learner, folder, resume)
        yield


def _require_same(learner: Learner, folder: str | Path, resume: bool) -> None:
    """Raise an InputError where a folder holds a run that something else learned in."""
    path, asked = Path(folder) / LEARNER, dict(learner.told)
    if not resume or not path.exists() or not (Path(folder) / checkpoints.NAME).exists():
        return
    if (found := json_text.read_object(path)) != asked:
        names = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
        there, wanted = (
            ", ".join(f"{name}={told.get(name)!r:.60}" for name in names) for told in (found, asked)
        )
        raise InputError(
            f"{folder} holds a training with {there}; asked for is {wanted}. Choose another "
            "folder, or resume=False"
        )


def fitting(pipe: Any, run: TrainingConfig) -> TrainingConfig:
    """The run in a precision that networks in half precision can be computed in: on a CPU their
    own, for norms take numbers of one dtype there; on accelerators either of the two.

    Raises:
        InputError: another one is asked for, or on a CPU networks are in both.
    """
    dtypes = {
        name: uncompiled(getattr(pipe.parts, name)).dtype for name in ("unet", "text_encoder")
    }
    half = {
        name: str(dtype).removeprefix("torch.")
        for name, dtype in dtypes.items()
        if dtype != torch.float32
    }
    if not half:
        return run
    device, told = pipe.parts.vae.device, ", ".join(f"{k} in {name}" for k, name in half.items())
    if device.type == "cpu" and len({*half.values()}) > 1:
        raise InputError(
            f"pipe has its {told}: a CPU trains beside one half precision; bring all networks to "
            "the same, as pipe.to(torch.float32) does"
        )
    own = next(iter(half.values()))  # the UNet's, if that is in one: most work is its
    precision = resolve_precision(run.precision, device)
    if precision == getattr(torch, own) or (device.type != "cpu" and precision != torch.float32):
        return run
    if run.precision != "auto":
        raise InputError(
            f"precision={run.precision!r}, but pipe has its {told}; allowed: 'auto', or "
            "a pipeline loaded with dtype='float32'"
        )
    return replace(run, precision=own)
