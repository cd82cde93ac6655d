"""Autoencoders in bands: the numbers of the whole picture, while no layer sees more than a band."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from pipelines import tiny

import underdraw
from underdraw.backends.torch_operations import Torch
from underdraw.models.autoencoder import Tiling, tiled
from underdraw.networks import bands, tiny_vae, vae
from underdraw.networks.bands import Bands, in_bands

ROUNDING = 2e-5
"""Of the largest number: statistics are summed in another order; measured up to 5e-6."""
HALF = torch.zeros(1, dtype=torch.float16)
DECIBEL = 50.0
"""Of pictures whose layers are kept in half precision; measured from 54."""


def networks():
    return {"kl": (tiny.components()["vae"], vae), "tiny": (tiny.small_vae(), tiny_vae)}


@torch.no_grad()
@pytest.mark.parametrize("pixels", [64, 1500])
@pytest.mark.parametrize("name", ["kl", "tiny"])
def test_the_numbers_of_the_whole(name, pixels, monkeypatch):
    """Odd sizes, a batch, bands of one and of many rows, down and up."""
    monkeypatch.setattr(Bands.__init__, "__defaults__", (None, pixels))
    network, programs = networks()[name]
    torch.manual_seed(3)
    for entry, x in (("decode", torch.randn(2, 4, 9, 14)), ("encode", torch.rand(2, 3, 75, 110))):
        program = getattr(programs, entry)
        plain = program(network.nn, network, network.config, x)
        run = in_bands(program)
        made = run(network.nn, network, network.config, x)
        assert (made - plain).abs().max() <= ROUNDING * plain.abs().max(), entry
        kept = run(network.nn, network, network.config, x, HALF)
        assert kept.dtype == plain.dtype and psnr(kept, plain) >= DECIBEL


def psnr(one, other):
    span = float(other.max() - other.min())
    return 10 * np.log10(span**2 / float(((one - other) ** 2).mean()))


def test_numbers_on_jax():
    network = tiny.moved(tiny.components()["vae"], "jax")
    z = np.random.default_rng(1).standard_normal((1, 4, 6, 5)).astype(np.float32)
    network.enable_tiling(seamless=True)
    made = np.asarray(network.decode(z).sample)
    network.disable_tiling()
    plain = np.asarray(network.decode(z).sample)
    assert np.abs(made - plain).max() <= 1e-2 * np.abs(plain).max()


@dataclass(frozen=True)
class Watched(Torch):
    """Remembers how many positions layers were given at once."""

    seen: list = field(default_factory=list)

    def conv2d(self, p, x, *sizes, **named):
        self.seen.append(x.shape[2] * x.shape[3])
        return super().conv2d(p, x, *sizes, **named)


@torch.no_grad()
def test_no_layer_sees_more_than_a_band(monkeypatch):
    monkeypatch.setattr(Bands.__init__, "__defaults__", (None, 512))
    monkeypatch.setattr(bands, "LEAST_ROWS", 2)
    for network, programs in networks().values():
        nn = Watched()
        in_bands(programs.decode)(nn, network, network.config, torch.randn(1, 4, 10, 16))
        assert max(nn.seen) <= 512 + 2 * bands.CHAINED * 128 + 128  # and the rows beyond it
        nn.seen.clear()
        programs.decode(nn, network, network.config, torch.randn(1, 4, 10, 16))
        assert max(nn.seen) == 80 * 128


def test_of_pipelines(monkeypatch):
    """A setting of one pipeline, recorded with its pictures; tiles only beyond four times."""
    monkeypatch.setattr(Bands.__init__, "__defaults__", (None, 512))
    pipe = tiny.pipeline()
    call = {"num_inference_steps": 2, "seed": 3, "height": 72, "width": 88}
    plain = pipe("a red sphere", output_type="pt", **call).images
    pipe.enable_vae_tiling()
    tiled = pipe("a red sphere", output_type="pt", **call).images
    pipe.enable_vae_tiling(seamless=True)
    assert pipe.settings.vae_tiling == "seamless" and pipe.parts.tiling.side == 256
    seamless = pipe("a red sphere", output_type="pt", **call).images
    assert psnr(seamless, plain) >= DECIBEL > psnr(tiled, plain)
    image = pipe("a red sphere", **call).images[0]
    again = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    again.disable_vae_tiling()
    made = underdraw.pipelines.call.record.repeat(again, image.info["underdraw"])
    assert made.tobytes() == image.tobytes()
    assert not again.settings.vae_tiling
    pipe.vae = tiny.small_vae()
    exact = pipe("a red sphere", output_type="pt", **call).images
    pipe.disable_vae_tiling()
    assert psnr(exact, pipe("a red sphere", output_type="pt", **call).images) >= DECIBEL
    pipe.vae.enable_tiling(seamless=True)
    assert pipe.parts.tiling.seamless and pipe.parts.tiling.side == 2048


@pytest.mark.parametrize("side", [100, 60, 40, 8, 4])
def test_tiles_of_any_side_lie_where_they_belong(side):
    """Also those of autoencoders whose trained size is no multiple of 32, where diffusers 0.39
    gives pictures of another size: what treats each position alike shows no tile."""
    nn = tiny.components()["vae"].nn
    x = torch.rand(1, 2, 136, 104)

    def to_array(values, device=None):
        return torch.tensor(values, device=device)

    down = torch.nn.AvgPool2d(8)
    up = torch.nn.Upsample(scale_factor=8)
    small = tiled(nn, down, x, Tiling(side), (1, 8), to_array)
    torch.testing.assert_close(small, down(x))
    torch.testing.assert_close(tiled(nn, up, small, Tiling(side), (8, 1), to_array), up(small))
