"""Tensors of all kinds, and what it means that a stored one is the same."""

import numpy as np
import torch

from underdraw.formats.stored import NUMPY_DTYPES

TENSORS = {
    "a.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "a.bias": torch.arange(3, dtype=torch.float16),
    "b": torch.tensor([1.5, -2.25, 3e38]).bfloat16(),
    "c": torch.tensor(7, dtype=torch.int64),
    "d": torch.tensor([[True], [False]]),
    "e": torch.zeros(0, 4),
    "f": torch.randn(2, 1, 3).double(),
    "g": torch.tensor([1, 200], dtype=torch.uint8),
    "h": torch.randn(4).to(torch.float8_e4m3fn),
}


def assert_same(stored, tensor):
    """Bit by bit."""
    assert stored.shape == tuple(tensor.shape)
    assert stored.dtype == str(tensor.dtype).removeprefix("torch.")
    array = stored.load()
    assert array.shape == stored.shape
    assert array.dtype == NUMPY_DTYPES[stored.dtype]
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert np.ascontiguousarray(array).tobytes() == raw
