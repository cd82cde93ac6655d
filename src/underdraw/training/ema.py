"""The exponential moving average of weights that is shipped in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Moving average of parameters: after update t it is `d * average + (1 - d) * weights` with
    `d = min(decay, (1 + t) / (10 + t))`, so that the first weights are forgotten quickly.

    With `decay` 0 it is the weights themselves.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.shadow = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self, step: int) -> None:
        """Take in the weights after step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                list(self.shadow.values()), list(self.parameters.values()), 1 - decay
            )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The networks hold the average inside the block, and their own weights again after it."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._put(self.shadow)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name."""
        return self.shadow

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved averages."""
        for name, value in self.shadow.items():
            value.copy_(state[name])
