"""One UNet call at the size of Stable Diffusion 1.5, against diffusers on the same weights.

    python benchmarks/unet_step.py [--quick] [--json FILE]

Seconds of a denoising step under guidance (batch 2), 256 and 512 px, float32 and, where the
processor has it, bfloat16; of processor time where one thread is used. Random weights, one copy in
memory which both networks use.
Ours is measured as the loop calls it, with the keys and values of the text and what the blocks make
of the time computed before the first step; "as a call" computes them anew each time, as
`pipe.unet(...)` does and as diffusers always does.
"""

from __future__ import annotations

from collections.abc import Sequence

import diffusers
import torch
from timing import arguments, compare, fast_dtypes, report

from underdraw import UNet2DConditionModel
from underdraw.benchmark.peers import share
from underdraw.benchmark.random_weights import SD15_UNET, random_network
from underdraw.benchmark.steps import GUIDANCE, TIME, stepper


def pair(config: dict, dtype: torch.dtype) -> tuple:
    """Our network and diffusers' on the same parameters."""
    ours = random_network(UNet2DConditionModel, config, dtype)
    with torch.device("meta"):
        peer = diffusers.UNet2DConditionModel(**config)
    share(ours, peer)
    return ours, peer.eval()


@torch.no_grad()
def main(
    sizes: tuple[int, ...] = (32, 64),
    dtypes: Sequence[torch.dtype] | None = None,
    runs: int = 5,
    config: dict | None = None,
) -> list:
    """`sizes` are those of the latents; `dtypes` by default `timing.fast_dtypes`."""
    results = []
    for dtype in dtypes or fast_dtypes():
        fields = config or SD15_UNET
        ours, peer = pair(fields, dtype)
        context = torch.randn(2, 77, fields["cross_attention_dim"], dtype=dtype)
        for size in sizes:
            latents = torch.randn(1, 4, size, size)
            both = torch.cat((latents, latents)).to(dtype)
            denoise = stepper(ours, context)
            a, b = ours(both, TIME, context).sample, peer(both, TIME, context).sample
            difference = ((a - b).abs().max() / b.abs().max()).item()
            name = f"UNet step, {8 * size} px, {str(dtype).removeprefix('torch.')}"
            print(f"{name}: largest difference {difference:.1e} of the largest value")

            def theirs(both=both, latents=latents, context=context, peer=peer):
                out = peer(torch.cat((latents, latents)).to(context.dtype), TIME, context).sample
                half = out.float().chunk(2)
                return half[0] + GUIDANCE * (half[1] - half[0])

            def mine(denoise=denoise, latents=latents):
                return denoise(latents, 0)

            results.append(compare(name, mine, theirs, runs))
            if size <= 32:
                results.append(
                    compare(
                        f"{name}, as a call",
                        lambda both=both, ours=ours, context=context: ours(both, TIME, context),
                        lambda both=both, peer=peer, context=context: peer(both, TIME, context),
                        runs,
                    )
                )
        del ours, peer, denoise
    return results


if __name__ == "__main__":
    flags, path = arguments("--quick")
    report(main(sizes=(32,) if flags else (32, 64)), path)
