"""Functions of tensors recorded as CUDA graphs: started as a whole, they cost Python nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARMUPS = 2
"""Calls before the recording, in which libraries load their kernels and tables are brought over."""


class Recording:
    """A function, recorded for inputs of certain shapes.

    What it gives lies in the same memory each time, as do inputs: who needs an output after the
    next `replay` takes a copy. Tensors that the function reads besides are read where they lay.

    Args:
        function: of tensors on a CUDA device; it waits for nothing and looks at no values.
        inputs: the first ones, on any device.
        device: a CUDA device.
        before: called before the function, which is called thrice.
        pool: memory shared with other recordings, of which one runs at a time
            (`torch.cuda.graph_pool_handle()`).
    """

    def __init__(
        self,
        function: Callable[[list[Tensor]], Any],
        inputs: Sequence[Tensor],
        device: torch.device,
        before: Callable[[], None] = lambda: None,
        pool: Any = None,
    ) -> None:
        self.inputs = [one.to(device, copy=True) for one in inputs]
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                before()
                function(self.inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        before()
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may pin memory meanwhile, which the mode "global" would refuse.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.outputs = function(self.inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        """What the function gives for inputs of the same shapes and dtypes."""
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given, non_blocking=True)
        self._graph.replay()
        return self.outputs
