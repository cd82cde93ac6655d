"""diffusers' methods besides its calls, for code with a loop of its own."""

import numpy as np
import pytest
import torch
from pipelines.peer import beginnings, diffedit, oracle
from pipelines.peer.diffedit import quietly

from underdraw.errors import InputError

LIMIT = 1e-5
SIZE = (6, 9)
LATENTS = torch.randn(3, 4, *SIZE, generator=torch.Generator().manual_seed(8))
PICTURES = beginnings.as_tensor(beginnings.pictures(3)) * 2 - 1


@torch.no_grad()
def apart(method, pipes, *given, seeds=(3,), **arguments):
    """The largest difference of what a method of both gives, by result."""
    made = [
        quietly(
            lambda p=pipe: getattr(p, method)(
                *given, **arguments, generator=oracle.generators(*seeds)
            )
        )
        for pipe in pipes
    ]
    theirs, ours = (one if isinstance(one, tuple) else (one,) for one in made)
    assert [one.shape for one in theirs] == [one.shape for one in ours]
    assert all(one.std() > 0.1 for one in theirs)
    return max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))


def timed(pipes, steps=6, at=3):
    """Both schedulers set to some steps; the timestep of one."""
    for pipe in pipes:
        pipe.scheduler.set_timesteps(steps)
    return pipes[0].scheduler.timesteps[at : at + 1]


@pytest.mark.parametrize("seeds", [(3,), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("image", [PICTURES, PICTURES[:1], LATENTS])
def test_latents_of_pictures(image, seeds):
    pipes = beginnings.pair("img2img")
    at = timed(pipes)
    given = (image, at.repeat(6), 3, 2, torch.float32, torch.device("cpu"))
    assert apart("prepare_latents", pipes, *given, seeds=seeds) <= LIMIT
    with pytest.raises(InputError, match="image has 3 rows; allowed: a divisor of 4"):
        pipes[1].prepare_latents(PICTURES, at, 2, 2)


@pytest.mark.parametrize("seeds", [(3,), (1, 2, 3)])
@pytest.mark.parametrize("asked", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("most", [True, False])
def test_latents_of_inpainting(most, asked, seeds):
    pipes = beginnings.pair("inpaint")
    at = timed(pipes)
    named = dict(zip(("return_noise", "return_image_latents"), asked, strict=True))
    given = (3, 4, 48, 72, torch.float32, torch.device("cpu"))
    own = {"image": PICTURES, "timestep": at.repeat(3), "is_strength_max": most, **named}
    assert apart("prepare_latents", pipes, *given, **own, seeds=seeds) <= LIMIT
    own["latents"] = LATENTS
    assert apart("prepare_latents", pipes, *given, **own, seeds=seeds) <= LIMIT
    own |= {"image": LATENTS[:1], "latents": None}
    assert apart("prepare_latents", pipes, *given, **own, seeds=seeds) <= LIMIT


def test_latents_of_inpainting_that_lack_something():
    _, ours = beginnings.pair("inpaint")
    for given in ({"is_strength_max": False}, {"return_image_latents": True}):
        with pytest.raises(InputError, match="give image"):
            ours.prepare_latents(1, 4, 48, 72, **given)
    made = ours.prepare_latents(1, 4, 48, 72)
    assert len(made) == 1 and made[0].shape == (1, 4, *SIZE)


@pytest.mark.parametrize("seeds", [(3,), (1, 2, 3)])
@pytest.mark.parametrize("image", [PICTURES, LATENTS, LATENTS[:1]])
def test_latents_of_edits(image, seeds):
    pipes = diffedit.pair()
    given = (image, 3, torch.float32, torch.device("cpu"))
    assert apart("prepare_image_latents", pipes, *given, seeds=seeds) <= LIMIT


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_the_way_upwards(kind):
    pipes = diffedit.pair(kind)
    for strength in (1.0, 0.35):
        found = []
        for pipe in pipes:
            pipe.inverse_scheduler.set_timesteps(10)
            times, steps = pipe.get_inverse_timesteps(10, strength, "cpu")
            found.append((times.tolist(), steps))
        assert found[0] == found[1]
    for at in (1, 501, 901):
        theirs, ours = (pipe.get_epsilon(LATENTS, LATENTS.flip(0), at) for pipe in pipes)
        assert (theirs - ours).abs().max() <= LIMIT
    without = diffedit.underdraw.StableDiffusionDiffEditPipeline.from_pipe(
        pipes[1], inverse_scheduler=None
    )
    with pytest.raises(InputError, match="inverse_scheduler=None"):
        without.get_inverse_timesteps(10, 1.0)


def test_pictures_of_numbers():
    pixels = np.random.default_rng(0).random((2, 5, 7, 3))
    for shown in (pixels, pixels[0], pixels[..., :1]):
        theirs, ours = (pipe.numpy_to_pil(images=shown) for pipe in oracle.pair("sd1"))
        for one, other in zip(theirs, ours, strict=True):
            assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("threshold", [-1.0, 1.0])
def test_the_safety_checker_takes_the_peers_call(threshold):
    theirs, ours = oracle.pair("sd1")
    for pipe in (theirs, ours):
        assert pipe.run_safety_checker(PICTURES, "cpu", torch.float32) == (PICTURES, None)
    parts = dict(
        zip(("safety_checker", "feature_extractor"), oracle.checker(threshold), strict=True)
    )
    flags = [
        quietly(lambda p=pipe: type(p)(**{**p.components, **parts})).run_safety_checker(
            image=PICTURES.clone(), device="cpu", dtype=torch.float32
        )[1]
        for pipe in (theirs, ours)
    ]
    assert flags[0] == flags[1] and len(flags[1]) == 3
