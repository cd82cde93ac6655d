"""Parts of DiffEdit's calls: pictures to latents and back, the network's answers for a mask, the
way upwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends import seeds
from underdraw.backends.contract import Array
from underdraw.backends.shifts import whole_number
from underdraw.errors import InputError, InputTypeError, NonFiniteError, UnderdrawError
from underdraw.models.outputs import Output
from underdraw.pictures.reading import read_pictures
from underdraw.pictures.writing import OUTPUT_TYPES
from underdraw.pipelines.call.request import Plan, Request
from underdraw.pipelines.diffedit.edit import DiffEditOutput
from underdraw.pipelines.diffedit.regularise import Regularisation, RegularisedSolver
from underdraw.pipelines.latent import LatentPipeline
from underdraw.sampling import inversion
from underdraw.sampling.loop import Change, Denoiser, Step
from underdraw.solvers.ddim_inverse import back_along, head
from underdraw.solvers.solver import Solver
from underdraw.solvers.table import Table, read_noise

CLEAN = "_underdraw_clean"
"""The attribute of `invert`'s tensor that holds clean latents."""
ROWS = 32
"""Rows that a mask sends through the UNet at once, if one image does not need more."""


@dataclass
class DiffEditInversionPipelineOutput(Output):
    """What an inversion returns.

    `latents (images, levels, channels, height, width)` go from the noisiest level down to the one
    above the picture, as the peer's; `images` are pictures of all of them, image by image, where
    `decode_latents` was set. `clean (images, channels, height, width)` are the latents of the
    picture itself, None under `compat="diffusers"`; as an item or in a tuple they do not appear.
    """

    latents: Array
    images: Any = None
    clean: Array | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """What the peer's output holds."""
        return (self.latents,) if self.images is None else (self.latents, self.images)


def remember(levels: Array, clean: Array | None) -> None:
    """Let levels know the picture they lead to, where arrays of the framework hold attributes."""
    with suppress(AttributeError):
        setattr(levels, CLEAN, clean)


def remembered(levels: Any) -> Array | None:
    """The clean latents which `remember` gave."""
    return getattr(levels, CLEAN, None)


class Trace:
    """Keeps the latents of every call; a caller's callbacks see them, too."""

    def __init__(self, inner: Any, kept: list[Array]) -> None:
        self.inner, self.latents = inner, kept

    @property
    def altered(self) -> bool:
        """Whether a callback changed anything so far."""
        return self.inner is not None and self.inner.altered

    def begin(self, denoise: Denoiser, negative: Array | None) -> None:
        """Before the first call of a run."""
        if self.inner is not None:
            self.inner.begin(denoise, negative)

    def __call__(self, step: Step, ends: bool) -> Change:
        change = Change() if self.inner is None else self.inner(step, ends)
        self.latents.append(step.latents if change.latents is None else change.latents)
        return change


class DiffEditParts(LatentPipeline):
    """What the three calls of `StableDiffusionDiffEditPipeline` are made of."""

    inverse_scheduler: Any

    # -- pictures and latents ----------------------------------------------------------------------
    def _pictures(self, image: Any) -> Array:
        """Pictures `(n, 3, height, width)` in [-1, 1], or latents as they were given."""
        if image is None:
            raise InputError("image=None; give a picture, or latents")
        return read_pictures(
            "image",
            image,
            self._framework,
            factor=self.vae.config.factor,
            latent_channels=self.vae.config.latent_channels,
        )

    def _encode(self, pictures: Array, drawn: Any, sampled: bool, count: int, maps: int = 1) -> Any:
        """Latents `(count * maps, channels, height, width)` of pictures, those of one adjacent.

        They are the mean of the encoder's distribution, or drawn from it if `sampled`.
        """
        framework, vae = self._framework, self.vae
        each = count * maps // pictures.shape[0]
        if pictures.shape[1] == vae.config.latent_channels:
            return self._repeated(framework.array(pictures, device=self.device), each)
        with framework.no_grad():
            with self._borrowed(vae):
                pixels = framework.array(pictures, dtype=vae.dtype, device=vae.device)
                found = vae.encode(pixels).latent_dist
            latents = self._repeated(found.mean, each)
            if sampled or self.compat == "diffusers":
                noise = self._draw(latents.shape, drawn, None, maps)
                latents = latents + self._repeated(found.std, each) * framework.array(
                    noise, dtype=vae.dtype, device=latents.device
                )
        if not framework.is_finite(latents):
            raise NonFiniteError("vae: encoding gave NaN or infinity")
        return framework.array(latents * vae.config.scaling_factor, device=self.device)

    def _draw(self, shape: Sequence[int], drawn: Any, seed: Any, maps: int) -> Array:
        """Standard normal; of several maps an image's generator draws all."""
        framework = self._framework
        like = framework.leaf(self.unet.conv_in).dtype if seed is None else framework.float32
        if maps > 1 and isinstance(drawn, list | tuple) and len(drawn) * maps == shape[0]:
            parts = [framework.draw((maps, *shape[1:]), g, self.device, like) for g in drawn]
            return self._operations.concat(parts, 0)
        return framework.draw(shape, drawn, self.device, like)

    def _levels(self, held: Any, prompts: int, steps: int) -> Array:
        """Inverted latents `(prompts, levels, channels, height, width)`, float32; with the clean
        ones as the last level, where they are known."""
        framework, concat = self._framework, self._operations.concat
        if isinstance(held, DiffEditInversionPipelineOutput | DiffEditOutput):
            held, clean = held.latents, held.clean
        else:
            clean = remembered(held)
        if isinstance(held, list | tuple) and held and all(map(framework.is_array, held)):
            ends = [end for end in map(remembered, held) if end is not None]
            clean = concat(ends, 0) if len(ends) == len(held) else None
            held = concat(held, 0)
        if not framework.is_array(held):
            raise InputTypeError(
                f"image_latents is {type(held).__name__}; what invert returns is needed"
            )
        given: Any = held
        if given.ndim == 4 and given.shape[0] % prompts == 0:
            given = given.reshape(prompts, -1, *given.shape[1:])
        checks.array("image_latents", given, (None,) * 5, framework)
        images, levels, channels = given.shape[:3]
        if channels != self.vae.config.latent_channels or images not in (1, prompts):
            raise InputError(
                f"image_latents has shape {tuple(given.shape)}; needed is ({prompts}, {steps} or "
                f"{steps + 1}, {self.vae.config.latent_channels}, height, width)"
            )
        if levels not in (steps, steps + 1) or (clean is not None and levels != steps):
            raise InputError(
                f"image_latents holds {levels} levels; this call makes {steps} steps, so {steps} "
                f"or, with the picture, {steps + 1} are needed: give num_inference_steps and "
                "inpaint_strength as invert had them"
            )
        nn = self._operations
        given = nn.float32(framework.array(given, device=self.device))
        if clean is not None and self.compat != "diffusers":
            checks.array("clean", clean, (images, *given.shape[2:]), framework)
            clean = nn.float32(framework.array(clean, device=self.device))
            given = concat((given, clean[:, None]), 1)
        return nn.expand(given, (prompts, *given.shape[1:]))

    def _as_solver(self, solver: Solver, rows: list[Array]) -> list[Array]:
        """Levels as a solver holds its latents: some keep the picture at full size below the noise
        (Euler), which the peer does not take into account."""
        if not isinstance(solver, Table) or self.compat == "diffusers":
            return rows
        pairs = zip(rows, _sizes(solver)[: len(rows)], strict=True)
        return [row if size == 1 else row * size for row, size in pairs]

    def _shown(self, levels: Array, output_type: str) -> Any:
        """Pictures of all levels, image by image, decoded one at a time."""
        checks.choice("output_type", output_type, OUTPUT_TYPES)
        if output_type == "latent":
            return None
        rows = [
            levels[i, k : k + 1] for i in range(levels.shape[0]) for k in range(levels.shape[1])
        ]
        made = [self.decode_latents(row, output_type)[0] for row in rows]
        if output_type == "pil":
            return [picture for pictures in made for picture in pictures]
        return np.concatenate(made) if output_type == "np" else self._operations.concat(made, 0)

    def _repeated(self, x: Array, times: int) -> Array:
        """Each row so many times, next to each other."""
        if times == 1:
            return x
        x = self._operations.expand(x[:, None], (x.shape[0], times, *x.shape[1:]))
        return x.reshape(-1, *x.shape[2:])

    # -- parts of the calls ------------------------------------------------------------------------
    def _side(self, request: Request, prefix: str) -> Any:
        """As `_check_prompts`, with the names that the arguments of a mask have."""
        try:
            return self._check_prompts(request)
        except UnderdrawError as error:
            words = re.sub(r"\b(negative_)?prompt(?=[=_ ]|$)", rf"{prefix}\1prompt", str(error))
            raise type(error)(words) from None

    @staticmethod
    def _named(name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; its errors about the strength tell the argument's own name."""
        try:
            return work()
        except UnderdrawError as error:
            raise type(error)(re.sub(r"^strength\b", name, str(error))) from None

    def _noisy(self, solver: Solver, latents: Array, noise: Array) -> Array:
        """Latents at the first noise level of a solver, scaled for the network."""
        noisy = solver.noised(0, latents, noise)
        return solver.model_input(0, noisy)

    def _answers(
        self, solver: Solver, noisy: Array, contexts: list[Array], maps: int, scale: float
    ) -> list[Array]:
        """What the network predicts for the noisy latents under each context, as many at once as
        `ROWS` allows."""
        nn, found = self._operations, []
        longest = max(contexts, key=lambda context: context.shape[1])
        contexts = [self._equally_long(context, longest)[0] for context in contexts]
        images, many = noisy.shape[0] // maps, len(contexts)
        most = max(1, ROWS // (maps * many))
        with self._framework.no_grad(), self._borrowed(self.unet):
            for first in range(0, images, most):
                last = min(first + most, images)
                x = noisy[first * maps : last * maps]
                rows = [self._repeated(context[first:last], maps) for context in contexts]
                distilled = self.unet.config.time_cond_proj_dim is not None
                denoise = Denoiser(
                    self.unet,
                    nn,
                    nn.concat(rows, 0),
                    [solver.timestep(0)],
                    lambda: scale,
                    distilled=distilled,
                )
                out = denoise(nn.concat([x] * many, 0), 0)
                found.append([out[k * x.shape[0] : (k + 1) * x.shape[0]] for k in range(many)])
        return [nn.concat(parts, 0) for parts in zip(*found, strict=True)]

    def _equal(self, first: Array, second: Array) -> bool:
        to_numpy = self._framework.to_numpy
        return first.shape == second.shape and np.array_equal(to_numpy(first), to_numpy(second))

    def _upwards(self, solver: Any, count: int, part: float) -> Any:
        """The solver of an inversion; `solver` is that of the plan."""
        if self.inverse_scheduler is not None:
            kept = int(count * part)
            if kept == 0:
                raise InputError(
                    f"inpaint_strength={part} of {count} steps leaves none; allowed: at least "
                    f"{1 / count:.3g}"
                )
            calls_kept = len(solver) - (count - kept)
            if isinstance(solver, Table):
                return head(solver, calls_kept)
            solver.timesteps = solver.timesteps[:calls_kept]
            return solver
        if not isinstance(solver, Table):
            raise InputError(
                f"inverse_scheduler=None; beside a {type(self.scheduler).__name__} of another "
                "library one is needed"
            )
        kind = self.scheduler.settings.prediction_type
        # Without signal-free or noise-free ends: "sample" says nothing about noise there.
        lowest = self.scheduler.config.get("set_alpha_to_one") is False or kind == "sample"
        final = float(self.scheduler.schedule.alphas_cumprod[0]) if lowest else 1.0
        return back_along(solver, kind, final)

    def _solved(self, plan: Plan, clean: Array, levels: list[Array], method: Any) -> list[Array]:
        """Levels of an inversion whose steps are solved, least noise first, after those given; the
        list grows while it runs. `plan.solver` is the one that goes down."""
        solver: Any = plan.solver
        denoise = self._denoiser(plan)[0]
        way = inversion.METHODS.get(method, method) if isinstance(method, str) else method
        if not isinstance(way, inversion.FixedPoint):
            raise InputError(f"method={method!r} is not known; allowed: 'plain', 'fixed-point'")
        sizes = _sizes(solver)[-2::-1]
        held = [level * size for level, size in zip(levels, sizes, strict=False)]
        found = inversion.Inversion(way, len(solver), (clean, *held))
        run = inversion.invert(denoise, solver, clean, way, resume=found, measure=False)
        with self._borrowed(self.unet), self.progress_bar(total=len(solver) - len(levels)) as bar:
            for found in run:
                for level in found.latents[1 + len(levels) :]:
                    levels.append(level / sizes[len(levels)])
                    if plan.watch is not None:
                        time = solver.timestep(len(solver) - len(levels))
                        plan.watch.note(len(levels) - 1, time, levels[-1])
                    bar.update()
        return levels

    def _regularised(
        self, solver: Any, plan: Plan, weights: list[float], rounds: int, rolls: int
    ) -> RegularisedSolver:
        scheduler = self.scheduler if self.inverse_scheduler is None else self.inverse_scheduler
        kind, plain = scheduler.config["prediction_type"], self.compat == "diffusers"

        def reads(index: int) -> tuple[float, float]:
            if isinstance(solver, Table) and not plain:
                row = solver.row(index)
                return read_noise(kind, row.alpha, row.sigma)
            # The peer reads the noise as of the time the network is asked at.
            kept = float(scheduler.alphas_cumprod[int(solver.timestep(index))])
            return read_noise(kind, sqrt(kept), sqrt(1 - kept))

        def pick(image: int, below: int) -> int:
            return whole_number(plan.generators, image, below)

        regularise = Regularisation(weights[0], weights[1], rounds, rolls, pick, plain)
        return RegularisedSolver(solver, regularise, reads)


def _sizes(solver: Table) -> list[float]:
    """By call, and after the last, how large latents of a solver are beside `sqrt(a) * clean +
    sqrt(1 - a) * noise`; exactly 1 for those that hold them so."""
    sizes = np.append(np.hypot(solver.alpha, solver.sigma), 1.0)
    return [1.0 if abs(size - 1) < 1e-6 else float(size) for size in sizes]


def generators_of_maps(generator: Any, seed: Any, count: int, maps: int) -> Any:
    """As `calls.generators`; a list may also hold one for each map."""
    many = isinstance(generator, list | tuple) and len(generator) == count * maps
    return seeds.generators(generator, seed, count * maps if many else count)
