"""What moves the weights: AdamW, or Muon for matrices inside of networks and AdamW for the rest.

Muon (Jordan et al. 2024) takes of the average gradient of a matrix the nearest one with all
singular values alike, so that rare directions move as far as frequent ones. PyTorch's own takes
tensors of two dimensions only, and computes in bfloat16, which takes longer than all else on
processors that emulate it; here weights of convolutions count as matrices
`(out, in * height * width)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from underdraw.training.config import TrainingConfig
from underdraw.training.eight_bit import EIGHT_BIT, eight_bit

OUTSIDE = ("conv_in", "conv_out", "time_emb", "embedding", "heads")
"""Parts of names of matrices that are no inner layers: what reads and what answers, tables, times.
AdamW suits these better."""
_torch: Any = torch
"""Which does not name its operations on lists of tensors as public."""
_STEPS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration: a quintic that climbs steeply at zero, at the price of singular
values that end anywhere in 0.7 .. 1.2."""
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def orthogonalised(matrices: Tensor) -> Tensor:
    """Of each matrix `U S V^T` of `(n, rows, columns)` about `U V^T`, in its own dtype.

    The iteration `X <- a X + b (X X^T) X + c (X X^T)^2 X` is taken on the product `X X^T` of the
    shorter side, with which all its powers commute: for weights of convolutions, which are several
    times as wide as high, that is a third of the work.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    gram = x @ x.mT
    whole: Tensor | None = None
    for step in range(_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        whole = factor if whole is None else factor @ whole
        if step + 1 < _STEPS:
            gram = factor @ gram @ factor
    assert whole is not None
    made = whole @ x
    return made.mT if tall else made


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two and more dimensions.

    A matrix `(rows, columns)` moves by `lr * sqrt(max(1, rows / columns))` times the orthogonalised
    average, so that rates keep their meaning from width to width.

    Args:
        each: maps a function over values in their order, such as `Lanes.map`, for the matrices of
            one shape each.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        each: Map = map,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        self.each = each

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step with the gradients that are there."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    rows, columns = p.shape[0], math.prod(p.shape[1:])
                    shapes.setdefault((rows, columns), []).append(p)
            parts = [*shapes.values()]
            if self.each is not map:  # the more there are, the more evenly threads share them
                parts = [half for alike in parts for half in (alike[::2], alike[1::2]) if half]
            for _ in self.each(lambda alike, group=group: self._move(group, alike), parts):
                pass

    @torch.no_grad()  # which is a thread's own
    def _move(self, group: dict[str, Any], alike: list[Tensor]) -> None:
        """Move parameters of one shape, in few operations for all of them."""
        for p in alike:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in alike if p.grad is not None]  # all of them
        momentum = group["momentum"]
        averages = [self.state[p]["momentum"] for p in alike]
        _torch._foreach_lerp_(averages, gradients, 1 - momentum)
        updates = _torch._foreach_lerp(gradients, averages, momentum)
        stacked = torch.stack([update.flatten(1) for update in updates])
        rows, columns = stacked.shape[1:]
        length = group["lr"] * math.sqrt(max(1.0, rows / columns))
        _torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
        made = [one.view(p.shape) for one, p in zip(orthogonalised(stacked), alike, strict=True)]
        _torch._foreach_add_(alike, made, alpha=-length)


class Optimizers:
    """The optimizers of a run, each for its own parameters, as one."""

    def __init__(
        self, named: Mapping[str, Tensor], config: TrainingConfig, device: torch.device, each: Map
    ) -> None:
        inner = {
            name for name, p in named.items() if config.optimizer == "muon" and inside(name, p)
        }
        rest = [p for name, p in named.items() if name not in inner]
        self.all: dict[str, tuple[torch.optim.Optimizer, float]] = {}
        if rest:
            how: dict[str, Any] = {
                "lr": config.learning_rate,
                "betas": config.betas,
                "weight_decay": config.weight_decay,
            }
            if config.optimizer == EIGHT_BIT:
                adamw = eight_bit()(rest, **how)
            else:
                fused = device.type in ("cuda", "cpu")  # a quarter of the time on either
                adamw = torch.optim.AdamW(rest, foreach=not fused, fused=fused, **how)
            self.all["optimizer"] = adamw, config.learning_rate
        if inner:
            matrices = [named[name] for name in named if name in inner]
            muon = Muon(matrices, config.muon_rate, weight_decay=config.weight_decay, each=each)
            self.all["muon"] = muon, config.muon_rate

    def clear(self) -> None:
        """Forget the gradients."""
        for optimizer, _ in self.all.values():
            optimizer.zero_grad()

    def step(self, share: float, scaler: torch.amp.GradScaler) -> None:
        """Move the weights, at `share` of the highest rates."""
        for optimizer, rate in self.all.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            scaler.step(optimizer)

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Bring gradients back to their size."""
        for optimizer, _ in self.all.values():
            scaler.unscale_(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The state of each under its name."""
        return {name: optimizer.state_dict() for name, (optimizer, _) in self.all.items()}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Take over saved states; how a device steps is not among them."""
        for name, (optimizer, _) in self.all.items():
            kinds = {
                k: optimizer.defaults[k] for k in ("foreach", "fused") if k in optimizer.defaults
            }
            for group in states[name]["param_groups"]:
                group.update(kinds)
            optimizer.load_state_dict(states[name])


def inside(name: str, p: Tensor) -> bool:
    """Whether a parameter is a matrix inside of a network."""
    return p.ndim >= 2 and not any(part in name for part in OUTSIDE)
