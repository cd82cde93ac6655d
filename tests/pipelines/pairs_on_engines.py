"""The pairs of `test_pairs.py`, and all elements at once, on engines that compile: `nox -s pairs`.

They compile for half an hour, so the suite does not collect this file.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from controls.test_structure import close
from pipelines import tiny
from pipelines.test_pairs import ELEMENTS, PAIRS, arguments, attach, called, load, pipeline

BACKENDS = {"compiled": "torch", "openvino": "torch", "jit": "jax"}


@cache
def elsewhere(engine: str) -> Any:
    made = load(engine=engine, backend=BACKENDS[engine])
    attach(made, pipeline())
    return made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's compiler
@pytest.mark.parametrize("names", [*PAIRS, tuple(ELEMENTS)], ids=" and ".join)
@pytest.mark.parametrize("engine", BACKENDS)
def test_as_eager(engine: str, names: tuple[str, ...]):
    made = np.array(tiny.run(elsewhere(engine), **arguments(names, [0, 1])), copy=True)
    assert close(torch.from_numpy(made), called(*names), 1e-4)
