"""Image-to-image and inpainting against diffusers', over a product of arguments and solvers."""

import numpy as np
import pytest
import torch
from pipelines.peer import beginnings
from pipelines.peer.beginnings import as_numpy, as_tensor, masks, pair, pictures
from pipelines.peer.oracle import apart as deviation
from pipelines.peer.test_peer_images import SOLVERS

from underdraw import schedulers

LIMIT = 1e-4
RED, BLUE = "a red sphere", "blue cube on the table"
THREE = [RED, BLUE, ""]
LATENTS = torch.randn(1, 4, 6, 9, generator=torch.Generator().manual_seed(2))
LISTED = {"seeds": (1, 2, 3)}

IMAGES = {
    "PIL": pictures(),
    "odd PIL": pictures(1, 53, 79),
    "numpy": as_numpy(pictures()),
    "numpy, 3 axes": as_numpy(pictures())[0],
    "odd numpy": as_numpy(pictures(1, 53, 79)),
    "tensor": as_tensor(pictures()),
    "odd tensor": as_tensor(pictures(1, 53, 79)),
    "signed tensor": as_tensor(pictures()) * 2 - 1,
    "list of PIL": [pictures()],
    "latents": LATENTS,
}

IMG2IMG = {
    "plain": {},
    "weak": {"strength": 0.3, "num_inference_steps": 7},
    "whole": {"strength": 1.0},
    "rounded down": {"strength": 0.58, "num_inference_steps": 7},
    "unguided": {"guidance_scale": 1.0, "strength": 0.5},
    "negative": {"negative_prompt": "green table"},
    "batch": {"prompt": THREE, "image": pictures(3)},
    "batch, tensor": {"prompt": THREE, "image": as_tensor(pictures(3))},
    "batch, generators": {"prompt": THREE, "image": pictures(3), **LISTED},
    "one picture, three prompts": {"prompt": THREE},
    "one picture, generators": {"prompt": THREE, **LISTED},
    "per prompt": {"num_images_per_prompt": 3},
    "per prompt, generators": {"num_images_per_prompt": 3, **LISTED},
    "latent": {"output_type": "latent"},
    "pt": {"output_type": "pt"},
}


@pytest.mark.parametrize("case", IMAGES)
def test_pictures(case):
    image = IMAGES[case]
    assert deviation(pair("img2img"), prompt=RED, image=image) <= LIMIT


@pytest.mark.parametrize("case", IMG2IMG)
def test_image_to_image(case):
    call = {"prompt": RED, "image": pictures(), **IMG2IMG[case]}
    assert deviation(pair("img2img"), **call) <= LIMIT


# Prompts, pictures, images per prompt, and whether each image has a generator.
SPREAD = [(1, 2, 2, False), (1, 2, 4, True), (2, 4, 2, False), (4, 2, 1, True)]


@pytest.mark.parametrize(("prompts", "count", "each", "listed"), SPREAD)
@pytest.mark.parametrize("case", ["img2img", "inpaint", "nine channels"])
def test_pictures_take_turns_under_compat(case, prompts, count, each, listed):
    """Pictures ask for no images of their own in diffusers: there are so many as prompts ask for,
    and beside the images the pictures are repeated as a whole."""
    call = {"prompt": [RED, BLUE, "", "red"][:prompts], "image": pictures(count), "strength": 0.7}
    few = {"num_images_per_prompt": each, "num_inference_steps": 3}
    seeds = {"seeds": tuple(range(prompts * each))} if listed else {}
    name, channels = ("inpaint", 9) if case == "nine channels" else (case, 4)
    if name == "inpaint":
        call |= {"mask_image": masks(count), **SIZE}
    assert deviation(pair(name, "diffusers", channels), **call, **few, **seeds) <= LIMIT


SIZE = {"height": 48, "width": 72}
INPAINT = {
    "plain": {},
    "weak": {"strength": 0.4},
    "almost whole": {"strength": 0.99},
    "unguided": {"guidance_scale": 1.0, "strength": 0.7},
    "negative": {"negative_prompt": "green table"},
    "trained size": {"height": None, "width": None},
    "another size": {"height": 40, "width": 56, "strength": 0.7},
    "tensors": {"image": as_tensor(pictures()), "mask_image": as_tensor(masks())},
    "mask of two axes": {"mask_image": as_numpy(masks())[0]},
    "mask of three axes": {"mask_image": as_numpy(masks())},
    "resized tensors": {
        "image": as_tensor(pictures(1, 53, 79)),
        "mask_image": as_tensor(masks(1, 53, 79)),
        "strength": 0.7,
    },
    "grey mask": {"mask_image": masks().point(lambda v: v * 0.6)},
    "coloured mask": {"mask_image": masks(1, 60, 60).convert("RGB")},
    "batch": {"prompt": THREE, "image": pictures(3), "mask_image": masks(3), "strength": 0.7},
    "batch, generators": {
        "prompt": THREE,
        "image": pictures(3),
        "mask_image": masks(3),
        "strength": 0.7,
        **LISTED,
    },
    "one picture, three prompts": {"prompt": THREE},
    "per prompt": {"num_images_per_prompt": 3, "strength": 0.5},
    "noise": {"latents": LATENTS},
    "known mask": {"masked_image_latents": LATENTS * 0.2},
    "latent": {"output_type": "latent"},
    "pt": {"output_type": "pt"},
    "crop": {"padding_mask_crop": 4, "output_type": "pil"},
    "crop, no padding": {"padding_mask_crop": 0, "output_type": "pil", "strength": 0.6},
    "crop at an edge": {
        "padding_mask_crop": 30,
        "output_type": "pil",
        "image": pictures(1, 90, 61),
        "mask_image": masks(1, 90, 61),
    },
}


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("case", INPAINT)
def test_inpainting(case, channels):
    steps = {"num_inference_steps": 5 if "strength" in INPAINT[case] else 3}
    call = {"prompt": RED, "image": pictures(), "mask_image": masks(), **steps, **SIZE}
    call |= INPAINT[case]
    limit = LIMIT
    if "padding_mask_crop" in call:
        limit = 1.01  # of 255: diffusers rounds on its way through premultiplied colours
    assert deviation(pair("inpaint", None, channels), **call) <= limit


def test_inpainting_of_latents():
    call = {"prompt": RED, "image": LATENTS, "mask_image": masks(), **SIZE, "strength": 0.7}
    call["masked_image_latents"] = LATENTS * 0.5
    for channels in (4, 9):
        assert deviation(pair("inpaint", None, channels), **call) <= LIMIT


@pytest.fixture
def solvers(monkeypatch):
    def use(pipes, name, config):
        theirs, ours = pipes
        whole = {**theirs.scheduler.config, **config}
        whole.pop("_use_default_values", None)
        monkeypatch.setattr(theirs, "scheduler", beginnings.oracle.scheduler(name, whole))
        monkeypatch.setattr(ours, "scheduler", getattr(schedulers, name).from_config(whole))

    return use


# diffusers' LMS begun later takes one term of a sum of four (tests/solvers/peer shows it).
MIDDLE = [
    (name, config)
    for name, config in SOLVERS
    if "rescale_betas_zero_snr" not in config and name != "LMSDiscreteScheduler"
]


@pytest.mark.parametrize(("name", "config"), MIDDLE, ids=lambda v: v if isinstance(v, str) else "")
def test_every_solver_begins_in_the_middle(solvers, name, config):
    """Those of several calls per step, too; noise inside steps comes from the same generators."""
    for kind, steps, strength in (("img2img", 5, 0.5), ("inpaint", 4, 0.8)):
        pipes = pair(kind, "diffusers" if name == "KDPM2DiscreteScheduler" else None)
        solvers(pipes, name, config)
        call = {"prompt": RED, "image": pictures(), "num_inference_steps": steps}
        if kind == "inpaint":
            call |= {"mask_image": masks(), **SIZE}
        assert deviation(pipes, strength=strength, **call) <= LIMIT


def test_lms_begins_in_the_middle_with_one_term_of_a_sum_of_four_there(solvers):
    for kind in ("img2img", "inpaint"):
        call = {"prompt": RED, "image": pictures(), "strength": 0.5, "num_inference_steps": 8}
        if kind == "inpaint":
            call |= {"mask_image": masks(), **SIZE}
        for compat in (None, "diffusers"):
            pipes = pair(kind, compat)
            solvers(pipes, "LMSDiscreteScheduler", {})
            apart = deviation(pipes, **call)
            assert apart > 0.01 if compat is None else apart <= LIMIT


@pytest.mark.parametrize(
    "custom", [{"timesteps": [901, 500, 220, 41]}, {"sigmas": [9.0, 3, 1, 0.2]}]
)
def test_custom_steps(solvers, custom):
    pipes = pair("img2img")
    solvers(pipes, "EulerDiscreteScheduler", {})
    call = {"prompt": RED, "image": pictures(), "strength": 0.5, **custom}
    assert deviation(pipes, **call) <= LIMIT


def test_callbacks_see_and_change_the_tensors_of_inpainting():
    def look(pipe, index, time, held):
        seen.append({name: value.clone() for name, value in held.items()})
        if index == 1:
            mask = held["mask"].clone()
            mask[:, :, :, ::2] = 0
            return {"mask": mask, "masked_image_latents": held["masked_image_latents"] * 0.5}
        return {}

    names = ["latents", "mask", "masked_image_latents"]
    call = {"prompt": RED, "image": pictures(), "mask_image": masks(), **SIZE}
    call |= {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": names}
    for channels in (4, 9):
        found = []
        for pipe in pair("inpaint", None, channels):
            seen = []
            made = beginnings.oracle.images(pipe, **call)
            found.append((seen, made))
        (theirs, picture), (ours, same) = found
        assert np.abs(picture - same).max() <= LIMIT
        assert len(theirs) == len(ours) == 6
        for peer, mine in zip(theirs, ours, strict=True):
            for name in names:
                assert peer[name].shape == mine[name].shape
                assert (peer[name] - mine[name]).abs().max() <= LIMIT * max(
                    1, peer[name].abs().max()
                )


# -- where diffusers is wrong ---------------------------------------------------------------------


def test_the_peer_gives_pictures_to_the_wrong_prompts():
    """Two pictures, two prompts, two images each: the first two images are of the first picture."""
    call = {"prompt": [RED, BLUE], "image": pictures(2), "num_images_per_prompt": 2}
    call |= {"strength": 0.2, "seeds": (1, 2, 1, 2), "output_type": "latent"}
    theirs, ours = (beginnings.oracle.images(pipe, **call) for pipe in pair("img2img"))
    alone = [
        beginnings.oracle.images(
            pair("img2img")[1], **{**call, "prompt": p, "image": i, "seeds": (1, 2)}
        )
        for p, i in zip([RED, BLUE], pictures(2), strict=True)
    ]
    assert np.abs(ours - np.concatenate(alone)).max() <= LIMIT * 10
    assert np.abs(theirs - ours).max() > 0.1
    assert deviation(pair("img2img", "diffusers"), **call) <= LIMIT * 10


@pytest.mark.parametrize("channels", [4, 9])
def test_the_peer_lets_an_image_depend_on_its_neighbours(channels):
    """One picture for three prompts: it encodes it with the first image's generator only."""
    call = {"image": pictures(), "mask_image": masks(), "strength": 0.5, **SIZE}
    call |= {"output_type": "latent"}
    theirs, ours = pair("inpaint", None, channels)
    whole = beginnings.oracle.images(ours, prompt=THREE, **LISTED, **call)
    peer = beginnings.oracle.images(theirs, prompt=THREE, **LISTED, **call)
    third = beginnings.oracle.images(ours, prompt=THREE[2], seeds=(3,), **call)
    assert np.abs(whole[2] - third[0]).max() <= LIMIT * 10
    assert np.abs(peer[2] - third[0]).max() > 1e-3
    compat = pair("inpaint", "diffusers", channels)
    assert deviation(compat, prompt=THREE, **LISTED, **call) <= LIMIT * 10


def test_the_peer_begins_given_noise_at_the_wrong_level(solvers):
    """`latents` with a part of the steps: it takes noise of full size for the middle of the run."""
    call = {"prompt": RED, "image": pictures(), "mask_image": masks(), **SIZE}
    call |= {"latents": LATENTS, "strength": 0.5}
    for compat in (None, "diffusers"):
        pipes = pair("inpaint", compat)
        solvers(pipes, "EulerDiscreteScheduler", {})
        if compat is None:
            assert deviation(pipes, **call) > 0.01
        else:
            assert deviation(pipes, **call) <= LIMIT


def test_the_peer_blends_at_the_wrong_level_inside_the_steps_of_dpm2(solvers):
    """In the middle of a step it adds the noise of the step's end, less than what the network is
    told of."""
    seen = []

    def look(pipe, index, time, held):
        seen.append((float(time), held["latents"].double()))
        return {}

    pipes = pair("inpaint")
    solvers(pipes, "KDPM2DiscreteScheduler", {"use_karras_sigmas": True})
    nothing = torch.zeros(1, 1, 48, 72)
    call = {"prompt": RED, "image": torch.zeros(1, 4, 6, 9), "mask_image": nothing, **SIZE}
    call |= {"masked_image_latents": torch.zeros(1, 4, 6, 9), "latents": torch.ones(1, 4, 6, 9)}
    sizes = []
    for pipe in pipes:
        seen = []
        beginnings.oracle.images(pipe, callback_on_step_end=look, **call)
        sizes.append([latents.mean().item() for _, latents in seen])
    row = pipes[1].scheduler.make_table(5).row
    wanted = [row(i + 1).sigma for i in range(len(sizes[1]) - 1)]
    assert np.allclose(sizes[1][:-1], wanted, atol=1e-5) and sizes[1][-1] == 0
    assert np.allclose(sizes[0][1::2], sizes[1][1::2], atol=1e-5)
    assert (np.array(sizes[0][:-1:2]) < 0.8 * np.array(sizes[1][:-1:2])).all()


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_a_foreign_scheduler_begins_in_the_middle(monkeypatch, name):
    for kind in ("img2img", "inpaint"):
        theirs, ours = pair(kind)
        whole = {**theirs.scheduler.config}
        whole.pop("_use_default_values", None)
        for pipe in (theirs, ours):
            monkeypatch.setattr(pipe, "scheduler", beginnings.oracle.scheduler(name, whole))
        call = {"prompt": RED, "image": pictures(), "strength": 0.5}
        if kind == "inpaint":
            call |= {"mask_image": masks(), **SIZE}
        assert deviation((theirs, ours), **call) <= LIMIT
