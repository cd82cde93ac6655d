"""What diffusers' DiffEdit does wrong, shown on diffusers, and what is done here instead."""

import numpy as np
import pytest
import torch
from pipelines.peer import diffedit
from pipelines.peer.diffedit import deviation, mask, pictures, quietly

RED, BLUE, TABLE = "a red sphere", "blue cube on the table", "a table"
STEPS = {"num_inference_steps": 10}
FIND = {"source_prompt": RED, "target_prompt": BLUE, "num_maps_per_mask": 2, **STEPS}
FIND |= {"mask_thresholding_ratio": 2.0}
SEED = 3


def noise():
    return torch.Generator().manual_seed(SEED)


def found(pipe, image, **arguments):
    options = {**FIND, **arguments}
    return quietly(lambda: pipe.generate_mask(image=image, generator=noise(), **options))


def spread(pipe, image, against, scale):
    """The difference that decides about a mask, from predictions made one by one by diffusers."""
    with torch.no_grad():
        draw = noise()
        image = image.repeat_interleave(2, 0)
        latents = pipe.vae.encode(image).latent_dist.sample(draw) * pipe.vae.config.scaling_factor
        pipe.scheduler.set_timesteps(10)
        time = pipe.scheduler.timesteps[5]
        noisy = torch.randn(latents.shape, generator=draw)
        noisy = pipe.scheduler.add_noise(latents, noisy, time)
        told = []
        for text in (RED, against[0], BLUE, against[1]):
            context = pipe.encode_prompt(text, "cpu", 2, False)[0]
            told.append(pipe.unet(noisy, time, context).sample)
    s, no_s, t, no_t = told
    apart = (no_t + scale * (t - no_t)) - (no_s + scale * (s - no_s))
    return apart.abs().mean((0, 1))


def test_guidance_of_masks_points_backwards_there():
    theirs, _ = diffedit.pair()
    ours = diffedit.right()
    against = {"source_negative_prompt": TABLE, "target_negative_prompt": "green"}
    image = pictures()
    wanted = spread(theirs, image, (TABLE, "green"), 1.5)
    wanted = (wanted > wanted.mean()).numpy()
    against["guidance_scale"] = 1.5  # the weaker, the more it matters which way it points
    assert (found(theirs, image, **against)[0] != wanted).mean() > 0.1
    np.testing.assert_array_equal(found(ours, image, **against)[0], wanted)
    # Equal negatives hide it.
    same = {"source_negative_prompt": TABLE, "target_negative_prompt": TABLE}
    np.testing.assert_array_equal(found(theirs, image, **same), found(ours, image, **same))


def test_masks_without_guidance_raise_there():
    theirs, ours = diffedit.pair()
    with pytest.raises(TypeError):
        found(theirs, pictures(), guidance_scale=1.0)
    made = found(ours, pictures(), guidance_scale=1.0)
    np.testing.assert_array_equal(made, found(ours, pictures(), guidance_scale=4.0))


def test_masks_as_pictures_raise_there():
    theirs, ours = diffedit.pair()
    with pytest.raises((TypeError, ValueError)):
        found(theirs, pictures(), output_type="pil")
    made = found(ours, pictures(), output_type="pil")
    np.testing.assert_array_equal(np.asarray(made[0]) // 255, found(ours, pictures())[0])


def test_masks_with_dpm_solver_raise_there():
    theirs, ours = diffedit.pair("sd1", "dpm")
    with pytest.raises(TypeError):
        found(theirs, pictures())
    assert 0 < found(ours, pictures()).mean() < 1


def test_the_callers_mask_is_binarised_there():
    theirs, ours = diffedit.pair()
    levels = ours.invert(RED, pictures(), generator=noise(), **STEPS).latents
    for pipe, changed in ((theirs, True), (ours, False)):
        grey = torch.from_numpy(mask() * 0.8)
        quietly(lambda p=pipe, m=grey: p(BLUE, m, levels.clone(), output_type="latent", **STEPS))
        assert (grey.max() == 1) == changed


def test_a_mask_depends_on_its_neighbours_there():
    theirs, _ = diffedit.pair()
    ours = diffedit.right()
    image = pictures(2)
    two = {"source_prompt": [RED, TABLE], "target_prompt": [BLUE, TABLE + " " + TABLE]}
    three = {"source_prompt": [RED, RED], "target_prompt": [BLUE, BLUE]}
    for pipe, depends in ((theirs, True), (ours, False)):
        first = [found(pipe, image, **texts)[0] for texts in (two, three)]
        assert (first[0] != first[1]).any() == depends


def test_the_background_is_blended_a_step_late_there():
    theirs, _ = diffedit.pair()
    ours = diffedit.right()
    image, empty = pictures(), np.zeros_like(mask())
    made = ours.invert(RED, image, generator=noise(), **STEPS)
    clean, made = made.clean, made.latents
    lowest = made[:, -1]
    options = {"mask_image": empty, "output_type": "latent", **STEPS}
    late = quietly(lambda: theirs(BLUE, image_latents=made.clone(), **options)).images
    assert deviation(late, lowest) < 1e-6  # a level with noise, although nothing is to change
    assert deviation(late, clean) > 1e-2
    assert torch.equal(ours(BLUE, image_latents=made, **options).images, clean)


def test_masks_of_several_images_are_mixed_up_there():
    theirs, _ = diffedit.pair()
    ours = diffedit.right()
    texts, masks = [RED, BLUE], mask(2)
    made = ours.invert(texts, pictures(2), generator=noise(), **STEPS).latents.clone()
    options = {"output_type": "latent", "num_images_per_prompt": 2, **STEPS}
    for pipe, mixed in ((theirs, True), (ours, False)):
        out = quietly(lambda p=pipe: p(texts, masks.copy(), made.clone(), **options)).images
        # Which mask an image was made with shows where it kept the last level.
        kept = (out - made[:, -1].repeat_interleave(2, 0)).abs().amax(1) < 1e-6
        own = [np.array_equal(~kept[i].numpy(), masks[i // 2] == 1) for i in range(4)]
        assert own == ([True, False, False, True] if mixed else [True] * 4)


def test_inversion_at_the_default_guidance_does_not_invert_there():
    theirs, _ = diffedit.pair()
    ours = diffedit.right()
    steps = {"num_inference_steps": 40, "inpaint_strength": 0.4}
    image, ones = pictures(), np.ones_like(mask())
    options = {"guidance_scale": 1.0, "output_type": "latent", **steps}
    clean = ours.invert(RED, image, generator=noise(), **steps).clean
    errors = []
    for pipe in (theirs, ours):
        levels = quietly(lambda p=pipe: p.invert(RED, image, generator=noise(), **steps)).latents
        made = quietly(lambda p=pipe, x=levels: p(RED, ones.copy(), x.clone(), **options)).images
        errors.append(float((made - clean).abs().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_regularised_guided_batches_raise_there():
    theirs, ours = diffedit.pair("sd2")
    options = {"num_reg_steps": 1, "guidance_scale": 2.0, "num_inference_steps": 3}
    call = {"prompt": [RED, BLUE, TABLE], "image": pictures(3), "generator": noise(), **options}
    with pytest.raises(RuntimeError):
        quietly(lambda: theirs.invert(**call))
    assert torch.isfinite(ours.invert(**call).latents).all()


def test_regularisation_counts_a_guided_picture_twice_there():
    """Guidance away from the prompt itself changes no prediction. Yet with v-prediction diffusers
    reads its noise beside both halves of the network's input, and sums over the two."""
    options = {"num_reg_steps": 1, "lambda_auto_corr": 2.0, "lambda_kl": 0.0}
    options |= {"num_inference_steps": 3, "negative_prompt": RED}
    theirs, _ = diffedit.pair("sd2")
    latents = torch.randn(1, 4, 3, 7, generator=noise())  # so low that every shift drawn is 0
    for pipe, twice in ((theirs, True), (diffedit.right("sd2"), False)):
        made = [
            quietly(lambda p=pipe, g=g: p.invert(RED, latents, guidance_scale=g, **options)).latents
            for g in (1.0, 2.0)
        ]
        assert (deviation(*made) > 1e-3) == twice


def test_regularisation_couples_a_batch_there():
    options = {"num_reg_steps": 1, "lambda_auto_corr": 0.0, "num_inference_steps": 3}
    options |= {"guidance_scale": 1.0}
    theirs, _ = diffedit.pair()
    for pipe, depends in ((theirs, True), (diffedit.right(), False)):
        two = pictures(2)
        two[1:] = two[1:] * 0.2

        def first(image, texts, p=pipe):
            # Without a draw: these are latents, and there is nothing else to draw.
            return quietly(lambda: p.invert(texts, image, **options)).latents[:1]

        scale = pipe.vae.config.scaling_factor
        with torch.no_grad():
            latents = pipe.vae.encode(two).latent_dist.mean * scale
        apart = first(latents, [RED, BLUE]) - first(latents[:1], [RED])
        assert (apart.abs().max() > 1e-3) == depends


def rows_of(pipe, work):
    rows = []
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda _, x: rows.append(x[0].shape[0]))
    quietly(work)
    hook.remove()
    return sum(rows)


def test_never_more_rows_than_the_peer_and_fewer_by_default():
    theirs, _ = diffedit.pair()
    ours = diffedit.right()
    image, inside = pictures(3), mask(3)
    texts, others = [RED, BLUE, TABLE], [BLUE, TABLE, RED]

    def counts(pipe, **guidance):
        find = {"source_prompt": texts, "target_prompt": others, "num_maps_per_mask": 10, **STEPS}
        masked = rows_of(pipe, lambda: pipe.generate_mask(image, generator=noise(), **find))
        levels = []
        inverted = rows_of(
            pipe,
            lambda: levels.append(pipe.invert(texts, image, **guidance, **STEPS).latents),
        )
        made = rows_of(pipe, lambda: pipe(others, inside.copy(), levels[0], **STEPS))
        return masked, inverted, made

    peers = counts(theirs)
    equal = counts(ours, guidance_scale=7.5)
    assert all(own <= peer for own, peer in zip(equal, peers, strict=True))
    assert sum(counts(ours)) <= 0.75 * sum(peers)
    against = {"source_negative_prompt": texts, "target_negative_prompt": others}
    find = {"source_prompt": texts, "target_prompt": others, **against, **STEPS}
    four = [
        rows_of(pipe, lambda p=pipe: p.generate_mask(image, generator=noise(), **find))
        for pipe in (theirs, ours)
    ]
    assert four[1] <= four[0]
    whole = rows_of(ours, lambda: ours.edit(image, texts, others, num_inference_steps=10))
    assert whole <= 0.75 * sum(peers)
