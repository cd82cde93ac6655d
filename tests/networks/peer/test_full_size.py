"""Stable Diffusion 1.5's networks at full size, once, with random weights that both sides share."""

import math

import numpy as np
import pytest
import torch
from backends.harness import relative, tree
from networks.configs import CLIP_L, SD15_UNET, SD_VAE
from networks.peer import oracle

from underdraw import backends
from underdraw.networks import clip, unet, vae
from underdraw.networks.config import read

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("onednn")]
STRETCH = 100_003


def drawn(layout):
    """Normal numbers scaled to the width they are summed over: activations keep their size."""
    # Tensors of one width are stretches of one pool, each of them another: drawing and scaling all
    # of them cost more than the networks.
    widths = {name: math.prod(shape[1:]) for name, shape in layout.shapes.items()}
    longest = dict.fromkeys(widths.values(), 0)
    for name, shape in layout.shapes.items():
        longest[widths[name]] = max(longest[widths[name]], math.prod(shape))
    pool = torch.randn(max(longest.values()) + STRETCH, generator=torch.Generator().manual_seed(1))
    pools = {width: pool[: count + STRETCH] * width**-0.5 for width, count in longest.items()}
    tensors = {}
    for i, (name, shape) in enumerate(layout.shapes.items()):
        start = 7919 * i % STRETCH
        value = pools[widths[name]][start : start + math.prod(shape)].reshape(shape)
        if len(shape) == 1:
            value = value * 0.1 + float(name.endswith("weight"))
        tensors[name] = value.numpy()
    return tensors


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_unet():
    config = read(unet.UNetConfig, SD15_UNET)
    tensors = drawn(unet.layout(config))
    nn, p = backends.get("torch").operations, tree("torch", unet.layout(config), tensors)
    x, times, context = normal(1, 4, 8, 16), torch.tensor([801]), normal(1, 77, 768)
    time = unet.embed_time(nn, p, config, times, x)
    ours = unet.unet(nn, p, config, x, time, context)
    theirs = oracle.unet(SD15_UNET, tensors)(x, times, context).sample
    assert relative(ours, theirs) <= 1e-5


@torch.no_grad()
def test_vae():
    config = read(vae.VAEConfig, SD_VAE)
    tensors = drawn(vae.layout(config))
    nn, p = backends.get("torch").operations, tree("torch", vae.layout(config), tensors)
    peer = oracle.vae(SD_VAE, tensors)
    image, latents = normal(1, 3, 72, 104), normal(1, 4, 9, 13)
    ours = vae.encode(nn, p, config, image)
    mean, log_variance = ours.chunk(2, 1)
    theirs = peer.encode(image).latent_dist
    assert relative(mean, theirs.mean) <= 1e-5
    assert relative(log_variance.clamp(-30, 20), theirs.logvar) <= 1e-5
    assert relative(vae.decode(nn, p, config, latents), peer.decode(latents).sample) <= 1e-5


@torch.no_grad()
def test_text():
    config = read(clip.CLIPTextConfig, CLIP_L)
    layout = clip.text_layout(config, projection=True)
    tensors = drawn(layout)
    nn, p = backends.get("torch").operations, tree("torch", layout, tensors)
    ids = torch.from_numpy(np.random.default_rng(3).integers(1000, 49000, (3, 77)))
    ids[:, 0] = 49406
    ids[0, 9:], ids[1, 40:], ids[2, 76] = 49407, 49407, 49407
    ours = clip.text(nn, p, config, ids)
    theirs = oracle.text(CLIP_L, tensors).text_model(ids)
    assert relative(ours.last, theirs.last_hidden_state) <= 1e-5
    assert relative(ours.pooled, theirs.pooler_output) <= 1e-5
