"""A call whose shared arguments were checked: nothing has been computed yet.

Errors name the argument, its value and what is allowed. Where a call has another name for an
argument, that name is an argument here (`prefix`, `strength_name`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends import seeds
from underdraw.controls.control import Control
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.writing import OUTPUT_TYPES
from underdraw.pipelines.call.callbacks import Callbacks
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.components.components import Components
from underdraw.schedulers import LMSDiscreteScheduler, Scheduler
from underdraw.schedulers.foreign import ForeignSolver
from underdraw.solvers.solver import Solver
from underdraw.solvers.table import Table
from underdraw.text.weighting import parse_weights

MOST_IMAGES = 4096
"""Of one call; a slip of the keyboard allocates nothing."""


@dataclass(frozen=True)
class Prompts:
    """The texts of a call, checked."""

    prompts: list[str] | None
    """None where embeddings are given."""
    negatives: list[str] | None
    """As many; None where there are none."""
    count: int
    """Of prompts, or of pictures where these are more."""


@dataclass(frozen=True)
class Plan:
    """A call whose shared arguments were checked."""

    caller: Any
    """The pipeline that was called: its bar shows the steps, its callbacks get it."""
    request: Request
    prompts: list[str] | None
    negatives: list[str] | None
    count: int
    """Images made; those of a prompt lie next to each other."""
    guidance: Any
    """A number, or an array `(count, 1, 1, 1)`."""
    guided: bool
    generators: Any
    seeds: Sequence[int | None]
    """Per image, for the record; empty where none is kept."""
    solver: Solver
    steps: int
    """Of the solver that are run; a step may take several calls of the network."""
    watch: Any
    """A `callbacks.Callbacks`, or None."""
    exact: bool = False
    """Whether everything is computed, whatever the settings say of acceleration."""


def make_plan(
    components: Components, request: Request, caller: Any, *, strength_name: str = "strength"
) -> Plan:
    """Check what calls share and make the solver.

    Args:
        caller: the pipeline that was called.
        strength_name: what this call names `Request.strength`.

    Raises:
        InputError, InputTypeError: an argument cannot work.
    """
    checks.choice("output_type", request.output_type, OUTPUT_TYPES)
    checks.flag("return_dict", request.return_dict)
    checks.number("eta", request.eta, 0.0, 1.0)
    checks.number("guidance_rescale", request.guidance_rescale, 0.0, 1.0)
    checks.number(strength_name, request.strength, 0.0, 1.0)
    watch: Any = Callbacks(caller, components, request)
    if watch.on_step_end is watch.callback is None:
        watch = None
    check_controls(request.controls)
    texts = check_prompts(components, request)
    count = count_images(texts.count, request.num_images_per_prompt)
    scale: Any = request.guidance_scale
    if isinstance(scale, list | tuple):
        scale = guidance_per_image(components, scale, count)
    else:
        scale = check_guidance(scale)
    drawn = seeds.generators(request.generator, request.seed, count)
    # To be asked before anything is drawn.
    known = seeds.seeds_of(drawn, count) if request.output_type == "pil" else []
    solver, steps = make_solver(components, request, drawn, strength_name)
    return Plan(
        caller=caller,
        request=request,
        prompts=texts.prompts,
        negatives=texts.negatives,
        count=count,
        guidance=scale,
        guided=needs_guidance(components, scale),
        generators=drawn,
        seeds=known,
        solver=solver,
        steps=steps,
        watch=watch,
    )


def check_controls(controls: Any) -> None:
    """A list of controls."""
    for control in checks.sequence("controls", controls, "controls"):
        if not isinstance(control, Control):
            raise InputTypeError(f"controls holds {checks.shown(control)}, which is not a Control")


def check_guidance(scale: Any) -> float:
    """A guidance scale, which is not so large that predictions could only overflow."""
    return checks.factor("guidance_scale", scale)


def count_images(prompts: int, each: Any, name: str = "num_images_per_prompt") -> int:
    """Images of a call: so many for each prompt.

    Raises:
        InputError, InputTypeError: it is no such number, or more images than any call can hold.
    """
    count = prompts * checks.whole(name, each, 1, MOST_IMAGES)
    if count > MOST_IMAGES:
        raise InputError(
            f"{name}={each} for each of {prompts} prompts is {count} images; allowed: at most "
            f"{MOST_IMAGES} in one call"
        )
    return count


def check_prompts(components: Components, request: Request, prefix: str = "") -> Prompts:
    """Prompts and negative prompts as lists, where they are texts, and how many there are.

    `prefix` stands before the names of the arguments: "target_" for `target_negative_prompt`.
    """
    prompt, embeds = request.prompt, request.prompt_embeds
    positive, opposite = f"{prefix}prompt", f"{prefix}negative_prompt"
    if request.clip_skip is not None:
        checks.whole("clip_skip", request.clip_skip, 0)
    if prompt is None and embeds is None:
        raise InputError(f"{positive}=None; give {positive} or {positive}_embeds")
    prompts = None if prompt is None else checks.texts(positive, prompt)
    _check_words(components, positive, prompts)
    if not (embeds is request.negative_prompt_embeds is None):
        _check_embeds(components, request, prompts, positive, opposite)
    count = embeds.shape[0] if prompts is None else len(prompts)
    images = _count(components, request, count)
    if request.negative_prompt is None:
        return Prompts(prompts, None, images)
    negatives = checks.texts(opposite, request.negative_prompt)
    if isinstance(request.negative_prompt, str):
        negatives = negatives * count
    if len(negatives) != count:
        raise InputError(f"{opposite} has {len(negatives)} entries; there are {count} prompts")
    _check_words(components, opposite, negatives)
    return Prompts(prompts, negatives, images)


def _count(components: Components, request: Request, prompts: int) -> int:
    """Prompts, or pictures where these are more."""
    pictures = request.pictures
    if components.compat == "diffusers" and request.spread:
        wanted = count_images(prompts, request.num_images_per_prompt)
        if wanted % pictures == 0:
            # Pictures ask for no images of their own there: those of the prompts take turns with
            # them.
            return prompts
    if pictures not in (1, prompts) and prompts != 1:
        raise InputError(f"image has {pictures} pictures; there are {prompts} prompts")
    return max(prompts, pictures)


def _check_words(components: Components, name: str, prompts: list[str] | None) -> None:
    """Raise an InputError where brackets of prompts do not make weights."""
    if components.compat != "diffusers":
        for prompt in prompts or ():
            parse_weights(prompt, name)


def _check_embeds(
    components: Components,
    request: Request,
    prompts: list[str] | None,
    positive: str,
    opposite: str,
) -> None:
    """Embeddings instead of texts; names of the arguments for both are given."""
    framework, width = components.framework, components.unet.config.cross_attention_dim
    embeds: Any = request.prompt_embeds
    against = request.negative_prompt_embeds
    for text, given, name in (
        (request.prompt, embeds, positive),
        (request.negative_prompt, against, opposite),
    ):
        if text is not None and given is not None:
            raise InputError(f"{name} and {name}_embeds are both given; only one of them can be")
    if embeds is not None:
        checks.array(f"{positive}_embeds", embeds, (None, None, width), framework)
    if against is not None:
        tokens = None if embeds is None else embeds.shape[1]
        count = embeds.shape[0] if embeds is not None else len(prompts or ())
        checks.array(f"{opposite}_embeds", against, (count, tokens, width), framework)


def distilled(components: Components) -> bool:
    """Whether the UNet takes the guidance scale as an input (LCM)."""
    return components.unet.config.time_cond_proj_dim is not None


def needs_guidance(components: Components, scale: Any) -> bool:
    """Whether a guidance scale, a number or one per image, asks for an unconditional half."""
    largest = scale.max() if hasattr(scale, "shape") else scale
    return bool(largest > 1) and not distilled(components)


def guidance_per_image(components: Components, scale: Sequence[Any], count: int) -> Any:
    """Guidance scales as `(count, 1, 1, 1)`."""
    if len(scale) != count:
        raise InputError(f"guidance_scale has {len(scale)} entries; the call makes {count} images")
    values = np.array([[[[check_guidance(value)]]] for value in scale])
    if distilled(components):
        return values
    # An image that asks for 1 or less is unguided in a call of its own, so it is here, too.
    values = values.clip(1.0).astype(np.float32)
    return components.framework.array(values, device=components.device)


def make_solver(
    components: Components, request: Request, drawn: Any, strength_name: str = "strength"
) -> tuple[Solver, int]:
    """The solver of a call, and how many of its steps are run.

    Args:
        drawn: generators, for schedulers of another library.
        strength_name: what the call names `Request.strength`.
    """
    scheduler = components.scheduler if request.scheduler is None else request.scheduler
    timesteps, sigmas, eta = request.timesteps, request.sigmas, request.eta
    if timesteps is not None and sigmas is not None:
        raise InputError("timesteps and sigmas are both given; only one of them can be")
    count = None
    if timesteps is sigmas is None:
        most = getattr(scheduler, "config", {}).get("num_train_timesteps", 1000)
        count = checks.whole("num_inference_steps", request.num_inference_steps, 1, most)
    solver: Any
    if isinstance(scheduler, Scheduler):
        solver = scheduler.make_table(count, timesteps, sigmas, eta)
    else:
        solver = ForeignSolver(
            scheduler, count, timesteps, sigmas, eta, drawn, device=components.device
        )
    order = getattr(scheduler, "order", 1)
    steps = count or -(-len(solver) // order)
    strength = checks.number(strength_name, request.strength, 0.0, 1.0)
    if strength == 1:
        return solver, steps
    kept = kept_steps(steps, strength, f"{1 / steps:.3g} .. 1", strength_name)
    begin = (steps - kept) * order
    alike = components.compat == "diffusers" and isinstance(scheduler, LMSDiscreteScheduler)
    if alike and begin and isinstance(solver, Table) and solver.restart is not None:
        return solver.restart(begin=begin, partial=True), kept
    return solver.tail(begin), kept


def kept_steps(steps: int, strength: float, allowed: str, name: str) -> int:
    """How many of so many steps are run: `strength` of them, rounded down.

    Raises:
        InputError: none is left.
    """
    kept = int(steps * strength)
    if kept == 0:
        raise InputError(
            f"{name}={strength} of {steps} steps leaves none; allowed: {allowed}, or more "
            "num_inference_steps (timesteps, sigmas)"
        )
    return kept
