"""A run of the loop over a `PictureTask`."""

from __future__ import annotations

from pathlib import Path

from underdraw.training.adapters.task import PictureTask
from underdraw.training.config import TrainingConfig
from underdraw.training.ema import Average
from underdraw.training.loop import train


def learn(
    task: PictureTask,
    run: TrainingConfig,
    folder: str | Path,
    resume: bool,
    progress: bool | None,
) -> Average:
    """Train `task` where its pipeline computes; arguments and errors as of `loop.train`."""
    unet = task.learner.unet()[0]
    before = unet.gradient_checkpointing
    unet.gradient_checkpointing = before or task.config.gradient_checkpointing
    try:
        return train(task, run, folder, resume=resume, device=task.vae.device, progress=progress)
    finally:
        unet.gradient_checkpointing = before
