"""The denoising loop every pipeline runs: a generator that yields after each model call.

Progress bars, callbacks, previews and cancellation are consumers: they look at the `Step` and may
send back a `Change`. Closing the generator ends the run between two calls.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from underdraw.backends.contract import Array
from underdraw.controls.control import Call, Control, Run, joined, kept
from underdraw.errors import NonFiniteError
from underdraw.networks import unet
from underdraw.networks.layers import timestep_embedding
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.solvers.solver import Solver
from underdraw.solvers.table import State

CHUNK = 64
"""Calls whose time embeddings are computed together."""


class Step(NamedTuple):
    """What a consumer sees after a model call."""

    index: int
    timestep: float
    latents: Array
    """`(batch, channels, height, width)` after the call, float32."""
    clean: Callable[[], Array]
    """The image the model aims at now, as latents; computed when asked for, for previews."""


class Change(NamedTuple):
    """What a consumer may send back; None leaves things as they are."""

    latents: Array | None = None
    context: Array | None = None


@dataclass
class Denoiser:
    """A UNet with all that does not change between the calls of one run.

    Args:
        model: the UNet, tree and config.
        nn: operations with the settings of the pipeline that runs.
        context: `(batch, tokens, width)`, under guidance `(2 * batch, ...)`, unconditional first.
        timesteps: of all calls.
        guidance: read before each call: a number, or an array `(batch, 1, 1, 1)`. Guidance is on as
            long as it exceeds 1 and the context has both halves.
        rescale: how far guided predictions get back the standard deviation of the conditional ones
            (Lin et al. 2023, section 3.4).
    """

    model: Any
    nn: Any
    context: Array
    timesteps: Sequence[float]
    guidance: Callable[[], Any]
    rescale: float = 0.0
    distilled: bool = False
    """The UNet takes the guidance scale as an input instead of a second call (LCM)."""
    _keys: Any = None
    _keys_of: Any = None
    _times: dict[int, list[Any]] = field(default_factory=dict)

    def __call__(self, latents: Array, index: int, sites: Sites = NO_SITES) -> Array:
        """The prediction for `latents (batch, ...)`, already scaled for the solver, at a call."""
        nn, guidance, images = self.nn, self.guidance(), latents.shape[0]
        guided, context = self.guides(images), self.context
        if context.shape[0] == 2 * images and not guided:
            context = context[images:]
        # Where controls change it, keys and values of this call are of no use to another.
        keys = context if sites.context else self._constants(context)
        x = nn.concat((latents, latents), 0) if guided else latents
        x = nn.cast(x, context)
        time = self._time(index)
        out = nn.float32(unet.unet(nn, self.model, self.model.config, x, time, keys, sites))
        return self._guide(out, guidance) if guided else out

    def set_context(self, context: Array) -> None:
        """Go on with this context; it may be the same array, changed in place."""
        self.context, self._keys_of = self.nn.cast(context, self.context), None

    def guides(self, images: int) -> bool:
        """Whether the next call of so many images has an unconditional half."""
        if self.distilled or self.context.shape[0] != 2 * images:
            return False
        guidance = self.guidance()
        return bool((guidance > 1).any()) if hasattr(guidance, "shape") else guidance > 1

    def _guide(self, out: Array, guidance: Any) -> Array:
        nn, half = self.nn, out.shape[0] // 2
        unconditional, conditional = out[:half], out[half:]
        guided = unconditional + guidance * (conditional - unconditional)
        if not self.rescale:
            return guided
        axes = (1, 2, 3)
        matched = guided * (nn.std(conditional, axes) / nn.std(guided, axes))
        return self.rescale * matched + (1 - self.rescale) * guided

    def _constants(self, context: Array) -> Any:
        """Keys and values of the context, until another context takes its place."""
        if self._keys_of is not self.context or self._keys[0] != context.shape[0]:
            model = self.model
            constants = unet.context_constants(self.nn, model, model.config, context)
            self._keys, self._keys_of = (context.shape[0], constants), self.context
        return self._keys[1]

    def _time(self, index: int) -> Any:
        chunk, within = divmod(index, CHUNK)
        if chunk not in self._times:
            self._times = {chunk: self._shifts(chunk * CHUNK)}
        return self._times[chunk][within]

    def _shifts(self, start: int) -> list[dict[str, Array]]:
        """By call, what each residual block adds for the time."""
        nn, model = self.nn, self.model
        array = model._framework.array
        device = self.context.device
        times = [float(t) for t in self.timesteps[start : start + CHUNK]]
        t = array(np.array(times, np.float32), device=device)
        condition = None
        images = 1
        if self.distilled:
            width, scale = model.config.time_cond_proj_dim, self.guidance() - 1.0
            scale = scale.reshape(-1) if hasattr(scale, "shape") else [scale]
            scale = array(np.array(scale, np.float32), device=device)
            calls, images = t.shape[0], scale.shape[0]
            scale = nn.expand(scale[None], (calls, images)).reshape(-1)
            t = nn.expand(t[:, None], (calls, images)).reshape(-1)
            wave = timestep_embedding(nn, scale * 1000.0, width, False, 1)
            condition = nn.cast(wave, self.context)
        temb = unet.embed_time(nn, model, model.config, t, self.context, timestep_cond=condition)
        shifts = unet.time_shifts(nn, model, model.config, temb)
        return [
            {place: shift[i : i + images] for place, shift in shifts.items()}
            for i in range(0, t.shape[0], images)
        ]


def sample(
    denoise: Denoiser,
    solver: Solver,
    latents: Array,
    draw: Callable[[], Array],
    controls: Sequence[Control] = (),
    pipeline: Any = None,
    prompts: Sequence[str] | None = None,
    begin: Callable[[], None] | None = None,
) -> Generator[Step, Change | None, Array]:
    """Run a solver from `latents` to the end; returns the last latents.

    Args:
        latents: `(batch, channels, height, width)` at the solver's first noise level.
        draw: fresh standard normal noise of that shape; called where the solver adds noise.
        controls: act in the order given.
        pipeline: handed to the controls, for its other networks; so are `prompts`, the texts of
            the call.
        begin: called when the controls are ready, before the UNet is used.

    Raises:
        NonFiniteError: the first call gave NaN or infinity, as broken weights do.
    """
    nn, framework, count = denoise.nn, denoise.model._framework, len(solver)
    state, controls = State(nn.float32(latents)), joined(controls) if controls else ()
    with framework.no_grad():
        run = Run(nn, pipeline, latents.shape[0], state.x, count, prompts, solver, draw)
        carries = [control.prepare(run) for control in controls]
    if begin is not None:
        begin()
    for index in range(count):
        timestep, sites = solver.timestep(index), NO_SITES
        with framework.no_grad():
            call = Call(index, count, timestep, denoise.guides(state.x.shape[0]))
            for i, control in enumerate(controls):
                told = control.before_call(nn, carries[i], state.x, call)
                x, acts, carries[i] = kept(nn, control, "before_call", told, 3, state.x)
                state = state if x is state.x else state._replace(x=x)
                sites = acts if sites is NO_SITES else sites + acts
            seen = state.x
            output = denoise(solver.model_input(index, seen), index, sites)
            state = solver.advance(nn, index, state, output, draw)
            if index == 0 and not framework.is_finite(state.x):
                raise NonFiniteError(
                    "the first step gave NaN or infinity; the weights or the inputs hold such "
                    "values, or the dtype is too narrow for this model (look at the weights with "
                    "`underdraw info --check`, or try dtype='float32')"
                )
            for i, control in enumerate(controls):
                told = control.after_step(nn, carries[i], state.x, call)
                x, carries[i] = kept(nn, control, "after_step", told, 2, state.x)
                state = state if x is state.x else state._replace(x=x)

        clean = partial(solver.clean, nn, index, seen, output)
        change = yield Step(index, timestep, state.x, clean)
        if change is not None:
            if change.latents is not None:
                state = state._replace(x=nn.float32(change.latents))
            if change.context is not None:
                denoise.set_context(change.context)
    return state.x
