"""DiffEdit by itself: masks, inversions, edits; what a batch or Ctrl-C may not change."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from weights.kills import FAULTS, Disk, files_in

import underdraw
from underdraw import (
    InputError,
    InputTypeError,
    StableDiffusionDiffEditPipeline,
    WeightError,
    schedulers,
)
from underdraw.pictures.reading import read_pictures

HEIGHT, WIDTH = 40, 56
SIZE = (HEIGHT // 8, WIDTH // 8)
RED, BLUE, TABLE = "a red sphere", "blue cube on the table", "a table"
SHORT = {"num_inference_steps": 6}
LONG = {"num_inference_steps": 40, "inpaint_strength": 0.4}
SOLVERS = ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]


def make(scheduler="DDIMScheduler", compat=None, **config):
    if scheduler == "DDIMScheduler":
        config = {"clip_sample": False, "set_alpha_to_one": False, **config}
    if scheduler == "PNDMScheduler":
        config = {"skip_prk_steps": True, **config}
    parts = tiny.components(
        unet=tiny.DEEP,
        scheduler=getattr(schedulers, scheduler)(**tiny.SCHEDULE, **config),
    )
    pipe = StableDiffusionDiffEditPipeline(**parts, compat=compat)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return make()


def pictures(count=1):
    draw = torch.Generator().manual_seed(4)
    coarse = torch.rand((count, 3, 5, 7), generator=draw)
    return torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")


def pil(count=1):
    made = (pictures(count) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in made]


def square(count=1):
    mask = np.zeros((count, *SIZE), np.float32)
    for i in range(count):
        mask[i, 1:4, i + 1 : i + 4] = 1
    return mask


def counted(pipe):
    """Grows with the rows of every UNet call."""
    rows = []
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda _, x: rows.append(x[0].shape[0]))
    return rows, hook


def find(pipe, image, **arguments):
    options = {"source_prompt": RED, "target_prompt": BLUE, "num_maps_per_mask": 3, "seed": 5}
    options |= {"mask_thresholding_ratio": 2.0, **SHORT, **arguments}
    return pipe.generate_mask(image, **options)


# -- masks -----------------------------------------------------------------------------------------
def test_a_mask_does_not_depend_on_its_batch(pipe):
    texts = {"source_prompt": [RED, BLUE, TABLE], "target_prompt": [BLUE, TABLE, RED]}
    many = find(pipe, pictures(3), **texts)
    for i in range(3):
        one = {name: listed[i] for name, listed in texts.items()}
        alone = find(pipe, pictures(3)[i : i + 1], **one, seed=5 + i)
        np.testing.assert_array_equal(alone[0], many[i])
    assert len({row.tobytes() for row in many}) == 3


@pytest.mark.parametrize(
    "image",
    [pil()[0], pil(), pictures(), [pictures()[0]], pictures().permute(0, 2, 3, 1).numpy()],
    ids=["pil", "list", "tensor", "tensors", "numpy"],
)
def test_pictures_in_every_form_give_one_mask(pipe, image):
    wanted = find(pipe, np.asarray(pil()[0]) / np.float32(255))
    assert (find(pipe, image) != wanted).mean() < 0.05
    assert 0 < wanted.mean() < 1


def test_one_picture_serves_several_texts_and_the_reverse(pipe):
    several = find(pipe, pictures(), target_prompt=[BLUE, TABLE], seed=[5, 5])
    assert several.shape == (2, *SIZE)
    np.testing.assert_array_equal(several[:1], find(pipe, pictures()))
    np.testing.assert_array_equal(several[1:], find(pipe, pictures(), target_prompt=TABLE))
    assert find(pipe, pictures(2)).shape == (2, *SIZE)


def test_guidance_matters_where_negatives_differ_and_only_there(pipe):
    rows, hook = counted(pipe)
    plain = find(pipe, pictures(), guidance_scale=1.0)
    np.testing.assert_array_equal(plain, find(pipe, pictures(), guidance_scale=9.0))
    same = {"source_negative_prompt": TABLE, "target_negative_prompt": TABLE}
    np.testing.assert_array_equal(plain, find(pipe, pictures(), guidance_scale=9.0, **same))
    assert rows == [6, 6, 6]
    # With the source for the target's negative and so on nothing but noise is left at scale 0.5.
    swapped = {"source_negative_prompt": BLUE, "target_negative_prompt": RED}
    found = find(pipe, pictures(), guidance_scale=3.0, **swapped)
    # (red + 3 (blue - red)) - (blue + 3 (red - blue)) = 5 (blue - red)
    np.testing.assert_array_equal(plain, found)
    assert rows[-1] == 12
    hook.remove()


@pytest.mark.parametrize("name", [*SOLVERS[1:], "PNDMScheduler", "HeunDiscreteScheduler"])
def test_masks_with_other_solvers(pipe, name):
    other = make(name, timestep_spacing="leading")
    assert 0 < find(other, pictures()).mean() < 1
    if name == "DPMSolverMultistepScheduler":  # at one time all mean the same noise
        at = {"num_inference_steps": 6, "mask_encode_strength": 0.5}
        ours = other.scheduler.make_table(6).tail(3).timesteps[0]
        theirs = pipe.scheduler.make_table(6).tail(3).timesteps[0]
        assert abs(ours - theirs) < 100
        assert (find(other, pictures(), **at) != find(pipe, pictures(), **at)).mean() < 0.3


def test_masks_in_other_forms(pipe):
    plain = find(pipe, pictures())
    assert plain.dtype == np.int64
    picture = find(pipe, pictures(), output_type="pil")[0]
    np.testing.assert_array_equal(np.asarray(picture), plain[0] * 255)
    tensor = find(pipe, pictures(), output_type="pt")
    np.testing.assert_array_equal(tensor.numpy()[:, 0], plain)


# -- inversion -------------------------------------------------------------------------------------
def clean_latents(pipe, image):
    pixels = read_pictures("image", image, pipe.parts.framework)
    with torch.no_grad():
        return pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor


def back(pipe, inverted, prompt=RED, **arguments):
    """The latents decoded under the source text everywhere."""
    ones = np.ones(inverted.shape[3:], np.float32)
    options = {"guidance_scale": 1.0, "output_type": "latent", **arguments}
    return pipe(prompt, ones, inverted, **options).images


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_inversion_by_default_leads_back(name, spacing):
    pipe = make(name, timestep_spacing=spacing)
    image = pictures()
    clean = clean_latents(pipe, image)
    made = pipe.invert(RED, image, **LONG)
    inverted = made.latents
    assert inverted.shape == (1, 16, 4, *SIZE)
    torch.testing.assert_close(made.clean, clean)
    error = (back(pipe, inverted, **LONG) - clean).abs().mean()
    moved = (inverted[:, 0] - clean).abs().mean()
    assert error < 0.2 * moved
    guided = pipe.invert(RED, image, guidance_scale=7.5, **LONG).latents
    assert (back(pipe, guided, **LONG) - clean).abs().mean() > 2 * error


def test_inversion_with_the_solvers_own_inverse():
    pipe = make("DPMSolverMultistepScheduler")
    pipe.inverse_scheduler = schedulers.DPMSolverMultistepInverseScheduler.from_config(
        pipe.scheduler.config
    )
    image = pictures()
    clean = clean_latents(pipe, image)
    inverted = pipe.invert(RED, image, **LONG).latents
    error = (back(pipe, inverted, **LONG) - clean).abs().mean()
    assert error < 0.2 * (inverted[:, 0] - clean).abs().mean()


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_solved_steps_lead_back_exactly(name):
    pipe = make(name, timestep_spacing="trailing")
    image, few = pictures(), {"num_inference_steps": 40, "inpaint_strength": 0.15}
    clean = clean_latents(pipe, image)
    seen, way = [], {"method": "fixed-point", **few}
    solved = pipe.invert(RED, image, callback=lambda *told: seen.append(told), **way)
    assert len(seen) == 6
    plain = pipe.invert(RED, image, **few).latents
    assert solved.latents.shape == plain.shape
    errors = [(back(pipe, x, **few) - clean).abs().mean() for x in (solved.latents, plain)]
    assert errors[0] < 0.05 * errors[1]
    done = [solved.latents[:, i] for i in (-1, -2)]
    again = pipe.invert(RED, image, done=done, **way).latents
    torch.testing.assert_close(again, solved.latents, rtol=1e-3, atol=1e-4)


def test_callbacks_of_solved_steps(pipe):
    way = {"method": "fixed-point", "callback_steps": 2, "inpaint_strength": 0.5, **SHORT}
    seen = []
    told = pipe.invert(RED, pictures(), callback=lambda *now: seen.append(now[:2]), **way)
    plain = []
    pipe.invert(
        RED, pictures(), callback=lambda *now: plain.append(now[:2]), **{**way, "method": "plain"}
    )
    assert [step for step, _ in seen] == [step for step, _ in plain] == [0, 2]
    assert torch.equal(pipe.invert(RED, pictures(), **way).latents, told.latents)


def test_pictures_of_all_levels(pipe):
    made = pipe.invert([RED, BLUE], pictures(2), decode_latents=True, **SHORT)
    assert len(made.images) == 2 * 4
    assert made.images[0].size == (WIDTH, HEIGHT)
    latents, none = pipe.invert(RED, pictures(), return_dict=False, **SHORT)
    assert none is None
    torch.testing.assert_close(latents[0], made.latents[0])
    arrays = pipe.invert(RED, pictures(), decode_latents=True, output_type="np", **SHORT)
    assert arrays.images.shape == (4, HEIGHT, WIDTH, 3)


def test_regularised_inversion_does_not_depend_on_its_batch(pipe):
    options = {"num_reg_steps": 1, "num_auto_corr_rolls": 2, "lambda_auto_corr": 5.0, **SHORT}
    both = pipe.invert([RED, BLUE], pictures(2), seed=[1, 2], **options).latents
    alone = pipe.invert(BLUE, pictures(2)[1:], seed=2, **options).latents
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    other = pipe.invert(BLUE, pictures(2)[1:], seed=3, **options).latents
    assert (alone - other).abs().max() > 1e-4


def test_an_inversion_goes_on_where_it_stopped(pipe):
    whole = pipe.invert(RED, pictures(), **SHORT).latents
    done = [whole[:, -1], whole[:, -2]]
    rows, hook = counted(pipe)
    rest = pipe.invert(RED, pictures(), done=done, **SHORT).latents
    hook.remove()
    assert len(rows) == 2
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-5)


# -- edits -----------------------------------------------------------------------------------------
def test_the_background_is_the_pictures_own_latents(pipe):
    image, mask = pictures(2), square(2)
    inverted = pipe.invert([RED, BLUE], image, **SHORT)
    outside = torch.from_numpy(1 - mask)[:, None].expand(inverted.clean.shape) == 1
    for given in (inverted, inverted.latents):
        made = pipe([BLUE, RED], mask, image_latents=given, output_type="latent", **SHORT).images
        assert torch.equal(made[outside], inverted.clean[outside])
        assert (made - inverted.clean)[~outside].abs().min() > 0
    assert inverted.clean is not None
    assert len(inverted) == 1  # as diffusers': `clean` is no item of it


def test_an_edit_does_not_depend_on_its_batch(pipe):
    made = pipe.invert([RED, BLUE], pictures(2), **SHORT)
    both = pipe([BLUE, RED], square(2), made.latents, output_type="np", **SHORT).images
    one = torch.cat([made.latents, made.clean[:, None]], 1)[1:]
    alone = pipe(RED, square(2)[1], one, output_type="np", **SHORT).images
    np.testing.assert_allclose(both[1:], alone, atol=1e-5)


def test_several_images_of_one_prompt_have_its_mask(pipe):
    inverted = pipe.invert([RED, BLUE], pictures(2), **SHORT).latents
    options = {"output_type": "np", **SHORT}
    one = pipe([BLUE, RED], square(2), inverted, **options).images
    two = pipe([BLUE, RED], square(2), inverted, num_images_per_prompt=2, **options).images
    np.testing.assert_allclose(two, one.repeat(2, 0), atol=1e-5)


def test_levels_in_other_forms(pipe):
    made = pipe.invert([RED, BLUE], pictures(2), **SHORT)
    options = {"output_type": "np", **SHORT}
    wanted = pipe([BLUE, RED], square(2), made.latents, **options).images
    whole = torch.cat([made.latents, made.clean[:, None]], 1)
    apart = [
        pipe.invert(RED, pictures(2)[:1], **SHORT),
        pipe.invert(BLUE, pictures(2)[1:], **SHORT),
    ]
    apart = [one.latents for one in apart]
    close = {"rtol": 0, "atol": 3e-4}  # inverted apart, they differ by rounding
    for given in (made, whole, whole.flatten(0, 1), list(whole.split(1)), made.latents.detach_()):
        np.testing.assert_array_equal(pipe([BLUE, RED], square(2), given, **options).images, wanted)
    found = pipe([BLUE, RED], square(2), apart, **options).images
    np.testing.assert_allclose(found, wanted, **close)
    # Computed, it has forgotten the picture: as diffusers', it ends at the last level.
    without = pipe([BLUE, RED], square(2), made.latents.clone(), **options).images
    assert np.abs(without - wanted).max() > 3e-3
    apart[1] = apart[1].clone()
    found = pipe([BLUE, RED], square(2), apart, **options).images
    np.testing.assert_allclose(found, without, **close)


def test_one_inversion_serves_several_prompts(pipe):
    made = pipe.invert(RED, pictures(), **SHORT)
    out = pipe([BLUE, TABLE], square(), made.latents, output_type="latent", **SHORT).images
    outside = torch.from_numpy(1 - square())[:, None].expand(1, 4, *SIZE)[0] == 1
    for one in out:
        assert torch.equal(one[outside], made.clean[0][outside])


def test_what_an_edit_found_serves_calls(pipe):
    made = edit(pipe, output_type="latent", seed=0)
    again = pipe(BLUE, made.mask_image, made, guidance_scale=5.0, output_type="latent", **SHORT)
    torch.testing.assert_close(again.images, made.images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.clean, clean_latents(pipe, pil()[0]))


def test_another_picture_than_the_levels_is_told(pipe):
    made = pipe.invert(RED, pictures(), **SHORT)
    made.clean = made.clean[:, :, 1:]
    with pytest.raises(InputError, match="clean has shape"):
        pipe(BLUE, square(), made, **SHORT)
    fewer = pipe.invert(RED, pictures(), num_inference_steps=6, inpaint_strength=0.5).latents
    with pytest.raises(InputError, match="holds 3 levels"):
        pipe(BLUE, square(), fewer, inpaint_strength=0.4, num_inference_steps=6)


def test_latents_to_begin_with(pipe):
    inverted = pipe.invert(RED, pictures(), **SHORT).latents
    options = {"output_type": "latent", **SHORT}
    wanted = pipe(BLUE, square(), inverted, **options).images
    begin = inverted[:, 0].clone()
    assert torch.equal(pipe(BLUE, square(), inverted, latents=begin, **options).images, wanted)
    other = pipe(BLUE, square(), inverted, latents=begin + 0.1, **options).images
    assert not torch.equal(other, wanted)


def test_nothing_of_the_callers_is_changed(pipe):
    mask, image = square() * 0.7, pictures()
    inverted = pipe.invert(RED, image, **SHORT).latents
    kept = [mask.copy(), image.clone(), inverted.clone()]
    pipe(BLUE, mask, inverted, **SHORT)
    pipe(BLUE, torch.from_numpy(mask), inverted, **SHORT)
    np.testing.assert_array_equal(mask, kept[0])
    assert torch.equal(image, kept[1])
    assert torch.equal(inverted, kept[2])


# -- the one call ----------------------------------------------------------------------------------
def edit(pipe, image=None, **arguments):
    options = {"source": RED, "target": BLUE, "num_maps_per_mask": 3, "guidance_scale": 5.0}
    options |= {"mask_thresholding_ratio": 2.0, "mask_encode_strength": 0.5}
    options |= {"inpaint_strength": 0.8, **SHORT, **arguments}
    return pipe.edit(pil()[0] if image is None else image, **options)


def test_the_one_call_is_the_three_in_one(pipe):
    made = edit(pipe, output_type="np")
    mask = find(pipe, pil()[0], seed=0)
    inverted = pipe.invert(RED, pil()[0], **SHORT).latents
    wanted = pipe(BLUE, mask, inverted, guidance_scale=5.0, output_type="np", **SHORT).images
    np.testing.assert_array_equal(made.mask_image, mask)
    torch.testing.assert_close(made.latents, inverted)
    assert made.latents.shape[1] == 4
    np.testing.assert_allclose(made.images, wanted, atol=1e-5)
    assert 0 < mask.mean() < 1


def test_the_mask_by_default_is_divided_into_two_classes(pipe):
    usual = {"mask_encode_strength": 0.6, "num_maps_per_mask": 10, "num_inference_steps": 10}
    made = pipe.edit(pil(2), RED, [BLUE, TABLE], num_inference_steps=10, output_type="np")
    texts = {"target_prompt": [BLUE, TABLE], "seed": 0, **usual}
    wanted = find(pipe, pil(2), mask_thresholding_ratio=None, **texts)
    np.testing.assert_array_equal(made.mask_image, wanted)
    alone = {**texts, "target_prompt": TABLE, "seed": 1}
    own = find(pipe, pil(2)[1:], mask_thresholding_ratio=None, **alone)
    np.testing.assert_array_equal(wanted[1:], own)
    ratios = [(find(pipe, pil(2), mask_thresholding_ratio=r, **texts)) for r in (1.5, 2.0, 2.5)]
    assert all((wanted != other).any() for other in ratios)
    shares = wanted.mean((1, 2))
    assert ((shares > 0.05) & (shares < 0.8)).all()


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_the_one_call_with_a_solver_that_cannot_go_back(pipe, name):
    other = make(name)
    made, wanted = edit(other, output_type="np"), edit(pipe, output_type="np")
    assert type(other.scheduler).__name__ == name
    assert np.abs(made.images - wanted.images).mean() < 0.05


def test_fewer_rows_than_three_calls_of_the_peer(pipe):
    rows, hook = counted(pipe)
    edit(pipe, **SHORT)
    hook.remove()
    maps, steps = 3, 4
    assert sum(rows) == 2 * maps + steps + 2 * steps
    assert sum(rows) <= 0.75 * (4 * maps + 2 * steps + 2 * steps)


def test_pasting_back_keeps_every_other_pixel(pipe):
    photo = pil()[0].resize((WIDTH + 5, HEIGHT + 3))
    made = edit(pipe, photo, mask_image=square()[0], paste=True).images[0]
    assert made.size == photo.size
    before, after = np.asarray(photo), np.asarray(made)
    changed = (before != after).any(2)
    inside = np.zeros_like(changed)
    inside[8 : 4 * 8 + 4, 8 : 4 * 8 + 5] = True
    assert changed.any()
    assert not changed[~inside].any()
    plain = edit(pipe, pictures(2), mask_image=square(2), paste=True, output_type="np").images
    outside = np.kron(1 - square(2), np.ones((1, 8, 8))) == 1
    wanted = pictures(2).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(plain[outside], wanted[outside], atol=1e-6)
    tensor = edit(pipe, pictures(2), mask_image=square(2), paste=True, output_type="pt").images
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1).numpy(), plain, atol=1e-6)


def test_one_source_serves_several_targets_with_negatives_and_guidance_of_their_own(pipe):
    options = {"output_type": "np", "mask_image": square(), "seed": np.int64(4)}
    options["num_inference_steps"] = np.int64(6)
    both = edit(
        pipe,
        target=[BLUE, TABLE],
        negative_prompt=["", "green"],
        guidance_scale=[5.0, 2.0],
        **{**options, "seed": [np.int64(4), 5]},
    )
    options["seed"] = np.int64(5)
    alone = edit(pipe, target=TABLE, negative_prompt="green", guidance_scale=2.0, **options)
    np.testing.assert_allclose(both.images[1:], alone.images, atol=5e-5)
    several = edit(pipe, [*pil(2)], source=[RED, TABLE], **{**options, "seed": [4, 5]})
    assert several.images.shape[0] == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_an_edit_killed_at_a_file_operation_goes_on(pipe, fault, tmp_path, monkeypatch):
    call = {"output_type": "np", "num_maps_per_mask": 1}
    wanted = edit(pipe, keep=tmp_path / "whole.safetensors", **call)
    kept = (tmp_path / "whole.safetensors").read_bytes()
    disk, at = Disk(monkeypatch), 0
    while True:
        at += 1
        path = tmp_path / str(at) / "edit.safetensors"
        path.parent.mkdir()
        if disk.run(fault, at, lambda path=path: edit(pipe, keep=path, **call)) is None:
            break
        again = edit(pipe, keep=path, **call)
        np.testing.assert_array_equal(again.images, wanted.images)
        assert files_in(path.parent) == {path.name: kept}
    assert at > 3


def test_an_interrupted_edit_goes_on_from_its_file(pipe, tmp_path):
    path = tmp_path / "edit.safetensors"
    wanted = edit(pipe, output_type="np")
    stop, made = 4, []

    def count(_, x):
        made.append(x[0].shape[0])
        if len(made) == stop:
            raise KeyboardInterrupt

    hook = pipe.unet.conv_in.register_forward_pre_hook(count)
    with pytest.raises(KeyboardInterrupt):
        edit(pipe, keep=path)
    assert path.exists()
    stop = None
    made.clear()
    again = edit(pipe, keep=path, output_type="np")
    # No mask, and two of four levels were there (the first call was the mask's).
    assert made == [1, 1, 2, 2, 2, 2]
    np.testing.assert_allclose(again.images, wanted.images, atol=1e-4)
    np.testing.assert_array_equal(again.mask_image, wanted.mask_image)
    torch.testing.assert_close(again.latents, wanted.latents, rtol=1e-4, atol=1e-5)
    made.clear()
    other = edit(pipe, keep=path, output_type="np", guidance_scale=2.0)
    hook.remove()
    assert made == [2, 2, 2, 2]
    assert not np.array_equal(other.images, wanted.images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": TABLE}, "source"),
        ({"target": TABLE}, "target"),
        ({"num_inference_steps": 7}, "settings"),
        ({"image": pictures(2)[1:]}, "picture"),
        ({"seed": 9}, "seed"),
    ],
)
def test_the_file_of_another_edit_is_refused(pipe, tmp_path, change, words):
    path = tmp_path / "edit.safetensors"
    edit(pipe, pictures(), keep=path)
    rows, hook = counted(pipe)
    with pytest.raises(InputError, match=f"another {words}"):
        edit(pipe, **{"image": pictures(), "keep": path, **change})
    hook.remove()
    assert not rows


def test_a_file_that_is_no_edit(pipe, tmp_path):
    from underdraw.weights.save import save_tensors

    save_tensors(tmp_path / "weights.safetensors", {"x": np.zeros(3, np.float32)})
    with pytest.raises(WeightError, match="something else"):
        edit(pipe, keep=tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="safetensors"):
        edit(pipe, keep=tmp_path / "edit.png")
    with pytest.raises(InputError, match="no folder"):
        edit(pipe, keep=tmp_path / "nowhere" / "edit.safetensors")


def test_embeddings_instead_of_texts(pipe):
    embeds = [pipe.encode_prompt(text, None, 1, False)[0] for text in (RED, BLUE)]
    texts = {"source": None, "target": None}
    given = {"source_prompt_embeds": embeds[0], "target_prompt_embeds": embeds[1]}
    made = edit(pipe, **texts, **given, output_type="np")
    np.testing.assert_allclose(made.images, edit(pipe, output_type="np").images, atol=1e-5)


# -- mistakes, files -------------------------------------------------------------------------------
WRONG = [
    (lambda p: find(p, None), InputError, "image=None"),
    (lambda p: find(p, pictures(), mask_encode_strength=0.0), InputError, "mask_encode_strength=0"),
    (lambda p: find(p, pictures(), mask_encode_strength=1.5), InputError, "mask_encode_strength=1"),
    (lambda p: find(p, pictures(), num_maps_per_mask=0), InputError, "num_maps_per_mask=0"),
    (lambda p: find(p, pictures(), mask_thresholding_ratio=0), InputError, "ratio=0"),
    (lambda p: find(p, pictures(), source_prompt=None), InputError, "source_prompt=None"),
    (lambda p: find(p, pictures(), target_prompt=3), InputTypeError, "target_prompt=3"),
    (
        lambda p: find(p, pictures(), target_prompt=[RED] * 3, source_prompt=[RED] * 2),
        InputError,
        "2",
    ),
    (lambda p: find(p, pictures(2), target_prompt=[RED] * 3), InputError, "2 pictures"),
    (lambda p: find(p, pictures(), output_type="latent"), InputError, "output_type='latent'"),
    (lambda p: find(p, pictures() * 9), InputError, "image has values"),
    (lambda p: find(p, pictures(), cross_attention_kwargs={"a": 1}), InputError, "controls"),
    (lambda p: p.invert(RED, **SHORT), InputError, "image=None"),
    (lambda p: p.invert(RED, pictures(), inpaint_strength=0.1, **SHORT), InputError, "inpaint_str"),
    (lambda p: p.invert(RED, pictures(), num_reg_steps=-1), InputError, "num_reg_steps=-1"),
    (lambda p: p.invert(RED, pictures(), method="best", **SHORT), InputError, "method='best'"),
    (lambda p: p.invert([RED] * 3, pictures(2), **SHORT), InputError, "2 pictures"),
    (lambda p: p.invert(None, pictures(), **SHORT), InputError, "prompt=None"),
    (lambda p: p(BLUE, None, LEVELS, **SHORT), InputError, "mask_image=None"),
    (lambda p: p(BLUE, square(), None, **SHORT), InputError, "image_latents=None"),
    (lambda p: p(BLUE, square(), LEVELS[:, 1:3], **SHORT), InputError, "holds 2 levels"),
    (lambda p: p(BLUE, square(), LEVELS[:, :, :3], **SHORT), InputError, "image_latents has shape"),
    (lambda p: p(BLUE, square(), pil()[0], **SHORT), InputTypeError, "what invert returns"),
    (lambda p: p(BLUE, square(2), LEVELS, **SHORT), InputError, "2 masks"),
    (lambda p: p(BLUE, square(), LEVELS * np.nan, **SHORT), InputError, "NaN"),
    (lambda p: p(BLUE, square(), LEVELS, 1.2, 6), InputError, "inpaint_strength=1.2"),
    (lambda p: edit(p, target=RED), InputError, "nothing would change"),
    (lambda p: edit(p, source=None), InputError, "source_prompt=None"),
    (lambda p: edit(p, output_type="jpeg"), InputError, "output_type='jpeg'"),
    (lambda p: edit(p, controls=3), InputTypeError, "controls=3"),
    (lambda p: edit(p, guidance_scale="7"), InputTypeError, "guidance_scale='7'"),
    (lambda p: edit(p, inpaint_strength=0), InputError, "inpaint_strength=0"),
    (lambda p: edit(p, negative_prompt=[RED] * 2), InputError, "target_negative_prompt has 2"),
]
LEVELS = torch.zeros((1, 5, 4, *SIZE))


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_mistakes_are_told_before_any_work(pipe, number):
    call, error, words = WRONG[number]
    rows, hook = counted(pipe)
    with pytest.raises(error, match=words):
        call(pipe)
    hook.remove()
    assert not rows


def test_a_solver_with_several_calls_a_step_cannot_go_back():
    pipe = make("HeunDiscreteScheduler")
    with pytest.raises(InputError, match="one model call each"):
        pipe.invert(RED, pictures(), **SHORT)


def test_saved_and_loaded_with_its_inverse(tmp_path):
    pipe = make()
    pipe.save_pretrained(tmp_path / "without")
    pipe.inverse_scheduler = schedulers.DDIMInverseScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "with")
    wanted = pipe.invert(RED, pictures(), **SHORT).latents
    for name in ("with", "without"):
        again = underdraw.DiffusionPipeline.from_pretrained(tmp_path / name)
        assert type(again) is StableDiffusionDiffEditPipeline
        again.set_progress_bar_config(disable=True)
        assert (again.inverse_scheduler is None) == (name == "without")
        assert torch.equal(again.invert(RED, pictures(), **SHORT).latents, wanted)
    plain = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "with")
    made = StableDiffusionDiffEditPipeline.from_pipe(plain)
    assert made.inverse_scheduler is None
    with pytest.raises(InputTypeError, match="inverse_scheduler=str"):
        made.inverse_scheduler = "ddim"
