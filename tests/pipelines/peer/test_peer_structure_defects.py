"""What diffusers' pipelines along maps get wrong, shown on them, and what ours do instead."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
from pipelines import tiny
from pipelines.peer import oracle
from pipelines.peer.structure import NETS, deviation, maps, pair, theirs

import underdraw
from underdraw.errors import InputError, UnderdrawError

RED, CALL = "a red sphere", {"num_inference_steps": 2}


def made(pipe, **arguments):
    return oracle.images(pipe, **{"prompt": RED, **CALL, **arguments})


def test_a_third_scale_is_dropped():
    peer, ours = pair("text", "two")
    call = {"image": maps(2), "controlnet_conditioning_scale": [0.5, 1.0, 9.0]}
    two = {**call, "controlnet_conditioning_scale": [0.5, 1.0]}
    assert np.array_equal(made(peer, **call), made(peer, **two))
    with pytest.raises(
        InputError, match="controlnet_conditioning_scale has 3 entries; there are 2"
    ):
        made(ours, **call)
    # Starts and ends are counted there, too.
    with pytest.raises(InputError, match="control_guidance_start has 3 entries"):
        made(ours, image=maps(2), control_guidance_start=[0, 0, 0])


def test_lists_for_a_single_net_are_cut_to_their_first():
    peer, ours = pair("text")
    window = {"control_guidance_start": [0.0, 0.9], "control_guidance_end": [0.5, 1.0]}
    first = {"control_guidance_start": 0.0, "control_guidance_end": 0.5}
    assert np.array_equal(made(peer, image=maps(), **window), made(peer, image=maps(), **first))
    with pytest.raises(InputError, match="control_guidance_start has 2 entries; the call makes 1"):
        made(ours, image=maps(), **window)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("image", np.full((1, 48, 72, 3), np.nan, np.float32)),
        ("controlnet_conditioning_scale", float("nan")),
    ],
)
def test_nan_gives_a_picture(argument, value):
    peer, ours = pair("text")
    call = {"image": maps(), argument: value, "output_type": "pil"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pictures = peer(RED, **CALL, **call).images
    assert np.asarray(pictures[0]).size > 0
    with pytest.raises(InputError, match=argument):
        ours(RED, **CALL, **call)


def test_pictures_with_transparency_are_taken_for_latents():
    """Four channels: diffusers leaves them as they are, neither brought to the size nor refused,
    and fails in the network."""
    peer, ours = pair("text")
    see_through = torch.rand(1, 4, 48, 72)
    processor = peer.control_image_processor
    assert torch.equal(processor.preprocess(see_through, height=40, width=56), see_through)
    with pytest.raises(RuntimeError, match="channels"):
        made(peer, image=see_through)
    with pytest.raises(InputError, match=r"image has shape \(1, 4, 48, 72\)"):
        made(ours, image=see_through)
    # A PIL picture has a meaning: what shows through is white.
    assert made(ours, image=maps().convert("RGBA")).shape == (1, 48, 72, 3)


def test_layers_per_block_must_be_one_number():
    config = {**tiny.DEEP, "layers_per_block": (1, 2, 1)}
    unet = tiny.shake(underdraw.UNet2DConditionModel(**config))
    ours = tiny.controlnet(unet)
    assert len(ours.config.encoder.levels) == 3
    with pytest.raises(TypeError):
        diffusers.ControlNetModel.from_unet(diffusers.UNet2DConditionModel(**config))
    pipe = tiny.pipeline(unet=config)
    plain = tiny.run(pipe)
    steered = tiny.run(pipe, controls=[underdraw.Structure(ours, maps())])
    assert (steered - plain).abs().max() > 1e-2


def test_one_net_of_several_that_pools():
    """Such a net (shuffle) acts on the conditional half; of several diffusers asks the first alone,
    and cannot add others to its residuals, which have one pixel."""
    peer, mine = pair("text")
    parts = {name: value for name, value in peer.components.items() if name != "image_encoder"}
    nets, images = [NETS["one"](mine.unet), NETS["shuffle"](mine.unet)], maps(2)
    ours = []
    for order, fails in ((1, False), (-1, True)):
        parts["controlnet"] = theirs(nets[::order])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = diffusers.StableDiffusionControlNetPipeline(
                **parts, requires_safety_checker=False
            )
        if fails:
            with pytest.raises(RuntimeError, match="broadcast shape"):
                made(oracle.quiet(pipe), image=images[::order])
        else:
            wrong = made(oracle.quiet(pipe), image=images[::order])
        several = type(mine).from_pipe(mine, controlnet=nets[::order])
        ours.append(made(several, image=images[::order]))
    assert np.abs(ours[0] - ours[1]).max() <= 1e-4
    assert np.abs(ours[0] - wrong).max() > 1e-3


def test_adapters_put_maps_to_other_prompts():
    """With several images per prompt features are repeated as a whole, and belong to other
    prompts; one map for several prompts fails."""
    peer, ours = pair("adapter", "full")
    prompts = {"prompt": ["a red sphere", "a blue cube"], "num_images_per_prompt": 2}
    call = {**prompts, "image": maps(2), "seeds": range(4)}
    wrong, right = made(peer, **call), made(ours, **call)
    assert np.abs(wrong - right)[[0, 3]].max() <= 1e-4
    assert np.abs(wrong - right)[[1, 2]].max() > 1e-3
    single = made(ours, prompt="a blue cube", image=maps(2)[1], seeds=(2,))
    assert np.abs(single[0] - right[2]).max() <= 1e-4
    with pytest.raises(RuntimeError, match="size of tensor"):
        made(peer, **{**call, "image": maps()})
    assert made(ours, **{**call, "image": maps()}).shape == right.shape


def test_three_adapters_are_not_found_again(tmp_path):
    """diffusers writes the third of several adapters to `adapter_1_2`, and looks in `adapter_2`."""
    nets = [tiny.adapter(seed) for seed in (5, 6, 7)]
    peer = theirs(nets)
    peer.save_pretrained(str(tmp_path / "adapter"))
    assert diffusers.MultiAdapter.from_pretrained(str(tmp_path / "adapter")).num_adapter == 2
    ours = underdraw.MultiAdapter(nets)
    ours.save_pretrained(tmp_path / "ours" / "adapter")
    assert len(underdraw.MultiAdapter.from_pretrained(tmp_path / "ours" / "adapter")) == 3
    assert (
        diffusers.MultiAdapter.from_pretrained(str(tmp_path / "ours" / "adapter")).num_adapter == 3
    )


def test_nets_of_another_unet_fail_late():
    """diffusers takes a net of another base and fails in the first step; ours when it is given."""
    peer, ours = pair("text")
    other = tiny.controlnet({**tiny.DEEP, "cross_attention_dim": 48})
    parts = {name: value for name, value in peer.components.items() if name != "image_encoder"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        late = diffusers.StableDiffusionControlNetPipeline(
            **{**parts, "controlnet": theirs(other)}, requires_safety_checker=False
        )
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        made(oracle.quiet(late), image=maps())
    with pytest.raises(UnderdrawError, match="cross_attention_dim=48; the UNet has 32"):
        ours.controlnet = other
    assert deviation((peer, ours), prompt=RED, image=maps(), **CALL) <= 1e-4
