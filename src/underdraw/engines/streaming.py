"""Networks that stay in host memory while their layers pass through an accelerator."""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from underdraw.backends.layout import Layout
from underdraw.backends.tree import map_arrays
from underdraw.engines.engine import Engine, Question


class Streaming:
    """Runs programs of networks that are not on the device on copies of their layers; all others
    go to the engine it stands before."""

    def __init__(self, before: Engine, device: Any, blocks: int | None) -> None:
        self.before, self.device, self.blocks = before, device, blocks
        self._copies: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def run(self, question: Question) -> Any:
        """The outputs."""
        model = question.model
        network = getattr(model, "_orig_mod", model)
        framework = network._framework
        if not hasattr(framework, "streamed") or framework.device_of(network) == self.device:
            return self.before.run(question)
        copies = self._copies.get(network)
        if copies is None:
            groups = None
            if self.blocks is not None:
                groups = grouped(type(network).layout(network.config), self.blocks)
            copies = self._copies[network] = framework.copies(network, self.device, groups)
        for other in list(self._copies.values()):
            if other is not copies:
                other.release()
        view = framework.streamed(network, copies)
        # Who asks may have made arrays where the network is.
        put = partial(framework.array, device=self.device)
        inputs = map_arrays(put, question.inputs)
        return question.program(question.nn, view, network.config, *inputs)

    def __reduce__(self) -> Any:
        """For copies and pickles: what is on a device stays there."""
        return Streaming, (self.before, self.device, self.blocks)

    def __repr__(self) -> str:
        how = "single layers" if self.blocks is None else f"groups of {self.blocks} blocks"
        return f"Streaming({self.before!r}, {self.device}, {how})"


def grouped(layout: Layout, blocks: int) -> list[list[str]]:
    """Paths of the leaves, so many residual, attention or transformer blocks in a group, in the
    order in which the program meets them."""
    units: dict[str, list[str]] = {}
    for path in layout.leaves:
        parts = path.split(".")
        last = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
        first = next((i for i, part in enumerate(parts) if i > 1 and part.isdigit()), last)
        unit = ".".join(parts[: first + 1]) if last >= 0 else parts[0]
        units.setdefault(unit, []).append(path)
    listed = list(units.values())
    groups = [listed[i : i + blocks] for i in range(0, len(listed), blocks)]
    return [[path for unit in group for path in unit] for group in groups]


def plain(engine: Engine) -> Engine:
    """The engine that a streaming one stands before, or itself."""
    return engine.before if isinstance(engine, Streaming) else engine
