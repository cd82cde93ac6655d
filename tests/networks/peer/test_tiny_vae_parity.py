"""The tiny autoencoder against diffusers': same random weights, same numbers, files in between."""

import diffusers
import numpy as np
import pytest
import torch
from backends.harness import give, tree, values
from pipelines import tiny

from underdraw import AutoencoderTiny, backends
from underdraw.networks import tiny_vae
from underdraw.networks.config import read

CASES = {
    "taesd": tiny.SMALL_VAE,
    "gelu": {**tiny.SMALL_VAE, "act_fn": "gelu", "latent_channels": 3},
    "two-levels": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (6, 6),
        "num_encoder_blocks": (2, 0),
        "num_decoder_blocks": (0, 1),
    },
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_numbers(name, tmp_path):
    """Both halves, the round trip in 8 bits, slices and the folder, at 37 x 58 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        peer = tiny.shake(diffusers.AutoencoderTiny(**CASES[name]))
        x, z = (
            torch.rand(3, 3, 37, 58) * 2 - 1,
            2 * torch.randn(3, peer.config.latent_channels, 5, 9),
        )
    peer.save_pretrained(tmp_path / "theirs")
    ours = AutoencoderTiny.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "ours")
    for vae in (ours, again):
        assert torch.equal(vae.encode(x).latents, peer.encode(x).latents)
        assert torch.equal(vae.decode(z).sample, peer.decode(z).sample)
        assert torch.equal(vae(x).sample, peer(x).sample)
        vae.enable_slicing()
    assert ours.config.factor == 2 ** (len(peer.config.num_decoder_blocks) - 1)
    assert torch.equal(ours.scale_latents(z), peer.scale_latents(z))
    assert torch.equal(ours.unscale_latents(z), peer.unscale_latents(z))
    assert torch.allclose(ours.encode(x).latents, peer.encode(x).latents, atol=1e-6)


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_numbers_on_jax(half):
    config = read(tiny_vae.TinyVAEConfig, CASES["two-levels"])
    tensors = values(tiny_vae.layout(config))
    x = np.random.default_rng(2).standard_normal((2, 3 if half == "encode" else 4, 6, 8))
    made = []
    for backend in ("torch", "jax"):
        nodes = tree(backend, tiny_vae.layout(config), tensors)
        nn = backends.get(backend).operations
        out = getattr(tiny_vae, half)(nn, nodes, config, give(backend, x.astype(np.float32)))
        made.append(np.asarray(out.detach() if backend == "torch" else out))
    assert np.abs(made[0] - made[1]).max() <= 1e-5 * np.abs(made[0]).max()
