"""The whole sampling loop as one program.

`sampling.loop` asks for each call of the network and may be watched, changed and controlled in
between. Here all calls are one question, which an engine that compiles whole programs makes one
compiled loop: the table is arrays, bounds are numbers, so another prompt, seed, guidance, strength
or solver of as many calls compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from underdraw import backends
from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.deltas import Deltas
from underdraw.backends.node import grow
from underdraw.backends.tree import Structure, unflatten
from underdraw.controls.control import Ahead, Asked
from underdraw.controls.run import of_rows
from underdraw.controls.steady import Asks, LatentChange, Need
from underdraw.networks import unet
from underdraw.networks.config import UNetConfig
from underdraw.networks.controlnet import program as controlnets
from underdraw.networks.controlnet.config import ControlNetConfig
from underdraw.networks.layers import repeated
from underdraw.networks.program import Program
from underdraw.networks.sites import NO_SITES, Sites, check
from underdraw.sampling.guidance import Guidance, guide
from underdraw.solvers.dense import DenseTable, Memory, advance


@dataclass(frozen=True, eq=False)
class Beside:
    """A ControlNet that is asked before each call."""

    tensors: Mapping[str, Array]
    """By published name."""
    config: ControlNetConfig
    hint: Array
    """From `controlnet.program.HINT`, `(1 or rows, width, height, width)`."""
    scale: Any = 1.0
    """A number, or `(1 or rows, 1, 1, 1)`."""


class Acts(NamedTuple):
    """What controls do at a call, as data."""

    sites: Sites = NO_SITES
    asks: tuple[Asks, ...] = ()
    """Networks beside the UNet."""
    after: tuple[LatentChange, ...] = ()
    """What happens to the latents behind it."""


@dataclass(frozen=True, eq=False)
class ByCall:
    """What controls do at each call of a row of calls, which differ in numbers and arrays alone."""

    structure: Structure = field(metadata={"static": True})
    """Of a tuple of `Acts`, one for each control."""
    alike: tuple[Any, ...]
    """Leaves that are the same at all calls; None for others."""
    each: tuple[Array | tuple[float, ...] | None, ...]
    """The others: arrays with an axis for calls in front, and floats, one for each call."""

    def at(self, nn: Operations, i: Any) -> Acts:
        """At a call, whose number may be traced."""
        pick = getattr(backends.get(nn.name), "picked", lambda values, i: values[i])
        leaves = [
            alike if each is None else pick(each, i) if isinstance(each, tuple) else each[i]
            for alike, each in zip(self.alike, self.each, strict=True)
        ]
        total = Acts()
        for acts in unflatten(self.structure, leaves):
            more = (acts.sites, acts.asks, acts.after)
            total = Acts(*(a + b for a, b in zip(total, more, strict=True)))
        return total


@dataclass(frozen=True, eq=False)
class Known:
    """What was made of context and times before a loop."""

    context: Any
    """Keys and values from `unet.CONTEXT`; the context itself where controls change it."""
    times: Mapping[str, Array]
    """From `unet.TIMES`, by place `(calls * (1 or rows), channels, 1, 1)`, call by call."""


@dataclass(frozen=True, eq=False)
class Steering:
    """What a loop goes by."""

    table: DenseTable
    context: Array
    """`(images, tokens, width)`, under guidance `(2 * images, ...)`, unconditional rows first."""
    guidance: Guidance | None = None
    noise: Array | None = None
    """`(calls, images, ...)`, where the solver takes any."""
    sites: Sites = NO_SITES
    """What acts in every call alike."""
    beside: tuple[Beside, ...] = ()
    by_call: ByCall | None = None
    """What acts besides, in each call."""
    known: Known | None = None
    """What was made of context and times before; None: it is made in the program."""


def whole(
    nn: Operations,
    p: Node,
    config: UNetConfig,
    state: Memory,
    bounds: Array,
    steering: Steering,
) -> Memory:
    """The state after the calls from `bounds[0]` up to `bounds[1]`, int32."""
    c, like, rows = steering, steering.context, steering.context.shape[0]
    known = _known(nn, p, config, c) if c.known is None else c.known
    times = _by_call(known.times, len(c.table))
    nets = [_Net(nn, one, c.table, c.context) for one in c.beside]
    asks = () if c.by_call is None else c.by_call.at(nn, bounds[0]).asks
    ahead = [_Ahead(nn, one.need(rows), c.table, c.context) for one in asks]

    def call(i: Any, state: Memory) -> Memory:
        x = nn.cast(state.x * c.table.scales[i], like)
        x = x if c.guidance is None else nn.concat((x, x), 0)
        time = {place: shifts[i] for place, shifts in times.items()}
        acts = Acts() if c.by_call is None else c.by_call.at(nn, i)
        sites = c.sites + acts.sites
        for net in nets:
            sites = sites + net(nn, i, x)
        for one, made in zip(acts.asks, ahead, strict=True):
            sites = sites + one(nn, made.asked(nn, i, x, sites, c.guidance is not None))
        output = nn.float32(unet.unet(nn, p, config, x, time, known.context, sites))
        output = output if c.guidance is None else guide(nn, c.guidance, output)
        noise = None if c.noise is None else c.noise[i]
        state = advance(nn, c.table, i, state, output, noise)
        for alter in acts.after:
            x = alter(nn, state.x)
            check(alter, "after_step", x, state.x.shape)
            state = state._replace(x=nn.float32(x))
        return state

    loop = getattr(backends.get(nn.name), "repeated", _in_python)
    return loop(bounds[0], bounds[1], call, state)


def _known(nn: Operations, p: Node, config: UNetConfig, c: Steering) -> Known:
    leaves, like = c.sites.leaves, c.context
    keys = unet.context_constants(nn, p, config, like, _of(leaves, unet_context))
    times = unet.call_times(nn, p, config, c.table.timesteps, like, None, _of(leaves, unet_times))
    return Known(keys, times)


def _by_call(times: Mapping[str, Array], calls: int) -> dict[str, Array]:
    """With an axis for calls in front."""
    return {place: x.reshape(calls, -1, *x.shape[1:]) for place, x in times.items()}


class _Ahead:
    """What a network that a control asks makes of texts and times ahead."""

    def __init__(self, nn: Operations, need: Need, table: DenseTable, context: Array) -> None:
        self.need, self.context, model = need, context, need.model
        texts = nn.cast(of_rows(context, need.rows), need.like)
        self.keys = need.context(nn, model, model.config, texts)
        times = need.times(nn, model, model.config, table.timesteps, need.like)
        self.timesteps, self.times = table.timesteps, _by_call(times, len(table))

    def asked(self, nn: Operations, i: Any, x: Array, sites: Sites, guided: bool) -> Asked:
        """The call as the control sees it."""
        context, replaced = self.context, False
        for change in sites.context:
            context, replaced = change(nn, context), True

        def ahead(*need: Any) -> tuple[Any, Any]:
            time = {place: shifts[i] for place, shifts in self.times.items()}
            if not replaced:
                return time, self.keys
            return time, nn.cast(of_rows(context, self.need.rows), self.need.like)

        def ask(program: Program, model: Any, *inputs: Any) -> Any:
            return program(nn, model, model.config, *inputs)

        return Asked(x, self.timesteps[i], context, cast(Ahead, ahead), ask, guided)


class _Net:
    """A ControlNet in a loop, with what it makes of texts and times ahead."""

    def __init__(self, nn: Operations, beside: Beside, table: DenseTable, context: Array) -> None:
        self.p, self.config, self.beside = grow(beside.tensors), beside.config, beside
        self.keys = controlnets.call_context(nn, self.p, self.config, context)
        times = controlnets.call_times(nn, self.p, self.config, table.timesteps, context)
        self.times = _by_call(times, len(table))

    def __call__(self, nn: Operations, i: Any, x: Array) -> Sites:
        time = {place: shifts[i] for place, shifts in self.times.items()}
        hint = repeated(nn, self.beside.hint, x.shape[0])
        made = controlnets.controlnet(
            nn, self.p, self.config, x, time, self.keys, hint, self.beside.scale
        )
        return Sites(down_residuals=made.down, mid_residual=made.mid)


def unet_context(path: str) -> bool:
    """Whether a layer makes keys or values of the context."""
    return path.endswith((".to_k", ".to_v"))


def unet_times(path: str) -> bool:
    """Whether a layer works on the time."""
    return "time_emb" in path


def _of(leaves: Deltas, chosen: Callable[[str], bool]) -> Deltas:
    return {path: delta for path, delta in leaves.items() if chosen(path)}


def _in_python(begin: Any, end: Any, body: Callable[[Any, Any], Any], state: Any) -> Any:
    for i in range(int(begin), int(end)):
        state = body(i, state)
    return state


WHOLE = Program("unet.loop", whole, spends=True, loops=True)
"""Of its inputs the state is of no use afterwards."""
