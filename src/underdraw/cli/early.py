"""What can be refused before a model is loaded, by what its configs say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from underdraw.errors import InputError, UnderdrawError


@dataclass(frozen=True)
class Facts:
    """What configs tell of a checkpoint; what they do not tell is as in most."""

    steps: int = 1000
    """The most a solver can make."""
    factor: int = 8
    """Of the autoencoder: sides are multiples of it."""
    scheduler: Mapping[str, Any] | None = None
    """Its configuration; None: not known."""


def facts(model: str, scheduler: Mapping[str, Any] | None = None) -> Facts:
    """Facts of a folder or a Hub id, of which configs are fetched.

    Args:
        scheduler: its configuration, where it is not that of the checkpoint.

    Raises NotFoundError where there is no such model.
    """
    from underdraw.cli.loading import is_single_file
    from underdraw.pipelines.components.single_file import find
    from underdraw.weights import hub

    if is_single_file(model):
        find(model)
        return Facts(scheduler=scheduler)
    place = hub.resolve(model, weights=False)
    told = scheduler or _config(place, "scheduler")
    steps = told.get("num_train_timesteps")
    blocks = _config(place, "vae").get("block_out_channels")
    known: dict[str, Any] = {"scheduler": told or None}
    if isinstance(steps, int) and steps > 0:
        known["steps"] = steps
    if isinstance(blocks, list) and blocks:
        known["factor"] = 2 ** (len(blocks) - 1)
    return Facts(**known)


def _config(place: Path, name: str) -> Mapping[str, Any]:
    from underdraw.weights import folders

    try:
        return folders.read_config(place, name)
    except UnderdrawError:  # told when it is loaded, or given otherwise
        return {}


def check_call(
    known: Facts,
    *,
    steps: Any = None,
    guidance: Any = None,
    sides: Mapping[str, Any] | None = None,
    strength: Any = None,
) -> None:
    """Raise an InputError for numbers that no call of the model takes; None is not looked at.

    Args:
        sides: option -> pixels.
        strength: the least part of the steps that is run.
    """
    from underdraw import checks

    if steps is not None:
        checks.whole("--steps", steps, 1, known.steps)
    if guidance is not None:
        checks.factor("--guidance", guidance)
    for name, side in (sides or {}).items():
        if side is not None:
            checks.size(name, checks.whole(name, side), known.factor)
    if strength is not None:
        checks.number("--strength", strength, 0.0, 1.0)
        if steps is not None and int(steps * strength) == 0:
            raise InputError(
                f"--steps {steps} at a strength of {strength:g} leaves none; needed are "
                f"{math.ceil(1 / strength) if strength else 'more'} steps, or a strength of at "
                f"least {1 / steps:.3g}"
            )


def check_speed(
    known: Facts, steps: int, strength: float | None, solver: str | None, speed: Any, said: str
) -> None:
    """Raise an InputError where a run has too few calls for what is to be left out of it, or they
    are too unlike each other (`controls.acceleration.method.check_reuse`).

    Args:
        strength: the part of the steps that is run.
        solver: its name, where it is not that of the checkpoint.
        speed: an `Acceleration`, or None.
        said: what asks for it, in messages.
    """
    from underdraw.cli.solvers import make_solver
    from underdraw.limits import FEWEST_CALLS
    from underdraw.pipelines.components.registry import scheduler_class

    if speed is None or not any(method.reuses for method in speed.methods):
        return
    try:
        config = known.scheduler or {}
        if solver is None:
            scheduler = scheduler_class(str(config.get("_class_name"))).from_config(config)
        else:
            scheduler = make_solver(solver, config)
    except UnderdrawError:  # told when it is loaded
        return
    steps, part = int(steps), 1.0 if strength is None else strength

    def calls(steps: int) -> int:
        kept = int(steps * part)
        order = getattr(scheduler, "order", 1)
        return len(scheduler.make_table(steps).tail((steps - kept) * order)) if kept else 0

    way_out = "--speed exact"
    if getattr(scheduler.make_table(steps), "consistency", False):
        raise InputError(
            f"{said} leaves out what hardly changes from call to call, and a consistency solver "
            f"(LCM, TCD) has no calls that are alike; allowed: another --solver, or {way_out}"
        )
    if (count := calls(steps)) < FEWEST_CALLS:
        more = range(steps + 1, known.steps + 1)
        least = next((n for n in more if calls(n) >= FEWEST_CALLS), None)
        allowed = way_out if least is None else f"{least} steps or more, or {way_out}"
        raise InputError(
            f"{said} leaves out what hardly changes from call to call; {steps} steps are {count} "
            f"calls of the UNet, which have nothing of that; allowed: {allowed}"
        )


def check_texts(texts: Sequence[str]) -> None:
    """Raise an InputError where brackets of weights are not closed, or a text cannot be encoded."""
    from underdraw.text.weighting import parse_weights

    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{text!r:.80} is not text in UTF-8") from error
        parse_weights(text)


def check_grounding(source: str) -> None:
    """Raise a NotFoundError where grounding weights are nowhere."""
    from underdraw.cli.loading import is_single_file
    from underdraw.pipelines.components.single_file import find
    from underdraw.weights import hub

    if is_single_file(source):
        find(source)
    else:
        hub.resolve(source, weights=False)


def check_boxes(model: str) -> None:
    """Raise an InputError where nothing in a model acts on boxes, as far as its configs tell."""
    from underdraw.cli.loading import is_single_file
    from underdraw.pipelines.components.adapters import own_folder
    from underdraw.pipelines.components.grounding import GROUNDING
    from underdraw.weights import hub

    if is_single_file(model):  # has no configs
        return
    unet, own = _config(hub.resolve(model, weights=False), "unet"), own_folder(model)
    gated = unet.get("attention_type", "default") != "default"
    beside = own is not None and (own / GROUNDING.folder / "config.json").exists()
    if unet and not (gated or beside):
        raise InputError(
            f"boxes need grounding weights: {model:.200} has no grounding weights for boxes; name "
            "some with --grounding"
        )
