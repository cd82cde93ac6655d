"""From an image back to the noise that a solver would make it from.

DDIM's inversion (Song et al. 2020) asks the network at the cleaner end of a step for what it would
say at the noisier one; under guidance the small errors grow until the way down misses the image.
Three remedies:

- fixed-point inversion solves each step: the noisier latents are those that the step leads from
  (Pan et al. 2023, "Effective real image editing with accelerated iterative diffusion inversion",
  eq. 6; Garibi et al. 2024, "ReNoise");
- null-text inversion follows the unguided way up, and finds for each call an unconditional context
  with which the guided way down stays on it (Mokady et al. 2023, algorithm 1);
- negative-prompt inversion takes the image's own prompt as the unconditional context (Miyake et al.
  2023): without any optimisation, guidance towards the same prompt then changes nothing.

A run is a generator of `Inversion` values. Each of them can be kept, and given back to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.controls.null_text import NullText
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Question, answer, answered
from underdraw.errors import InputError, InputTypeError, NonFiniteError
from underdraw.networks import unet
from underdraw.sampling.denoiser import Denoiser
from underdraw.sampling.loop import sample
from underdraw.sampling.nearer import NEARER, Aim
from underdraw.sampling.windows import asked_together, windows
from underdraw.shown import of_fields
from underdraw.solvers.solver import Solver
from underdraw.solvers.table import OUTPUT, Table, X


@dataclass(frozen=True)
class Plain:
    """One call of the network for each step: DDIM's inversion."""


@dataclass(frozen=True)
class FixedPoint:
    """Each step is solved by iteration. Where it does not settle the best is kept, and the step of
    the iteration halved; `Inversion.residuals` tell what is left.

    tolerance: of the step back down, relative to the largest latent.
    iterations: calls of the network for a step, at most.
    """

    tolerance: float = 1e-5
    iterations: int = 30


@dataclass(frozen=True)
class NegativePrompt:
    """The conditional context is also the unconditional one. `way`: how the image is inverted."""

    way: Plain | FixedPoint = Plain()


@dataclass(frozen=True)
class NullTextInversion:
    """An unconditional context for each call, by Adam (Kingma & Ba 2015) as in the paper.

    way: how the unguided way up is found.
    iterations: changes of the context for a call, at most.
    rate: of learning; it falls to half of that towards the clean end.
    tolerance: of the mean squared distance to the way up, at which a call is left; it grows by
        twice itself with each call, as in the authors' code.
    """

    way: Plain | FixedPoint = Plain()
    iterations: int = 10
    rate: float = 1e-2
    tolerance: float = 1e-5


Method = Plain | FixedPoint | NegativePrompt | NullTextInversion
METHODS: dict[str, Method] = {
    "plain": Plain(),
    "fixed-point": FixedPoint(),
    "negative-prompt": NegativePrompt(),
    "null-text": NullTextInversion(),
}


class Reconstruction(NamedTuple):
    """How far the way down ends from where the inversion began, per image."""

    latents: tuple[float, ...]
    """Root mean squares of the differences."""
    psnr: tuple[float, ...] | None = None
    """In dB, of the decoded images beside the decoded latents that were given; peak 1."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """What is known of an inversion, whole or in part."""

    method: Method
    calls: int
    """Of the solver."""
    latents: tuple[Array, ...]
    """Each `(images, channels, height, width)` float32: the given ones first, the noise last. The
    solver's call `i` begins at `latents[-1 - i]`."""
    residuals: tuple[tuple[float, ...], ...] = ()
    """By step and image, relative to the largest latent, how far the solved step back down ends
    from where the step up began; empty for plain ways."""
    negatives: tuple[Array, ...] = ()
    """Unconditional contexts `(images, tokens, width)`: none, one for all calls, or one each."""
    reached: Array | None = None
    """Where the guided way down stands (null-text)."""
    error: Reconstruction | None = None

    def __repr__(self) -> str:
        return of_fields(self)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do but to measure."""
        return len(self.latents) > self.calls and len(self.negatives) >= _contexts(self)

    @property
    def done(self) -> float:
        """How much is done, in [0, 1], by steps."""
        whole = self.calls * (2 if isinstance(self.method, NullTextInversion) else 1)
        further = len(self.negatives) if whole > self.calls else 0
        return (len(self.latents) - 1 + further) / whole

    @property
    def noise(self) -> Array:
        """What the solver has to begin with."""
        return self.latents[-1]

    @property
    def controls(self) -> tuple[NullText, ...]:
        """What has to steer the run that shall lead back; empty where nothing has to."""
        return (NullText(self.negatives),) if self.negatives else ()


def _contexts(inversion: Inversion) -> int:
    kinds = {NegativePrompt: 1, NullTextInversion: inversion.calls}
    return kinds.get(type(inversion.method), 0)


def invert(
    denoise: Denoiser,
    solver: Solver,
    latents: Array,
    method: str | Method = "fixed-point",
    *,
    resume: Inversion | None = None,
    measure: bool = True,
    decode: Callable[[Array], Array] | None = None,
) -> Generator[Inversion, None, Inversion]:
    """Yield an `Inversion` after each step, and at last the complete one, which is also returned.

    Closing the generator ends the work; the last value, given as `resume`, goes on with it.

    Args:
        denoise: of the solver's calls, with the context of the run that shall lead back. "plain"
            and "fixed-point" invert it as it is, with its guidance; the others invert without
            guidance, and lead back with it: its context needs both halves.
        solver: the one that shall lead back, from noise to image: a table whose calls read only the
            latents and what the network says of them (DDIM without added noise, Euler).
        latents: clean, `(images, channels, height, width)`.
        method: a key of `METHODS`, or one of its values with other settings.
        measure: also run the solver back down for the error (null-text has it anyway).
        decode: from latents to images in [0, 1], to have the error in pixels, too.

    Raises:
        InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
        NonFiniteError: the network gave NaN or infinity.
    """
    method, steps = read_method(method), _steps(solver)
    nn, images = denoise.run.nn, latents.shape[0]
    if follows(method) and denoise.context.shape[0] != 2 * images:
        raise InputError(
            f"method={method}: the context has {denoise.context.shape[0]} rows for {images} "
            "images; guidance needs an unconditional and a conditional one for each"
        )
    if resume is None:
        resume = Inversion(method, len(steps), (nn.float32(latents),))
    elif (resume.method, resume.calls) != (method, len(steps)):
        raise InputError(
            f"resume is of {resume.method} in {resume.calls} calls; asked for is {method} in "
            f"{len(steps)}"
        )
    elif tuple(resume.latents[0].shape) != tuple(latents.shape):
        raise InputError(
            f"resume is of latents {tuple(resume.latents[0].shape)}; given are "
            f"{tuple(latents.shape)}"
        )
    return _run(denoise, solver, steps, replace(resume, error=None), measure, decode)


def _run(
    denoise: Denoiser,
    solver: Solver,
    steps: Sequence[_Step],
    found: Inversion,
    measure: bool,
    decode: Callable[[Array], Array] | None,
) -> Generator[Inversion, None, Inversion]:
    framework, method = denoise.run.framework, found.method
    way = getattr(method, "way", method)
    upwards = denoise.unguided() if follows(method) else denoise
    if isinstance(way, Plain) and asked_together(denoise.run) and isinstance(solver, Table):
        found = yield from _all_up(upwards, solver, steps, found)
    while len(found.latents) <= found.calls:
        index = found.calls - len(found.latents)
        with framework.no_grad():
            found = _up(upwards, solver, steps[index], index, found, way)
        yield found
    if isinstance(method, NegativePrompt):
        half = denoise.context.shape[0] // 2
        found = replace(found, negatives=(denoise.context[half:],))
    if isinstance(method, NullTextInversion):
        while len(found.negatives) < found.calls:
            found = _down(denoise, upwards, solver, steps, found, method)
            yield found
    if measure:
        found = replace(found, error=reconstruction(denoise, solver, found, decode))
        yield found
    return found


def reconstruct(denoise: Denoiser, solver: Solver, inversion: Inversion) -> Array:
    """The latents that the solver makes of an inversion, `(images, channels, height, width)`."""
    if inversion.reached is not None and len(inversion.negatives) == inversion.calls:
        return inversion.reached
    run = replace(denoise.run, solver=solver, draw=_no_noise, components=None, watched=False)
    again = Denoiser(run)
    again.set_context(denoise.context)
    together = asked_together(run)
    asking = sample(run, inversion.noise, inversion.controls, None, again, together)
    return _last(answered(asking, denoise.run.engine)).latents


def reconstruction(
    denoise: Denoiser,
    solver: Solver,
    inversion: Inversion,
    decode: Callable[[Array], Array] | None = None,
) -> Reconstruction:
    """How well an inversion leads back; see `invert` for the arguments."""
    to_numpy = denoise.run.framework.to_numpy
    with denoise.run.framework.no_grad():
        pair = (inversion.latents[0], reconstruct(denoise, solver, inversion))
        shown = None if decode is None else [decode(x) for x in pair]

    def squares(a: Array, b: Array) -> np.ndarray:
        difference = to_numpy(a).astype(np.float64) - to_numpy(b)
        return (difference**2).reshape(len(difference), -1).mean(1)

    psnr = None
    if shown is not None:
        with np.errstate(divide="ignore"):
            psnr = tuple((-10 * np.log10(squares(shown[0], shown[1]))).tolist())
    return Reconstruction(tuple((squares(*pair) ** 0.5).tolist()), psnr)


def finish(run: Generator[Inversion, None, Inversion]) -> Inversion:
    """The last value of a run."""
    return _last(run)


# -- one step --------------------------------------------------------------------------------------
class _Step(NamedTuple):
    """The step down: `x * latents + output * what the network says`."""

    x: float
    output: float


def _up(
    denoise: Denoiser, solver: Solver, step: _Step, index: int, found: Inversion, way: Any
) -> Inversion:
    """The noisier end of a step: a fixed point of `f(x) = (end - output * eps(x)) / step.x`, whose
    residual is the distance between `end` and where the step leads from it."""
    nn, framework = denoise.run.nn, denoise.run.framework
    end = found.latents[-1]
    device = getattr(end, "device", None)

    def f(x: Array) -> Array:
        answer = denoise(solver.model_input(index, x), index)
        return (end - step.output * answer) * (1 / step.x)

    def size(x: Array) -> np.ndarray:
        return framework.to_numpy(nn.quantile_abs(x, 1.0)).astype(np.float64)

    if isinstance(way, Plain):
        x = f(end)
        _check_finite(framework, x)
        return replace(found, latents=(*found.latents, x))
    scale, count = np.maximum(size(end), 1e-12), end.shape[0]
    best, image = end, None
    left, share = np.full(count, np.inf), np.ones(count)
    x = end
    for _ in range(way.iterations):
        y = f(x)
        residual = abs(step.x) * size(y - x) / scale
        if not np.isfinite(residual).all():
            _check_finite(framework, f(end))
        # An image that has settled stays as it is: it does not depend on its neighbours.
        nearer = (residual < left) & (left > way.tolerance)
        share = np.where(residual < left, share, share / 2)
        left = np.where(nearer, residual, left)
        chosen = framework.array(nearer.reshape(-1, 1, 1, 1), device=device)
        best = nn.where(chosen, x, best)
        image = y if image is None else nn.where(chosen, y, image)
        if (left <= way.tolerance).all():
            break
        weight = framework.array(share.reshape(-1, 1, 1, 1).astype(np.float32), device=device)
        x = best + weight * (image - best)
    return replace(
        found,
        latents=(*found.latents, best),
        residuals=(*found.residuals, tuple(left.tolist())),
    )


def _all_up(
    denoise: Denoiser, solver: Table, steps: Sequence[_Step], found: Inversion
) -> Generator[Inversion, None, Inversion]:
    """Plain steps by the program of a run's whole loop, which goes up by a table as down; it hands
    out each, for all are kept. What the engine declines is left to do."""
    done = len(found.latents) - 1
    if done == found.calls:
        return found
    run = replace(denoise.run, solver=turned(solver, steps).tail(done), latents=found.noise)
    again = Denoiser(run)
    again.set_context(denoise.context)
    for step in answered(windows(run, (), (), again, found.noise), run.engine):
        found = replace(found, latents=(*found.latents, step.latents))
        yield found
    return found


def turned(solver: Table, steps: Sequence[_Step]) -> Table:
    """The table of the way up: its call i is turned call -1 - i, the network asked at its times."""
    weights = np.zeros_like(solver.weights)
    for call, step in zip(weights, reversed(steps), strict=True):
        call[0, X], call[0, OUTPUT] = 1 / step.x, -step.output / step.x
    columns = ("timesteps", "input_scale", "alpha", "sigma", "read_clean", "pushes", "draws")
    back = {name: getattr(solver, name)[::-1] for name in columns}
    order = np.arange(len(solver))
    return replace(solver, weights=weights, steps=order, clip=None, restart=None, **back)


def _down(
    denoise: Denoiser,
    conditional: Denoiser,
    solver: Solver,
    steps: Sequence[_Step],
    found: Inversion,
    method: NullTextInversion,
) -> Inversion:
    """The unconditional context of one more call, and where the guided way then goes."""
    nn, framework = denoise.run.nn, denoise.run.framework
    index, images = len(found.negatives), found.noise.shape[0]
    x = found.noise if found.reached is None else found.reached
    goal, step = found.latents[-2 - index], steps[index]
    with framework.no_grad():
        given = solver.model_input(index, x)
        full = conditional(given, index)
        first = denoise.context[:images] if not found.negatives else found.negatives[-1]
        context = nn.float32(first)
    compiled = asked_together(denoise.run)
    empty = conditional.unguided(context)
    empty.run = replace(empty.run, components=None)
    if not compiled:  # other engines have no gradients
        empty.run = replace(empty.run, engine=EAGER)
    with framework.no_grad():
        x_in, time, _, sites = unet.Inputs(*empty.question(given, index).inputs)
    aim = Aim(x, goal, full, denoise.guidance, step.x, step.output)
    model = denoise.run.model

    def lead(context: Array) -> tuple[Array, Array, Array]:
        inputs = (context, x_in, time, sites, aim)
        if compiled:
            return answer(denoise.run.engine, Question(NEARER, model, inputs, nn))
        return NEARER(nn, model, model.config, *inputs)

    rate = method.rate * (1 - index / (2 * found.calls))
    enough = method.tolerance * (1 + 2 * index)
    moments, best, least, reached = (context * 0, context * 0), context, None, x
    for count in range(1, method.iterations + 2):
        gradient, far, ends = lead(context)
        with framework.no_grad():
            if least is None:
                best, least, reached = context, far, ends
            else:
                nearer = far < least
                best = nn.where(nearer[:, :, :, 0], context, best)
                least, reached = nn.where(nearer, far, least), nn.where(nearer, ends, reached)
            if count > method.iterations or not bool((least > enough).any()):
                break
            moving = nn.where(least > enough, 1.0, 0.0)[:, :, :, 0]
            context, moments = _adam(context, gradient * moving, moments, count, rate)
    _check_finite(framework, reached)
    return replace(found, negatives=(*found.negatives, best), reached=reached)


def _adam(
    x: Array, gradient: Array, moments: tuple[Array, Array], count: int, rate: float
) -> tuple[Array, tuple[Array, Array]]:
    """Kingma & Ba 2015, algorithm 1, with its defaults; `count` from 1."""
    m, v = moments
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    return x - rate * (m / (1 - 0.9**count)) / ((v / (1 - 0.999**count)) ** 0.5 + 1e-8), (m, v)


# -- arguments -------------------------------------------------------------------------------------
def read_method(method: Any) -> Method:
    """A method by its name, or itself, after checking its settings."""
    if isinstance(method, str):
        if method not in METHODS:
            allowed = ", ".join(map(repr, METHODS))
            raise InputError(f"method={checks.shown(method)} is not known; allowed: {allowed}")
        method = METHODS[method]
    if not isinstance(method, Method):
        raise InputTypeError(
            f"method={checks.shown(method)} is not a method of inversion, or the name of one"
        )
    way = getattr(method, "way", Plain())
    if not isinstance(way, Plain | FixedPoint):
        raise InputTypeError(f"method's way={checks.shown(way)}; allowed: Plain(), FixedPoint()")
    for settings in (method, way):
        if not isinstance(settings, Plain | NegativePrompt):
            if checks.whole("method's iterations", settings.iterations, 0, 10**6) < 1:
                raise InputError("method's iterations=0 is out of range; allowed: 1 or more")
            checks.number("method's tolerance", settings.tolerance, 0.0)
        if isinstance(settings, NullTextInversion):
            checks.number("method's rate", settings.rate, 0.0, 1e4)
    return method


def follows(method: Method) -> bool:
    """Whether it inverts without guidance and leads back with it."""
    return isinstance(method, NegativePrompt | NullTextInversion)


def _steps(solver: Solver) -> list[_Step]:
    if not isinstance(solver, Table):
        raise InputTypeError(
            f"solver is {type(solver).__name__}; a table of one of our schedulers is needed, whose "
            "steps can be turned round"
        )
    steps = []
    for index, row in enumerate(solver.rows):
        terms = dict(row.x)
        why = None
        if row.clips:
            why = "clips the image (clip_sample, thresholding)"
        elif row.draws:
            why = "adds noise (eta, an ancestral or stochastic solver)"
        elif set(terms) - {X, OUTPUT}:
            why = "reads what earlier calls left (a solver of several calls or steps)"
        elif not terms.get(X):
            why = "forgets where it began"
        if why is not None:
            raise InputError(
                f"solver: call {index} {why}, so it cannot be turned round; allowed: DDIM without "
                "eta and clipping, Euler"
            )
        steps.append(_Step(terms[X], terms.get(OUTPUT, 0.0)))
    return steps


def _check_finite(framework: Any, x: Array) -> None:
    if not framework.is_finite(x):
        raise NonFiniteError(
            "the inversion gave NaN or infinity; the weights or the inputs hold such values, or "
            "the dtype is too narrow for this model"
        )


def _no_noise() -> Array:
    raise AssertionError("rows that draw were refused")


def _last(run: Generator[Any, Any, Any]) -> Any:
    *_, value = run
    return value
