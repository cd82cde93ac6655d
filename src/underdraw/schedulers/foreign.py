"""Other libraries' scheduler objects that quack like the familiar ones, on PyTorch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from functools import partial
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.errors import InputError, InputTypeError
from underdraw.solvers.table import State

METHODS = ("set_timesteps", "step", "scale_model_input", "timesteps", "init_noise_sigma")


class ForeignSolver:
    """A scheduler with `set_timesteps`, `scale_model_input` and `step`, as the loop wants it.

    The object keeps its own state, so it serves one run at a time. It is told of a run when this
    makes its first call; until then a copy is asked, so that a call which is refused changes
    nothing.

    Raises:
        InputTypeError: the object lacks one of the methods, or cannot draw by the generator.
        InputError: it takes no custom timesteps or sigmas, but some are given; or it refuses them.
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
        accepted = inspect.signature(scheduler.set_timesteps).parameters
        given = {"timesteps": timesteps, "sigmas": sigmas}
        custom: dict[str, Any] = {
            name: _plain(name, values) for name, values in given.items() if values is not None
        }
        if refused := [name for name in custom if name not in accepted]:
            raise InputError(
                f"{refused[0]}: {type(scheduler).__name__} takes no custom {refused[0]}"
            )
        self._request = partial(_set, steps=steps, custom=custom, device=device)
        self._callers, self._first = scheduler, 0
        self.scheduler = _copy(scheduler)
        try:
            self._request(self.scheduler)
        except Exception as error:
            told = ", ".join(f"{name}={checks.shown(values)}" for name, values in custom.items())
            raise InputError(
                f"{told or f'num_inference_steps={steps}'}: {type(scheduler).__name__} does not "
                f"take it: {' '.join(str(error).split()):.200}"
            ) from error
        extra = {"eta": eta, "generator": generator}
        takes = inspect.signature(scheduler.step).parameters
        self._extra = {name: value for name, value in extra.items() if name in takes}
        drawn = generator if isinstance(generator, list | tuple) else [generator]
        if "generator" in takes and any(isinstance(one, np.random.Generator) for one in drawn):
            raise InputTypeError(
                f"generator is numpy's; {type(scheduler).__name__}, which is of another library, "
                "draws by a torch.Generator"
            )
        self.initial_sigma = float(self.scheduler.init_noise_sigma)
        self.timesteps = self.scheduler.timesteps

    def noised(self, index: int, clean: Array, noise: Array) -> Array:
        if index == len(self):
            return clean
        return self.scheduler.add_noise(clean, noise, self.timesteps[index : index + 1])

    def tail(self, begin: int) -> ForeignSolver:
        """This solver, told to begin at a call."""
        self._first = begin
        self._begin()
        return self

    def _begin(self) -> None:
        self.timesteps = self.scheduler.timesteps[self._first :]
        if self._first and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(self._first)

    def __len__(self) -> int:
        return len(self.timesteps)

    def timestep(self, index: int) -> float:
        return float(self.timesteps[index])

    def level(self, index: int) -> float:
        kept = getattr(self.scheduler, "alphas_cumprod", None)
        if kept is None:
            raise InputError(
                f"scheduler={type(self.scheduler).__name__} does not tell its noise levels "
                "(alphas_cumprod)"
            )
        kept = float(kept[int(self.timesteps[index])])
        return math.sqrt((1 - kept) / kept) if kept else math.inf

    @property
    def consistency(self) -> bool:
        """Whether it is one of the solvers for networks distilled so, as its class is named."""
        return type(self.scheduler).__name__.startswith(("LCM", "TCD"))

    def model_input(self, index: int, x: Array) -> Array:
        if self._callers is not None:  # the run begins
            self.scheduler, self._callers = self._callers, None
            self._request(self.scheduler)
            self._begin()
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


def _plain(name: str, values: Any) -> list[float]:
    """Numbers as other libraries read them, whole ones as such."""
    return [int(one) if one == int(one) else one for one in checks.numbers(name, values)]


def _set(scheduler: Any, steps: int | None, custom: dict[str, Any], device: Any) -> None:
    if custom:
        scheduler.set_timesteps(**custom, device=device)
    else:
        scheduler.set_timesteps(steps, device=device)


def _copy(scheduler: Any) -> Any:
    """As deep as the object allows."""
    try:
        return deepcopy(scheduler)
    except Exception:  # it holds something that cannot be copied, such as a lock
        return copy(scheduler)
