"""The whole scenes family within a budget of time.

Stages share the budget by `SHARES`. What a stage has is its share of what is left when it begins,
so that one that took longer than its own takes from all that follow and not from the last. Stages
that make examples make as many as their share allows, which is measured first; stages that train
end by time, their rates at zero. What was decided and done stands in `family.json` of the working
folder, so that the same command goes on after an interruption, also inside of a stage.

Beside an accelerator the cores have time: scenes are rendered while the autoencoder trains on those
that have come, everything else that can be made without a network while the denoiser trains.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from underdraw.errors import InputError, WeightError
from underdraw.evaluation import evaluate_text_to_image, held_out_captions
from underdraw.formats.json_text import read_object
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline
from underdraw.scenes import render, sample_scene, scene_rng
from underdraw.training.beside import Beside, Work
from underdraw.training.data import HELD_BACK, MIX, scenes_in, shards_of
from underdraw.training.maps import KINDS
from underdraw.training.parallel import alone
from underdraw.training.recipes import (
    ScenesRecipe,
    make_the_maps,
    render_the_scenes,
    render_the_subjects,
    render_the_views,
    train_stage,
)
from underdraw.training.workshop import Workshop
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
    "patterns": 0.06,
    "alignment": 0.01,
    "subject": 0.03,
    "export": 0.01,
    "scores": 0.02,
}
"""What of a budget each stage gets, in the order in which they run; they need not add up to 1."""
ACCELERATED: Mapping[str, float] = {
    "autoencoder": 70,
    "renders": 2,
    "text": 10,
    "latents": 7,
    "denoiser": 235,
    "decoder": 20,
    "clip": 30,
    "grounding": 65,
    "maps": 1,
    "structure": 15,
    "edges": 22,
    "depth": 22,
    "subjects": 1,
    "patterns": 45,
    "alignment": 10,
    "subject": 36,
    "export": 5,
    "scores": 14,
}
"""The same beside an accelerator, where examples are made by another process meanwhile: "renders",
"maps" and "subjects" only wait for it."""
_ALONE = 60
"""The share of "renders" there, if no autoencoder is trained meanwhile."""
NEEDS: Mapping[str, str] = {
    "renders": "scenes",
    "clip": "views",
    "grounding": "views",
    "maps": "maps",
    "subjects": "subjects",
}
"""By stage: what the other process must have made before."""
WAITING = ("renders", "maps", "subjects")
"""Stages that do nothing else."""
STARTED = {"text_encoder": ("text",), "vae": ("autoencoder", "decoder", "patterns")}
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
_VIEW, _SUBJECT, _MAPS = 0.6, 2.0, 0.35
"""How long a picture of a single thing takes, a subject with its two pictures, and the maps of a
scene, beside a scene."""
_SPARE = 0.5
"""What of the cores is there for all that while the denoiser trains, whose examples other processes
draw."""


@dataclass
class Ledger:
    """What was decided for a run in a folder, and what its stages took."""

    path: Path
    start: str | None
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    beside: dict[str, float] = field(default_factory=dict)
    """Seconds that another process took, by what it made."""
    chosen: dict[str, list[str]] = field(default_factory=dict)
    """What else decides which stages run, where it is not nothing."""

    @staticmethod
    def opened(
        folder: Path, start: str | None, chosen: Mapping[str, list[str]] | None = None
    ) -> Ledger:
        """That of a folder, or a new one.

        Raises:
            InputError: its run began with another family, or other choices.
            WeightError: it cannot be read.
        """
        path, chosen = folder / PLAN, dict(chosen or {})
        if not path.exists():
            return Ledger(path, start, chosen=chosen)
        told = read_object(path)
        counts, seconds, done = (told.get(name) for name in ("counts", "seconds", "done"))
        beside = told.get("beside", {})
        fits = all(map(_numbers, (counts, seconds, beside))) and isinstance(done, list)
        if not fits or not {*map(str, done or ())} <= {*SHARES}:
            raise WeightError(f"{path} is damaged; remove it to run every stage again")
        if told.get("start") != start:
            raise InputError(
                f"start={start!r}, but {folder} was begun with {told.get('start')!r}; use that, or "
                "another folder"
            )
        if (others := told.get("chosen", {})) != chosen:
            raise InputError(
                f"{folder} was begun with {others or 'all stages'}, not {chosen or 'all stages'}; "
                "use that, or another folder"
            )
        whole = {name: int(value) for name, value in (counts or {}).items()}
        taken, ended = dict(seconds or {}), [str(name) for name in done or ()]
        return Ledger(path, start, whole, taken, ended, dict(beside), chosen)

    def write(self) -> None:
        """Keep it."""
        kept = {"counts": self.counts, "seconds": self.seconds, "done": self.done}
        further = {"beside": self.beside, "chosen": self.chosen}
        kept |= {name: value for name, value in further.items() if value}
        write_json(self.path, {"start": self.start, **kept})

    def allotted(
        self,
        stage: str,
        stages: Sequence[str],
        budget: float,
        shares: Mapping[str, float] = SHARES,
    ) -> float:
        """Seconds that a stage has: its share of what those that have ended left, at least 0.1.
        What a stage that was interrupted took before is its own."""
        left = budget - sum(self.seconds.get(name, 0.0) for name in self.done)
        whole = sum(shares[name] for name in stages if name not in self.done)
        return max(0.1, left * shares[stage] / whole)

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
    """The stages of a family, in order: all, or those that are left to do with its `start`, and
    those of `again`; never those of `without`.

    Raises:
        InputError: `again` or `without` name no stage, or one that others need.
    """
    for name in ("again", "without"):
        if unknown := {*getattr(recipe, name)} - {*SHARES}:
            raise InputError(f"{name}={sorted(unknown)}; allowed: {', '.join(SHARES)}")
    behind = _behind(recipe) - {*recipe.again}
    stages = [stage for stage in SHARES if stage not in behind | {*recipe.without}]
    for missing in [stage for stage in SHARES if stage in {*recipe.without} - behind]:
        if missing in _ALWAYS:
            raise InputError(f"without={[missing]}: other stages need what it makes")
        if missing == "alignment" and _holds(recipe, "qformer"):
            continue
        if needing := [stage for stage in stages if missing in AFTER.get(stage, ())]:
            raise InputError(
                f"without={[missing]}: {', '.join(needing)} need what it makes; leave that out, too"
            )
    return stages


_ALWAYS = {"renders", "text", "autoencoder", "latents", "denoiser", "export", "scores"}
"""Stages that are left out only where a family to start from has their networks."""
AFTER: Mapping[str, Sequence[str]] = {
    "grounding": ("clip",),
    **dict.fromkeys(("structure", *KINDS), ("maps",)),
    "patterns": ("subjects",),
    "alignment": ("subjects",),
    "subject": ("subjects", "alignment"),
}
"""By stage: others without whose work it cannot run, apart from those."""


AFTER_PATTERNS = ("alignment", "subject", "export")
"""Stages that use the autoencoder as "patterns" left it."""


def _behind(recipe: ScenesRecipe) -> set[str]:
    """The stages whose networks the `start` has."""
    if recipe.start is None:
        return set()
    held = [stages for network, stages in STARTED.items() if recipe.starts_with(network)]
    behind = {stage for stages in held for stage in stages}
    if _holds(recipe, "image_encoder"):
        behind.add("clip")
    if all(_holds(recipe, f"structure/{kind}") for kind in KINDS):
        behind.add("structure")
    return behind


def _holds(recipe: ScenesRecipe, network: str) -> bool:
    """Whether the `start` has a network, with which the recipe begins."""
    if recipe.start is None or not recipe.starts_with(network):
        return False
    return (resolve(recipe.start) / network).is_dir()


def train_family(
    folder: str | Path,
    budget: float,
    recipe: ScenesRecipe | None = None,
    *,
    device: str = "cpu",
    beside: bool | None = None,
    progress: bool | None = None,
    tell: Callable[[str], None] = print,
) -> str:
    """Train the scenes family in `budget` seconds, or go on with it; returns the table of scores.

    The weights are in `folder / "export"`, a pipeline's folder; scores of pictures of held-out
    captions, and the pictures, in `folder / "scores"`. A run that has ended stays as it is.

    Args:
        recipe: with a `start`, its family goes on instead of a new one.
        beside: examples are made by another process while this one trains; None: unless the
            device is "cpu". That process is spawned: a script calls this under
            `if __name__ == "__main__"`.
        tell: is told which stage begins, and how long it has.

    Raises:
        InputError: `budget` is no positive number; `folder` holds a run with another start, or
            another process is at work on its family.
        UnderdrawError: making examples failed; what was trained is kept, the same call goes on.
        loop.Stopped: interrupted; the same call goes on.
    """
    if not 0 < budget < 1e9:
        raise InputError(f"budget={budget} must be a positive number of seconds")
    recipe, folder = recipe or ScenesRecipe(), Path(folder)
    # Pictures of prompts are drawn in the end, with the weights that are kept.
    recipe = replace(recipe, denoiser=replace(recipe.denoiser, prompts=()))
    with alone(folder, "family"):
        chosen = {name: sorted(getattr(recipe, name)) for name in ("anew", "again", "without")}
        chosen = {name: named for name, named in chosen.items() if named}
        ledger, stages = Ledger.opened(folder, recipe.start, chosen), stages_of(recipe)
        if {*AFTER_PATTERNS} & {*ledger.done} and "patterns" not in ledger.done:
            stages = [stage for stage in stages if stage != "patterns"]  # begun when there was none
        how: dict[str, Any] = {"device": device, "progress": progress}
        if device != "cpu" if beside is None else beside:
            shares = _shares_beside(stages)
            stages = [stage for stage in ACCELERATED if stage in stages]
            recipe = _planned(recipe, stages, budget, ledger)
            _train_beside(folder, budget, recipe, ledger, stages, tell, how)
        else:
            shares = SHARES
            for stage in _left(stages, ledger):
                seconds = ledger.allotted(stage, stages, budget)
                tell(f"{stage}: {seconds:.0f} s")
                with ledger.timed(stage):
                    recipe = sized(recipe, stage, seconds, ledger)
                    train_stage(stage, folder, recipe, minutes=seconds / 60, **how)
        done = "scores" in ledger.done
        seconds = 0.0 if done else ledger.allotted("scores", stages, budget, shares)
        with ledger.timed("scores"):
            return _score(folder, seconds, ledger, device, progress)


def _left(stages: Sequence[str], ledger: Ledger) -> list[str]:
    """The stages that are to be run yet, apart from the scores."""
    return [stage for stage in stages if stage not in (*ledger.done, "scores")]


# -- beside an accelerator -----------------------------------------------------------------------
def _shares_beside(stages: Sequence[str]) -> Mapping[str, float]:
    alone = {} if "autoencoder" in stages else {"renders": _ALONE}
    return {**ACCELERATED, **alone}


def _planned(
    recipe: ScenesRecipe, stages: Sequence[str], budget: float, ledger: Ledger
) -> ScenesRecipe:
    """The recipe with as many examples as another process has time to make: scenes while the
    autoencoder trains, the others while the denoiser does; never more than it had."""
    counts = ledger.counts
    if not {"scenes", "views", "subjects"} <= counts.keys():
        each = _seconds_of_a_scene(recipe) / (os.cpu_count() or 1)
        fit = int(_seconds_for_scenes(stages, budget, ledger) / each)
        counts["scenes"] = min(recipe.scenes, max(_FEWEST, fit))
        others = {"views": recipe.views, "subjects": recipe.subjects}
        if recipe.mapped is not None:
            others["mapped"] = recipe.mapped
        costs = {"views": _VIEW, "subjects": _SUBJECT, "mapped": _MAPS}
        whole = each * sum(costs[name] * count for name, count in others.items())
        time = _SPARE * ledger.allotted("denoiser", stages, budget, _shares_beside(stages))
        fit = min(1.0, time / whole)
        for name, count in others.items():
            counts[name] = min(count, max(_FEWEST, int(count * fit)))
        ledger.write()
    return _counted(recipe, ledger)


def _seconds_for_scenes(stages: Sequence[str], budget: float, ledger: Ledger) -> float:
    """What is left of the stage beside which scenes are rendered; 0 where there is none left."""
    left = _left(stages, ledger)
    stage = next((one for one in ("autoencoder", "renders") if one in left), None)
    if stage is None:
        return 0.0
    has = ledger.allotted(stage, stages, budget, _shares_beside(stages))
    return has - ledger.seconds.get(stage, 0.0)


def _train_beside(
    folder: Path,
    budget: float,
    recipe: ScenesRecipe,
    ledger: Ledger,
    stages: Sequence[str],
    tell: Callable[[str], None],
    how: Mapping[str, Any],
) -> None:
    """Run the stages; each waits for what it needs of what another process makes meanwhile."""
    left, shares = _left(stages, ledger), _shares_beside(stages)
    if not left:
        return
    shop, before = Workshop(recipe, folder), dict(ledger.beside)
    works: dict[str, Work] = {
        "scenes": partial(_scenes, shop, _seconds_for_scenes(stages, budget, ledger)),
        "views": partial(render_the_views, shop, False),
        "maps": partial(make_the_maps, shop, False),
        "subjects": partial(render_the_subjects, shop, False),
    }
    needed = {NEEDS[stage] for stage in left if stage in NEEDS}
    works = {name: work for name, work in works.items() if name in needed}
    cores = Beside(works)

    def noted() -> ScenesRecipe:
        for name, made in dict(cores.made).items():  # more may come meanwhile
            ledger.beside[name] = round(before.get(name, 0.0) + made.seconds, 1)
        if "scenes" in cores.made:
            ledger.counts["scenes"] = cores.made["scenes"].value
        ledger.write()
        return _counted(recipe, ledger)

    try:
        with cores:
            for stage in left:
                cores.check()
                seconds = ledger.allotted(stage, stages, budget, shares)
                tell(f"{stage}: {seconds:.0f} s")
                with ledger.timed(stage):
                    began, arriving = time.monotonic(), None
                    if stage == "autoencoder" and "scenes" in works:
                        cores.until(lambda: bool(shards_of(folder / "renders")))
                        arriving = recipe.scenes
                    elif NEEDS.get(stage) in works:
                        cores.wait(NEEDS[stage])
                    if stage not in WAITING:
                        minutes = max(0.1, seconds + began - time.monotonic()) / 60
                        where = {"minutes": minutes, "arriving": arriving, **how}
                        train_stage(stage, folder, noted(), **where)
    except KeyboardInterrupt:
        cores.check()  # it may be why
        raise
    finally:
        noted()


def _scenes(shop: Workshop, seconds: float) -> int:
    """Render scenes; how many there are then."""
    render_the_scenes(shop, False, seconds)
    return scenes_in(shop.folder / "renders")


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
    return _counted(recipe, ledger)


def _counted(recipe: ScenesRecipe, ledger: Ledger) -> ScenesRecipe:
    """The recipe with as many examples as were decided on."""
    made, counts = ("scenes", "views", "subjects", "mapped"), ledger.counts
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
