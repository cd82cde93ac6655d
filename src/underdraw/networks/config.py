"""Frozen configs that read and write the `config.json` of published checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from underdraw.errors import InputError


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of the configs: typed fields, which can also be read like a dictionary."""

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def get(self, name: str, default: Any = None) -> Any:
        """The field `name`, or `default` where there is none."""
        return getattr(self, name) if name in self else default

    def keys(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(f.name for f in dataclasses.fields(self))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON stores them."""
        return {name: _thaw(getattr(self, name)) for name in self.keys()}


AnyConfig = TypeVar("AnyConfig", bound=Config)


def read(cls: type[AnyConfig], raw: Mapping[str, Any]) -> AnyConfig:
    """A config from parsed JSON. Keys it does not know are left out, lists become tuples."""
    names = {f.name for f in dataclasses.fields(cls)}
    return cls(**{k: _freeze(v) for k, v in raw.items() if k in names})


def require(owner: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise an `InputError` naming the config field unless `value` is one of `allowed`."""
    if value not in allowed:
        shown = ", ".join(repr(a) for a in allowed)
        raise InputError(f"{owner} config: {name}={value!r} is not supported; allowed: {shown}")


def require_divisor(owner: str, name: str, value: Any, of: str, width: int) -> None:
    """Raise an `InputError` naming the config field unless `value` splits `width` evenly."""
    if not isinstance(value, int) or value < 1 or width % value:
        raise InputError(
            f"{owner} config: {name}={value!r} is not supported; allowed: divisors of {of}={width}"
        )


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    return [_thaw(v) for v in value] if isinstance(value, tuple) else value
