"""`underdraw train structure --data FOLDER`: a ControlNet for a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from underdraw.cli import options, progress
from underdraw.cli.failures import tell
from underdraw.cli.trained import check_model, schedule, side_of

WIDE = 128
"""Channels of a UNet's first level from which on its ControlNet has the published layers in front;
those of smaller UNets would cost more than the rest."""


def train_structure(
    out: Path,
    data: str,
    maps: str | None,
    model: str | None,
    size: int | None,
    changes: dict[str, Any],
    resume: bool,
    device: str,
) -> Path:
    """A ControlNet for a checkpoint, from pictures with maps; where it is."""
    from underdraw.cli.loading import load_pipeline
    from underdraw.networks.controlnet.config import HINT_CHANNELS
    from underdraw.training.config import TrainingConfig, shorter
    from underdraw.training.data import CaptionedFolder, check_pictures
    from underdraw.training.loop import train as run
    from underdraw.training.mapped import FolderMaps
    from underdraw.training.structure import (
        HINT,
        StructureConfig,
        StructureTask,
        hint_of,
        new_net,
    )

    plan: TrainingConfig = shorter(TrainingConfig(changes["steps"] or 1000), **changes)
    check_model(model, size)
    examples = CaptionedFolder(data, size or 8)
    shown = FolderMaps(examples, maps)
    check_pictures([*examples.paths, *shown.paths])
    pipe = load_pipeline(model or options.SCENES, dtype="float32", device=device)
    examples.size = side_of(pipe, size)
    wide = pipe.unet.config.block_out_channels[0] >= WIDE
    widths = hint_of(HINT_CHANNELS if wide else HINT, pipe.vae.config.factor)
    net = new_net(pipe.unet, hint=widths, seed=plan.seed)
    config = StructureConfig(schedule(pipe))
    task = StructureTask(net, pipe.components, examples, {maps or "map": shown}, config)
    tell(f"structure of {pipe.source} on {len(examples)} pictures, {plan.steps} steps")
    average = run(task, plan, out, resume=resume, device=device, progress=progress.wanted())
    target = out / "structure"
    with average.applied():
        net.save_pretrained(target)
    return target
