"""Training states on disk: whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from underdraw.backends.torch_weights import tensor
from underdraw.errors import NotFoundError, WeightError
from underdraw.formats.pickles import read_values
from underdraw.formats.writing import writing_file

NAME = "state.pt"


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) atomically: an interrupted write harms nothing."""
    with writing_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # PyTorch ends its archive even where writing failed, and then tells of that instead.
            if error.__context__ is not None:
                raise error.__context__ from None
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
