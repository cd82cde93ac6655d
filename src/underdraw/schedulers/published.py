"""A scheduler's configuration as published: `config`, `from_config`, `scheduler_config.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, ClassVar, Concatenate, Literal, cast, overload

import numpy as np
from typing_extensions import ParamSpec, Self

from underdraw import backends
from underdraw.arguments import checked
from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.schema import shown, within
from underdraw.solvers.configs import Config
from underdraw.solvers.schedule import NoiseSchedule, noise_schedule
from underdraw.weights.folders import read_json
from underdraw.weights.hub import resolve
from underdraw.weights.push import Pushable
from underdraw.weights.save import write_json, writing_folder

FILE = "scheduler_config.json"
Given = ParamSpec("Given")


class ConfigDict(dict[str, Any]):
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


CLASSES: dict[str, type] = {}
"""The familiar classes by name."""
DISTILLED = ("DDIMInverseScheduler", "LCMScheduler", "TCDScheduler")
"""Classes whose configuration no other one takes."""


def compatible_with(cls: type) -> list[type]:
    """Classes whose configuration `cls.from_config` reads and back: all but the distilled ones."""
    if cls.__name__ in DISTILLED:
        return [cls]
    alone = (*DISTILLED, "DPMSolverMultistepInverseScheduler")
    every = [CLASSES[name] for name in sorted(CLASSES) if name not in alone]
    return every if cls in every else [*every, cls]


def takes(config: Callable[Given, Config]) -> Callable[Concatenate[Any, Given], None]:
    """The constructor of the classes with this configuration: its fields are the arguments, for
    type checkers and editors, too. Each class names its own."""

    def __init__(self: Any, *args: Given.args, **kwargs: Given.kwargs) -> None:
        self._configure(args, kwargs)

    told = signature(config)
    itself = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = told.replace(  # type: ignore[attr-defined]
        parameters=[itself, *told.parameters.values()], return_annotation=None
    )
    return __init__


class Published(Pushable):
    """The constructor of the familiar classes, and what reads and writes their configurations."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__.startswith("underdraw.") and "build" in vars(cls):
            CLASSES.setdefault(cls.__name__, cls)

    Config: ClassVar[type[Config]] = Config
    smallest: ClassVar[float] = 0.0
    """ᾱ of the last timestep under `rescale_betas_zero_snr`."""
    config: ConfigDict
    named_from: Mapping[str, Any] | None = None
    """The configuration it was made from by a name (`schedulers.named`)."""

    # Of the base the arguments are not known: those of any class.
    __init__ = takes(cast("Callable[..., Config]", Config))  # type: ignore[assignment]

    def _configure(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
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
        with within(type(self).__name__):
            self.settings = self.Config(**given)
        published = {name: getattr(self.settings, name) for name in names}
        defaulted = [name for name in names if name not in given]
        if defaulted:
            published["_use_default_values"] = defaulted
        self._publish(published)
        with within(type(self).__name__):
            self.schedule = self._schedule()

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

    def _publish(self, values: Mapping[str, Any]) -> None:
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        self.config = ConfigDict({**plain, "_class_name": type(self).__name__})

    @overload
    @classmethod
    def from_config(
        cls, config: Any, return_unused_kwargs: Literal[False] = False, **overrides: Any
    ) -> Self: ...
    @overload
    @classmethod
    def from_config(
        cls, config: Any, return_unused_kwargs: Literal[True], **overrides: Any
    ) -> tuple[Self, dict[str, Any]]: ...
    @classmethod
    @checked
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """A scheduler from a dict, or from another scheduler or its `config`, of any class.

        Values that were defaults of the other class give way to this class's own; keys this class
        does not know are kept in `config` for the way back.
        """
        config = getattr(config, "config", config)
        if not isinstance(config, Mapping):
            raise InputTypeError(f"config={shown(config)} must be a dict or a scheduler")
        defaulted = config.get("_use_default_values")
        defaulted = defaulted if isinstance(defaulted, list | tuple | set) else ()
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
    @checked
    def from_pretrained(
        cls, folder: str | os.PathLike[str], subfolder: str | None = None, **options: Any
    ) -> Self:
        """A scheduler from `scheduler_config.json` in a folder, or from a Hub repository.

        `revision`, `token`, `cache_dir`, `local_files_only` and `force_download` are for the Hub;
        other options override the configuration.

        Raises:
            NotFoundError: no such file.
            WeightError: the file is not a JSON object.
            InputError: it has unsupported values.
        """
        access = {name: options.pop(name) for name in _HUB if name in options}
        config = cls.load_config(folder, subfolder, **access)
        with within(Path(folder, subfolder or "")):
            return cls.from_config(config, **options)

    @classmethod
    @checked
    def load_config(
        cls, folder: str | os.PathLike[str], subfolder: str | None = None, **access: Any
    ) -> dict[str, Any]:
        """What the file read by `from_pretrained` says; arguments for the Hub and errors alike."""
        inside = subfolder or ""
        if os.path.isfile(folder):
            path = Path(folder)
        else:
            place = resolve(folder, subfolder=inside, weights=False, **access)
            path = place / inside / FILE
            if not path.is_file():
                path = place / FILE
            if not path.is_file():
                raise NotFoundError(f"there is no {FILE} in {place / inside}")
        return dict(read_json(path))

    @checked
    def save_pretrained(self, folder: str | os.PathLike[str], **_: Any) -> None:
        """Write `scheduler_config.json`, whole or not at all; the familiar library reads it."""
        if os.path.isfile(folder):
            raise InputError(f"folder={str(folder)!r} is a file")
        with writing_folder(folder) as place:
            write_json(place / FILE, self._plain_config())

    save_config = save_pretrained

    @checked
    def to_json_file(self, path: str | os.PathLike[str]) -> None:
        write_json(path, self._plain_config())

    def _plain_config(self) -> dict[str, Any]:
        return {name: _plain(v) for name, v in self.config.items() if name not in _PRIVATE}

    def to_json_string(self) -> str:
        """As in `scheduler_config.json`."""
        return json.dumps(self._plain_config(), indent=2, sort_keys=True) + "\n"

    # -- the noise schedule, float32 tensors over training timesteps ------------------------------
    @property
    def alphas_cumprod(self) -> Any:
        return _tensor(self.schedule.alphas_cumprod)

    @property
    def betas(self) -> Any:
        return _tensor(self.schedule.betas)

    @property
    def alphas(self) -> Any:
        return 1 - self.betas

    @property
    def final_alpha_cumprod(self) -> Any:
        """ᾱ after the last step, of the classes that may choose it (`set_alpha_to_one`)."""
        one = getattr(self.settings, "set_alpha_to_one", None)
        if one is None:
            raise AttributeError(f"{type(self).__name__} has no final_alpha_cumprod")
        return _tensor(np.array(1.0 if one else self.schedule.alphas_cumprod[0]))

    @property
    def compatibles(self) -> list[type]:
        """Classes that take this one's configuration."""
        return compatible_with(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


_PRIVATE = ("_use_default_values", "_ignore_files")
_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def _tensor(values: np.ndarray) -> Any:
    return backends.get("torch").array(values.astype(np.float32))


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
