"""`Region`: what lies outside the mask, call by call, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny

from underdraw import schedulers
from underdraw.controls.control import Control
from underdraw.controls.region import Region
from underdraw.errors import InputError, InputTypeError

HEIGHT, WIDTH = 48, 72  # never square: swapped axes must fail
CALL = {"num_inference_steps": 4, "height": HEIGHT, "width": WIDTH}
SHAPE = (1, 4, HEIGHT // 8, WIDTH // 8)


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels)


def half() -> torch.Tensor:
    """Free in the upper rows."""
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[:, :, :2] = 1
    return mask


def encoded(pipe, photo):
    pixels = torch.from_numpy(np.asarray(photo, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
    with torch.no_grad():
        return pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor


@pytest.mark.parametrize(
    "name",
    ["DDIM", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "PNDM", "UniPCMultistep"],
)
def test_the_background_ends_as_the_clean_latents(photo, name):
    kind = getattr(schedulers, f"{name}Scheduler")
    pipe = tiny.pipeline(scheduler=kind(**tiny.SCHEDULE))
    clean, mask = encoded(pipe, photo), half()
    made = tiny.run(pipe, **CALL, controls=[Region(mask, image=photo)])
    free = tiny.run(pipe, **CALL)
    outside = mask.expand_as(clean) == 0
    assert torch.allclose(made[outside], clean[outside], atol=1e-5)
    assert (made - clean)[~outside].abs().max() > 0.1
    assert torch.isfinite(made).all() and not torch.equal(made, free)


def test_levels_on_the_way_are_those_of_the_next_call(pipe, photo):
    """With one noise, which is the run's own."""
    clean, noise = (
        encoded(pipe, photo),
        torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)),
    )
    table, mask, seen = pipe.scheduler.make_table(4), half(), []

    def look(_, step, time, held):
        seen.append(held["latents"])

    region = Region(mask, latents=clean, noise=noise)
    tiny.run(pipe, **CALL, latents=noise, controls=[region], callback_on_step_end=look)
    outside = mask.expand_as(clean) == 0
    for index, latents in enumerate(seen[:-1]):
        row = table.row(index + 1)
        level = row.alpha * clean + row.sigma * noise
        assert torch.allclose(latents[outside], level[outside], atol=1e-5)
    assert torch.allclose(seen[-1][outside], clean[outside], atol=1e-6)


def test_what_is_free_everywhere_changes_nothing_and_what_is_free_nowhere_gives_the_picture(
    pipe, photo
):
    noise = torch.randn(SHAPE)
    plain = tiny.run(pipe, **CALL, latents=noise)
    clean = encoded(pipe, photo)
    free = Region(torch.ones(1, 1, *SHAPE[2:]), latents=clean, noise=noise)
    assert torch.equal(tiny.run(pipe, **CALL, latents=noise, controls=[free]), plain)
    nowhere = Region(Image.new("L", (WIDTH, HEIGHT)), image=photo)
    assert torch.allclose(tiny.run(pipe, **CALL, controls=[nowhere]), clean, atol=1e-5)


def test_a_trail_is_followed_as_it_is(pipe):
    trail = [torch.randn(SHAPE) for _ in range(4)]
    seen, mask = [], half()
    tiny.run(
        pipe,
        **CALL,
        controls=[Region(mask, trail=trail)],
        callback_on_step_end=lambda _, i, t, held: seen.append(held["latents"]),
    )
    outside = mask.expand(SHAPE) == 0
    for latents, known in zip(seen, trail, strict=True):
        assert torch.equal(latents[outside], known[outside])


def test_each_image_of_a_batch_is_as_it_is_alone(pipe):
    clean, masks = torch.randn(3, *SHAPE[1:]), (torch.rand(3, 1, *SHAPE[2:]) > 0.5).float()
    both = tiny.run(pipe, ["a", "b", "c"], **CALL, seed=5, controls=[Region(masks, latents=clean)])
    for i, prompt in enumerate("abc"):
        alone = Region(masks[i : i + 1], latents=clean[i : i + 1])
        made = tiny.run(pipe, prompt, **CALL, seed=5 + i, controls=[alone])
        assert torch.allclose(made[0], both[i], atol=1e-4)


def test_a_soft_mask_blends(pipe):
    clean = torch.randn(SHAPE)
    soft = Region(torch.full((1, 1, *SHAPE[2:]), 0.25), latents=clean, noise=torch.zeros(SHAPE))
    seen = []

    class Before(Control):
        def after_step(self, nn, carry, latents, call):
            seen.append(latents)
            return latents, carry

    made = tiny.run(pipe, **CALL, controls=[Before(), soft])
    assert torch.allclose(made, 0.25 * seen[-1] + 0.75 * clean, atol=1e-5)


def test_masks_of_pictures(pipe, photo):
    """A latent is free if at least half of its pixels are."""
    pixels = np.zeros((HEIGHT, WIDTH), np.float32)
    pixels[:4, :8] = 1
    pixels[8:11, 8:16] = 1
    wanted = torch.zeros(1, 1, *SHAPE[2:])
    wanted[0, 0, 0, 0] = 1
    cells = Image.fromarray((pixels * 255).astype(np.uint8))
    made = [
        tiny.run(pipe, **CALL, controls=[Region(mask, image=photo)])
        for mask in (wanted, pixels, pixels[None], torch.from_numpy(pixels), cells, [cells])
    ]
    for other in made[1:]:
        assert torch.equal(other, made[0])


def test_nothing_stays_behind(pipe, photo):
    region = Region(half(), image=photo)
    plain = tiny.run(pipe, **CALL)
    first = tiny.run(pipe, **CALL, controls=[region])
    assert torch.equal(tiny.run(pipe, **CALL), plain)
    again, also = tiny.together(
        lambda: tiny.run(pipe, **CALL, controls=[region]),
        lambda: tiny.run(pipe, **CALL, controls=[region]),
    )
    assert torch.equal(first, again) and torch.equal(first, also)


GOOD = torch.zeros(SHAPE)
BAD = {
    "nothing to follow": ({}, InputError, "no picture; exactly one of"),
    "two": ({"latents": GOOD, "trail": [GOOD]}, InputError, "has latents and trail; exactly one"),
    "noise of a trail": ({"trail": [GOOD] * 4, "noise": GOOD}, InputError, "trail and noise"),
    "short trail": ({"trail": [GOOD]}, InputError, "trail has 1 entries; the run makes 4 calls"),
    "no array": ({"latents": "x"}, InputTypeError, "latents is str"),
    "other size": (
        {"latents": torch.zeros(1, 4, 9, 6)},
        InputError,
        r"latents has shape \(1, 4, 9",
    ),
    "other batch": ({"latents": torch.zeros(2, 4, 6, 9)}, InputError, "latents has shape"),
    "NaN": ({"latents": GOOD * torch.nan}, InputError, "latents holds NaN"),
    "no noise": ({"latents": GOOD, "noise": GOOD[:, :1]}, InputError, "noise has shape"),
    "no picture": ({"image": "photo.png"}, InputTypeError, "image holds a str"),
    "mask above 1": ({"latents": GOOD, "mask": half() * 2}, InputError, "mask has values from 0"),
    "masks": ({"latents": GOOD, "mask": torch.ones(2, 1, 6, 9)}, InputError, "mask has shape"),
    "mask of pixels": (
        {"latents": GOOD, "mask": np.full((9, 9), 3.0)},
        InputError,
        "values from 3",
    ),
    "no mask": ({"latents": GOOD, "mask": None}, InputTypeError, "mask holds a NoneType"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_before_any_denoising(pipe, case):
    arguments, error, words = BAD[case]
    calls = tiny.counted(pipe)
    with pytest.raises(error, match=words):
        tiny.run(pipe, **CALL, controls=[Region(**{"mask": half(), **arguments})])
    assert not calls
