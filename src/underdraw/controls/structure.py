"""`Structure`: a map that a ControlNet or a T2I-Adapter reads says what is to be where.

A ControlNet (Zhang et al. 2023) is asked in each call, of all that the UNet sees, and answers with
residuals; a T2I-Adapter (Mou et al. 2023) is asked once and gives features for all calls. Several
act together: what they give adds up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array, Operations
from underdraw.checks import shown
from underdraw.controls.components import attached
from underdraw.controls.control import Asked, Call, Planned, Run
from underdraw.controls.per_image import each_of, strengths_of, together
from underdraw.controls.steady import Asking, Need
from underdraw.errors import InputError, InputTypeError
from underdraw.models.controlnet import ControlNetModel
from underdraw.models.t2i_adapter import T2IAdapter
from underdraw.networks.controlnet.program import CONTEXT, CONTROLNET, HINT, TIMES
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.networks.t2i_adapter import ADAPTER
from underdraw.pictures.maps import check_channels, read_maps, sized

KIND = "structure"
"""Of adapters: the nets that `pipe.load_structure` attaches."""
Net = ControlNetModel | T2IAdapter


@dataclass(frozen=True)
class Features:
    """What a T2I-Adapter adds to hidden states, after the layers of their down block."""

    by_place: Mapping[str, Array]
    """`(1 or rows, channels, height, width)`"""
    scale: Any
    """A number, or `(rows, 1, 1, 1)`."""

    def __call__(self, nn: Operations, place: str, x: Array) -> Array:
        if place not in self.by_place:
            return x
        return x + nn.cast(self.by_place[place] * self.scale, x)


class Ready(NamedTuple):
    """What a run carries: nothing in it changes between calls."""

    net: Net
    read: tuple[Array, ...]
    """What the net makes of the maps alone, `(1 or images, ...)`."""
    doubled: tuple[Array, ...]
    """The same for the rows of a guided call."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """What a ControlNet answers in a call."""

    net: ControlNetModel
    hint: Array
    """What it makes of the maps, `(1 or images, ...)`."""
    scale: Any
    """A number, or one per row of what it is asked."""
    guess: bool
    half: bool
    """Whether it is asked about the conditional half alone."""

    def need(self, rows: int) -> Need:
        """What it makes of the times and texts of a call."""
        return Need(self.net, TIMES, CONTEXT, rows // 2 if self.half else rows, self.hint)

    def __call__(self, nn: Operations, asked: Asked) -> Sites:
        # Both halves see the same latents and the same map, and go apart where they read texts.
        one = asked.conditional()
        time, context = asked.ahead(*self.need(asked.sample.shape[0]))
        x = nn.cast(one.sample, self.hint)
        asking = (x, time, context, self.hint, self.scale, self.guess)
        down, mid = asked.ask(CONTROLNET, self.net, *asking)
        residuals = [nn.cast(one, asked.sample) for one in (*down, mid)]
        if self.half:
            residuals = [nn.concat((one * 0, one), 0) for one in residuals]
        return Sites(down_residuals=residuals[:-1], mid_residual=residuals[-1])


@dataclass(frozen=True, eq=False)
class Structure(Asking):
    """The picture follows a map: `Structure(net, edges)`.

    Args:
        net: a `ControlNetModel` or `T2IAdapter` for the pipeline's UNet, or the name of one that
            `pipe.load_structure` has attached, or of one in the pipeline's own folder; None: the
            only one that is attached, or else the only one in the folder.
        map: what the net was trained to read (edges, depth, ...): a PIL picture, or an array of
            numpy `(height, width)` or `(height, width, channels)`, of a framework `(channels,
            height, width)`, uint8, uint16 or in [0, 1], and -1 for pixels that are left open
            (`pictures.maps.masked_map`); or several, one per image of the call. Maps are brought
            to the size of the result.
        scale: how strongly it acts; 1 as in training, 0 not at all.
        start, end: fractions of the run between which it acts: in calls that begin at or after
            `start`, and are over at `end`.
        strength: how much of `scale` over the run, `Strength` or (on, decay, off); None: all of it.
        guess: the net tells by itself what the map shows, for calls without a prompt: it acts on
            the conditional half alone, and deeper residuals count more (ControlNets only).

    `scale`, `start`, `end` and `strength` may be lists with one entry per image of the call.

    Raises:
        InputError, InputTypeError: a value is none of these; when a call begins: the net was made
            for another UNet, or there are more or fewer maps or entries than images.
    """

    net: Net | str | None
    map: Any
    scale: Any = 1.0
    start: Any = 0.0
    end: Any = 1.0
    strength: Any = None
    guess: bool = False

    def __post_init__(self) -> None:
        if self.net is not None and not isinstance(self.net, ControlNetModel | T2IAdapter | str):
            raise InputTypeError(
                f"Structure(net={shown(self.net)}); allowed: a ControlNetModel, a T2IAdapter, the "
                "name of one that is attached, None"
            )
        guess = checks.flag("Structure(guess)", self.guess)
        if isinstance(self.net, T2IAdapter) and guess:
            raise InputError("Structure(guess=True) of a T2IAdapter; allowed: of a ControlNet")
        for name, low, high in (
            ("scale", -checks.LARGEST_FACTOR, checks.LARGEST_FACTOR),
            ("start", 0.0, 1.0),
            ("end", 0.0, 1.0),
        ):
            values = each_of(f"Structure({name})", getattr(self, name))
            kept = tuple(checks.number(f"Structure({name})", one, low, high) for one in values)
            object.__setattr__(self, name, kept)
        for start, end in _pairs("start", self.start, "end", self.end):
            if start >= end:
                raise InputError(f"Structure(start={start}, end={end}); allowed: start before end")
        object.__setattr__(self, "strength", strengths_of(self.strength))
        object.__setattr__(self, "map", read_maps("Structure(map)", self.map))

    def networks(self, run: Run) -> Sequence[Any]:
        """The ControlNet; a T2I-Adapter has told all before the first call."""
        net = self._net(run)
        return (net,) if isinstance(net, ControlNetModel) else ()

    def check_count(self, images: int, names: Mapping[str, str] = MappingProxyType({})) -> None:
        """Raise an InputError unless there is one entry of each kind, or one per image; `names` are
        what a call calls the arguments."""
        for name in ("map", "scale", "start", "end", "strength"):
            found = len(getattr(self, name))
            if found not in (1, images):
                told = names.get(name, f"Structure({name})")
                raise InputError(f"{told} has {found} entries; the call makes {images} images")

    def check(self, planned: Planned) -> None:
        """That the net is for this UNet, and that there are maps for it, one or one per image."""
        net, latents = self._net(planned), planned.shape[1]
        self.check_count(planned.images)
        net.require_fit(planned.model)
        if isinstance(net, ControlNetModel) and net.config.in_channels != latents:
            raise InputError(
                f"Structure(net) takes {net.config.in_channels} channels; latents have {latents}"
            )
        check_channels("Structure(map)", self.map, net.config.map_channels)

    def prepare(self, run: Run) -> Ready:
        """What the net makes of the maps."""
        net, (height, width) = self._net(run), run.latents.shape[2:]
        channels, factor = net.config.map_channels, net.config.factor
        pixels = sized("Structure(map)", self.map, channels, height * factor, width * factor)
        maps = run.framework.array(pixels, net.dtype, getattr(run.latents, "device", None))
        if _is_controlnet(net):
            read = (run.ask(HINT, net, maps),)
        else:
            read = tuple(run.ask(ADAPTER, net, maps))
        return Ready(net, read, tuple(_doubled(run.nn, one) for one in read))

    def sites_at(self, nn: Operations, carry: Ready, like: Array, call: Call) -> Sites:
        """The features of a T2I-Adapter."""
        scale = None if _is_controlnet(carry.net) else self._scale(carry, call, like)
        if scale is None:
            return NO_SITES
        features = carry.doubled if call.guided else carry.read
        by_place = {f"down_blocks.{i}": one for i, one in enumerate(features)}
        return Sites(down=(Features(by_place, scale),))

    def asks(self, carry: Ready, like: Array, call: Call) -> Sequence[Residuals]:
        """A ControlNet."""
        net = carry.net
        if not isinstance(net, ControlNetModel):
            return ()
        scale = self._scale(carry, call, like, call.guided)
        if scale is None:
            return ()
        # Pooled residuals act on the conditional half alone, too, as in the original.
        half = call.guided and bool(self.guess or net.config.global_pool_conditions)
        return (Residuals(net, carry.read[0], scale, self.guess, half),)

    def active(self, carry: Ready, like: Array, call: Call) -> tuple[bool, ...]:
        """In which images it acts."""
        return tuple(map(bool, self._scales(call)))

    def _net(self, run: Run | Planned) -> Net:
        """The net itself."""
        if not isinstance(self.net, str) and self.net is not None:
            net = self.net
        else:
            told = f"Structure(net={self.net!r})"
            net = attached(run.components, KIND, self.net, told, "load_structure")
        if net.nn.name != run.framework.operations.name:
            raise InputError(
                f"Structure(net) is on the backend {net.nn.name!r}; the UNet is on "
                f"{run.framework.operations.name!r}"
            )
        return net

    def _scale(self, carry: Ready, call: Call, like: Array, half: bool = False) -> Any:
        """How strongly it acts in a call: a number, or one per row of the call (of one half of
        it); None where not at all."""
        each = self._scales(call)
        if not any(each):
            return None
        if len(set(each)) == 1:
            return each[0]
        rows = each * (2 if call.guided and not half else 1)
        values = np.array(rows, np.float32)[:, None, None, None]
        framework = carry.net._framework
        return framework.array(values, carry.net.dtype, getattr(like, "device", None))

    def _scales(self, call: Call) -> list[float]:
        """The same of each image, or one for all of them."""
        return [
            scale * strength.at(call) * (start <= call.progress and call.over <= end)
            for scale, start, end, strength in together(
                self.scale, self.start, self.end, self.strength
            )
        ]


def _is_controlnet(net: Any) -> bool:
    return isinstance(net, ControlNetModel)


def _pairs(one: str, a: Sequence[Any], other: str, b: Sequence[Any]) -> list[tuple[Any, ...]]:
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise InputError(
            f"Structure: {one} has {len(a)} entries and {other} {len(b)}; allowed: one, or one per "
            "image in both"
        )
    return together(a, b)


def _doubled(nn: Operations, x: Array) -> Array:
    """For the rows of a guided call; one row is for all of them."""
    return x if x.shape[0] == 1 else nn.concat((x, x), 0)
