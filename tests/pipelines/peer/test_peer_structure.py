"""The pipelines along maps against diffusers': same networks, same arguments, same pictures."""

import diffusers
import numpy as np
import pytest
import torch
from pipelines.peer import oracle
from pipelines.peer.structure import deviation, maps, masks, pair, pictures

import underdraw
from underdraw import schedulers

RED = "a red sphere"
LATENTS = torch.randn(1, 4, 6, 9, generator=torch.Generator().manual_seed(2))
THREE = ["a red sphere", "a blue cube on the table", "green"]
EDGE = {"control_image": maps(), "image": pictures(seed=4)}
HOLE = {**EDGE, "mask_image": masks()}
BATCH = {"prompt": THREE[:2], "num_images_per_prompt": 2, "seeds": range(4)}
CASES = {
    "a map": ("text", "one", {"image": maps()}),
    "numpy": ("text", "one", {"image": np.asarray(maps(), np.float32)[None] / 255}),
    "a size": ("text", "one", {"image": maps(), "height": 40, "width": 56}),
    "not of eight": ("text", "one", {"image": maps(1, 45, 79)}),
    "maps of prompts": ("text", "one", {"image": maps(2), **BATCH}),
    "a weak net": ("text", "one", {"image": maps(), "controlnet_conditioning_scale": 0.3}),
    "a window": (
        "text",
        "one",
        {
            "image": maps(),
            "control_guidance_start": 0.21,
            "control_guidance_end": 0.6,
            "num_inference_steps": 5,
        },
    ),
    "guess": ("text", "one", {"image": maps(), "guess_mode": True, "prompt": ""}),
    "guess, unguided": ("text", "one", {"image": maps(), "guess_mode": True, "guidance_scale": 1}),
    "shuffle": ("text", "shuffle", {"image": maps()}),
    "two nets": (
        "text",
        "two",
        {
            "image": maps(2),
            "controlnet_conditioning_scale": [0.5, 1.2],
            "control_guidance_start": [0.0, 0.4],
            "control_guidance_end": [0.6, 1.0],
        },
    ),
    "two nets, one scale": (
        "text",
        "two",
        {"image": maps(2), "controlnet_conditioning_scale": 0.6, "guess_mode": True},
    ),
    "two nets, two prompts": (
        "text",
        "two",
        {"image": [list(one) for one in zip(maps(2), maps(4)[2:], strict=True)], **BATCH},
    ),
    "a picture": ("img2img", "one", EDGE),
    "a picture, smaller": ("img2img", "one", {**EDGE, "height": 40, "width": 56, "strength": 0.5}),
    "pictures": (
        "img2img",
        "one",
        {
            "image": pictures(3, seed=4),
            "control_image": maps(3),
            "prompt": THREE,
            "seeds": range(3),
        },
    ),
    "a picture and two nets": (
        "img2img",
        "two",
        {**EDGE, "control_image": maps(2), "guess_mode": True},
    ),
    "its latents": ("img2img", "one", {**EDGE, "latents": LATENTS}),
    "a hole": ("inpaint", "one", HOLE),
    "a hole, half": ("inpaint", "one", {**HOLE, "strength": 0.6, "guess_mode": True}),
    "a hole, cut": ("inpaint", "one", {**HOLE, "padding_mask_crop": 4, "output_type": "pil"}),
    "a hole, two nets": (
        "inpaint",
        "two",
        {**HOLE, "control_image": maps(2), "controlnet_conditioning_scale": [0.9, 0.1]},
    ),
    "full": ("adapter", "full", {"image": maps()}),
    "full, weak, other size": (
        "adapter",
        "full",
        {"image": maps(), "height": 40, "width": 56, "adapter_conditioning_scale": 0.3},
    ),
    "maps of adapters": ("adapter", "full", {"image": maps(3), "prompt": THREE, "seeds": range(3)}),
    "light": ("adapter", "light", {"image": maps()}),
    "grey": ("adapter", "grey", {"image": maps().convert("L")}),
    "two adapters": (
        "adapter",
        "both",
        {"image": maps(2), "adapter_conditioning_scale": [0.4, 0.9]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pictures(name):
    kind, nets, call = CASES[name]
    call = {"prompt": RED, "num_inference_steps": 2, "negative_prompt": "a cube", **call}
    if isinstance(call["prompt"], list):
        call["negative_prompt"] = ["a cube", "", "red"][: len(call["prompt"])]
    level = 1 / 255 if call.get("output_type") == "pil" else 1  # of pixels, which are whole numbers
    assert deviation(pair(kind, nets), **call) * level <= (1e-4 if level == 1 else 1.01 / 255)


@pytest.mark.parametrize("kind", ["sd2", "wide"])
def test_other_networks(kind):
    """Linear projections, v-prediction; levels that attend to the text only."""
    assert deviation(pair("text", "one", kind), prompt=RED, image=maps()) <= 1e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_solver_of_two_calls_a_step():
    """Latents are scaled for it, and each call counts in a window."""
    theirs, ours = pair("text")
    before, config = (theirs.scheduler, ours.scheduler), dict(theirs.scheduler.config)
    theirs.scheduler = diffusers.HeunDiscreteScheduler.from_config(config)
    ours.scheduler = schedulers.HeunDiscreteScheduler.from_config(config)
    try:
        call = {"prompt": RED, "image": maps(), "control_guidance_end": 0.45}
        assert deviation((theirs, ours), **call) <= 1e-4
    finally:
        theirs.scheduler, ours.scheduler = before


@pytest.mark.parametrize(("kind", "nets"), [("text", "two"), ("adapter", "full")])
def test_folders(tmp_path, kind, nets):
    """diffusers' folder is read by ours, ours by diffusers."""
    several = nets == "two"
    theirs, ours = pair(kind, nets)
    call = {"prompt": RED, "image": maps(2) if several else maps(), "num_inference_steps": 2}
    theirs.save_pretrained(tmp_path / "theirs")
    read = oracle.quiet(underdraw.DiffusionPipeline.from_pretrained(tmp_path / "theirs"))
    assert type(read) is type(ours)
    assert deviation((theirs, read), **call) <= 1e-5
    ours.save_pretrained(tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours", local_files_only=True)
    assert deviation((oracle.quiet(back), ours), live=True, **call) <= 1e-5
    assert underdraw.DiffusionPipeline.from_pretrained(tmp_path / "ours").components.keys() == (
        ours.components.keys()
    )
