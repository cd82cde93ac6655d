"""What the YAML beside an original checkpoint says that its tensors do not: how it was trained."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.formats.opening import MB, read_text
from underdraw.shown import shown

PREDICTS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
NUMBERS = {
    "linear_start": ("scheduler", "beta_start", float),
    "linear_end": ("scheduler", "beta_end", float),
    "timesteps": ("scheduler", "num_train_timesteps", int),
    "scale_factor": ("vae", "scaling_factor", float),
}
"""Names in the YAML: component, name there, kind."""
_ENTRY = re.compile(r"""^\s*(\w+):[ \t]*["']?([\w.+-]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)


def read_original_config(source: Any) -> dict[str, dict[str, Any]]:
    """Config entries by component ("scheduler", "vae") of a file such as `v2-inference-v.yaml`, or
    of what was parsed of one. Widths and depths are read from the weights' shapes.

    Raises:
        NotFoundError: there is no such file on this machine.
        InputError, InputTypeError: it is no such file, or has a value that cannot be.
    """
    found: dict[str, dict[str, Any]] = {}
    entries = _entries(source)
    if (name := entries.get("parameterization")) is not None:
        if name not in PREDICTS:
            raise InputError(
                f"original_config: parameterization={name!r}; allowed: {', '.join(PREDICTS)}"
            )
        found["scheduler"] = {"prediction_type": PREDICTS[name]}
    for name, (component, ours, kind) in NUMBERS.items():
        if name in entries:
            try:
                found.setdefault(component, {})[ours] = kind(entries[name])
            except (TypeError, ValueError):
                value = entries[name]
                raise InputError(f"original_config: {name}={value!r} is no number") from None
    return found


def _entries(source: Any) -> dict[str, Any]:
    """Names and values, whatever they stand under; the first of each."""
    if isinstance(source, Mapping):
        entries: dict[str, Any] = {}
        for name, value in source.items():
            below = _entries(value) if isinstance(value, Mapping) else {name: value}
            entries = below | entries
        return entries
    if not isinstance(source, str | os.PathLike):
        raise InputTypeError(f"original_config={shown(source)}; allowed: a YAML file, or a dict")
    try:
        text = read_text(source, MB, fault=InputError)
    except NotFoundError as error:
        raise NotFoundError(f"original_config={error}") from error
    except InputError as error:
        raise InputError(f"original_config={error}") from error
    if "model:" not in text:
        raise InputError(f"original_config={os.fspath(source)!r} has no `model:`")
    return dict(reversed(_ENTRY.findall(text)))
