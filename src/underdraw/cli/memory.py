"""`--memory WAY`: how a command gets along with less memory (docs/memory.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from underdraw.errors import InputError

OPTION = "--memory"


@dataclass(frozen=True)
class Way:
    """One way to need less."""

    group: str
    """Of those of one group, one can be taken."""
    take: Callable[[Any], Any]
    """Sets it on a pipeline."""


WAYS = {
    "bands": Way("large pictures", lambda pipe: pipe.enable_vae_tiling(seamless=True)),
    "tiles": Way("large pictures", lambda pipe: pipe.enable_vae_tiling()),
    "slices": Way("batches", lambda pipe: pipe.enable_vae_slicing()),
    "heads": Way("attention", lambda pipe: pipe.enable_attention_slicing()),
    "int8": Way("weights", lambda pipe: pipe.quantize("int8")),
    "float8": Way("weights", lambda pipe: pipe.quantize("float8")),
    "networks": Way("offloading", lambda pipe: pipe.enable_model_cpu_offload()),
    "blocks": Way("offloading", lambda pipe: pipe.enable_group_offload()),
    "layers": Way("offloading", lambda pipe: pipe.enable_sequential_cpu_offload()),
}


@dataclass(frozen=True)
class Memory:
    """What a command takes."""

    ways: tuple[str, ...] = ()
    quantized: Mapping[str, str] = field(default_factory=dict)
    """Network -> kind of its weights, of the picture that is made again."""

    def set(self, pipe: Any) -> None:
        """Set it on a pipeline to which all else was attached.

        Raises:
            InputError: the backend or the machine has no such thing.
        """
        if "weights" not in {WAYS[name].group for name in self.ways}:
            for network, kind in self.quantized.items():
                pipe.quantize(kind, [network])
        for name in self.ways:
            WAYS[name].take(pipe)

    def options_of(self) -> dict[str, Any]:
        """What would say the same on the command line."""
        return {"memory": list(self.ways)} if self.ways else {}


EVERYTHING = Memory()
"""All the memory that a call takes by itself."""


def read_ways(given: Sequence[str] | None, quantized: Mapping[str, str] | None = None) -> Memory:
    """What the options say, checked; `quantized` as a picture's record has it.

    Raises:
        InputError: there is no such way, or two that exclude each other.
    """
    taken: dict[str, str] = {}
    for name in dict.fromkeys(given or ()):
        if name not in WAYS:
            raise InputError(f"{OPTION} {name:.100} is not known; allowed: {', '.join(WAYS)}")
        before = taken.setdefault(WAYS[name].group, name)
        if before != name:
            raise InputError(f"{OPTION} {before} and {OPTION} {name} exclude each other")
    return Memory(tuple(taken.values()), dict(quantized or {}))
