"""Decoding one image with the autoencoder of Stable Diffusion 1.5, against diffusers.

    python benchmarks/vae_decode.py [--quick] [--json FILE]

Seconds at 256 and 512 px, float32 and, where the processor has it, bfloat16, the weights in
PyTorch's usual layout and (both sides) channels-last; random weights, one copy in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import diffusers
import torch
from timing import arguments, compare, fast_dtypes, report

from underdraw import AutoencoderKL
from underdraw.benchmark.peers import share
from underdraw.benchmark.random_weights import SD15_VAE, random_network


def pair(config: dict, dtype: torch.dtype = torch.float32) -> tuple:
    """Our autoencoder and diffusers' on the same parameters."""
    ours = random_network(AutoencoderKL, config, dtype)
    with torch.device("meta"):
        peer = diffusers.AutoencoderKL(**config)
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
        ours, peer = pair(config or SD15_VAE, dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            ours.to(memory_format=layout)
            share(ours, peer)
            peer.eval()
            for size in sizes:
                z = torch.randn(1, 4, size, size, dtype=dtype)
                results.append(
                    compare(
                        f"VAE decode, {8 * size} px, {str(dtype).removeprefix('torch.')}"
                        + (", channels-last" if layout is torch.channels_last else ""),
                        lambda z=z, ours=ours: ours.decode(z),
                        lambda z=z, peer=peer: peer.decode(z),
                        runs,
                    )
                )
        del ours, peer
    return results


if __name__ == "__main__":
    flags, path = arguments("--quick")
    report(main(sizes=(32,) if flags else (32, 64)), path)
