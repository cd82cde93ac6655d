"""A text-to-image model judged on held-out captions, in a folder that survives an interruption."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from underdraw.errors import InputError
from underdraw.models.base import Model
from underdraw.pictures.writing import to_bytes
from underdraw.pipelines.base import DiffusionPipeline
from underdraw.pipelines.components.registry import uncompiled
from underdraw.scenes import Caption

from .detector import Evaluator
from .images import as_images
from .judging import CaptionReport, score_captions
from .report import SHEET, claim, generate_kept, write_picture, write_report
from .sheet import judged_sheet
from .staging import as_captions, held_out_captions


@dataclass(frozen=True)
class TextToImageReport(CaptionReport):
    """A CaptionReport with what was asked for (`settings`) and where it is kept (`folder`)."""

    settings: dict[str, Any]
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {"settings": self.settings, **super().to_json()}


def evaluate_text_to_image(
    pipe: Callable[..., Any],
    captions: Sequence[Caption | str] | None = None,
    *,
    steps: int = 20,
    seed: int = 0,
    batch: int = 16,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
    evaluator: Evaluator | None = None,
    **arguments: Any,
) -> TextToImageReport:
    """Generate a picture per caption (default: the 128 of `held_out_captions()`) and judge them.

    `pipe`: a pipeline, called as `pipe(prompts, num_inference_steps=steps, seed=[...],
    output_type="np", **arguments).images`, or any function `f(prompts, seeds, **arguments)` that
    gives pictures (see `as_images`). Picture i has the seed `seed + i`. `arguments` (such as
    `guidance_scale`) go to it unchanged.

    With `folder` every batch is kept there as it is finished: an interrupted run (Ctrl-C included)
    goes on where it stopped, and at the end `report.json`, `table.txt` and `sheet.png` (pictures,
    captions, marks) stand beside the pictures. Pictures are judged as 8-bit values either way.

    A folder belongs to one model: its pictures are not made again. What made them is kept with it
    (`describe_model`), so that other weights, or another solver, are refused there. Raises
    InputError for numbers below 1, wrong pictures, and a folder of another run.
    """
    for name, value in (("steps", steps), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is not an integer of at least 1")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r} is not a non-negative integer")
    told = held_out_captions() if captions is None else as_captions(captions)
    texts = [caption.text for caption in told]
    settings = {
        "model": describe_model(pipe),
        "captions": texts,
        "steps": steps,
        "seed": seed,
        "arguments": {name: repr(value) for name, value in sorted(arguments.items())},
    }
    generate = _generator(pipe, steps, arguments)
    place = None if folder is None else Path(folder)
    if place is not None:
        claim(place, settings)
    pictures = generate_kept(generate, texts, seed, batch, place, progress)
    judged = score_captions(pictures, told, evaluator=evaluator)
    report = TextToImageReport(
        judged.scores, judged.upper_bound, judged.judgements, settings, place
    )
    if place is not None:
        write_report(place, report)
        write_picture(place / SHEET, judged_sheet(pictures, report.judgements))
    return report


def describe_model(pipe: Any) -> dict[str, Any] | None:
    """Which pipeline of ours this is, as JSON holds it; None for anything else.

    `weights` is the `digest` of its networks.
    """
    if not isinstance(pipe, DiffusionPipeline):
        return None
    scheduler: Any = pipe.components["scheduler"]
    left_out = pipe.settings.acceleration
    schedule = dict(getattr(scheduler, "config", {}))
    return {
        "source": pipe.source,
        "weights": digest(pipe.components),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "scheduler": type(scheduler).__name__,
        "schedule": {name: repr(value) for name, value in sorted(schedule.items())},
        **({} if left_out is None else {"acceleration": left_out.recorded()}),
    }


def digest(parts: Mapping[str, Any]) -> str:
    """Of a few numbers of every parameter of every network among `parts`: training changes all of
    them, and a checkpoint need not be read whole."""
    made = hashlib.sha256()
    for name, part in sorted(parts.items()):
        if isinstance(part := uncompiled(part), Model):
            framework = part._framework
            for key, value in framework.named_tensors(part):
                some = framework.to_numpy(value.reshape(-1)[:16])
                made.update(f"{name}.{key} {tuple(value.shape)}".encode() + some.tobytes())
    return made.hexdigest()[:16]


def _generator(
    pipe: Callable[..., Any], steps: int, arguments: dict[str, Any]
) -> Callable[[list[str], list[int]], np.ndarray]:
    def run(prompts: list[str], seeds: list[int]) -> np.ndarray:
        if hasattr(pipe, "components"):
            made = pipe(
                prompts, num_inference_steps=steps, seed=seeds, output_type="np", **arguments
            )
        else:
            made = pipe(prompts, seeds, **arguments)
        pictures = as_images(getattr(made, "images", made), "generated pictures")
        if len(pictures) != len(prompts):
            raise InputError(f"pipe gave {len(pictures)} pictures for {len(prompts)} prompts")
        return to_bytes(pictures)

    return run
