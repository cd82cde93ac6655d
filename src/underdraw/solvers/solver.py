"""What the loop asks of a solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from underdraw.backends.contract import Array
from underdraw.solvers.table import State


class Solver(Protocol):
    """`solvers.table.Table`, or `schedulers.foreign.ForeignSolver` around foreign objects."""

    def __len__(self) -> int:
        """Model calls of a run."""
        ...

    @property
    def initial_sigma(self) -> float:
        """Latents begin as this times standard normal noise."""
        ...

    def timestep(self, index: int) -> float:
        """The time given to the network at a call."""
        ...

    def level(self, index: int) -> float:
        """The ratio of noise to signal at a call.

        Raises:
            InputError: a foreign object does not tell it.
        """
        ...

    def model_input(self, index: int, x: Array) -> Array:
        """Latents as the network wants them."""
        ...

    def advance(
        self, nn: Any, index: int, state: State, output: Array, draw: Callable[[], Array]
    ) -> State:
        """The state after a call."""
        ...

    def clean(self, nn: Any, index: int, x: Array, output: Array) -> Array:
        """The clean latents seen at a call."""
        ...

    def noised(self, index: int, clean: Array, noise: Array) -> Array:
        """Clean latents as they are at a call, with this noise; after the last one, themselves."""
        ...

    def tail(self, begin: int) -> Solver:
        """The run that starts at a call, with nothing remembered."""
        ...
