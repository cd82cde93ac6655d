"""Other libraries' scheduler objects that quack like the familiar ones, on PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from underdraw.backends.contract import Array
from underdraw.errors import InputError, InputTypeError
from underdraw.solvers.table import State

METHODS = ("set_timesteps", "step", "scale_model_input", "timesteps", "init_noise_sigma")


class ForeignSolver:
    """A scheduler with `set_timesteps`, `scale_model_input` and `step`, as the loop wants it.

    It keeps its own state, so one such object serves one run at a time.

    Raises:
        InputTypeError: the object lacks one of the methods.
        InputError: it takes no custom timesteps or sigmas, but some are given.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: int | None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
        generator: Any = None,
        device: Any = None,
    ) -> None:
        if missing := [name for name in METHODS if not hasattr(scheduler, name)]:
            raise InputTypeError(
                f"scheduler={type(scheduler).__name__} has no {', '.join(missing)}; "
                "allowed: an underdraw scheduler, or one with the same methods"
            )
        self.scheduler = scheduler
        accepted = inspect.signature(scheduler.set_timesteps).parameters
        custom = {"timesteps": timesteps, "sigmas": sigmas}
        custom = {name: list(values) for name, values in custom.items() if values is not None}
        if refused := [name for name in custom if name not in accepted]:
            raise InputError(
                f"{refused[0]}: {type(scheduler).__name__} takes no custom {refused[0]}"
            )
        if custom:
            scheduler.set_timesteps(**custom, device=device)
        else:
            scheduler.set_timesteps(steps, device=device)
        extra = {"eta": eta, "generator": generator}
        takes = inspect.signature(scheduler.step).parameters
        self._extra = {name: value for name, value in extra.items() if name in takes}
        self.initial_sigma = float(scheduler.init_noise_sigma)
        self.timesteps = scheduler.timesteps

    def noised(self, index: int, clean: Array, noise: Array) -> Array:
        if index == len(self):
            return clean
        return self.scheduler.add_noise(clean, noise, self.timesteps[index : index + 1])

    def tail(self, begin: int) -> ForeignSolver:
        """This solver, told to begin at a call."""
        self.timesteps = self.scheduler.timesteps[begin:]
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        return self

    def __len__(self) -> int:
        return len(self.timesteps)

    def timestep(self, index: int) -> float:
        return float(self.timesteps[index])

    def model_input(self, index: int, x: Array) -> Array:
        return self.scheduler.scale_model_input(x, self.timesteps[index])

    def advance(
        self, nn: Any, index: int, state: State, output: Array, draw: Callable[[], Array]
    ) -> State:
        t = self.timesteps[index]
        self._last = self.scheduler.step(output, t, state.x, **self._extra)
        return state._replace(x=self._last.prev_sample)

    def clean(self, nn: Any, index: int, x: Array, output: Array) -> Array:
        """Its own estimate where it gives one, else the latents after the step."""
        found = getattr(self._last, "pred_original_sample", None)
        return self._last.prev_sample if found is None else found
