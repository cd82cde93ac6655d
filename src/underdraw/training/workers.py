"""Other processes that draw the examples of coming steps, with the bits this one would draw."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from underdraw.errors import InputError, UnderdrawError

Batch = Mapping[str, Any]
"""Tensors or lists by name, the examples along their first axis."""


def check_workers(count: int) -> None:
    """Raise an InputError where this system has no such processes."""
    if count and "fork" not in multiprocessing.get_all_start_methods():
        raise InputError(f"workers={count}: this system cannot fork; allowed: 0")


def drawn_ahead(
    draw: Callable[[int], Batch], steps: range, workers: int, pinned: bool
) -> Iterator[Batch]:
    """What `draw` gives for each of the steps, in their order; the processes end with the iterator.

    Args:
        workers: how many processes draw, at least one.
        pinned: keep tensors where a CUDA device reads them without waiting.

    Raises:
        UnderdrawError: `draw` raised it, in its process.
    """
    loader = DataLoader(
        _Steps(draw),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        worker_init_fn=_begin_worker,
        collate_fn=_as_drawn,
        pin_memory=pinned,
        # Forked: a task is not to be copied, and the draws do not touch the device.
        multiprocessing_context="fork",
    )
    for batch in loader:
        if isinstance(batch, UnderdrawError):
            raise batch
        yield batch


class _Steps(Dataset):
    """What is drawn for each step."""

    def __init__(self, draw: Callable[[int], Batch]) -> None:
        self.draw = draw

    def __getitem__(self, step: int) -> Batch | UnderdrawError:
        try:
            return self.draw(step)
        except UnderdrawError as error:  # raised, it would come with the worker's traceback in it
            return error


def _begin_worker(number: int) -> None:
    """Signals to the group of processes (Ctrl-C, `timeout`) are for the one that trains: it ends
    the workers when it has saved. Tensors go there by name, not by open file: a batch may hold more
    of them than a process may open."""
    os.setpgrp()
    torch.multiprocessing.set_sharing_strategy("file_system")


def _as_drawn(batch: Any) -> Any:
    return batch
