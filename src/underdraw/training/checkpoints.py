"""Training states on disk: whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from underdraw.backends.torch_weights import tensor
from underdraw.errors import NotFoundError, WeightError
from underdraw.formats.pickles import read_values

NAME = "state.pt"


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) atomically: an interrupted write harms nothing."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.saving")
    try:
        with open(beside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def load(path: str | Path) -> dict[str, Any]:
    """Read a state. No code in the file is run.

    Raises:
        NotFoundError: there is no such file.
        WeightError: it is no training state, or a damaged one.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"there is no training state at {path}")
    try:
        state = read_values(path, lambda stored: tensor(stored).clone())
    except WeightError as error:
        raise WeightError(f"{path} is not a readable training state: {error}") from error
    if not isinstance(state, dict) or not {"step", "modules", "average"} <= set(state):
        raise WeightError(f"{path} is a file of PyTorch, but not a training state")
    return state
