"""The whole sampling loop as one program.

`sampling.loop` asks for each call of the network and may be watched, changed and controlled in
between. Here all calls are one question, which an engine that compiles whole programs makes one
compiled loop: the table is arrays, bounds are numbers, so another prompt, seed, guidance, strength
or solver of as many calls compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from underdraw import backends
from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.deltas import Deltas
from underdraw.backends.node import grow
from underdraw.networks import unet
from underdraw.networks.config import UNetConfig
from underdraw.networks.controlnet import program as controlnets
from underdraw.networks.controlnet.config import ControlNetConfig
from underdraw.networks.layers import repeated
from underdraw.networks.program import Program
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.solvers.dense import DenseTable, Memory, advance


@dataclass(frozen=True, eq=False)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022)."""

    scale: Any
    """A number, or `(images, 1, 1, 1)`."""
    rescale: float | None = None
    """How far the standard deviation of the conditional prediction is restored; None: not at all.
    """


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


def whole(
    nn: Operations,
    p: Node,
    config: UNetConfig,
    state: Memory,
    bounds: Array,
    steering: Steering,
) -> Memory:
    """The state after the calls from `bounds[0]` up to `bounds[1]`, int32."""
    c, leaves = steering, steering.sites.leaves
    keys = unet.context_constants(nn, p, config, c.context, _of(leaves, unet_context))
    like = c.context
    times = unet.call_times(nn, p, config, c.table.timesteps, like, None, _of(leaves, unet_times))
    nets = [_Net(nn, one, c.table, c.context) for one in c.beside]

    def call(i: Any, state: Memory) -> Memory:
        x = nn.cast(state.x * c.table.scales[i], like)
        x = x if c.guidance is None else nn.concat((x, x), 0)
        time = {place: shifts[i][None] for place, shifts in times.items()}
        sites = c.sites
        for net in nets:
            sites = sites + net(nn, i, x)
        output = nn.float32(unet.unet(nn, p, config, x, time, keys, sites))
        output = output if c.guidance is None else guide(nn, c.guidance, output)
        noise = None if c.noise is None else c.noise[i]
        return advance(nn, c.table, i, state, output, noise)

    loop = getattr(backends.get(nn.name), "repeated", _in_python)
    return loop(bounds[0], bounds[1], call, state)


def guide(nn: Operations, guidance: Guidance, out: Array) -> Array:
    """Both halves `(2 * images, ...)` of a prediction put together."""
    half = out.shape[0] // 2
    unconditional, conditional = out[:half], out[half:]
    guided = unconditional + guidance.scale * (conditional - unconditional)
    if guidance.rescale is None:
        return guided
    axes = (1, 2, 3)
    matched = guided * (nn.std(conditional, axes) / nn.std(guided, axes))
    return guidance.rescale * matched + (1 - guidance.rescale) * guided


class _Net:
    """A ControlNet in a loop, with what it makes of texts and times ahead."""

    def __init__(self, nn: Operations, beside: Beside, table: DenseTable, context: Array) -> None:
        self.p, self.config, self.beside = grow(beside.tensors), beside.config, beside
        self.keys = controlnets.call_context(nn, self.p, self.config, context)
        self.times = controlnets.call_times(nn, self.p, self.config, table.timesteps, context)

    def __call__(self, nn: Operations, i: Any, x: Array) -> Sites:
        time = {place: shifts[i][None] for place, shifts in self.times.items()}
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


WHOLE = Program("unet.loop", whole, spends=True)
"""Of its inputs the state is of no use afterwards."""
