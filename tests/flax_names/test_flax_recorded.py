"""The pictures of diffusers 0.33.1's Flax pipelines, from the same weights, prompts and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_names.recorded import (
    BOUND,
    all_params,
    key,
    params,
    pipeline,
    record,
    recorded,
    scheduler,
)

from underdraw.errors import NonFiniteError

SIDES = dict(zip(("height", "width"), record.SIDES, strict=True))
CALLED = ("ddim", "ddim_latents", "pndm", "dpm", "dpm3")


def call(name="ddim", pipe=None, **changes):
    told = record.CALLS[name]
    pipe = pipe or pipeline()
    pipe.scheduler = scheduler(name.partition("_")[0])
    given = {
        "prompt_ids": pipe.prepare_inputs(record.THREE),
        "params": all_params(),
        "prng_seed": key(),
        "num_inference_steps": told.get("steps", record.STEPS),
        "guidance_scale": told.get("guidance", record.GUIDANCE),
        "neg_prompt_ids": pipe.prepare_inputs(told["negatives"]),
        "latents": record.latents() if told.get("latents") else None,
        **SIDES,
    }
    return pipe(**{**given, **changes})


def test_prompts_become_the_same_tokens():
    np.testing.assert_array_equal(pipeline().prepare_inputs(record.THREE), recorded()["ids"])
    one = pipeline().prepare_inputs(record.THREE[0])
    np.testing.assert_array_equal(one, recorded()["ids"][:1])


@pytest.mark.parametrize("name", CALLED)
def test_the_same_pictures(name):
    """Batches with negative prompts, three schedulers, height and width unlike."""
    made = call(name)
    assert made.images.dtype == np.float32 and made.nsfw_content_detected is False
    assert np.abs(made.images - recorded()[name]).max() <= BOUND


def test_another_prompt_key_guidance_and_solver_compile_nothing():
    pipe = pipeline()
    call(pipe=pipe)
    compiled = len(pipe.engine.compiled)
    assert "flax.loop" in {program.name for program, _ in pipe.engine.compiled}
    others = {"prng_seed": key(5), "guidance_scale": [1.0, 3.0, 9.0]}
    changed = call("dpm3", pipe, prompt_ids=pipe.prepare_inputs(record.THREE[::-1]), **others)
    call("pndm", pipe)  # a step less, of as many calls
    assert len(pipe.engine.compiled) == compiled
    assert np.abs(changed.images - recorded()["dpm3"]).max() > 0.1


def test_a_number_and_one_per_image_are_the_same_guidance():
    one = call(return_dict=False)
    listed = call(guidance_scale=jnp.full(3, record.GUIDANCE), return_dict=False)
    np.testing.assert_array_equal(one[0], listed[0])
    assert one[1] is False


def test_pndm_makes_its_last_call():
    """The original makes as many calls as steps, and PNDM has one more: the pictures that it gives
    are of the level before the last."""
    pipe = pipeline()
    try:
        pipe.compat = None
        whole = call("pndm", pipe).images
    finally:
        pipe.compat = "diffusers"
    assert np.abs(whole - recorded()["pndm"]).max() > BOUND
    assert np.abs(call("pndm", pipe).images - recorded()["pndm"]).max() <= BOUND


def test_bfloat16():
    """What is computed in half precision, with parameters of either, is near."""
    pipe = pipeline()
    half = type(pipe)(**{n: p for n, p in pipe.components.items() if p is not None})
    for name in ("unet", "vae"):
        network = half.components[name]
        setattr(half, name, type(network)(network.config, dtype=jnp.bfloat16))
    held = all_params()
    held["unet"] = half.unet.to_bf16(held["unet"])
    assert {str(x.dtype) for x in jax.tree_util.tree_leaves(held["unet"])} == {"bfloat16"}
    near = call(pipe=half, params=held).images
    assert 1e-3 < np.abs(near - recorded()["ddim"]).mean() < 0.05


def test_broken_weights_are_told():
    broken = all_params()
    kernel = broken["unet"]["conv_in"]["kernel"]
    conv = {**broken["unet"]["conv_in"], "kernel": kernel.at[0].set(jnp.nan)}
    broken["unet"] = {**broken["unet"], "conv_in": conv}
    with pytest.raises(NonFiniteError):
        call(params=broken)
    assert np.isfinite(np.asarray(params("unet")["conv_in"]["kernel"])).all()
