"""Parts of a step that are computed at the same time, each by one thread.

PyTorch shares the work of one operation among threads, which wait for each other at the end of each
of some thousand operations of a step. Here each thread has examples of its own, and they wait for
each other once. On two quiet cores that is a third faster; on a machine that does other work
besides, where every wait is for whichever thread was held up, several times.

The mathematics is that of `TrainingConfig.accumulate`: a step's loss is the mean over its parts.
Gradients are summed in the order of the parts, so the bits do not depend on who was first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from underdraw.errors import InputError
from underdraw.training.config import TrainingConfig


class Lanes:
    """So many threads, each of which runs operations alone.

    While they exist, PyTorch uses one thread in the thread that made them, too: what is left to do
    there is small, and threads that wait actively for it would take the cores from others.
    """

    def __init__(self, count: int) -> None:
        self.before = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(count, "lane", torch.set_num_threads, (1,))
        torch.set_num_threads(1)

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self.before)

    def map(self, function: Callable[[Any], Any], values: Iterable[Any]) -> Iterable[Any]:
        """`function` of each value, in their order."""
        return self.pool.map(function, values)

    def add_gradients(
        self,
        loss: Callable[[Any], tuple[Tensor, dict[str, Any]]],
        parts: Iterable[Any],
        parameters: Sequence[Tensor],
    ) -> list[dict[str, Any]]:
        """Add the gradients of `loss` of each part to those of the parameters.

        Returns what `loss` tells beside the loss, for each part.
        """

        def one(part: Any) -> tuple[dict[str, Any], Sequence[Tensor | None]]:
            value, told = loss(part)
            # Asked for, not accumulated: the threads share the parameters.
            return told, torch.autograd.grad(value, parameters, allow_unused=True)

        figures: list[dict[str, Any]] = []
        for told, gradients in self.map(one, parts):
            figures.append(told)
            for p, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        return figures


def lanes_for(config: TrainingConfig, least: int = 2) -> int:
    """How many threads suit a training on this processor: as PyTorch would use, where each gets the
    same number of examples, `least` or more; 0 where that is one."""
    share = config.batch // config.accumulate
    fit = [
        n for n in range(2, torch.get_num_threads() + 1) if share % n == 0 and share >= n * least
    ]
    return max(fit, default=0)


def check_lanes(threads: int, device: torch.device, modules: Mapping[str, nn.Module]) -> None:
    """Raise an InputError where parts cannot be computed by threads with repeatable results."""
    if not threads:
        return
    if device.type != "cpu":
        raise InputError(f"threads={threads} is for training on the CPU; device={str(device)!r}")
    for name, module in modules.items():
        if any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules()):
            raise InputError(
                f"threads={threads}: {name} has dropout, which draws from one stream for all "
                "threads; allowed: 0"
            )
