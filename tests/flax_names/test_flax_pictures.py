"""Image to image, inpainting and ControlNet, against the recorded pictures of diffusers 0.33.1."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from flax_names.recorded import BOUND, all_params, key, pipeline, record, recorded, scheduler
from PIL import Image
from zoo import ZOO

from underdraw.errors import InputError, InputTypeError, UnderdrawError

IMG2IMG = "FlaxStableDiffusionImg2ImgPipeline"
INPAINT = ("FlaxStableDiffusionInpaintPipeline", "wide")
CONTROLNET = ("FlaxStableDiffusionControlNetPipeline", "unet", "controlnet")
PICTURES = [Image.fromarray(record.picture(i, (70, 90))) for i in range(3)]
MASKS = [Image.fromarray(record.mask((70, 90)))] * 3


def shared(pipe, name, unet="unet", *beside):
    told = record.CALLS[name]
    pipe.scheduler = scheduler("ddim")
    given = {
        "params": all_params(unet, *beside),
        "prng_seed": key(),
        "num_inference_steps": told.get("steps", record.STEPS),
        "guidance_scale": record.GUIDANCE,
    }
    if "negatives" in told:
        given["neg_prompt_ids"] = pipe.tokens(told["negatives"])
    return given


def img2img(**changes):
    pipe = pipeline(IMG2IMG)
    small = np.stack([record.picture(i, record.SIDES) for i in range(3)])
    image = np.asarray(small.transpose(0, 3, 1, 2) / 127.5 - 1.0, np.float32)
    given = {"image": image, "prompt_ids": pipe.tokens(record.THREE), "strength": 0.65}
    return pipe(**{**shared(pipe, "img2img"), **given, **changes})


def inpaint(**changes):
    pipe = pipeline(*INPAINT)
    names = ("prompt_ids", "masked_image", "mask")
    given = dict(zip(names, pipe.prepare_inputs(record.THREE, PICTURES, MASKS), strict=True))
    given |= {"height": record.SIDES[0], "width": record.SIDES[1]}
    return pipe(**{**shared(pipe, "inpaint", "wide"), **given, **changes})


def controlnet(**changes):
    pipe = pipeline(*CONTROLNET)
    image = pipe.prepare_image_inputs(Image.fromarray(record.picture(4, record.CONTROL_SIDES)))
    given = {"image": image, "prompt_ids": pipe.prepare_text_inputs(record.THREE[:1])}
    given["controlnet_conditioning_scale"] = record.CALLS["controlnet"]["strength"]
    return pipe(**{**shared(pipe, "controlnet", "unet", "controlnet"), **given, **changes})


CALLS = {"img2img": img2img, "inpaint": inpaint, "controlnet": controlnet}


@cache
def made_by(name):
    """Pictures of the call as it was recorded."""
    return CALLS[name]().images


@pytest.mark.parametrize("name", CALLS)
def test_the_same_pictures(name):
    made = made_by(name)
    assert made.shape == recorded()[name].shape
    assert np.abs(made - recorded()[name]).max() <= BOUND


def test_what_is_prepared():
    """From pictures of odd sizes."""
    _, image = pipeline(IMG2IMG).prepare_inputs(record.THREE, PICTURES)
    assert image.shape == (3, 3, 64, 64)
    np.testing.assert_allclose(image[:, :, ::8, ::8], recorded()["prepared_image"], atol=1e-6)
    _, masked, mask = pipeline(*INPAINT).prepare_inputs(record.THREE, PICTURES, MASKS)
    np.testing.assert_allclose(masked[:, :, ::8, ::8], recorded()["prepared_masked"], atol=1e-6)
    np.testing.assert_array_equal(mask[:, :, ::8, ::8], recorded()["prepared_mask"])
    one = pipeline(IMG2IMG).prepare_inputs("a", PICTURES[0])[1]
    np.testing.assert_array_equal(one, image[:1])


def test_another_strength_compiles_nothing():
    pipe = pipeline(IMG2IMG)
    made_by("img2img")
    compiled = len(pipe.engine.compiled)
    weak = img2img(strength=0.3).images
    assert len(pipe.engine.compiled) == compiled
    assert np.abs(weak - recorded()["img2img"]).max() > 0.1


def test_a_number_and_a_scale_per_image_of_the_map():
    pipe = pipeline(*CONTROLNET)
    one = made_by("controlnet")
    compiled = len(pipe.engine.compiled)
    np.testing.assert_array_equal(
        controlnet(controlnet_conditioning_scale=jnp.array([0.8])).images, one
    )
    assert np.abs(controlnet(controlnet_conditioning_scale=0.0).images - one).max() > 0.01
    assert len(pipe.engine.compiled) == compiled


WITHOUT = all_params("unet", "controlnet")
del WITHOUT["controlnet"]
WRONG = [
    (img2img, {"image": np.zeros((3, 3, 8, 8), np.float32), "height": 24}, "image"),
    (img2img, {"image": PICTURES[0]}, "image"),
    (img2img, {"strength": 1.5}, "strength"),
    (img2img, {"strength": 0.1}, "strength"),
    (img2img, {"noise": np.zeros((1, 4, 12, 20), np.float32)}, "noise"),
    (inpaint, {"mask": np.zeros((3, 3, 8, 8), np.float32)}, "mask"),
    (inpaint, {"masked_image": np.zeros((1, 3, 8, 8), np.float32)}, "masked_image"),
    (inpaint, {"params": all_params()}, "params"),
    (controlnet, {"image": np.zeros((3, 64, 64), np.float32)}, "image"),
    (controlnet, {"controlnet_conditioning_scale": [1.0, 2.0]}, "controlnet_conditioning_scale"),
    (controlnet, {"params": WITHOUT}, "controlnet"),
]


@pytest.mark.parametrize(("call", "changes", "told"), WRONG)
def test_what_cannot_work_is_told(call, changes, told, monkeypatch):
    for kind in ((IMG2IMG,), INPAINT, CONTROLNET):
        monkeypatch.setattr(type(pipeline(*kind)), "ask", None)
    with pytest.raises((InputError, InputTypeError, UnderdrawError), match=told):
        call(**changes)


TRIED = [
    (img2img, "image"),
    (img2img, "strength"),
    (img2img, "noise"),
    (inpaint, "mask"),
    (inpaint, "masked_image"),
    (controlnet, "image"),
    (controlnet, "controlnet_conditioning_scale"),
    (controlnet, "latents"),
]


@pytest.mark.parametrize(("call", "argument"), TRIED)
def test_a_part_of_the_zoo(call, argument, monkeypatch):
    def stopped(*given):
        raise ZeroDivisionError

    for kind in ((IMG2IMG,), INPAINT, CONTROLNET):
        monkeypatch.setattr(type(pipeline(*kind)), "ask", stopped)
    wrong = {}
    for which in list(ZOO)[TRIED.index((call, argument)) % 6 :: 6]:
        try:
            call(**{argument: ZOO[which]()})
        except UnderdrawError as error:
            wrong |= {} if argument in str(error) else {which: str(error)[:200]}
        except ZeroDivisionError:
            pass
        except Exception as error:
            wrong[which] = f"{type(error).__name__}: {error!s:.200}"
    assert wrong == {}
