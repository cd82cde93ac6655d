"""A grounded denoising step at the size of Stable Diffusion 1.4, against diffusers.

    python benchmarks/grounded_step.py [--quick] [--json FILE]

Steps under guidance (batch 2), float32 and, where the processor has it, bfloat16, random weights,
of which one copy is in memory:

- with two boxes, gate open: ours with tokens and their keys and values computed before the loop,
  diffusers as its pipeline calls it, 30 tokens with their position network at every step. Bar 1.0.
- gate closed: ours against our own plain step (no layer of the grounding part runs). Bar 1.02,
  which is what two equal things measure; diffusers' closed step stands beside it.
- text-image weights: diffusers runs two guided passes and discards half of each. Bar 0.55.

The largest difference between the outputs of both is printed before each figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from timing import arguments, compare, fast_dtypes, report

from underdraw import UNet2DConditionModel
from underdraw.benchmark.peers import share
from underdraw.benchmark.random_weights import SD15_UNET, random_network
from underdraw.benchmark.steps import GUIDANCE, TIME, run_of
from underdraw.controls.control import Call
from underdraw.controls.ready import Ready
from underdraw.controls.strength import Strength
from underdraw.engines import EAGER, Engine
from underdraw.sampling.denoiser import Denoiser

BOXES = [[0.1, 0.2, 0.5, 0.6], [0.5, 0.45, 1.0, 1.0]]
PADDED = 30


def pair(config: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """Our gated network and diffusers' on the same parameters, with open gates."""
    ours = random_network(UNet2DConditionModel, config, dtype)
    for name, value in ours.named_parameters():
        if name.endswith(("alpha_attn", "alpha_dense")):
            value.data.fill_(0.5)
    with torch.device("meta"):
        peer = diffusers.UNet2DConditionModel(**config)
    share(ours, peer)
    return ours, peer.eval()


@dataclass
class Steps:
    """One guided step of both at one size and dtype."""

    ours: Any
    peer: Any
    context: torch.Tensor
    latents: torch.Tensor
    phrases: torch.Tensor
    images: torch.Tensor | None
    engine: Engine = EAGER

    def __post_init__(self) -> None:
        part, count = self.ours.grounding, len(BOXES)
        here, never = np.ones((2, count)), [[0.0] * count]
        here[1] = never[0]  # the unconditional row comes last
        rows = self.phrases.repeat(2, 1, 1)
        shown = None if self.images is None else self.images.repeat(2, 1, 1)
        tokens = part.boxes([BOXES] * 2, here, rows, here, shown, None if shown is None else here)
        run = run_of(self.ours, self.context, self.latents, self.engine)
        self.open = Ready.of(run, part, tokens, [Strength(1, 0, 0)])
        self.closed = Ready.of(run, part, tokens, [Strength(0, 0, 1)])
        self.denoise = Denoiser(run)

    def mine(self, ready: Ready | None) -> torch.Tensor:
        """As the loop makes it."""
        if ready is None:
            return self.denoise(self.latents, 0)
        call = Call(0, 1, TIME, True)
        return self.denoise(self.latents, 0, ready.sites(self.ours.nn, call, 1))

    def theirs(self) -> torch.Tensor:
        """As diffusers' pipelines make it."""
        if self.images is None:
            return _guided(*self._pass(self._objects(1)).chunk(2))
        with_boxes, without = self._pass(self._objects(2)), self._pass(self._objects(0))
        return _guided(without.chunk(2)[0], with_boxes.chunk(2)[1])

    def _pass(self, objects: dict[str, torch.Tensor]) -> torch.Tensor:
        both = torch.cat((self.latents, self.latents)).to(self.context.dtype)
        grounding = {"gligen": objects}
        out = self.peer(both, TIME, self.context, cross_attention_kwargs=grounding)
        return out.sample.float()

    def _objects(self, rows: int) -> dict[str, torch.Tensor]:
        """Padded as in diffusers, with the boxes in so many of the two rows, from the last on."""
        dtype, count = self.context.dtype, len(BOXES)
        masks = torch.zeros(2, PADDED, dtype=dtype)
        masks[2 - rows :, :count] = 1 if rows else 0
        boxes = torch.zeros(2, PADDED, 4, dtype=dtype)
        boxes[:, :count] = torch.tensor(BOXES, dtype=dtype)
        phrases = torch.zeros(2, PADDED, self.phrases.shape[-1], dtype=dtype)
        phrases[:, :count] = self.phrases
        if self.images is None:
            return {"boxes": boxes, "masks": masks, "positive_embeddings": phrases}
        images = torch.zeros_like(phrases)
        images[:, :count] = self.images
        return {
            "boxes": boxes,
            "masks": masks,
            "phrases_masks": masks,
            "image_masks": masks,
            "phrases_embeddings": phrases,
            "image_embeddings": images,
        }


def _guided(unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    return unconditional + GUIDANCE * (conditional - unconditional)


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
    width = fields["cross_attention_dim"]
    for dtype in dtypes or fast_dtypes():
        for kind in ("gated", "gated-text-image"):
            ours, peer = pair({**fields, "attention_type": kind}, dtype)
            context = torch.randn(2, 77, width, dtype=dtype)
            phrases, images = torch.randn(2, 1, len(BOXES), width, dtype=dtype)
            for size in sizes:
                latents = torch.randn(1, 4, size, size)
                shown = images if kind == "gated-text-image" else None
                steps = Steps(ours, peer, context, latents, phrases, shown)
                mine, theirs = steps.mine(steps.open), steps.theirs()
                apart = ((mine - theirs).abs().max() / theirs.abs().max()).item()
                name = f"{8 * size} px, {str(dtype).removeprefix('torch.')}"
                print(f"{kind}, {name}: largest difference {apart:.1e} of the largest value")
                results += _figures(kind, name, steps, runs)
            del ours, peer, steps
    return results


def _figures(kind: str, name: str, steps: Steps, runs: int) -> list:
    def opened() -> torch.Tensor:
        return steps.mine(steps.open)

    if kind != "gated":
        return [compare(f"text-image step, {name}", opened, steps.theirs, runs, bar=0.55)]
    made = [compare(f"two boxes, {name}", opened, steps.theirs, runs, bar=1.0)]
    made.append(
        compare(
            f"gate closed against plain, {name}",
            lambda: steps.mine(steps.closed),
            lambda: steps.mine(None),
            runs,
            bar=1.02,
        )
    )
    for module in steps.peer.modules():  # as `enable_fuser(False)`
        if hasattr(module, "enabled"):
            module.enabled = False
    made.append(
        compare(
            f"gate closed against diffusers, {name}",
            lambda: steps.mine(steps.closed),
            steps.theirs,
            runs,
            bar=None,
        )
    )
    for module in steps.peer.modules():
        if hasattr(module, "enabled"):
            module.enabled = True
    return made


if __name__ == "__main__":
    flags, path = arguments("--quick")
    report(main(sizes=(32,) if flags else (32, 64)), path)
