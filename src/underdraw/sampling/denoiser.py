"""The UNet in a run: questions about latents, and guidance put together from the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from underdraw.backends.adapted import NO_DELTAS
from underdraw.backends.contract import Array
from underdraw.backends.deltas import Deltas, check_paths, check_rows
from underdraw.backends.tree import alike
from underdraw.controls.run import Conditioning, Run, of_rows
from underdraw.engines.engine import Question
from underdraw.networks import unet
from underdraw.networks.layers import timestep_embedding
from underdraw.networks.program import Program
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.sampling.guidance import Guidance, guide, guided

CHUNK = 64
"""Calls whose time embeddings are computed together."""
TO_CONTEXT, TIME = (".to_k", ".to_v"), "time_emb"
"""In paths of layers whose outputs are computed ahead: keys and values, and times."""


class Denoiser:
    """Asks the UNet of a run, and keeps what does not change between its calls: keys and values of
    every cross-attention, and what residual blocks make of the times of all calls."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.context = run.conditioning.joined(run.nn)
        """`(batch, tokens, width)`, under guidance `(2 * batch, ...)`, unconditional first."""
        self._guidance = run.guidance
        """What distilled UNets are told with the time: the one that the run began with."""
        self._keys: dict[int, Any] = {}
        self._times: dict[int, dict[str, Array]] = {}
        """By call."""
        self._acting: Deltas = NO_DELTAS
        """The differences in `_times`; whose strength changes over the run has others later."""
        self._ahead: dict[int, _MadeAhead] = {}
        self._checked: tuple[Deltas, int] = NO_DELTAS, 0

    def __call__(self, latents: Array, index: int, sites: Sites = NO_SITES) -> Array:
        """The prediction for `latents (batch, ...)`, already scaled for the solver, at a call: the
        question is asked at once."""
        question = self.question(latents, index, sites)
        answer = self.run.ask(question.program, question.model, *question.inputs)
        return self.prediction(answer, latents.shape[0])

    def question(
        self, latents: Array, index: int, sites: Sites = NO_SITES, guided: bool | None = None
    ) -> Question:
        """The call of the UNet for `latents (batch, ...)`, already scaled for the solver; `guided`
        as for `rows`."""
        run, sites = self.run, self.acting(sites)
        x, context = self.rows(latents, guided)
        self._check(sites.leaves, x.shape[0])
        # Where controls change it, keys and values of this call are of no use to another.
        known = context if sites.context else self._keys_values(context, sites.leaves)
        time = self._time(index, x.shape[0], sites.leaves)
        return Question(unet.UNET, run.model, unet.Inputs(x, time, known, sites), run.nn)

    def rows(self, latents: Array, guided: bool | None = None) -> tuple[Array, Array]:
        """Latents and context of all rows of a call, in the dtype of the context.

        Args:
            guided: whether there is an unconditional half; None where guidance asks for one.
        """
        nn, images = self.run.nn, latents.shape[0]
        guided = self.guides(images) if guided is None else guided
        context = self.context if guided else of_rows(self.context, images)
        x = nn.concat((latents, latents), 0) if guided else latents
        return nn.cast(x, context), context

    def prediction(self, answer: unet.Answer, images: int) -> Array:
        """What the UNet predicts for so many images, guidance put together, float32."""
        out = self.run.nn.float32(answer.sample)
        if out.shape[0] == images:
            return out
        return self.guide(out)

    def guide(self, out: Array) -> Array:
        """Guidance of both halves `(2 * batch, ...)`."""
        return guide(self.run.nn, self.guidance, out)

    def guided(self, unconditional: Array, conditional: Array) -> Array:
        """The same of the halves, each `(batch, ...)`."""
        return guided(self.run.nn, self.guidance, unconditional, conditional)

    @property
    def guidance(self) -> Guidance:
        """As it is for the next call."""
        return Guidance(self.run.guidance, self.run.rescale or None)

    def guides(self, images: int) -> bool:
        """Whether the next call of so many images has an unconditional half."""
        if self.run.distilled or self.context.shape[0] != 2 * images:
            return False
        guidance = self.run.guidance
        return bool((guidance > 1).any()) if hasattr(guidance, "shape") else guidance > 1

    def set_context(self, context: Array) -> bool:
        """Go on with this context, and say whether it may be another; where arrays are no values,
        the same one may have been changed in place."""
        if context is self.context and hasattr(self.run.framework, "arrays_are_values"):
            return False
        self.context, self._keys = self.run.nn.cast(context, self.context), {}
        for made in self._ahead.values():
            made.keys = {}
        return True

    def ahead(
        self,
        index: int,
        replaced: Array | None,
        model: Any,
        times: Program,
        context: Program,
        rows: int,
        like: Array,
    ) -> tuple[Any, Any]:
        """For a network beside the UNet, as `controls.control.Ahead` tells; `replaced` is the
        context of a call that has one of its own, which is of no use to another."""
        run, nn = self.run, self.run.nn
        made = self._ahead.setdefault(id(model), _MadeAhead(model))
        whole = self.context if replaced is None else replaced
        texts = of_rows(whole, rows)
        if replaced is None and rows not in made.keys:
            made.keys[rows] = run.ask(context, model, nn.cast(texts, like))
        chunk, within = divmod(index, CHUNK)
        if chunk not in made.times:
            calls = range(chunk * CHUNK, min((chunk + 1) * CHUNK, run.calls))
            shifts = run.ask(times, model, self._timesteps(calls), like)
            made.times = {chunk: _by_call(shifts)}
        known = made.keys[rows] if replaced is None else nn.cast(texts, like)
        return made.times[chunk][within], known

    def unguided(self, context: Array | None = None) -> Denoiser:
        """The same with one half of the context alone, by default the conditional one."""
        if context is None:
            context = self.context[self.context.shape[0] // 2 :]
        return Denoiser(replace(self.run, conditioning=Conditioning(context), guidance=1.0))

    def acting(self, sites: Sites) -> Sites:
        """What acts in a call of the run, with what controls add to it."""
        run = self.run
        if run.sites is not NO_SITES:
            sites = run.sites + sites
        return sites + Sites(leaves=run.leaves) if run.leaves else sites

    def texts(self, images: int, guided: bool, sites: Sites) -> tuple[Array, Any]:
        """The context of calls, guided or not, whose differences to layers are alike; keys and
        values of it, or where controls change it itself."""
        context = self.context if guided else of_rows(self.context, images)
        self._check(sites.leaves, context.shape[0])
        return context, context if sites.context else self._keys_values(context, sites.leaves)

    def times(self, calls: Sequence[int], rows: int, sites: Sites) -> dict[str, Array]:
        """What residual blocks make of the times of such calls, `(calls * (1 or rows), channels, 1,
        1)` by place."""
        acting = {path: delta for path, delta in sites.leaves.items() if TIME in path}
        if any(part.count is not None for delta in acting.values() for part in delta.parts):
            each = [self._shifts([call], rows, acting)[0] for call in calls]
            concat = self.run.nn.concat
            return {place: concat([one[place] for one in each], 0) for place in each[0]}
        return self._shifts(calls, 1, acting)[0]

    def _check(self, leaves: Deltas, rows: int) -> None:
        """That differences fit their layers and the rows, once for each set of them."""
        if leaves and not alike((leaves, rows), self._checked):
            check_paths(unet.layout(self.run.model.config), leaves)
            check_rows(leaves, rows)
            self._checked = leaves, rows

    def _keys_values(self, context: Array, leaves: Deltas) -> Any:
        """Keys and values of the context, until another context, or other differences to the layers
        that make them, take its place."""
        acting = {path: delta for path, delta in leaves.items() if path.endswith(TO_CONTEXT)}
        rows = context.shape[0]
        if rows not in self._keys or not alike(acting, self._keys[rows][0]):
            keys = self.run.ask(unet.CONTEXT, self.run.model, context, acting)
            self._keys[rows] = acting, keys
        return self._keys[rows][1]

    def _time(self, index: int, rows: int, leaves: Deltas) -> dict[str, Array]:
        """What each residual block adds for the time of a call, `(1 or rows, channels, 1, 1)`."""
        acting = {path: delta for path, delta in leaves.items() if TIME in path}
        same = _are(acting, self._acting)
        if not same or index not in self._times:
            first = index - index % CHUNK
            chunk = range(first, min(first + CHUNK, self.run.calls))
            if any(delta.by_row for delta in acting.values()):
                # Call by call, those to come in the second call that has them: strengths that
                # change over the run leave nothing to be known ahead.
                known = self._times if same else {}
                self._times = {
                    call: known[call] if call in known else self._shifts([call], rows, acting)[0]
                    for call in (chunk if same else [index])
                }
            else:
                made = _by_call(*self._shifts(chunk, leaves=acting))
                self._times = dict(zip(chunk, made, strict=True))
            self._acting = acting
        return self._times[index]

    def _shifts(
        self, calls: Sequence[int], rows: int = 1, leaves: Deltas = NO_DELTAS
    ) -> tuple[dict[str, Array], int]:
        """What each residual block adds for the times of calls, in so many rows or more; and how
        many rows each call has."""
        run, nn = self.run, self.run.nn
        array, device = run.framework.array, getattr(self.context, "device", None)
        t = self._timesteps(calls)
        condition = None
        if run.distilled:
            width, scale = run.model.config.time_cond_proj_dim, self._guidance - 1.0
            scale = scale.reshape(-1) if hasattr(scale, "shape") else [scale]
            scale = array(np.array(scale, np.float32), device=device)
            rows = max(rows, scale.shape[0])
            scale = nn.expand(scale[None], (t.shape[0], rows)).reshape(-1)
            wave = timestep_embedding(nn, scale * 1000.0, width, False, 1)
            condition = nn.cast(wave, self.context)
        if rows > 1:
            t = nn.expand(t[:, None], (t.shape[0], rows)).reshape(-1)
        shifts = run.ask(unet.TIMES, run.model, t, self.context, condition, leaves)
        return shifts, rows

    def _timesteps(self, calls: Sequence[int]) -> Array:
        """The times of calls `(n,)`."""
        times = [float(self.run.solver.timestep(index)) for index in calls]
        device = getattr(self.context, "device", None)
        return self.run.framework.array(np.array(times, np.float32), device=device)


@dataclass(eq=False)
class _MadeAhead:
    """A network beside the UNet, and what was computed ahead with it."""

    model: Any
    """Held, so that its `id` is of no other."""
    keys: dict[int, Any] = field(default_factory=dict)
    times: dict[int, list[Any]] = field(default_factory=dict)


def _are(some: Deltas, others: Deltas) -> bool:
    """Whether they are the very same differences; where several meet, they are joined anew in each
    call."""
    return some.keys() == others.keys() and all(
        list(map(id, delta.parts)) == list(map(id, others[path].parts))
        for path, delta in some.items()
    )


def _by_call(shifts: Mapping[str, Array], rows: int = 1) -> list[dict[str, Array]]:
    """By call, of which each has so many rows."""
    count = next(iter(shifts.values())).shape[0]
    return [
        {place: shift[i : i + rows] for place, shift in shifts.items()}
        for i in range(0, count, rows)
    ]
