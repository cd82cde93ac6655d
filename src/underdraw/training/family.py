"""The whole scenes family within a budget of time.

Stages share the budget by `SHARES`. What a stage has is its share of what is left when it begins,
so that one that took longer than its own takes from all that follow and not from the last. Stages
that make examples make as many as their share allows, which is measured first; stages that train
end by time, their rates at zero. What was decided and done stands in `family.json` of the working
folder, so that the same command goes on after an interruption, also inside of a stage.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from underdraw.errors import InputError, WeightError
from underdraw.evaluation import evaluate_text_to_image, held_out_captions
from underdraw.formats.json_text import read_object
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline
from underdraw.scenes import render, sample_scene, scene_rng
from underdraw.training.data import HELD_BACK, MIX
from underdraw.training.maps import KINDS
from underdraw.training.recipes import ScenesRecipe, train_stage
from underdraw.weights.hub import resolve
from underdraw.weights.save import write_json

SHARES: Mapping[str, float] = {
    "renders": 0.08,
    "text": 0.02,
    "autoencoder": 0.13,
    "latents": 0.02,
    "denoiser": 0.4,
    "decoder": 0.05,
    "clip": 0.04,
    "grounding": 0.1,
    "maps": 0.01,
    "structure": 0.02,
    "edges": 0.02,
    "depth": 0.02,
    "subjects": 0.02,
    "alignment": 0.01,
    "subject": 0.03,
    "export": 0.01,
    "scores": 0.02,
}
"""What of a budget each stage gets, in the order in which they run; they need not add up to 1."""
STARTED = {"text_encoder": ("text",), "vae": ("autoencoder", "decoder")}
"""By network of a family to start from: the stages it has behind it."""
PLAN, SCORES = "family.json", "scores"
_FEWEST = 4 * HELD_BACK
"""Scenes."""
_LEAST, _MOST = 8, 128
"""Pictures that are judged."""
_PROBED = 8
"""Scenes that are drawn to see how long one takes."""
SIDE = 128
"""Of the pictures, in pixels."""
_VIEW, _SUBJECT = 0.6, 3.0
"""How long a picture of a single thing takes, and a subject with its pictures and latents, beside a
scene."""


@dataclass
class Ledger:
    """What was decided for a run in a folder, and what its stages took."""

    path: Path
    start: str | None
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    @staticmethod
    def opened(folder: Path, start: str | None) -> Ledger:
        """That of a folder, or a new one.

        Raises:
            InputError: its run began with another family.
            WeightError: it cannot be read.
        """
        path = folder / PLAN
        if not path.exists():
            return Ledger(path, start)
        told = read_object(path)
        counts, seconds, done = (told.get(name) for name in ("counts", "seconds", "done"))
        fits = _numbers(counts) and _numbers(seconds) and isinstance(done, list)
        if not fits or not {*map(str, done or ())} <= {*SHARES}:
            raise WeightError(f"{path} is damaged; remove it to run every stage again")
        if told.get("start") != start:
            raise InputError(
                f"start={start!r}, but {folder} was begun with {told.get('start')!r}; use that, or "
                "another folder"
            )
        whole = {name: int(value) for name, value in (counts or {}).items()}
        return Ledger(path, start, whole, dict(seconds or {}), list(done or ()))

    def write(self) -> None:
        """Keep it."""
        kept = {"counts": self.counts, "seconds": self.seconds, "done": self.done}
        write_json(self.path, {"start": self.start, **kept})

    def allotted(self, stage: str, stages: Sequence[str], budget: float) -> float:
        """Seconds that a stage has: its share of what those that have ended left, at least 0.1.
        What a stage that was interrupted took before is its own."""
        left = budget - sum(self.seconds.get(name, 0.0) for name in self.done)
        shares = sum(SHARES[name] for name in stages if name not in self.done)
        return max(0.1, left * SHARES[stage] / shares)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes, and that it has ended, if it does."""
        began, before = time.monotonic(), self.seconds.get(stage, 0.0)
        try:
            yield
            self.done += [stage] if stage not in self.done else []
        finally:
            self.seconds[stage] = round(before + time.monotonic() - began, 1)
            self.write()


def _numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(
        type(value) in (int, float) and 0 <= value < 1e12 for value in values.values()
    )


def stages_of(recipe: ScenesRecipe) -> list[str]:
    """The stages of a family, in order: all, or those that are left to do with its `start`."""
    if recipe.start is None:
        return list(SHARES)
    there = resolve(recipe.start)
    held = [stages for network, stages in STARTED.items() if recipe.starts_with(network)]
    behind = {stage for stages in held for stage in stages}
    if (there / "image_encoder").is_dir() and "image_encoder" not in recipe.anew:
        behind.add("clip")
    nets = {f"structure/{kind}" for kind in KINDS}
    if all((there / net).is_dir() for net in nets) and not nets & {*recipe.anew}:
        behind.add("structure")
    return [stage for stage in SHARES if stage not in behind]


def train_family(
    folder: str | Path,
    budget: float,
    recipe: ScenesRecipe | None = None,
    *,
    device: str = "cpu",
    progress: bool | None = None,
    tell: Callable[[str], None] = print,
) -> str:
    """Train the scenes family in `budget` seconds, or go on with it; returns the table of scores.

    The weights are in `folder / "export"`, a pipeline's folder; scores of pictures of held-out
    captions, and the pictures, in `folder / "scores"`. A run that has ended stays as it is.

    Args:
        recipe: with a `start`, its family goes on instead of a new one.
        tell: is told which stage begins, and how long it has.

    Raises:
        InputError: `budget` is no positive number; `folder` holds a run with another start.
        loop.Stopped: interrupted; the same call goes on.
    """
    if not 0 < budget < 1e9:
        raise InputError(f"budget={budget} must be a positive number of seconds")
    recipe, folder = recipe or ScenesRecipe(), Path(folder)
    # Pictures of prompts are drawn in the end, with the weights that are kept.
    recipe = replace(recipe, denoiser=replace(recipe.denoiser, prompts=()))
    folder.mkdir(parents=True, exist_ok=True)
    ledger, stages = Ledger.opened(folder, recipe.start), stages_of(recipe)
    for stage in stages:
        if stage in ledger.done or stage == "scores":
            continue
        seconds = ledger.allotted(stage, stages, budget)
        tell(f"{stage}: {seconds:.0f} s")
        with ledger.timed(stage):
            recipe = sized(recipe, stage, seconds, ledger)
            how: dict[str, Any] = {"device": device, "progress": progress}
            train_stage(stage, folder, recipe, minutes=seconds / 60, **how)
    seconds = ledger.allotted("scores", stages, budget) if "scores" not in ledger.done else 0.0
    with ledger.timed("scores"):
        return _score(folder, seconds, ledger, device, progress)


def sized(recipe: ScenesRecipe, stage: str, seconds: float, ledger: Ledger) -> ScenesRecipe:
    """The recipe with as many examples as the stages that make them have, or had, time for; never
    more than it had."""
    counts = ledger.counts
    fresh = {"renders": ("scenes", "views"), "subjects": ("subjects",)}.get(stage, ())
    if any(name not in counts for name in fresh):
        each = _seconds_of_a_scene(recipe) / (os.cpu_count() or 1)
        if stage == "renders":
            views = recipe.views / max(1, recipe.scenes)
            scenes = max(_FEWEST, int(seconds / (each * (1 + _VIEW * views))))
            counts["scenes"] = min(recipe.scenes, scenes)
            counts["views"] = min(recipe.views, max(_FEWEST, int(scenes * views)))
        else:
            counts["subjects"] = min(
                recipe.subjects, max(_FEWEST, int(seconds / (each * _SUBJECT)))
            )
        ledger.write()
    made = ("scenes", "views", "subjects")
    return replace(recipe, **{name: counts[name] for name in made if name in counts})


def _seconds_of_a_scene(recipe: ScenesRecipe) -> float:
    """By one process, drawn here and now."""
    began = time.monotonic()
    for index in range(_PROBED):
        scene = sample_scene(scene_rng(recipe.seed, index), MIX[index % len(MIX)])
        render(scene, SIDE, SIDE)
    return (time.monotonic() - began) / _PROBED


def _score(folder: Path, seconds: float, ledger: Ledger, device: str, progress: bool | None) -> str:
    """The table of scores of the exported family."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder / "export", dtype="auto")
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    guided = {"guidance_scale": pipe.advice.guidance_scale}
    if "scored" not in ledger.counts:
        (caption,) = held_out_captions(1)
        began = time.monotonic()
        pipe(caption.text, num_inference_steps=20, seed=0, **guided)
        fit = int(seconds / (time.monotonic() - began))
        ledger.counts["scored"] = min(_MOST, max(_LEAST, fit))
        ledger.write()
    captions = held_out_captions(ledger.counts["scored"])
    where: dict[str, Any] = {"folder": folder / SCORES, "progress": bool(progress)}
    return evaluate_text_to_image(pipe, captions, steps=20, **where, **guided).table()
