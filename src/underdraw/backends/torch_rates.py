"""How fast PyTorch multiplies matrices and convolves here: the best that networks may hope for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

SIDES = ((1024, 1024, 1024), (2048, 640, 640), (512, 1280, 5120))
"""Of products: rows, what is summed over, columns; shapes of a UNet among them."""
CONVOLUTIONS = ((2, 320, 32), (2, 640, 16))
"""Of 3 x 3 convolutions: images, channels, side."""
REPEATS = 3


@dataclass(frozen=True)
class Rates:
    """Operations a second, multiplications and additions counted each; the best of several shapes,
    memory layouts and tries."""

    matrix: float
    convolution: float

    def least(self, matrix: int, convolution: int) -> float:
        """Seconds for so many operations at these rates."""
        return matrix / self.matrix + convolution / self.convolution


def wait(device: Any) -> None:
    """Until an accelerator has done what it was asked for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def rates(dtype: Any, device: Any, clock: Callable[[], float]) -> Rates:
    """Measured now; a second or two on a core without AVX-512."""

    def best(cases: Iterator[tuple[int, Callable[[], Any]]]) -> float:
        found = []
        for operations, call in cases:
            for _ in range(1 + REPEATS):
                wait(device)
                start = clock()
                call()
                wait(device)
                found.append(operations / max(clock() - start, 1e-9))
        return max(found)

    return Rates(best(_products(dtype, device)), best(_convolutions(dtype, device)))


def _products(dtype: Any, device: Any) -> Iterator[tuple[int, Callable[[], Any]]]:
    for rows, inner, columns in SIDES:
        a = torch.ones(rows, inner, dtype=dtype, device=device)
        b = torch.ones(columns, inner, dtype=dtype, device=device)
        yield 2 * rows * inner * columns, lambda a=a, b=b: F.linear(a, b)


def _convolutions(dtype: Any, device: Any) -> Iterator[tuple[int, Callable[[], Any]]]:
    for images, channels, side in CONVOLUTIONS:
        x = torch.ones(images, channels, side, side, dtype=dtype, device=device)
        w = torch.ones(channels, channels, 3, 3, dtype=dtype, device=device)
        for layout in (torch.contiguous_format, torch.channels_last):
            x, w = x.contiguous(memory_format=layout), w.contiguous(memory_format=layout)
            operations = 2 * x.numel() * channels * 9
            yield operations, lambda x=x, w=w: F.conv2d(x, w, padding=1)
