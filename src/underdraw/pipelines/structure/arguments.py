"""What calls of diffusers say of maps, as controls: a list has an entry for each net."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from underdraw import checks
from underdraw.controls.structure import Net, Structure
from underdraw.errors import InputError, InputTypeError
from underdraw.models.several import Several
from underdraw.pictures.maps import Map, Maps, read_maps
from underdraw.pipelines.call.plan import Plan
from underdraw.pipelines.components.registry import uncompiled


@dataclass(frozen=True)
class Structures:
    """The nets of a call, and what each is told; checked."""

    names: Mapping[str, str]
    """What the call calls the arguments `map`, `scale`, `start` and `end` of a `Structure`."""
    nets: tuple[Net, ...]
    maps: tuple[Maps, ...]
    scales: tuple[Any, ...]
    starts: tuple[Any, ...]
    ends: tuple[Any, ...]
    guess: bool = False

    @property
    def pictures(self) -> int:
        """Maps of a net: one, or one for each prompt."""
        return max(map(len, self.maps))

    def size(self, factor: int) -> tuple[int, int]:
        """Height and width in pixels that the first map asks for, multiples of a factor."""
        height, width = self.maps[0].size
        if height < factor or width < factor:
            raise InputError(
                f"{self.names['map']} is {width} x {height} pixels; at least {factor} are needed"
            )
        return height - height % factor, width - width % factor

    def controls(self, plan: Plan, fit: Callable[[Any], Any] | None = None) -> list[Structure]:
        """One for each net; `fit` cuts pictures of maps as that of the call is cut."""
        made = []
        for net, maps, scale, start, end in zip(
            self.nets, self.maps, self.scales, self.starts, self.ends, strict=True
        ):
            shown = (
                maps if fit is None else Maps(_fitted(self.names["map"], one, fit) for one in maps)
            )
            times = plan.count // len(shown) if len(shown) > 1 else 1
            made.append(Structure(net, shown.repeated(times), scale, start, end, guess=self.guess))
        for control in made:
            control.check_count(plan.count, self.names)
        return made


def read_structures(
    component: Any,
    name: str,
    image: Any,
    *,
    scale: tuple[str, Any],
    start: tuple[str, Any] = ("control_guidance_start", 0.0),
    end: tuple[str, Any] = ("control_guidance_end", 1.0),
    guess: Any = False,
) -> Structures:
    """Check what a call says of maps.

    Args:
        component: a net, or several.
        name: of the argument with the maps.
        image: maps of one net, or a list with those of each; a list of lists has one for each
            prompt, with a map for each net.
        scale, start, end: the name of the argument and its value: a number, or a list with one for
            each net (of a single net: for each image), whose entries may be lists with one for each
            image.

    Raises:
        InputError, InputTypeError: a value is none of these, or a list is too short or too long.
    """
    component = uncompiled(component)
    several = isinstance(component, Several)
    nets = tuple(component) if several else (component,)
    if image is None:
        raise InputError(f"{name}=None; give a map for the net to read")
    checks.flag("guess_mode", guess)
    maps = tuple(read_maps(name, one) for one in _for_nets(name, image, len(nets), several))
    most = max(map(len, maps))
    for one in maps:
        if len(one) not in (1, most):
            raise InputError(
                f"{name} holds {len(one)} maps for one net and {most} for another; allowed: one, "
                "or as many"
            )
    bounds = ((-checks.LARGEST_FACTOR, checks.LARGEST_FACTOR), (0.0, 1.0), (0.0, 1.0))
    each = [
        _numbers(*argument, len(nets), several, *bound)
        for argument, bound in zip((scale, start, end), bounds, strict=True)
    ]
    for low, high in zip(each[1], each[2], strict=True):
        if checks.is_number(low) and checks.is_number(high) and low >= high:
            raise InputError(f"{start[0]}={low} is not below {end[0]}={high}")
    names = {"map": name, "scale": scale[0], "start": start[0], "end": end[0]}
    return Structures(names, nets, maps, *each, guess=bool(guess))


def _for_nets(name: str, image: Any, nets: int, several: bool) -> list[Any]:
    """The maps of each net."""
    if not several:
        return [image]
    if not isinstance(image, list | tuple):
        raise InputTypeError(
            f"{name} is a {type(image).__name__}; for {nets} nets a list with a map for each is "
            "needed"
        )
    given = list(image)
    if given and all(isinstance(one, list | tuple) for one in given):
        if len({len(one) for one in given}) > 1:
            raise InputError(f"{name} holds lists of {sorted({len(one) for one in given})} maps")
        given = [list(one) for one in zip(*given, strict=True)]
    if len(given) != nets:
        raise InputError(f"{name} has {len(given)} maps; there are {nets} nets")
    return given


def _numbers(
    name: str, value: Any, nets: int, several: bool, low: float, high: float
) -> tuple[Any, ...]:
    """What each net is told: a number within bounds, or one for each image."""
    if not several or not isinstance(value, list | tuple):
        one = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
        return (_checked(name, one, low, high),) * nets
    if len(value) != nets:
        raise InputError(f"{name} has {len(value)} entries; there are {nets} nets")
    return tuple(_checked(name, one, low, high) for one in value)


def _checked(name: str, value: Any, low: float, high: float) -> Any:
    if isinstance(value, list | tuple):
        return [checks.number(name, one, low, high) for one in checks.numbers(name, value)]
    return checks.number(name, value, low, high)


def _fitted(name: str, one: Map, fit: Callable[[Any], Any]) -> Map:
    """A map of the whole picture, where only a part of it is worked on."""
    if not isinstance(one, Image.Image):
        raise InputTypeError(
            f"{name} is an array, and padding_mask_crop is given; allowed: PIL pictures"
        )
    return fit(one)
