"""What all scheduler classes share: `make_table`, besides their configuration and `step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from underdraw import checks
from underdraw.arguments import checked
from underdraw.errors import InputError, InputTypeError
from underdraw.schedulers.arrays import check_custom
from underdraw.schedulers.published import Published
from underdraw.schedulers.stepping import Stepping, check_eta
from underdraw.solvers.table import Table, check_steps


class Scheduler(Published, Stepping):
    """A solver under its familiar name. A subclass names its configuration and builds its table.

    Keyword arguments and `config` are those of `scheduler_config.json`. Unknown ones raise
    InputTypeError, unsupported values InputError.
    """

    build: ClassVar[Callable[..., Table]]
    custom: ClassVar[tuple[str, ...]] = ()
    """Which of `timesteps` and `sigmas` a caller may choose."""
    options: ClassVar[tuple[str, ...]] = ()
    """Further arguments of `build`."""
    remembers: ClassVar[bool] = False
    """Whether rows depend on earlier calls, so that a run begun later needs other rows."""

    def _configure(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super()._configure(args, kwargs)
        self._reset()
        self._tables: dict[Any, Table] = {}

    def make_table(
        self,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | np.ndarray | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        eta: float | None = None,
        **options: Any,
    ) -> Table:
        """The rows of a whole run. Changes nothing here, so threads may share a scheduler.

        Exactly one of the first three is given. `eta` is used by DDIM and TCD, which have their own
        default, and ignored by others; `options` are those of the class.

        Raises:
            InputError, InputTypeError: a number of steps, custom timesteps or sigmas, or an option
                which this solver or its configuration does not support.
        """
        custom = {"timesteps": timesteps, "sigmas": sigmas}
        request = {
            name: checks.numbers(name, values)
            for name, values in custom.items()
            if values is not None
        }
        self._check_request(num_inference_steps, request)
        if eta is not None:
            eta = check_eta(eta)
        if eta is not None and "eta" in self.options:
            options["eta"] = eta
        for name in options:
            if name not in self.options:
                allowed = ", ".join(self.options) or "none"
                raise InputTypeError(
                    f"{name!r} is not an option of {type(self).__name__}; allowed: {allowed}"
                )
        key = (num_inference_steps, *sorted(request.items()), *sorted(options.items()))
        table = self._tables.get(key)
        if table is None:
            arrays = {name: np.array(values) for name, values in request.items()}
            table = self._build(num_inference_steps, {**arrays, **options})
            if len(self._tables) > 16:
                self._tables.clear()
            self._tables[key] = table
        return table

    @checked
    def with_config(self, values: Mapping[str, Any]) -> Any:
        """The same scheduler with other values in its configuration, which keeps in mind what the
        class's defaults were; those that describe the noise schedule cannot be changed so."""
        if not isinstance(values, Mapping):
            raise InputTypeError(f"values={checks.shown(values)} is no mapping of config fields")
        made = copy(self)
        known = {name: value for name, value in values.items() if hasattr(self.settings, name)}
        made.settings, made._tables = replace(self.settings, **known), {}
        made._publish({**self.config, **values})
        return made

    def _build(self, steps: int | None, request: dict[str, Any]) -> Table:
        build = partial(type(self).build, self.schedule, self.settings, steps, **request)
        return replace(build(), restart=build) if self.remembers else build()

    def _check_request(self, steps: int | None, request: dict[str, tuple[float, ...]]) -> None:
        name = type(self).__name__
        for key in request:
            if key not in self.custom:
                raise InputError(f"{name} does not support custom {key}")
        if (steps is not None) + len(request) != 1:
            allowed = " or ".join(("num_inference_steps", *self.custom))
            raise InputError(f"{name} takes exactly one of {allowed}")
        if steps is not None:
            check_steps(steps)  # before 5.0 is taken for the table of 5
        if request:
            check_custom(self.settings, request)
