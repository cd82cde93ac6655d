"""`underdraw train subject` on pictures of one's own, and `underdraw train subject-finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from underdraw.cli import options, progress
from underdraw.cli.failures import tell
from underdraw.cli.trained import schedule, side_of
from underdraw.errors import InputError, NotFoundError


@dataclass(frozen=True)
class Tuning:
    """What the command line says of fine-tuning."""

    category: str | None = None
    rank: int | None = None
    embedding: bool = True
    weights: str | None = None


def finetune(
    out: Path,
    data: str,
    told: Tuning,
    model: str | None,
    size: int | None,
    text: bool,
    changes: dict[str, Any],
    resume: bool,
    device: str,
) -> Path:
    """One subject, learned from a folder of pictures; the file it is in."""
    from underdraw.cli.loading import load_pipeline
    from underdraw.cli.subjects import check_weights
    from underdraw.training.config import TrainingConfig, shorter
    from underdraw.training.subject_folder import read_pictures
    from underdraw.training.subject_tuning import RUN, TuningConfig, tune_subject

    if told.category is None:
        raise InputError('subject-finetune needs --category: what the subject is, such as "dog"')
    plan: TrainingConfig = shorter(RUN, **changes)
    pictures = read_pictures(data, told.category)
    if told.embedding:
        check_weights(model or options.SCENES, told.weights)
    pipe = load_pipeline(model or options.SCENES, dtype="float32", device=device)
    if told.weights is not None and told.embedding:
        pipe.load_subject(told.weights)
    config = TuningConfig(schedule(pipe), told.embedding, told.rank, text)
    tell(f"{told.category} of {len(pictures)} pictures beside {pipe.source}, {plan.steps} steps")
    how = {"side": size, "resume": resume, "progress": progress.wanted()}
    return tune_subject(pipe, pictures, out, config, plan, **how)[1]


def train_encoder(
    out: Path,
    data: str,
    model: str | None,
    size: int | None,
    changes: dict[str, Any],
    resume: bool,
    device: str,
) -> Path:
    """A subject encoder trained on a folder of pictures; where it is."""
    from underdraw.cli.loading import load_pipeline
    from underdraw.models.overlay import Overlay
    from underdraw.training.config import TrainingConfig, shorter
    from underdraw.training.data import check_pictures
    from underdraw.training.loop import train as run
    from underdraw.training.subject_encoder import new_encoder
    from underdraw.training.subject_folder import SubjectFolder
    from underdraw.training.subjects import SubjectTask, SubjectTrainingConfig

    plan: TrainingConfig = shorter(TrainingConfig(changes["steps"] or 1000), **changes)
    examples = SubjectFolder(data, size or 64)
    check_pictures(examples.paths)
    pipe = load_pipeline(model or options.SCENES, dtype="float32", device=device)
    examples.size = side_of(pipe, size)
    there = next(iter(pipe.subjects.values()), None)
    if there is None and pipe.components.get("image_encoder") is None:
        raise NotFoundError(
            f"{pipe.source} has neither a subject encoder nor an image_encoder to begin with"
        )
    words = {word for entry in examples.entries for word in entry.text.lower().split()}
    encoder = there or new_encoder(pipe.components, sorted(words), seed=plan.seed)
    config = SubjectTrainingConfig(schedule(pipe), image_tower=True)
    task = SubjectTask(encoder, pipe.components, examples, config, begin=encoder.overlay.unet)
    tell(f"subject of {pipe.source} on {len(examples)} pictures, {plan.steps} steps")
    average = run(task, plan, out, resume=resume, device=device, progress=progress.wanted())
    target = out / "qformer"
    with average.applied():
        encoder.overlay = Overlay(unet=task.overlay())
        encoder.save_pretrained(target)
    return target
