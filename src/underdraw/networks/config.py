"""Reading frozen configs from the `config.json` of published checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from underdraw.errors import InputError

Config = TypeVar("Config")


def read(cls: type[Config], raw: Mapping[str, Any]) -> Config:
    """A config from a parsed JSON object. Keys it does not know are left out, lists become tuples."""
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: _freeze(v) for k, v in raw.items() if k in names})


def require(owner: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise an `InputError` naming the config field unless `value` is one of `allowed`."""
    if value not in allowed:
        shown = ", ".join(repr(a) for a in allowed)
        raise InputError(f"{owner} config: {name}={value!r} is not supported; allowed: {shown}")


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value
