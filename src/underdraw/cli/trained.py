"""What all trainings on pictures of one's own have in common."""

from __future__ import annotations

from typing import Any

from underdraw.cli import early, options


def check_model(model: str | None, size: int | None) -> None:
    """Refuse a size that the model cannot take, or a model that is not there, before loading it."""
    known = early.facts(model or options.SCENES)
    if size is not None:
        from underdraw import checks

        checks.size("--size", size, known.factor)


def side_of(pipe: Any, size: int | None) -> int:
    """Pixels of a side of the pictures: as asked for, or as the model was trained with."""
    trained = pipe.unet.config.sample_size
    side = trained if isinstance(trained, int) else min(trained)
    return size or side * pipe.vae.config.factor


def schedule(pipe: Any) -> Any:
    """The noise levels and the prediction type that a checkpoint was trained with."""
    from underdraw.training.objectives import ObjectiveConfig

    return ObjectiveConfig.of(pipe.scheduler.config)
