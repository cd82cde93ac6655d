"""DiffEdit against diffusers': where it is right, and with `compat` also where it is not."""

from functools import cache

import numpy as np
import pytest
import torch
from pipelines.peer import diffedit
from pipelines.peer.diffedit import HEIGHT, SIZE, WIDTH, deviation, mask, pictures, pil, quietly

from underdraw import InputError

LIMIT = 1e-4
RED, BLUE, TABLE = "a red sphere", "blue cube on the table", "a table"
SOURCES, TARGETS = [RED, BLUE, TABLE], [BLUE, "a green cube", "sphere of green"]
STEPS = {"num_inference_steps": 6}


def noise(seed: int = 3):
    return torch.Generator().manual_seed(seed)


def both_masks(kind="sd1", **arguments):
    options = {"source_prompt": RED, "target_prompt": BLUE, "num_maps_per_mask": 3, **STEPS}
    options |= {"mask_thresholding_ratio": 2.0, **arguments}
    seed = options.pop("seed", 3)
    theirs, ours = diffedit.pair(kind)
    made = [
        quietly(lambda pipe=pipe: pipe.generate_mask(generator=noise(seed), **options))
        for pipe in (theirs, ours)
    ]
    assert made[0].dtype == made[1].dtype
    return made


MASKS = {
    "plain": {},
    "weak guidance, more noise": {"guidance_scale": 3.0, "mask_encode_strength": 0.8},
    "maps": {"num_maps_per_mask": 5, "mask_thresholding_ratio": 1.5},
    "batch": {"source_prompt": SOURCES, "target_prompt": TARGETS},
    "negatives": {"source_negative_prompt": "a table", "target_negative_prompt": "green"},
    "negatives, batch": {
        "source_prompt": SOURCES,
        "target_prompt": TARGETS,
        "source_negative_prompt": TARGETS,
        "target_negative_prompt": SOURCES,
    },
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_masks_are_the_same(kind, case):
    arguments = MASKS[case]
    count = len(arguments.get("source_prompt", [""])) if "batch" in case else 1
    theirs, ours = both_masks(kind, image=pictures(count), **arguments)
    assert theirs.shape == (count, *SIZE)
    assert 0 < theirs.mean() < 1
    np.testing.assert_array_equal(theirs, ours)


def test_masks_of_pictures_in_other_forms():
    made = [both_masks(image=image) for image in (pil()[0], pil(size=(WIDTH + 3, HEIGHT + 7))[0])]
    for theirs, ours in made:
        np.testing.assert_array_equal(theirs, ours)


def inversions(kind="sd1", solver="ddim", seed=3, **arguments):
    options = {"prompt": RED, "image": pictures(), "guidance_scale": 1.0, **STEPS, **arguments}
    return [
        quietly(lambda pipe=pipe: pipe.invert(generator=noise(seed), **options))
        for pipe in diffedit.pair(kind, solver)
    ]


INVERSIONS = {
    "plain": {},
    "guided": {"guidance_scale": 7.5, "negative_prompt": "green table"},
    "all the way": {"inpaint_strength": 1.0},
    "short": {"inpaint_strength": 0.55},
    "batch": {"prompt": SOURCES, "image": pictures(3), "guidance_scale": 2.0},
}


@pytest.mark.parametrize("case", INVERSIONS)
@pytest.mark.parametrize("solver", ["ddim", "dpm"])
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_inversions_are_the_same(kind, solver, case):
    theirs, ours = inversions(kind, solver, **INVERSIONS[case])
    assert deviation(theirs.latents, ours.latents) < LIMIT


@pytest.mark.parametrize("case", ["plain", "short", "batch"])
def test_inversions_without_compat_are_the_same(case):
    arguments = {"prompt": RED, "image": pictures(), "guidance_scale": 1.0, **INVERSIONS[case]}
    options = {"decode_latents": True, "output_type": "np", **STEPS, **arguments}
    theirs, _ = diffedit.pair()
    ours = diffedit.right()
    made = [quietly(lambda p=p: p.invert(generator=noise(), **options)) for p in (theirs, ours)]
    assert deviation(made[0].latents, made[1].latents) < LIMIT
    assert deviation(made[0].images, made[1].images) < LIMIT
    assert len(made[0]) == len(made[1])
    assert made[1].clean.shape == made[0].latents[:, -1].shape
    assert diffedit.pair()[1].invert(**{**options, "decode_latents": False}).clean is None


def test_default_guidance_is_the_peers():
    theirs, ours = diffedit.pair()
    options = {"prompt": RED, "image": pictures(), **STEPS}
    made = [
        quietly(lambda pipe=pipe: pipe.invert(generator=noise(), **options)).latents
        for pipe in (theirs, ours)
    ]
    assert deviation(*made) < LIMIT


# Strong steps make the latents of a random network large, and rounding with them.
ONE = {"num_reg_steps": 1, "num_auto_corr_rolls": 1}
REGULARISED = {
    "auto-correlation": ("sd1", {"lambda_kl": 0.0, "lambda_auto_corr": 5.0}),
    "divergence": ("sd1", {"lambda_auto_corr": 0.0}),
    "guided": ("sd1", {"guidance_scale": 2.0, "lambda_auto_corr": 1.0}),
    "batch": ("sd1", {"prompt": SOURCES, "image": pictures(3), "lambda_auto_corr": 5.0}),
    "v-prediction": ("sd2", {"prompt": SOURCES, "image": pictures(3), "lambda_auto_corr": 5.0}),
    "guided v-prediction": ("sd2", {"guidance_scale": 2.0, "lambda_auto_corr": 5.0}),
    "one step and roll": (
        "sd2",
        {**ONE, "guidance_scale": 2.0, "lambda_auto_corr": 2.0, "lambda_kl": 2.0},
    ),
    "guided sample": (
        "sd1",
        {**ONE, "solver": "sample", "guidance_scale": 2.0}
        | {"lambda_auto_corr": 1e-4, "lambda_kl": 1e-3},
    ),
}


@pytest.mark.parametrize("case", REGULARISED)
def test_regularised_inversions_are_the_same(case):
    kind, arguments = REGULARISED[case]
    options = {"num_reg_steps": 2, "num_auto_corr_rolls": 2, "num_inference_steps": 4, **arguments}
    theirs, ours = inversions(kind, **options)
    plain = inversions(kind, **{**options, "num_reg_steps": 0})[1]
    assert deviation(theirs.latents, ours.latents) < LIMIT
    assert deviation(plain.latents, ours.latents) > 20 * LIMIT


def test_pictures_of_the_levels_are_the_same():
    theirs, ours = inversions(
        decode_latents=True,
        output_type="np",
        prompt=SOURCES[:2],
        image=pictures(2),
        num_inference_steps=4,
    )
    assert deviation(theirs.images, ours.images) < LIMIT


@cache
def levels_of(kind, solver, count, strength):
    """What the peer made of so many pictures, for edits to begin with."""
    prompts, given = SOURCES[:count], {"inpaint_strength": strength, "guidance_scale": 1.0}
    work = diffedit.pair(kind, solver)[0].invert
    given |= {"prompt": prompts, "image": pictures(count), "generator": noise(), **STEPS}
    return quietly(lambda: work(**given)).latents


def edits(kind="sd1", solver="ddim", **arguments):
    prompts = arguments.get("prompt", BLUE)
    count = len(prompts) if isinstance(prompts, list) else 1
    options = {"prompt": BLUE, "mask_image": mask(count), "output_type": "np", **STEPS}
    options |= arguments
    levels = levels_of(kind, solver, count, options.get("inpaint_strength", 0.8))
    given = options.pop("mask_image")
    seed = options.pop("seed", 3)
    return [
        quietly(
            lambda pipe=pipe: pipe(
                generator=noise(seed),
                image_latents=levels.clone(),
                mask_image=given.copy() if hasattr(given, "copy") else given,
                **options,
            )
        ).images
        for pipe in diffedit.pair(kind, solver)
    ]


EDITS = {
    "plain": {},
    "unguided": {"guidance_scale": 1.0},
    "negative": {"negative_prompt": "green table", "guidance_scale": 3.0},
    "all the way": {"inpaint_strength": 1.0},
    "short": {"inpaint_strength": 0.55},
    "batch": {"prompt": TARGETS},
    "one mask": {"prompt": TARGETS, "mask_image": mask()[0]},
    "several of each": {"num_images_per_prompt": 2},
    "several of several": {"prompt": TARGETS, "num_images_per_prompt": 2},
    "noisy": {"eta": 1.0},
}


@pytest.mark.parametrize("case", EDITS)
@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_edits_are_the_same(solver, case):
    theirs, ours = edits("sd1", solver, **EDITS[case])
    assert deviation(theirs, ours) < LIMIT


def test_edits_with_v_prediction_are_the_same():
    assert deviation(*edits("sd2", prompt=TARGETS)) < LIMIT


@pytest.mark.parametrize("form", ["pil", "tensor", "list", "grey"])
def test_masks_in_other_forms_do_the_same(form):
    one = mask()[0]
    grey = np.clip(one + 0.3, 0, 1) * 0.9
    given = {
        "pil": diffedit.Image.fromarray(np.uint8(one * 255)),
        "tensor": torch.from_numpy(one),
        "list": [one],
        "grey": grey,
    }[form]
    if form == "tensor":
        theirs, ours = edits(mask_image=given.clone())
    else:
        theirs, ours = edits(mask_image=given)
    assert deviation(theirs, ours) < LIMIT


def test_callbacks_see_the_same():
    seen = []
    levels = inversions()[0].latents
    for pipe in diffedit.pair():
        steps = []
        quietly(
            lambda pipe=pipe, steps=steps: pipe(
                BLUE,
                mask(),
                levels.clone(),
                **STEPS,
                output_type="latent",
                callback=lambda i, t, x: steps.append((i, int(t), x.numpy().copy())),
                callback_steps=2,
            )
        )
        seen.append(steps)
    assert [step[:2] for step in seen[0]] == [step[:2] for step in seen[1]]
    assert len(seen[0]) == 2
    assert max(deviation(a[2], b[2]) for a, b in zip(*seen, strict=True)) < LIMIT


def test_a_wrong_number_of_levels_is_an_error():
    levels = inversions()[1].latents
    with pytest.raises(InputError, match="holds 4 levels; this call makes 2 steps"):
        diffedit.pair()[1](BLUE, mask(), levels, inpaint_strength=0.35, **STEPS)
