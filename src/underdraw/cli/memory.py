"""`--memory WAY`: how a command gets along with less memory (docs/memory.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from underdraw.errors import InputError

OPTION = "--memory"
ARGUMENT = re.compile(r"^\w+=\S+: ")
"""What errors of the library begin with, which is nothing that was typed."""


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
    "full": Way("weights", lambda pipe: pipe),
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
                try:
                    pipe.quantize(kind, [network])
                except InputError as error:
                    raise InputError(
                        f"the picture was made with weights in 8 bits ({network}: {kind}): "
                        f"{_told(error)}; {OPTION} full takes them as they are"
                    ) from error
        for name in self.ways:
            try:
                WAYS[name].take(pipe)
            except InputError as error:
                raise InputError(f"{OPTION} {name}: {_told(error)}") from error

    def options_of(self) -> dict[str, Any]:
        """What would say the same on the command line."""
        return {"memory": list(self.ways)} if self.ways else {}


def _told(error: InputError) -> str:
    return ARGUMENT.sub("", str(error))


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
