"""The way upwards, from pictures to noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.backends.shifts import whole_number
from underdraw.controls.planned import Planned
from underdraw.errors import InputError
from underdraw.pictures.writing import OUTPUT_TYPES
from underdraw.pipelines.call.conditioning import condition
from underdraw.pipelines.call.denoise import begin, denoise
from underdraw.pipelines.call.output import decode
from underdraw.pipelines.call.plan import Plan, kept_steps
from underdraw.pipelines.call.stream import ended
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.diffedit.latents import latent_sides, sizes
from underdraw.pipelines.diffedit.regularise import Regularisation, RegularisedSolver
from underdraw.sampling import inversion
from underdraw.sampling.denoiser import Denoiser
from underdraw.sampling.steps import Change, Step
from underdraw.solvers.ddim_inverse import back_along, head
from underdraw.solvers.solver import Solver
from underdraw.solvers.table import Table, read_noise

MOST_ROUNDS = 1000


class Trace:
    """Keeps the latents of every call; a caller's callbacks see them, too."""

    def __init__(self, inner: Any, kept: list[Array]) -> None:
        self.inner, self.latents = inner, kept

    @property
    def altered(self) -> bool:
        """Whether a callback changed anything so far."""
        return self.inner is not None and self.inner.altered

    def begin(self, run: Any, denoiser: Denoiser) -> None:
        """Before the first call of a run."""
        if self.inner is not None:
            self.inner.begin(run, denoiser)

    def __call__(self, step: Step, ends: bool) -> Change:
        change = Change() if self.inner is None else self.inner(step, ends)
        self.latents.append(step.latents if change.latents is None else change.latents)
        return change


def upwards(components: Components, solver: Any, count: int, part: float) -> Any:
    """The solver of an inversion.

    Args:
        solver: of the plan: with an `inverse_scheduler` the whole way of it, else what leads back.
        count, part: steps of the whole way, and how much of it is gone.

    Raises:
        InputError: no step is left, or nothing says how to go upwards.
    """
    if components.inverse_scheduler is not None:
        kept = kept_steps(count, part, f"at least {1 / count:.3g}", "inpaint_strength")
        calls_kept = len(solver) - (count - kept)
        if isinstance(solver, Table):
            return head(solver, calls_kept)
        solver.timesteps = solver.timesteps[:calls_kept]
        return solver
    scheduler = components.scheduler
    if not isinstance(solver, Table):
        raise InputError(
            f"inverse_scheduler=None; beside a {type(scheduler).__name__} of another "
            "library one is needed"
        )
    kind = scheduler.settings.prediction_type
    # Without signal-free or noise-free ends: "sample" says nothing about noise there.
    lowest = scheduler.config.get("set_alpha_to_one") is False or kind == "sample"
    final = float(scheduler.schedule.alphas_cumprod[0]) if lowest else 1.0
    return back_along(solver, kind, final)


@dataclass(frozen=True)
class Whitening:
    """How predictions are pushed towards white noise, by the names of `invert`.

    Raises:
        InputError, InputTypeError: an argument cannot work.
    """

    auto_corr: Any
    kl: Any
    rounds: Any
    rolls: Any

    def __post_init__(self) -> None:
        for field, name in (("auto_corr", "lambda_auto_corr"), ("kl", "lambda_kl")):
            plain = checks.number(name, getattr(self, field), 0.0, checks.LARGEST_FACTOR)
            object.__setattr__(self, field, plain)
        checks.whole("num_reg_steps", self.rounds, 0, MOST_ROUNDS)
        checks.whole("num_auto_corr_rolls", self.rolls, 1, MOST_ROUNDS)


def level_shape(components: Components, images: int, pictures: Array) -> tuple[int, int, int, int]:
    """Of the latents of so many images, beside what was read of their pictures."""
    channels = components.vae.config.latent_channels
    return images, channels, *latent_sides(components, pictures)


def check_levels(
    components: Components, done: list[Any], calls: int, images: int, pictures: Array
) -> list[Array]:
    """Levels of an inversion of `images` images that was interrupted, beside what was read of its
    pictures.

    Raises:
        InputError, InputTypeError: too many, or something that is no level of such pictures.
    """
    if len(done) > calls:
        raise InputError(f"done holds {len(done)} levels; the inversion has {calls}")
    shape = level_shape(components, images, pictures)
    for i, level in enumerate(done):
        checks.array(f"done[{i}]", level, shape, components.framework)
    return list(done)


def read_method(method: Any) -> inversion.FixedPoint | None:
    """How the steps of an inversion are solved; None where they are not.

    Raises:
        InputError, InputTypeError: there is no such way.
    """
    way = inversion.read_method(method)
    if isinstance(way, inversion.Plain):
        return None
    if not isinstance(way, inversion.FixedPoint):
        raise InputError(
            f"method={checks.shown(method)} is not known; allowed: 'plain', 'fixed-point'"
        )
    return way


def regularised(
    components: Components, solver: Any, plan: Plan, how: Whitening
) -> RegularisedSolver:
    """A solver whose predictions are pushed towards white noise."""
    scheduler = components.inverse_scheduler or components.scheduler
    kind, plain = scheduler.config["prediction_type"], components.compat == "diffusers"

    def reads(index: int) -> tuple[float, float]:
        if isinstance(solver, Table) and not plain:
            row = solver.row(index)
            return read_noise(kind, row.alpha, row.sigma)
        # diffusers reads the noise as of the time the network is asked at.
        kept = float(scheduler.alphas_cumprod[int(solver.timestep(index))])
        return read_noise(kind, sqrt(kept), sqrt(1 - kept))

    def pick(image: int, below: int) -> int:
        return whole_number(plan.generators, image, below)

    # Several guided pictures raise there.
    twice = plain and plan.guided and plan.count == 1 and kind != "epsilon"
    regularise = Regularisation(
        how.auto_corr, how.kl, how.rounds, how.rolls, pick, plain, 2 if twice else 1
    )
    return RegularisedSolver(solver, regularise, reads)


def go_up(
    components: Components,
    plan: Plan,
    solver: Solver,
    clean: Array,
    levels: list[Array],
    planned: Planned,
) -> list[Array]:
    """Levels of an inversion, least noise first, after those given; the list grows while it
    runs. `planned` is what its controls were asked by."""
    if len(levels) < len(solver):
        start = levels[-1] if levels else clean
        rest = solver.tail(len(levels)) if levels else solver
        trace = Trace(plan.watch, levels)
        plan = replace(plan, solver=rest, steps=len(rest), watch=trace)
        run = begin(components, plan, condition(components, plan), planned)
        ended(denoise(run, plan, start), components.engine)
    return levels


def solve_up(
    components: Components,
    plan: Plan,
    clean: Array,
    levels: list[Array],
    way: inversion.FixedPoint,
) -> list[Array]:
    """As `go_up`, with steps that are solved. `plan.solver` is the one that goes down."""
    solver: Any = plan.solver
    denoiser = Denoiser(begin(components, plan, condition(components, plan)))
    factors = sizes(solver)[-2::-1]
    held = [level * size for level, size in zip(levels, factors, strict=False)]
    found = inversion.Inversion(way, len(solver), (clean, *held))
    run = inversion.invert(denoiser, solver, clean, way, resume=found, measure=False)
    bar = plan.caller.progress_bar(total=len(solver) - len(levels))
    with components.borrow(components.unet), bar:
        for found in run:
            for level in found.latents[1 + len(levels) :]:
                levels.append(level / factors[len(levels)])
                if plan.watch is not None:
                    time = solver.timestep(len(solver) - len(levels))
                    plan.watch.note(len(levels) - 1, time, levels[-1])
                bar.update()
    return levels


def decode_levels(components: Components, levels: Array, output_type: str) -> Any:
    """Pictures of all levels `(images, levels, channels, height, width)`, image by image, decoded
    one at a time."""
    checks.choice("output_type", output_type, OUTPUT_TYPES)
    if output_type == "latent":
        return None
    rows = [levels[i, k : k + 1] for i in range(levels.shape[0]) for k in range(levels.shape[1])]
    made = [decode(components, row, output_type)[0] for row in rows]
    if output_type == "pil":
        return [picture for pictures in made for picture in pictures]
    return np.concatenate(made) if output_type == "np" else components.nn.concat(made, 0)
