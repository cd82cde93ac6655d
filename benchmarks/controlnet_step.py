"""A denoising step along maps at the size of Stable Diffusion 1.5, against diffusers.

    python benchmarks/controlnet_step.py [--quick] [--json FILE]

Steps under guidance (batch 2), float32 and, where the processor has it, bfloat16, random weights,
of which one copy is in memory: with one ControlNet, with two, with one under guess mode (which is
asked of the conditional half alone by both), and what the ControlNet costs by itself, which is a
step with it less a plain one. Ours is measured as the loop calls it: the map is read, and keys,
values and times are computed, before the first step, and both halves are one until they read
texts; diffusers as its pipeline calls it. Bar 0.95.

The largest difference between the outputs of both is printed before each figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from timing import arguments, compare, fast_dtypes, report

from underdraw import ControlNetModel, Structure, UNet2DConditionModel
from underdraw.benchmark.peers import share
from underdraw.benchmark.random_weights import SD15_UNET, random_network
from underdraw.benchmark.steps import GUIDANCE, TIME, run_of
from underdraw.controls.control import Asked, Call
from underdraw.engines import EAGER, Engine
from underdraw.networks.controlnet.config import ControlNetConfig
from underdraw.networks.sites import NO_SITES
from underdraw.sampling.denoiser import Denoiser


def networks(config: dict[str, Any], dtype: torch.dtype, count: int) -> tuple[Any, ...]:
    """Our UNet and ControlNets, and diffusers' on the same parameters."""
    unet = random_network(UNet2DConditionModel, config, dtype)
    told = ControlNetConfig.of_unet(unet.config)
    nets = [random_network(ControlNetModel, told, dtype) for _ in range(count)]
    with torch.device("meta"):
        peer = diffusers.UNet2DConditionModel(**config)
        peers = [diffusers.ControlNetModel.from_config(net.config.to_dict()) for net in nets]
    for ours, theirs in zip((unet, *nets), (peer, *peers), strict=True):
        share(ours, theirs)
        theirs.eval()
    return unet, nets, peer, peers


@dataclass
class Steps:
    """One guided step of both at one size and dtype, with so many nets."""

    unet: Any
    nets: Sequence[Any]
    peer: Any
    peers: Sequence[Any]
    context: torch.Tensor
    latents: torch.Tensor
    maps: Sequence[torch.Tensor]
    guess: bool = False
    engine: Engine = EAGER

    def __post_init__(self) -> None:
        run = run_of(self.unet, self.context, self.latents, self.engine)
        self.run, self.denoise = run, Denoiser(run)
        pairs = zip(self.nets, self.maps, strict=True)
        self.controls = [Structure(net, one, 0.7, guess=self.guess) for net, one in pairs]
        self.carries = [control.prepare(run) for control in self.controls]
        self.call = Call(0, 1, TIME, True)

    def mine(self) -> torch.Tensor:
        """As the loop makes it."""
        x, context = self.denoise.rows(self.latents)
        ahead, sites = partial(self.denoise.ahead, 0, None), NO_SITES
        asked = Asked(x, TIME, context, ahead, self.run.ask, guided=True)
        for control, carry in zip(self.controls, self.carries, strict=True):
            sites = sites + control.during_call(self.run.nn, carry, asked, self.call)[0]
        return self.denoise(self.latents, 0, sites)

    def theirs(self) -> torch.Tensor:
        """As diffusers' pipeline makes it."""
        both = torch.cat((self.latents, self.latents)).to(self.context.dtype)
        half = slice(1, 2) if self.guess else slice(0, 2)
        down: list[torch.Tensor] | None = None
        mid = torch.zeros(())
        for net, one in zip(self.peers, self.maps, strict=True):
            rows = one if self.guess else torch.cat((one, one))
            more, middle = net(
                both[half],
                TIME,
                self.context[half],
                rows.to(both.dtype),
                0.7,
                guess_mode=self.guess,
                return_dict=False,
            )
            down = more if down is None else [a + b for a, b in zip(down, more, strict=True)]
            mid = middle if mid.ndim == 0 else mid + middle
        if self.guess and down is not None:
            down = [torch.cat((torch.zeros_like(one), one)) for one in down]
            mid = torch.cat((torch.zeros_like(mid), mid))
        more_of = {} if down is None else {"mid_block_additional_residual": mid}
        out = self.peer(
            both, TIME, self.context, down_block_additional_residuals=down, **more_of
        ).sample.float()
        unconditional, conditional = out.chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)


def steps_of(
    networks: tuple[Any, ...],
    count: int,
    context: torch.Tensor,
    latents: torch.Tensor,
    maps: Sequence[torch.Tensor],
    guess: bool = False,
) -> Steps:
    """With the first nets, so many."""
    unet, nets, peer, peers = networks
    return Steps(unet, nets[:count], peer, peers[:count], context, latents, maps[:count], guess)


@torch.no_grad()
def main(
    sizes: tuple[int, ...] = (32, 64),
    dtypes: Sequence[torch.dtype] | None = None,
    runs: int = 5,
    config: dict[str, Any] | None = None,
) -> list:
    """`sizes` are those of the latents; `dtypes` by default `timing.fast_dtypes`."""
    results = []
    fields = config or SD15_UNET
    for dtype in dtypes or fast_dtypes():
        unet, nets, peer, peers = networks(fields, dtype, 2)
        context = torch.randn(2, 77, fields["cross_attention_dim"], dtype=dtype)
        for size in sizes:
            latents = torch.randn(1, 4, size, size)
            maps = [torch.rand(1, 3, 8 * size, 8 * size) for _ in nets]

            both = unet, nets, peer, peers
            where = f"{8 * size} px, {str(dtype).removeprefix('torch.')}"
            for name, one in (
                ("one ControlNet", steps_of(both, 1, context, latents, maps)),
                ("two ControlNets", steps_of(both, 2, context, latents, maps)),
                ("one, guess mode", steps_of(both, 1, context, latents, maps, guess=True)),
            ):
                a, b = one.mine(), one.theirs()
                apart = ((a - b).abs().max() / b.abs().max()).item()
                print(f"{name}, {where}: largest difference {apart:.1e} of the largest value")
                results.append(compare(f"{name}, {where}", one.mine, one.theirs, runs, bar=0.95))
            alone = steps_of(both, 1, context, latents, maps)
            results.append(_nets(f"the ControlNet itself, {where}", alone, runs))
        del unet, nets, peer, peers, both, one, alone
    return results


def _nets(name: str, steps: Steps, runs: int) -> Any:
    """What is asked beside the UNet."""
    asked: Callable[[], Any] = partial(_asked, steps)
    both = torch.cat((steps.latents, steps.latents)).to(steps.context.dtype)
    maps = torch.cat((steps.maps[0], steps.maps[0])).to(both.dtype)

    def theirs() -> Any:
        return steps.peers[0](both, TIME, steps.context, maps, 0.7, return_dict=False)

    return compare(name, asked, theirs, runs, bar=0.95)


def _asked(steps: Steps) -> Any:
    x, context = steps.denoise.rows(steps.latents)
    ahead = partial(steps.denoise.ahead, 0, None)
    asked = Asked(x, TIME, context, ahead, steps.run.ask, guided=True)
    return steps.controls[0].during_call(steps.run.nn, steps.carries[0], asked, steps.call)


if __name__ == "__main__":
    flags, path = arguments("--quick")
    report(main(sizes=(32,) if flags else (32, 64)), path)
