"""Ways of doing a piece of work: engines of ours, at a precision and a speed, and those beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from underdraw import backends
from underdraw.benchmark.networks import Networks
from underdraw.engines.compiled import Compiled, Regional
from underdraw.engines.cuda_graphs import CudaGraphs
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Engine
from underdraw.engines.openvino import OpenVino, Precision

EXACT = "exact"
"""The speed at which nothing is left out."""


@dataclass(frozen=True)
class Way:
    """One way of doing a piece of work."""

    name: str
    """Of an engine (`ENGINES`), or of one beside (`peers.PEERS`)."""
    precision: Precision = "auto"
    """Of the engine openvino."""
    speed: str = EXACT
    """A preset of acceleration."""

    def __str__(self) -> str:
        how = self.name if self.precision == "auto" else f"{self.name} {self.precision}"
        return how if self.speed == EXACT else f"{how}, {self.speed}"

    @property
    def engine(self) -> Engine:
        """Of ours, one that begins anew: nothing is kept on disk, nor found there."""
        return ENGINES[self.name](self.precision)

    def on(self, networks: Networks) -> Networks:
        """What it computes with: 8 bits are in the networks, too."""
        return networks.quantised if self.precision == "int8" else networks


def _openvino(precision: Precision) -> Engine:
    backends.graphs()
    return OpenVino(precision, kept=None)


ENGINES: Mapping[str, Callable[[Precision], Engine]] = {
    "eager": lambda _: EAGER,
    "compiled": lambda _: Regional(kept=None),
    "jit": lambda _: Compiled(kept=None),
    "openvino": _openvino,
    "graph": lambda _: CudaGraphs(),
}
"""By name what makes one, in a precision where it has several (`PRECISE`)."""
PRECISE = ("openvino",)
