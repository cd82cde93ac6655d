"""FreeU beside diffusers, and where it differs on purpose."""

import tempfile

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import fourier_filter
from pipelines import tiny

import underdraw
from underdraw.backends import torch as framework
from underdraw.errors import InputError
from underdraw.networks.freeu import lowest

pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 2e-5
"""Of the largest number; the pipelines without FreeU differ by 3e-6."""
AMOUNTS = (0.9, 0.2, 1.5, 1.6)
CALL = {"height": 40, "width": 72, "num_inference_steps": 2, "output_type": "latent"}


@pytest.mark.parametrize("size", [(5, 9), (8, 8), (2, 3), (1, 6), (1, 1)])
def test_the_filter(size):
    """Without Fourier transforms, at even, odd and smallest sizes."""
    x = torch.randn(2, 3, *size)
    ours = x + (0.3 - 1) * lowest(framework.operations, x)
    assert torch.allclose(ours, fourier_filter(x, threshold=1, scale=0.3), atol=1e-6)


@pytest.fixture(scope="module")
def pair():
    ours = tiny.pipeline(compat="diffusers", unet=tiny.DEEP)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    return ours, theirs


def latents(pipe, **arguments):
    begin = torch.randn(2, 4, 5, 9, generator=torch.Generator().manual_seed(3))
    return pipe(["a red sphere", "a cube"], latents=begin, **CALL, **arguments).images


def apart(pair):
    one, other = map(latents, pair)
    return float((one - other).abs().max() / other.abs().max())


def test_the_same_numbers(pair):
    ours = pair[0]
    plain = latents(ours)
    for pipe in pair:
        pipe.enable_freeu(*AMOUNTS)
    assert apart(pair) <= BOUND
    assert not torch.equal(latents(ours), plain)
    sharing = underdraw.StableDiffusionPipeline.from_pipe(ours)
    sharing.disable_freeu()
    assert torch.equal(latents(sharing), plain)  # a setting of one pipeline
    stream = ours.stream("a cube", seed=1, num_inference_steps=2, output_type="latent")
    other = sharing.stream("a cube", seed=2, num_inference_steps=2, output_type="latent")
    for _ in (runs := underdraw.batched([stream, other])):
        pass
    for run, pipe, seed in zip(runs.streams, (ours, sharing), (1, 2), strict=True):
        alone = pipe("a cube", seed=seed, num_inference_steps=2, output_type="latent").images
        assert np.allclose(run.output.images, alone, atol=1e-5)
    image = ours("a cube", seed=1, num_inference_steps=2).images[0]
    made = underdraw.pipelines.call.record.repeat(sharing, image.info["underdraw"])
    assert made.tobytes() == image.tobytes()
    for pipe in pair:
        pipe.disable_freeu()
    assert apart(pair) <= BOUND and torch.equal(latents(ours), plain)


def test_a_factor_of_zero(pair):
    """diffusers looks whether factors are true: one of 0 switches all of it off."""
    ours, theirs = pair
    before = [latents(pipe) for pipe in pair]
    for pipe in pair:
        pipe.enable_freeu(0.0, 0.2, 1.5, 1.6)
    assert torch.equal(latents(theirs), before[1])
    assert not torch.equal(latents(ours), before[0])
    ours.enable_freeu(1e-7, 0.2, 1.5, 1.6)
    nearly = latents(ours)
    ours.enable_freeu(0.0, 0.2, 1.5, 1.6)
    assert torch.allclose(latents(ours), nearly, atol=1e-4)
    for pipe in pair:
        pipe.disable_freeu()


@pytest.mark.parametrize("wrong", [-1, float("nan"), "a", None, 1e9])
def test_wrong_factors(pair, wrong):
    for place, name in enumerate(("s1", "s2", "b1", "b2")):
        amounts: list = list(AMOUNTS)
        amounts[place] = wrong
        with pytest.raises((InputError, TypeError), match=name):
            pair[0].enable_freeu(*amounts)
    assert pair[0].settings.freeu is None
