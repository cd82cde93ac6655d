"""What all scheduler classes share: configuration, files, and `make_table`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.solvers.configs import Config
from underdraw.solvers.schedule import NoiseSchedule, noise_schedule
from underdraw.solvers.stepping import Stepping
from underdraw.solvers.table import Table

FILE = "scheduler_config.json"


class ConfigDict(dict):
    """A configuration as published: a dict that also reads as attributes and does not change."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the configuration has no {name!r}") from None

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise InputTypeError("a configuration is fixed; use from_config(config, name=value)")

    __setitem__ = __delitem__ = __setattr__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return ConfigDict, (dict(self),)


class Scheduler(Stepping):
    """A solver under its familiar name. A subclass names its configuration and builds its table.

    Keyword arguments and `config` are those of `scheduler_config.json`. Unknown ones raise
    InputTypeError, unsupported values InputError.
    """

    Config: ClassVar[type[Config]] = Config
    build: ClassVar[Callable[..., Table]]
    custom: ClassVar[tuple[str, ...]] = ()
    """Which of `timesteps` and `sigmas` a caller may choose."""
    options: ClassVar[tuple[str, ...]] = ()
    """Further arguments of `build`."""
    remembers: ClassVar[bool] = False
    """Whether rows depend on earlier calls, so that a run begun later needs other rows."""
    smallest: ClassVar[float] = 0.0
    """ᾱ of the last timestep under `rescale_betas_zero_snr`."""

    def __init__(self, *args: Any, **kwargs: Any):
        names = [each.name for each in fields(self.Config)]
        if len(args) > len(names):
            raise InputTypeError(f"{type(self).__name__} takes at most {len(names)} arguments")
        given = dict(zip(names, args, strict=False))
        for name in kwargs:
            if name not in names or name in given:
                allowed = ", ".join(names)
                raise InputTypeError(
                    f"{name!r} is not an argument of {type(self).__name__}, or given twice; "
                    f"allowed: {allowed}"
                )
        given.update(kwargs)
        self.settings = self.Config(**given)
        published = {name: getattr(self.settings, name) for name in names}
        defaulted = [name for name in names if name not in given]
        if defaulted:
            published["_use_default_values"] = defaulted
        self._publish(published)
        self.schedule = self._schedule()
        self._tables: dict[Any, Table] = {}
        super().__init__()

    def _publish(self, values: Mapping[str, Any]) -> None:
        self.config = ConfigDict({**values, "_class_name": type(self).__name__})

    def _schedule(self) -> NoiseSchedule:
        c = self.settings
        return noise_schedule(
            c.beta_schedule,
            c.beta_start,
            c.beta_end,
            c.num_train_timesteps,
            c.trained_betas,
            getattr(c, "rescale_betas_zero_snr", False),
            self.smallest,
        )

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
        request = {name: _numbers(name, values) for name, values in custom.items()}
        request = {name: values for name, values in request.items() if values is not None}
        self._check_request(num_inference_steps, request)
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

    def _build(self, steps: int | None, request: dict[str, Any]) -> Table:
        build = type(self).build
        table = build(self.schedule, self.settings, steps, **request)
        if self.remembers:
            restart = lambda begin: build(  # noqa: E731
                self.schedule, self.settings, steps, begin=begin, **request
            )
            object.__setattr__(table, "restart", restart)
        return table

    def _check_request(self, steps: int | None, request: dict[str, tuple[float, ...]]) -> None:
        name = type(self).__name__
        for key in request:
            if key not in self.custom:
                raise InputError(f"{name} does not support custom {key}")
        if (steps is not None) + len(request) != 1:
            allowed = " or ".join(("num_inference_steps", *self.custom))
            raise InputError(f"{name} takes exactly one of {allowed}")
        if "timesteps" in request:
            switch = self.settings.grid()
            if switch is not None:
                raise InputError(f"timesteps cannot be given with {switch}=True")
            train = self.settings.num_train_timesteps
            listed = request["timesteps"]
            if not all(0 <= t < train for t in listed):
                raise InputError(f"timesteps={listed} must lie between 0 and {train - 1}")
            if any(later >= earlier for earlier, later in pairwise(listed)):
                raise InputError(f"timesteps={listed} must fall")

    # -- configuration and files ------------------------------------------------------------------
    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """A scheduler from a dict, or from another scheduler or its `config`, of any class.

        Values that were defaults of the other class give way to this class's own; keys this class
        does not know are kept in `config` for the way back.
        """
        config = getattr(config, "config", config)
        if not isinstance(config, Mapping):
            raise InputTypeError(f"config={config!r} must be a dict or a scheduler")
        defaulted = config.get("_use_default_values") or ()
        known = {each.name for each in fields(cls.Config)}
        given = {
            name: value
            for name, value in config.items()
            if name not in defaulted and name != "_use_default_values"
        }
        chosen = {name: value for name, value in {**given, **overrides}.items() if name in known}
        made = cls(**chosen)
        others = {name: value for name, value in given.items() if name not in known}
        made._publish({**made.config, **others})
        if return_unused_kwargs:
            unused = {name: value for name, value in overrides.items() if name not in known}
            return made, {**others, **unused}
        return made

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], subfolder: str | None = None, **options: Any
    ) -> Any:
        """A scheduler from `scheduler_config.json` in a folder, or from a Hub repository.

        `revision`, `token`, `cache_dir`, `local_files_only` and `force_download` are for the Hub;
        other options override the configuration.

        Raises:
            NotFoundError: no such file.
            InputError: the file is not JSON, or has unsupported values.
        """
        hub = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
        access = {name: options.pop(name) for name in hub if name in options}
        path = _find(Path(folder), str(folder), subfolder, access)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(config, dict):
            raise InputError(f"{path} must hold a JSON object, not {type(config).__name__}")
        return cls.from_config(config, **options)

    def save_pretrained(self, folder: str | os.PathLike[str], **_: Any) -> None:
        """Write `scheduler_config.json`, whole or not at all; the familiar library reads it."""
        target = Path(folder)
        if target.is_file():
            raise InputError(f"folder={str(folder)!r} is a file")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target, delete=False, encoding="utf-8") as file:
            file.write(self.to_json_string())
        os.chmod(file.name, 0o644)
        os.replace(file.name, target / FILE)

    def to_json_string(self) -> str:
        kept = {name: _plain(v) for name, v in self.config.items() if name not in _PRIVATE}
        return json.dumps(kept, indent=2, sort_keys=True) + "\n"

    @property
    def compatibles(self) -> list[type]:
        """Classes that take this one's configuration."""
        from underdraw.solvers import schedulers

        return schedulers.compatible_with(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


_PRIVATE = ("_use_default_values", "_ignore_files")


def _numbers(name: str, values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    if hasattr(values, "tolist"):
        values = values.tolist()
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise InputTypeError(f"{name}={values!r} must be a list of numbers") from None
    if not numbers or not np.isfinite(numbers).all():
        raise InputError(f"{name}={values!r} must hold at least one number, all finite")
    return numbers


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _find(folder: Path, name: str, subfolder: str | None, access: dict[str, Any]) -> Path:
    if folder.is_file():
        return folder
    if folder.is_dir():
        places = [folder / subfolder / FILE] if subfolder else []
        for path in (*places, folder / FILE):
            if path.is_file():
                return path
        raise NotFoundError(f"there is no {FILE} in {places[0].parent if places else folder}")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError

        return Path(hf_hub_download(name, FILE, subfolder=subfolder, **access))
    except (OSError, HFValidationError) as error:
        message = f"{name!r} is neither a folder nor a Hub repository with {FILE}: {error}"
        raise NotFoundError(message) from error
