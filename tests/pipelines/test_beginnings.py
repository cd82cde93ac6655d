"""Image-to-image and inpainting by themselves: seeds, pasting back, what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny

from underdraw import (
    Region,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    schedulers,
)
from underdraw.controls.control import Control
from underdraw.errors import InputError, InputTypeError, NonFiniteError
from underdraw.networks.sites import Sites
from underdraw.pipelines.call.record import repeat

HEIGHT, WIDTH = 48, 72
SIZE = {"height": HEIGHT, "width": WIDTH}
KINDS = {
    "img2img": StableDiffusionImg2ImgPipeline,
    "inpaint": StableDiffusionInpaintPipeline,
}


def picture(height=HEIGHT, width=WIDTH, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def masked(height=HEIGHT, width=WIDTH):
    mask = np.zeros((height, width), np.uint8)
    mask[8:32, 16:40] = 255
    return Image.fromarray(mask)


@pytest.fixture(scope="module")
def text():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def pipes(text):
    return {name: kind.from_pipe(text) for name, kind in KINDS.items()}


@pytest.fixture(scope="module")
def nine():
    pipe = StableDiffusionInpaintPipeline(**tiny.components(unet={"in_channels": 9}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(name, **changes):
    call = {"image": picture(), "strength": 0.6, "num_inference_steps": 4}
    if name == "inpaint":
        call |= {"mask_image": masked(), **SIZE}
    return {**call, **changes}


# -- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["DDIM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete"])
@pytest.mark.parametrize("name", KINDS)
def test_an_image_does_not_depend_on_its_batch(pipes, name, solver):
    pipe = type(pipes[name]).from_pipe(pipes[name])
    pipe.scheduler = getattr(schedulers, f"{solver}Scheduler")(**tiny.SCHEDULE)
    prompts, pictures = ["a red sphere", "cube", ""], [picture(seed=i) for i in range(3)]
    whole = tiny.run(pipe, prompts, **arguments(name, image=pictures), seed=5)
    for i, prompt in enumerate(prompts):
        alone = tiny.run(pipe, prompt, **arguments(name, image=pictures[i]), seed=5 + i)
        assert torch.allclose(whole[i], alone[0], atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_one_prompt_serves_several_pictures(pipes, name):
    pictures = [picture(seed=i) for i in range(3)]
    whole = tiny.run(pipes[name], "cube", **arguments(name, image=pictures), seed=[4, 9, 2])
    last = tiny.run(pipes[name], "cube", **arguments(name, image=pictures[2]), seed=2)
    assert whole.shape[0] == 3 and torch.allclose(whole[2], last[0], atol=1e-4)


def test_nine_channels_depend_on_no_neighbour_either(nine):
    pictures = [picture(seed=i) for i in range(2)]
    whole = tiny.run(nine, ["a", "b"], **arguments("inpaint", image=pictures), seed=5)
    alone = tiny.run(nine, "b", **arguments("inpaint", image=pictures[1]), seed=6)
    assert torch.allclose(whole[1], alone[0], atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_guidance_per_image(pipes, name):
    pictures = [picture(seed=i) for i in range(2)]
    both = arguments(name, image=pictures, guidance_scale=[1.0, 5.0])
    whole = tiny.run(pipes[name], ["a", "b"], **both, seed=5)
    for i, scale in enumerate((1.0, 5.0)):
        one = arguments(name, image=pictures[i], guidance_scale=scale)
        made = tiny.run(pipes[name], "ab"[i], **one, seed=5 + i)
        assert torch.allclose(whole[i], made[0], atol=1e-4)


# -- what they do --------------------------------------------------------------------------------


def test_little_strength_keeps_much(pipes):
    clean = tiny.run(
        pipes["img2img"], **arguments("img2img", strength=0.01, num_inference_steps=100)
    )
    apart = [
        (tiny.run(pipes["img2img"], **arguments("img2img", strength=s)) - clean).abs().mean()
        for s in (0.25, 0.5, 1.0)
    ]
    assert apart[0] < apart[1] < apart[2]


def test_calls_are_those_of_the_part(text):
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(text)
    counts = tiny.counted(pipe)
    tiny.run(pipe, **arguments("img2img", strength=0.5, num_inference_steps=10))
    assert len(counts) == pipe.num_timesteps == 5


def test_the_three_share_their_networks(text, pipes):
    for pipe in pipes.values():
        assert pipe.unet is text.unet and pipe.vae is text.vae
        back = StableDiffusionPipeline.from_pipe(pipe)
        assert torch.equal(tiny.run(back), tiny.run(text))


def test_folders(pipes, tmp_path):
    from underdraw import DiffusionPipeline

    for name, pipe in pipes.items():
        pipe.save_pretrained(tmp_path / name)
        again = DiffusionPipeline.from_pretrained(tmp_path / name)
        again.set_progress_bar_config(disable=True)
        assert type(again) is type(pipe)
        assert torch.equal(tiny.run(again, **arguments(name)), tiny.run(pipe, **arguments(name)))


@pytest.mark.parametrize("name", KINDS)
def test_a_recorded_image_is_made_again(pipes, name):
    made = pipes[name]("a red sphere", **arguments(name, seed=8)).images[0]
    given = {key: arguments(name)[key] for key in arguments(name) if "image" in key}
    again = repeat(pipes[name], made.info["underdraw"], **given)
    assert again.tobytes() == made.tobytes()
    with pytest.raises(InputError, match="metadata lacks image"):
        repeat(pipes[name], made.info["underdraw"])


@pytest.mark.parametrize("name", KINDS)
def test_streams(pipes, name):
    run = pipes[name].stream("cube", **arguments(name), seed=3, output_type="latent")
    steps = list(run)
    assert len(steps) == 2 and torch.equal(
        run.output.images, tiny.run(pipes[name], "cube", **arguments(name), seed=3)
    )


@pytest.mark.parametrize("name", KINDS)
def test_controls_of_the_caller_act_too(pipes, name):
    class Louder(Control):
        def before_call(self, nn, carry, latents, call):
            return latents, Sites(down=(lambda nn, place, x: x * 1.5,)), carry

    plain = tiny.run(pipes[name], **arguments(name))
    changed = tiny.run(pipes[name], **arguments(name), controls=[Louder()])
    assert not torch.allclose(plain, changed, atol=1e-3)
    assert torch.equal(tiny.run(pipes[name], **arguments(name)), plain)


def test_region_in_image_to_image_keeps_the_background(pipes):
    clean = torch.randn(1, 4, 6, 9)
    region = Region(masked(), latents=clean)
    made = tiny.run(pipes["img2img"], **arguments("img2img", image=clean), controls=[region])
    assert torch.allclose(made[:, :, 4:], clean[:, :, 4:], atol=1e-5)
    assert (made - clean)[:, :, 1:4, 2:5].abs().max() > 0.1


def test_the_background_is_the_round_trip(pipes):
    """Of four channels; with latents as picture nothing is drawn for the encoder."""
    clean = torch.randn(1, 4, 6, 9)
    made = tiny.run(pipes["inpaint"], **arguments("inpaint", image=clean, strength=1.0))
    assert torch.allclose(made[:, :, 4:], clean[:, :, 4:], atol=1e-6)


# -- pasting back --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (101, 143)])
def test_pasted_pictures_keep_their_pixels_and_their_size(pipes, size):
    photos, masks = [picture(*size, seed=i) for i in range(2)], masked(*size)
    call = arguments("inpaint", image=photos, mask_image=masks, paste_back=True, seed=3)
    made = pipes["inpaint"](["a", "b"], num_images_per_prompt=2, **call).images
    outside = np.asarray(masks) == 0
    for i, image in enumerate(made):
        assert image.size == size[::-1]
        assert np.array_equal(np.asarray(image)[outside], np.asarray(photos[i // 2])[outside])
        assert not np.array_equal(np.asarray(image), np.asarray(photos[i // 2]))


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_pasted_arrays(pipes, kind):
    call = arguments("inpaint", seed=3, output_type=kind)
    plain = np.asarray(pipes["inpaint"]("a", **call).images)
    made = np.asarray(pipes["inpaint"]("a", **call, paste_back=True).images)
    if kind == "pt":
        plain, made = plain.transpose(0, 2, 3, 1), made.transpose(0, 2, 3, 1)
    inside = np.asarray(masked()) > 0
    wanted = np.asarray(picture(), np.float32) / 255
    assert np.abs(made[0][~inside] - wanted[~inside]).max() < 1e-6
    assert np.array_equal(made[0][inside], plain[0][inside])


def test_a_crop_leaves_the_rest_alone(pipes):
    photo, mask = picture(200, 150), masked(200, 150)
    call = arguments("inpaint", image=photo, mask_image=mask, padding_mask_crop=8, seed=2)
    made = pipes["inpaint"]("a", **call).images[0]
    inside = np.asarray(mask) > 0
    assert made.size == photo.size
    assert np.array_equal(np.asarray(made)[~inside], np.asarray(photo)[~inside])
    assert not np.array_equal(np.asarray(made)[inside], np.asarray(photo)[inside])


def test_what_callers_bring_is_not_changed(pipes):
    image, mask = np.asarray(picture(), np.float32) / 255, np.asarray(masked(), np.float32) / 300
    kept = image.copy(), mask.copy()
    tiny.run(pipes["inpaint"], **arguments("inpaint", image=image, mask_image=mask))
    tensor, cells = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)
    tiny.run(pipes["inpaint"], **arguments("inpaint", image=tensor, mask_image=cells))
    assert np.array_equal(image, kept[0]) and np.array_equal(mask, kept[1])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_other_modes(pipes, mode):
    """diffusers takes RGB only."""
    other = picture().convert(mode)
    wanted = tiny.run(pipes["img2img"], **arguments("img2img", image=other.convert("RGB")))
    made = tiny.run(pipes["img2img"], **arguments("img2img", image=other))
    assert torch.equal(made, wanted)


def test_uint8_arrays(pipes):
    wanted = tiny.run(pipes["img2img"], **arguments("img2img"))
    made = tiny.run(pipes["img2img"], **arguments("img2img", image=np.asarray(picture())))
    assert torch.allclose(made, wanted, atol=1e-5)


# -- what is refused -----------------------------------------------------------------------------

FLOAT = np.zeros((HEIGHT, WIDTH, 3), np.float32)
BOTH = {
    "no picture": ({"image": None}, InputError, "image=None"),
    "a path": ({"image": "photo.png"}, InputTypeError, "image holds a str"),
    "nothing": ({"image": []}, InputError, "image is an empty list"),
    "mixed": ({"image": [picture(), FLOAT]}, InputTypeError, "mixes PIL pictures and arrays"),
    "grey array": ({"image": FLOAT[:, :, 0]}, InputError, r"image has shape \(48, 72\)"),
    "four channels": ({"image": np.zeros((48, 72, 4))}, InputError, "image has 4 channels"),
    "0 .. 255": ({"image": FLOAT + 200}, InputError, "values from 200 to 200; allowed: 0 to 1"),
    "NaN": ({"image": FLOAT * np.nan}, InputError, "values from nan"),
    "text": ({"image": np.full((48, 72, 3), "x")}, InputTypeError, "dtype"),
    "strength above 1": ({"strength": 1.5}, InputError, "strength=1.5 is out of range"),
    "negative strength": ({"strength": -0.1}, InputError, "strength=-0.1"),
    "no strength": ({"strength": 0.0}, InputError, "strength=0.0 of 4 steps leaves none"),
    "too little": ({"strength": 0.2}, InputError, "allowed: 0.25 .. 1"),
    "a word": ({"strength": "much"}, InputTypeError, "strength='much' is not a number"),
    "pictures": ({"image": [picture()] * 2}, InputError, "image has 2 pictures; there are 3"),
    "adapter": ({"ip_adapter_image": picture()}, InputError, "ip_adapter_image"),
    "prompt": ({"prompt": None}, InputError, "prompt=None"),
}
INPAINT = {
    "no mask": ({"mask_image": None}, InputError, "mask_image=None"),
    "mask values": ({"mask_image": FLOAT[:, :, 0] + 2}, InputError, "mask_image has values from 2"),
    "coloured mask": ({"mask_image": FLOAT}, InputError, "mask_image has shape"),
    "height": ({"height": 44}, InputError, "height=44 is not a multiple of 8"),
    "masks": ({"mask_image": [masked()] * 2, "image": [picture()] * 3}, InputError, "holds 2"),
    "latents": ({"latents": torch.zeros(1, 4, 6, 8)}, InputError, "latents has shape"),
    "known": ({"masked_image_latents": FLOAT}, InputTypeError, "masked_image_latents is ndarray"),
    "crop of arrays": (
        {"padding_mask_crop": 4, "image": FLOAT, "output_type": "pil"},
        InputError,
        "image must be a PIL",
    ),
    "crop of nothing": (
        {"padding_mask_crop": 4, "mask_image": Image.new("L", (72, 48)), "output_type": "pil"},
        InputError,
        "mask_image is empty",
    ),
    "crop sizes": (
        {"padding_mask_crop": 4, "mask_image": masked(56, 72), "output_type": "pil"},
        InputError,
        "needed is one size",
    ),
    "crop to arrays": ({"padding_mask_crop": 4, "output_type": "np"}, InputError, "allowed: 'pil'"),
    "pasted latents": ({"paste_back": True}, InputError, "paste_back=True with output_type"),
    "latents of another size": (
        {"image": torch.zeros(1, 4, 8, 8)},
        InputError,
        r"image has shape \(1, 4, 8, 8\)",
    ),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in KINDS for case in BOTH] + [("inpaint", case) for case in INPAINT],
)
def test_refused_before_any_work(pipes, name, case):
    changes, error, words = (INPAINT if case in INPAINT else BOTH)[case]
    call = {"prompt": ["a", "b", "c"], **arguments(name), "output_type": "latent", **changes}
    counts, encoded = tiny.counted(pipes[name]), []
    hook = pipes[name].vae.encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    with pytest.raises(error, match=words):
        pipes[name](**call)
    hook.remove()
    assert not counts and not encoded


def test_unets_of_other_channels():
    pipe = tiny.components(unet={"in_channels": 5})
    with pytest.raises(InputError, match=r"it takes 5 channels.* text-to-image or inpainting"):
        StableDiffusionInpaintPipeline(**pipe)("a", **arguments("inpaint"))
    pipe = tiny.components(unet={"in_channels": 9})
    with pytest.raises(InputError, match="needs a text-to-image UNet"):
        StableDiffusionImg2ImgPipeline(**pipe)("a", **arguments("img2img"))


def test_latents_cannot_be_masked(nine):
    with pytest.raises(InputError, match="give masked_image_latents"):
        nine("a", **arguments("inpaint", image=torch.zeros(1, 4, 6, 9)))


def test_an_encoder_that_gives_nothing_finite():
    pipe = StableDiffusionImg2ImgPipeline(**tiny.components())
    pipe.vae.encoder.conv_in.weight.data[:] = torch.nan
    with pytest.raises(NonFiniteError, match="encoding gave NaN"):
        pipe("a", **arguments("img2img"))


def test_half_precision():
    pipe = StableDiffusionInpaintPipeline(**tiny.components())
    pipe.set_progress_bar_config(disable=True)
    pipe.to(dtype=torch.bfloat16)
    made = tiny.run(pipe, "a", **arguments("inpaint"), seed=1)
    assert made.dtype == torch.bfloat16 and torch.isfinite(made).all()


@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_encoded_with_the_pipeline_s_settings(text, name):
    """Two pipelines may share an autoencoder; tiles bound what it sees at once."""
    pipe = KINDS[name].from_pipe(text)
    pipe.set_progress_bar_config(disable=True)
    big, seen = picture(96, 136), []
    size = {"height": 96, "width": 136} if name == "inpaint" else {}
    call = arguments(name, image=[big, big], **size)
    first = pipe.vae.encoder.conv_in
    hook = first.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape)))
    pipe.enable_vae_tiling()
    pipe.enable_vae_slicing()
    tiny.run(pipe, "a", **call, seed=1)
    hook.remove()
    assert seen and all(shape[0] == 1 and max(shape[2:]) <= 64 for shape in seen)
