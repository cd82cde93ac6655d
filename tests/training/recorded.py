"""Whether a step can be recorded once and played again with other batches."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from underdraw.training.loop import Draw


def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are to believe that their tensors lie on a device that one has to wait for."""
    for name, module in list(sys.modules.items()):
        if name.startswith("underdraw.training.") and hasattr(module, "at_hand"):
            monkeypatch.setattr(module, "at_hand", lambda values: False)


def check(task: Any, monkeypatch: pytest.MonkeyPatch, count: int = 6) -> None:
    """Batches of a task are tensors of one shape; its loss asks for no value of them, and is the
    same as where values can be looked at."""
    batches = [dict(task.draw(Draw(k * count, count, np.random.default_rng(k)))) for k in range(4)]
    first = batches[0]
    for batch in batches:
        assert all(isinstance(value, Tensor) for value in batch.values())
        kinds = {name: (value.shape, value.dtype) for name, value in batch.items()}
        assert kinds == {name: (value.shape, value.dtype) for name, value in first.items()}
    torch.manual_seed(0)
    near = task.loss(first)[0]
    with monkeypatch.context() as patch:
        far_away(patch)
        torch.manual_seed(0)
        with _Nobody():
            loss, told = task.loss(first)
    torch.testing.assert_close(loss, near, rtol=1e-4, atol=1e-5)
    assert all(isinstance(value, Tensor) for value in told.values())


class _Nobody(TorchDispatchMode):
    """Nobody asks for a value, or for what has a shape that depends on values."""

    asking = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "multinomial")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in func.__name__ for name in self.asking), func
        if func.__name__.startswith(("index.Tensor", "index_put")):
            assert all(i is None or i.dtype is not torch.bool for i in args[1]), func
        return func(*args, **(kwargs or {}))
