"""How much of a LoRA acts: in the UNet and its blocks, and in the text encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from underdraw import checks
from underdraw.backends.deltas import Delta, Deltas
from underdraw.errors import InputError
from underdraw.schema import Range, Schema

PARTS = ("text_encoder", "unet")
PART = re.compile(r"mid|(down|up)\.\d{1,3}(\.\d{1,3})?")
LEVEL = re.compile(r"(down|up)_blocks\.(\d+)(?:\.(?:attentions|resnets)\.(\d+))?(?:\.|\Z)")


Factor = Annotated[float, Range(-checks.LARGEST_FACTOR, checks.LARGEST_FACTOR)]


@dataclass(frozen=True)
class Scales(Schema):
    """Factors for a LoRA's differences; those of parts of the UNet multiply the UNet's."""

    owner = "scales of a LoRA"

    unet: Factor = 1.0
    text_encoder: Factor = 1.0
    parts: tuple[tuple[str, Factor], ...] = ()
    """By "mid", "down.1" (a block) or "up.0.2" (a layer of a block); what is not there has 1."""

    def check(self) -> None:
        for part, _ in self.parts:
            if not PART.fullmatch(part):
                raise InputError(f"parts has {checks.shown(part)}; allowed: 'mid', 'up.1', ...")

    def times(self, factor: float) -> Scales:
        """All of it multiplied."""
        return replace(self, unet=self.unet * factor, text_encoder=self.text_encoder * factor)

    def of(self, component: str, path: str, rest: float = 1.0) -> float:
        """The factor for a layer; `rest` stands for parts of the UNet that are not there, where
        there are any."""
        if component == "text_encoder":
            return self.text_encoder
        if not self.parts:
            return self.unet
        parts = dict(self.parts)
        if path.startswith("mid_block."):
            return self.unet * parts.get("mid", rest)
        found = LEVEL.match(path)
        if found is None:
            return self.unet
        block = f"{found[1]}.{found[2]}"
        own = parts.get(f"{block}.{found[3]}", parts.get(block, rest))
        return self.unet * own


def as_scales(name: str, value: Any) -> Scales:
    """A number, or diffusers' mapping: `{"text_encoder": 0.5, "unet": {"down": 0.9, "mid": 1.0,
    "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1.0]}}}`, in which each entry may be missing. A
    list has a number for each layer of a block.

    Raises:
        InputError, InputTypeError: it is something else; `name` says of which argument.
    """
    if isinstance(value, Scales):
        return value
    if not isinstance(value, Mapping):
        number = checks.factor(name, value)
        return Scales(number, number)
    _known(name, value, PARTS)
    text = checks.factor(f"{name}['text_encoder']", value.get("text_encoder", 1.0))
    inside = value.get("unet", 1.0)
    if not isinstance(inside, Mapping):
        return Scales(checks.factor(f"{name}['unet']", inside), text)
    return replace(by_block(f"{name}['unet']", inside), text_encoder=text)


def by_block(name: str, value: Mapping[str, Any]) -> Scales:
    """Diffusers' mapping of a UNet's blocks: `{"down": 0.9, "mid": 1.0, "up": {"block_0": 0.6,
    "block_1": [0.4, 0.8, 1.0]}}`; see `as_scales`."""
    _known(name, value, ("down", "mid", "up"))
    parts: dict[str, float] = {}
    for part, told in value.items():
        where = f"{name}[{part!r}]"
        if part == "mid" or not isinstance(told, Mapping):
            # A level that no config has stands for all blocks of the side.
            parts[part] = checks.factor(where, _only(told))
            continue
        for block, own in told.items():
            number = re.fullmatch(r"block_(\d{1,3})", block) if isinstance(block, str) else None
            if number is None:
                raise InputError(f"{where} has {checks.shown(block)}; allowed: 'block_0', ...")
            place = f"{part}.{int(number[1])}"
            if isinstance(own := _only(own), list | tuple):
                for layer, one in enumerate(own):
                    parts[f"{place}.{layer}"] = checks.factor(where, one)
            else:
                parts[place] = checks.factor(where, own)
    return Scales(parts=tuple(_spread(parts).items()))


def _only(value: Any) -> Any:
    """What a list of one entry holds: it stands for all layers."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _spread(parts: Mapping[str, float]) -> dict[str, float]:
    """A number for a whole side as one for each of its blocks."""
    spread = {}
    for part, factor in parts.items():
        if part in ("down", "up"):
            spread |= {f"{part}.{block}": factor for block in range(16)}
        else:
            spread[part] = factor
    return spread


def _known(name: str, value: Mapping[Any, Any], allowed: tuple[str, ...]) -> None:
    for key in value:
        if key not in allowed:
            raise InputError(f"{name} has {checks.shown(key)}; allowed: {', '.join(allowed)}")


def weighed(deltas: Deltas, component: str, scales: Scales, factor: Any = 1.0) -> dict[str, Delta]:
    """Differences times their factors; those times 0 are left out, so that the bits are as without
    them.

    Args:
        factor: for all of them: a number, or an array `(rows,)` with one for each row.
    """
    made = {}
    for path, delta in deltas.items():
        own = scales.of(component, path)
        total = own if factor is None else own * factor
        if isinstance(total, int | float) and total == 0:
            continue
        made[path] = delta.weighed(total)
    return made
