"""Peak memory of decoding by the ways there are, and bytes of weights, beside diffusers.

    python benchmarks/memory.py [--large] [--json FILE]

Each case runs in a process of its own, with the autoencoder of Stable Diffusion 1.5 and random
weights in float32; its peak is what the process held at most beyond what it held before. `--large`
adds 1024 px, on an autoencoder of half the width. PSNR is against the whole picture, of its range.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from underdraw.benchmark.peers import share
from underdraw.benchmark.random_weights import SD15_UNET, SD15_VAE, random_network

HALF = {**SD15_VAE, "block_out_channels": (64, 128, 256, 256)}
WAYS = ("whole", "seamless", "tiles", "diffusers, whole", "diffusers, tiles")
PAGE = 4096


def resident() -> int:
    """Bytes this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@contextmanager
def watched(held: Callable[[], int] = resident) -> Iterator[list[int]]:
    """A list whose number is the most that is held beyond the beginning, looked at every 2 ms."""
    begin, most, ends = held(), [0], threading.Event()

    def watch() -> None:
        while not ends.wait(0.002):
            most[0] = max(most[0], held() - begin)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ends.set()
        thread.join()


@torch.no_grad()
def decode(way: str, side: int, config: dict[str, Any], keep: str) -> dict[str, Any]:
    """One case: peak, seconds, and what was decoded, left in the file `keep`."""
    from underdraw import AutoencoderKL

    torch.manual_seed(0)
    vae: Any = random_network(AutoencoderKL, config)
    if way.startswith("diffusers"):
        import diffusers

        with torch.device("meta"):
            peer = diffusers.AutoencoderKL(**config).eval()
        share(vae, peer)
        vae = peer
    if way.endswith("tiles"):
        vae.enable_tiling()
        if way.startswith("diffusers"):  # tiles of half the side, so that 512 px are tiled, too
            vae.tile_sample_min_size, vae.tile_latent_min_size = 256, 32
        else:
            from underdraw.models.autoencoder import Tiling

            vae.tiling = Tiling(256)
    elif way == "seamless":
        vae.enable_tiling(seamless=True)
    z = torch.randn(1, 4, side // 8, side // 8)
    vae.decode(z[:, :, :2, :2])  # libraries are loaded
    begun = time.perf_counter()
    with watched() as most:
        made = vae.decode(z).sample
    torch.save(made.half(), keep)
    return {"way": way, "side": side, "peak": most[0], "seconds": time.perf_counter() - begun}


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two pictures, of the range of the second."""
    one, other = one.float(), other.float()
    span = float(other.max() - other.min())
    return float(10 * torch.log10(span**2 / ((one - other) ** 2).mean()))


def weights(config: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Bytes of a UNet as it may be kept, and how far its output moves, of the largest number."""
    from underdraw import UNet2DConditionModel

    fields = SD15_UNET if config is None else config
    torch.manual_seed(0)
    unet: Any = random_network(UNet2DConditionModel, fields)
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 7, fields["cross_attention_dim"])
    rows = []
    with torch.no_grad():
        plain = unet(x, 500, text).sample
        for kind in ("float32", "int8", "float8"):
            made = unet if kind == "float32" else unet.quantized(kind)
            loss = (made(x, 500, text).sample - plain).abs().max() / plain.abs().max()
            rows.append({"kind": kind, "bytes": made.get_memory_footprint(), "loss": float(loss)})
    return rows


def case(way: str, side: int, half: bool, folder: Path) -> dict[str, Any]:
    """A decoding in a process of its own."""
    here = [sys.executable, __file__, "--case", way, str(side), str(int(half)), str(folder)]
    done = subprocess.run(here, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(
    sizes: Sequence[tuple[int, bool]] = ((512, False),), folder: str = "/tmp"
) -> list[dict[str, Any]]:
    """All cases, told as they are done; `sizes` are sides, and whether at half the width."""
    rows = []
    for side, half in sizes:
        first: dict[str, Any] = {}
        for way in WAYS:
            row = case(way, side, half, Path(folder))
            first = first or row
            made, whole = (torch.load(_kept(folder, name)) for name in (way, WAYS[0]))
            row |= {"of whole": row["peak"] / first["peak"], "psnr": psnr(made, whole)}
            rows.append(row)
            print(
                f"decode {side} px{' (half width)' if half else ''}, {way}: "
                f"{row['peak'] / 1e6:.0f} MB ({row['of whole']:.2f}), {row['seconds']:.1f} s, "
                f"{row['psnr']:.1f} dB",
                flush=True,
            )
    return rows


def _kept(folder: str | Path, way: str) -> Path:
    return Path(folder, f"decoded-{way.replace(', ', '-')}.pt")


if __name__ == "__main__":
    reader = argparse.ArgumentParser()
    reader.add_argument("--case", nargs=4)
    reader.add_argument("--large", action="store_true")
    reader.add_argument("--json", type=Path)
    told = reader.parse_args()
    if told.case:
        way, side, half, folder = told.case
        config = HALF if int(half) else SD15_VAE
        print(json.dumps(decode(way, int(side), config, str(_kept(folder, way)))))
    else:
        found = main(((512, False), (1024, True)) if told.large else ((512, False),))
        kept = weights()
        for row in kept:
            print(f"UNet, {row['kind']}: {row['bytes'] / 1e6:.0f} MB, loss {row['loss']:.4f}")
        if told.json:
            told.json.write_text(json.dumps([*found, *kept], indent=1))
