"""The engine `auto`: whichever was measured to be faster where a network is."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, field
from typing import Any, ClassVar

from underdraw import backends
from underdraw.engines.compiled import Compiled
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Question
from underdraw.engines.openvino import OpenVino

LOG = logging.getLogger(__name__)
MEASURED = ("x86_64", "amd64")
"""Processors on which graphs were measured to win."""


@dataclass
class Auto:
    """`openvino` for networks of PyTorch on the CPU, where it is installed and was measured to be
    faster; `jit` for those of JAX; `eager` for all others. What was chosen is in `chosen`, and why
    in `why`."""

    loops: ClassVar[bool] = True
    """As `jit` is; nobody else is asked for many calls, for only JAX has loops (`repeated`)."""
    chosen: str | None = field(default=None, init=False)
    """The engine of the last question; None before the first."""
    why: str = field(default="", init=False)
    _openvino: OpenVino = field(default_factory=OpenVino, init=False, repr=False)
    _jit: Compiled = field(default_factory=Compiled, init=False, repr=False)

    def run(self, question: Question) -> Any:
        """The outputs, by the engine of choice."""
        name, why = choice(question.model)
        if (name, why) != (self.chosen, self.why):
            self.chosen, self.why = name, why
            LOG.info("engine 'auto': %s, %s", name, why)
        return {"openvino": self._openvino, "jit": self._jit}.get(name, EAGER).run(question)

    def __reduce__(self) -> Any:
        """For copies and pickles: what was compiled stays here."""
        return type(self), ()


def choice(model: Any) -> tuple[str, str]:
    """The engine for a network, and why it is this one."""
    return choice_for(model.nn.name, str(model.device))


def choice_for(backend: str, device: str) -> tuple[str, str]:
    """The engine for networks of a backend on a device, and why it is this one."""
    if backend == "jax":
        return "jit", "JAX compiles either programs or each operation of them, which takes longer"
    if backend != "torch":
        return "eager", f"the network is one of {backend}"
    if device.partition(":")[0] != "cpu":
        return "eager", f"the network is on {device}"
    if platform.machine().lower() not in MEASURED:
        return "eager", f"nothing was measured on {platform.machine()}"
    if not backends.graphs_installed():
        return "eager", "openvino is not installed"
    return "openvino", "compiled graphs are faster on this processor"
