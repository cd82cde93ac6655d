"""The autoencoder against diffusers': same random weights, same numbers."""

import numpy as np
import pytest
import torch
from backends.harness import relative, values
from networks.configs import SD_VAE, VAES
from networks.peer import oracle
from networks.programs import run_vae

from underdraw.networks import vae
from underdraw.networks.config import read


def drawn(fields, entry):
    """An image of 37 x 50 pixels, which does not halve evenly, or 5 x 9 latents."""
    config = read(vae.VAEConfig, fields)
    shape = (
        (3, config.in_channels, 37, 50) if entry == "encode" else (3, config.latent_channels, 5, 9)
    )
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def peer(fields, tensors, entry, x):
    module = oracle.vae(fields, tensors)
    with torch.no_grad():
        if entry == "encode":
            return module.encode(torch.from_numpy(x)).latent_dist.parameters.numpy()
        return module.decode(torch.from_numpy(x)).sample.numpy()


@pytest.mark.parametrize("entry", ["encode", "decode"])
@pytest.mark.parametrize("name", VAES)
def test_numbers(name, entry):
    fields = VAES[name]
    tensors = values(vae.layout(read(vae.VAEConfig, fields)))
    x = drawn(fields, entry)
    theirs = peer(fields, tensors, entry, x)
    assert relative(run_vae("torch", fields, tensors, entry, x), theirs) <= 1e-5


@pytest.mark.parametrize("entry", ["encode", "decode"])
def test_numbers_on_jax(entry):
    fields = VAES["one-layer"]
    tensors = values(vae.layout(read(vae.VAEConfig, fields)))
    x = drawn(fields, entry)
    assert (
        relative(run_vae("jax", fields, tensors, entry, x), peer(fields, tensors, entry, x)) <= 1e-5
    )


def test_published_layout():
    with torch.device("meta"):
        state = oracle.AutoencoderKL.from_config(SD_VAE).state_dict()
    theirs = {name: tuple(value.shape) for name, value in state.items()}
    assert vae.layout(read(vae.VAEConfig, SD_VAE)).shapes == theirs
