"""Pictures inverted with the components of a pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny

from underdraw.controls import AttentionEdit
from underdraw.errors import InputError, InputTypeError
from underdraw.pipelines.inversion import ddim, invert_pictures
from underdraw.pipelines.stable_diffusion_diffedit import StableDiffusionDiffEditPipeline
from underdraw.sampling.inversion import FixedPoint, NullTextInversion, finish

PROMPTS = ["a red sphere", "blue cube"]
STEPS = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.pipeline()
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.1)
    return pipe


def pictures():
    random = np.random.default_rng(2)
    return [Image.fromarray(random.integers(0, 255, (40, 72, 3), np.uint8)) for _ in range(2)]


def test_pictures_come_back(pipe):
    found = finish(invert_pictures(pipe, pictures(), PROMPTS, FixedPoint(1e-5, 30), **STEPS))
    assert found.noise.shape == (2, 4, 5, 9)
    assert len(found.error.latents) == len(found.error.psnr) == 2
    assert max(found.error.latents) < 1e-3 and min(found.error.psnr) > 50
    pixels = torch.stack([torch.tensor(np.asarray(one)).permute(2, 0, 1) for one in pictures()])
    with torch.no_grad():
        z = pipe.vae.encode(pixels / 127.5 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    torch.testing.assert_close(found.latents[0], z)
    made = tiny.pipeline()
    made.unet, made.scheduler = pipe.unet, ddim(pipe)
    back = made(
        PROMPTS, latents=found.noise, guidance_scale=1.0, output_type="latent", **STEPS
    ).images
    torch.testing.assert_close(back, z, rtol=1e-3, atol=5e-3)


def test_null_text_with_an_edit(pipe):
    """One picture, its prompt and another one: the first row is the picture."""
    method = NullTextInversion(iterations=2, rate=0.1)
    found = finish(
        invert_pictures(pipe, pictures()[0], PROMPTS[0], method, guidance_scale=4.0, **STEPS)
    )
    made = tiny.pipeline()
    made.unet, made.scheduler = pipe.unet, ddim(pipe)
    both = made(
        ["a red sphere", "a green sphere"],
        latents=found.noise.repeat(2, 1, 1, 1),
        guidance_scale=4.0,
        controls=[*found.controls, AttentionEdit()],
        output_type="latent",
        **STEPS,
    ).images
    torch.testing.assert_close(both[:1], found.reached, rtol=1e-3, atol=1e-3)
    assert (both[1] - both[0]).abs().max() > 1e-3


def test_it_serves_diffedit(pipe):
    """Levels that lead back exactly, where DiffEdit takes those of its own inversion."""
    needed = StableDiffusionDiffEditPipeline.components_needed
    parts = {name: getattr(pipe, name) for name in needed} | {"scheduler": ddim(pipe)}
    diffedit = StableDiffusionDiffEditPipeline(**parts)
    diffedit.set_progress_bar_config(disable=True)
    method = FixedPoint(1e-5, 30)
    found = finish(
        invert_pictures(diffedit, pictures(), PROMPTS, method, num_inference_steps=5, strength=0.6)
    )
    assert found.calls == 3 and max(found.error.latents) < 1e-3
    made = diffedit(
        PROMPTS,
        mask_image=np.ones((2, 5, 9), np.float32),
        image_latents=torch.stack(found.latents[::-1], 1),
        inpaint_strength=0.6,
        num_inference_steps=5,
        guidance_scale=1.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(made, found.latents[0], rtol=1e-3, atol=5e-3)


def test_a_call_between_two_steps_changes_nothing(pipe):
    run = invert_pictures(pipe, pictures(), PROMPTS, "plain", measure=False, **STEPS)
    expected = finish(invert_pictures(pipe, pictures(), PROMPTS, "plain", measure=False, **STEPS))
    kept = []
    for found in run:
        kept.append(found)
        tiny.run(pipe, "a cube", num_inference_steps=1, guidance_scale=6.0)
    assert torch.equal(kept[-1].noise, expected.noise)


def test_mistakes_are_told_before_any_work(pipe):
    calls = tiny.counted(pipe)
    for arguments, error, message in (
        ({"image": None}, InputTypeError, "image"),
        ({"prompt": PROMPTS[0], "method": "best"}, InputError, "method='best' is not known"),
        ({"prompt": ["a"] * 3}, InputError, "2 pictures; there are 3 prompts"),
        ({"prompt": None}, InputError, "prompt=None"),
        ({"num_inference_steps": 0}, InputError, "num_inference_steps=0"),
        ({"method": "null-text", "guidance_scale": 1.0}, InputError, "guidance needs"),
    ):
        given = {"image": pictures(), "prompt": PROMPTS, **STEPS, **arguments}
        with pytest.raises(error, match=message):
            finish(invert_pictures(pipe, **given))
    assert not calls
