"""Several processes that train one network, each on its part of every batch.

Started by `torchrun`, which tells processes about each other in the environment. On CPU this is
also how to use several cores: on a machine that does other work besides, one process with two
threads waits at every operation for whichever thread was held up, and was measured five times
slower than two processes with one thread each, which wait for each other once per step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from underdraw.errors import InputError
from underdraw.formats.locks import locked


@dataclass(frozen=True)
class Group:
    """The processes of this run: how many, and which one this is."""

    size: int = 1
    rank: int = 0

    @staticmethod
    def join() -> Group:
        """The group this process was started in; alone without `torchrun`."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
            return Group()
        if not dist.is_initialized():
            # What is agreed on between steps lies on the host, which NCCL knows nothing of.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return Group(dist.get_world_size(), dist.get_rank())

    def average_gradients(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Replace gradients by their mean over the processes, and return the mean of `loss`
        `(1,)`."""
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.size == 1:
            return loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), loss])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat[:-1].split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return flat[-1:]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any process."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag))
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def first(self, value: float) -> float:
        """The value of the first process, on all of them."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)


@contextmanager
def alone(folder: str | Path, work: str) -> Iterator[None]:
    """Be the only run that does a work in a folder, which is made where it is not there. Processes
    that `torchrun` started together are one run, whose first one writes.

    Args:
        work: its name; other works may go on in the folder.

    Raises:
        InputError: another run is at it, in another process or in a thread of this one.
    """
    group, folder = Group.join(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        free = group.rank > 0 or stack.enter_context(locked(folder, work))
        if group.any(not free):
            raise InputError(
                f"folder={str(folder)!r}: another run is at work there ({work}), and both would "
                "write the same files; wait until it ends, or choose another folder"
            )
        yield
