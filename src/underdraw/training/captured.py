"""What an accelerator computes for a step, without waiting for Python in between.

A step of a small network is some thousand operations. Python starts them one by one, and takes
about as long for that as an accelerator for computing them. `Captured` records them once as a CUDA
graph, which is then started as a whole. `PendingFigures` reads the figures of a step some steps
later, when they have long been there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from underdraw.backends.torch_graphs import Recording
from underdraw.errors import InputError


@contextmanager
def quick_products(device: torch.device) -> Iterator[None]:
    """On CUDA, products of float32 matrices use TF32 inside the block, unless `fp32_precision`
    says how they are computed: PyTorch refuses this older switch beside it."""
    matmul, before = torch.backends.cuda.matmul, None
    if device.type == "cuda":
        with suppress(RuntimeError):
            before = matmul.allow_tf32
    if before is None:
        yield
        return
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = before


class Captured:
    """A function of a batch that computes gradients, recorded with the first one.

    The tensors of a batch are copied to where those of the first one lie, so all batches have the
    same shapes. What the function returns lies in the same place each time, and so do gradients.
    What it draws at random is what a seed set right before the call gives.

    Args:
        function: of a dict of tensors on a CUDA device; it must not wait for the device.
        parameters: whose gradients it computes.
    """

    def __init__(
        self, function: Callable[[dict[str, Any]], Tensor], parameters: Sequence[Tensor]
    ) -> None:
        self.function, self.parameters = function, parameters
        self.first: dict[str, Tensor] = {}
        self.recording: Recording | None = None

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """The function's result and gradients for a batch on the host, once one was recorded.

        Raises:
            InputError: the batch has other tensors or shapes than the first one, or values that are
                no tensors.
        """
        check_alike(batch, self.first)
        assert self.recording is not None
        return self.recording.replay([batch[name] for name in self.first])

    def record(self, batch: Mapping[str, Any], device: torch.device) -> None:
        """Record the function with a batch on the host, unless that was done. It is called for
        that, so random numbers are drawn.

        Raises:
            InputError: values of the batch are no tensors.
        """
        if self.recording is not None:
            return
        check_alike(batch, batch)

        def call(tensors: list[Tensor]) -> Tensor:
            return self.function(dict(zip(batch, tensors, strict=True)))

        # Gradients are forgotten before: those of the recording lie in its own memory.
        self.recording = Recording(call, [*batch.values()], device, before=self._forget)
        self.first = dict(zip(batch, self.recording.inputs, strict=True))

    def _forget(self) -> None:
        for p in self.parameters:
            p.grad = None


def check_alike(batch: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Raise an InputError unless a batch is of tensors of the same names, shapes and dtypes as the
    first one."""
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"graph=True: batch[{name!r}] is of {type(value).__name__}; allowed: tensors"
            )
        wanted = first.get(name)
        if wanted is None or (value.shape, value.dtype) != (wanted.shape, wanted.dtype):
            had = None if wanted is None else (tuple(wanted.shape), wanted.dtype)
            raise InputError(
                f"graph=True: batch[{name!r}] is {tuple(value.shape)} of {value.dtype}, in the "
                f"first step it was {had}; all steps must be alike"
            )
    if missing := [name for name in first if name not in batch]:
        raise InputError(f"graph=True: a batch lacks {missing}, which the first one had")


class PendingFigures:
    """Figures of the last steps, which are on their way to the host, and the weights from before
    each.

    Whether a loss is finite is known `late` steps after its step; the weights are then put back to
    what they were, so `late + 1` copies of them are kept. With `late` 0 it is known before they
    move, and none is.
    """

    def __init__(self, parameters: Sequence[Tensor], late: int) -> None:
        self.parameters, self.late = list(parameters), late
        self.waiting: deque[tuple[int, Tensor, Any, list[Tensor]]] = deque()
        self.spare: list[list[Tensor]] = []

    def add(self, step: int, figures: Tensor) -> None:
        """Begin to read the figures of a step, one-dimensional, before its weights move."""
        host = torch.empty_like(figures, device="cpu", pin_memory=figures.is_cuda)
        # Only CUDA's events, below, tell when a copy that nobody waits for has ended.
        host.copy_(figures, non_blocking=figures.is_cuda)
        read = None
        if figures.is_cuda:
            read = torch.cuda.Event()
            read.record()
        kept: list[Tensor] = []
        if self.late:
            kept = (
                self.spare.pop() if self.spare else [torch.empty_like(p) for p in self.parameters]
            )
            with torch.no_grad():
                torch._foreach_copy_(kept, self.parameters)  # pyright: ignore[reportPrivateImportUsage]
        self.waiting.append((step, host, read, kept))

    def known(self, wait: bool = False) -> Iterator[tuple[int, list[float]]]:
        """Steps whose figures are known now, or with `wait` all, with the figures. Where the first
        one, the loss, is not finite, the weights are put back and nothing more is told."""
        while len(self.waiting) > (0 if wait else self.late):
            step, host, read, kept = self.waiting.popleft()
            if read is not None:
                read.synchronize()
            figures = host.tolist()
            if not math.isfinite(figures[0]):
                with torch.no_grad():
                    for p, before in zip(self.parameters, kept, strict=False):
                        p.copy_(before)
                self.waiting.clear()
            elif kept:
                self.spare.append(kept)
            yield step, figures
