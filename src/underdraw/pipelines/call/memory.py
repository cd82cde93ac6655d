"""How much memory a call needs, about, and what would need less: for errors and `doctor`.

The factors were measured on the networks of Stable Diffusion 1.5 in float32
(`benchmarks/memory.py`, docs/memory.md); they are for telling what fits, not for planning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from underdraw.backends.machine import free_memory, is_shortage
from underdraw.errors import OutOfMemoryError, UnderdrawError
from underdraw.pipelines.components.components import Components

DECODING = 7.5
"""Arrays of the widest layer at full size that decoding holds at once."""
IN_BANDS = 2.5
IN_TILES = 7.5 * 1.3
"""Of one tile."""
STEP = 24.0
"""Arrays of the first layer of a UNet that a call of it holds at once."""
ROOM = 0.9
"""Of the free memory, that a call may fill."""


@dataclass(frozen=True)
class Needs:
    """Bytes, about."""

    networks: int
    largest: int
    """Of the networks."""
    step: int
    """Of a call of the UNet, beside its weights."""
    decoding: int

    @property
    def whole(self) -> int:
        """All that is held at the same time."""
        return self.networks + max(self.step, self.decoding)


@dataclass(frozen=True)
class Setting:
    """What needs less memory."""

    how: str
    needs: int
    """Bytes of a whole call with it."""


def needs(parts: Components, images: int, height: int, width: int, guided: bool = True) -> Needs:
    """Of a call of so many images."""
    sizes = [network.get_memory_footprint() for network in parts.networks]
    unet, vae = parts.unet, parts.vae
    pixels, area = height * width, (height // vae.config.factor) * (width // vae.config.factor)
    rows = images * (2 if guided else 1)
    step = rows * area * unet.config.block_out_channels[0] * itemsize(unet) * STEP
    one = vae.config.block_out_channels[0] * itemsize(vae)
    tiles = parts.tiling
    alone = pixels * one * DECODING
    if tiles is not None and tiles.seamless:
        alone = pixels * one * IN_BANDS
    elif tiles is not None:
        alone = min(alone, tiles.side**2 * one * IN_TILES)
    many = 1 if parts.settings.vae_slicing or vae.use_slicing else images
    return Needs(sum(sizes), max(sizes), int(step), int(alone * many))


def itemsize(network: Any) -> int:
    """Bytes of a number that a network computes with."""
    return 2 if "16" in str(network.dtype) else 4


def settings(
    parts: Components, images: int, height: int, width: int, guided: bool = True
) -> list[Setting]:
    """What is not on yet and needs less, the first of it first to try."""
    now, found = needs(parts, images, height, width, guided), list[Setting]()

    def add(how: str, networks: float, step: float, decoding: float) -> None:
        wanted = int(networks + max(step, decoding))
        if wanted < now.whole:
            found.append(Setting(how, wanted))

    if now.decoding > now.step and parts.settings.vae_tiling is False:
        fewer = now.decoding * IN_BANDS / DECODING
        add("pipe.enable_vae_tiling(seamless=True)", now.networks, now.step, fewer)
    if images > 1:
        if not parts.settings.vae_slicing:
            how = "pipe.enable_vae_slicing()"
            add(how, now.networks, now.step, now.decoding / images)
        add("one image in a call", now.networks, now.step / images, now.decoding / images)
    torch = parts.nn.name == "torch"
    if torch and parts.offload is None and str(parts.device).partition(":")[0] != "cpu":
        add("pipe.enable_model_cpu_offload()", now.largest, now.step, now.decoding)
        add("pipe.enable_sequential_cpu_offload()", now.largest / 50, now.step, now.decoding)
    if itemsize(parts.unet) == 4:
        how = "dtype='bfloat16' (or 'float16' on a GPU) when it is loaded"
        add(how, now.networks / 2, now.step / 2, now.decoding / 2)
    if torch and not _in_8_bits(parts.unet):
        kept = parts.unet.get_memory_footprint()
        gone = kept * (1 - 1.05 / itemsize(parts.unet))
        add("pipe.quantize('int8')", now.networks - gone, now.step, now.decoding)
    high, wide = (max(64, int(n * 0.7) // 64 * 64) for n in (height, width))
    small = needs(parts, images, high, wide, guided)
    add(f"height={high}, width={wide}", small.networks, small.step, small.decoding)
    return found


def _in_8_bits(network: Any) -> bool:
    return network.get_memory_footprint() < 1.5 * network.num_parameters()


def explained(parts: Components, error: BaseException, images: int, height: int, width: int) -> str:
    """A line for who ran out of memory: what the call needs, what is free, and what would fit."""
    now, free = needs(parts, images, height, width), free_memory(parts.device)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    there = "" if free is None else f", {size(free)} are free now"
    listed = settings(parts, images, height, width)
    told = [f"{one.how} ({size(one.needs)})" for one in listed]
    fit = (
        [] if free is None else [one for one in listed if one.needs <= ROOM * (free + now.networks)]
    )
    last = f"; of these would fit: {fit[0].how}" if fit else ""
    return (
        f"out of memory on {parts.device}: {images} x {width} x {height} pixels take about "
        f"{size(now.whole)}, networks {size(now.networks)}, a step {size(now.step)}, decoding "
        f"{size(now.decoding)}{there}. What needs less: {', '.join(told)}{last} ({first:.200})"
    )


@contextmanager
def telling_shortage(pipe: Any) -> Iterator[None]:
    """What runs out of memory inside becomes an error that says what would need less.

    Raises:
        OutOfMemoryError: it did.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UnderdrawError) or not is_shortage(error):
            raise
        parts, shape = pipe.parts, pipe.views.shape
        if shape is None:
            told = parts.unet.config.sample_size
            shape = (1, 4, *(told if isinstance(told, tuple) else (told or 64,) * 2))
        factor = parts.vae.config.factor
        raise OutOfMemoryError(
            explained(parts, error, shape[0], shape[2] * factor, shape[3] * factor)
        ) from error


def size(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
