"""GLIGEN pipelines by themselves: per image, records, folders, inpainting at any size, refusals."""

import json
import warnings

import numpy as np
import pytest
import torch
from controls.test_grounding import opened
from PIL import Image
from pipelines import tiny
from pipelines.tiny import counted, run

import underdraw
from underdraw.errors import InputError, InputTypeError
from underdraw.models import (
    CLIPImageProcessor,
    CLIPImageProjection,
    CLIPVisionModelWithProjection,
)
from underdraw.pipelines.call.record import repeat

BOXES = [[0.1, 0.2, 0.5, 0.6], [0.5, 0.45, 1.0, 1.0]]
PHRASES = ["red sphere", "a blue cube on the table"]
CALL = {"gligen_boxes": BOXES, "gligen_phrases": PHRASES, "num_inference_steps": 4}
WIDE = {"height": 48, "width": 80}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": tiny.WIDTH,
}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(kind="text", **unet):
    """A pipeline on a gated UNet with open gates."""
    parts = tiny.components(unet=unet)
    parts["unet"] = parts["unet"].with_grounding(opened(parts["unet"], kind))
    if kind == "text":
        return quiet(underdraw.StableDiffusionGLIGENPipeline(**parts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        sight = {
            "image_encoder": tiny.shake(CLIPVisionModelWithProjection(**VISION)),
            "image_project": CLIPImageProjection(hidden_size=tiny.WIDTH),
            "processor": underdraw.CLIPProcessor(
                CLIPImageProcessor(32, (32, 32)), parts["tokenizer"]
            ),
        }
    return quiet(underdraw.StableDiffusionGLIGENTextImagePipeline(**parts, **sight))


@pytest.fixture(scope="module")
def pipe():
    return made()


@pytest.fixture(scope="module")
def pictured():
    return made("text-image")


@pytest.fixture(scope="module")
def painter():
    return made(in_channels=9)


def photo(size=(80, 48), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


# -- what a call is --------------------------------------------------------------------------------
def test_it_is_the_control(pipe, pictured):
    boxes = [underdraw.Box(p, b) for p, b in zip(PHRASES, BOXES, strict=True)]
    plain = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    same = run(plain, controls=boxes, num_inference_steps=4)
    assert torch.equal(run(pipe, **CALL), same)

    style = underdraw.Style(photo())
    phantom = [BOXES[0], [0.0, 1.0, 0.0, 1.0]]
    images = {"gligen_images": [photo((9, 9), 3), photo()], "input_images_mask": [0, 1]}
    images |= {"gligen_boxes": phantom, "gligen_phrases": ["a", "none"]}
    images |= {"input_phrases_mask": [1, 0]}
    asked = run(pictured, **{**CALL, **images})
    control = underdraw.Layout([underdraw.Box("a", BOXES[0]), style])
    assert torch.equal(asked, run(pictured, controls=[control], num_inference_steps=4))


def test_boxes_per_image_and_per_prompt(pipe):
    layouts = [(BOXES, PHRASES), (BOXES[:1], ["green"]), ([], [])]
    nested = {name: [one[i] for one in layouts] for i, name in enumerate(CALL) if i < 2}
    prompts = ["a red sphere", "blue", "the table"]
    call = {**CALL, **nested, **WIDE, "seed": [4, 5, 6], "gligen_scheduled_sampling_beta": 0.6}
    batch = run(pipe, prompts, **call)
    for i, (boxes, phrases) in enumerate(layouts):
        alone = {"gligen_boxes": boxes, "gligen_phrases": phrases, "seed": 4 + i}
        single = run(pipe, prompts[i], **{**call, **alone})
        assert (batch[i] - single[0]).abs().max() <= 1e-5 * single.abs().max()
    twice = run(pipe, prompts, **{**call, "seed": 4}, num_images_per_prompt=2)
    assert twice.shape[0] == 6 and (twice[0] - batch[0]).abs().max() <= 1e-5
    told, against = pipe.encode_prompt(prompts)
    call |= {"seed": 4, "prompt_embeds": told, "negative_prompt_embeds": against}
    given = run(pipe, None, **call, num_images_per_prompt=2)
    assert (given - twice).abs().max() <= 1e-5


@pytest.mark.parametrize("form", [list, np.array])
def test_masks_per_image(pictured, form):
    boxes = {"gligen_boxes": [BOXES, BOXES], "gligen_phrases": [PHRASES, PHRASES]}
    boxes |= {"gligen_images": [[photo((9, 9), 3), photo()]] * 2}
    masks = {"input_phrases_mask": form([[1, 0], [0, 1]]), "input_images_mask": [[1], [0, 1]]}
    call = {**CALL, **boxes, **masks}
    batch = pictured(["a", "b"], **call, seed=[1, 2])
    batch_latents = run(pictured, ["a", "b"], **call, seed=[1, 2])
    for i in (0, 1):
        alone = {name: value[i] for name, value in {**boxes, **masks}.items()}
        single = run(pictured, "ab"[i], **{**CALL, **alone}, seed=1 + i)
        assert (batch_latents[i] - single[0]).abs().max() <= 1e-5 * single.abs().max()
        told = json.loads(batch.images[i].info["underdraw"])["call"]
        assert told["input_images_mask"] == masks["input_images_mask"][i]
    both = run(pictured, ["a", "b"], **{**call, "input_images_mask": [0, [0, 1]]}, seed=[1, 2])
    apart = (both - batch_latents).abs().amax((1, 2, 3))
    limit = 1e-5 * batch_latents.abs().max()
    assert apart[1] <= limit < 100 * limit < apart[0]
    with pytest.raises(InputError, match=r"input_images_mask must be a list per image.*: 2 l"):
        run(pictured, ["a", "b"], **{**call, "input_images_mask": [[1]] * 3})
    with pytest.raises(InputError, match=r"input_images_mask.*allowed: 0, 1"):
        run(pictured, "a", **{**CALL, "input_images_mask": [[1], [0]]})


def test_more_than_thirty_boxes_are_named(pipe):
    many = {"gligen_boxes": BOXES * 16, "gligen_phrases": PHRASES * 15 + ["surplus", "left over"]}
    with pytest.warns(UserWarning, match=r"32 boxes; the first 30.*'surplus', 'left over'"):
        cut = run(pipe, **{**CALL, **many})
    few = {"gligen_boxes": BOXES * 15, "gligen_phrases": PHRASES * 15}
    assert torch.equal(cut, run(pipe, **{**CALL, **few}))


def test_pictures_say_how_they_were_made(pipe):
    nested = {"gligen_boxes": [BOXES, BOXES[:1]], "gligen_phrases": [PHRASES, ["green"]]}
    images = pipe(["a", "b"], seed=7, num_inference_steps=3, **nested).images
    assert json.loads(images[1].info["underdraw"])["call"]["gligen_phrases"] == ["green"]
    for i, (boxes, image) in enumerate(zip((BOXES, BOXES[:1]), images, strict=True)):
        record = json.loads(image.info["underdraw"])
        assert record["call"]["gligen_boxes"] == boxes and record["missing"] == []
        again = np.asarray(repeat(pipe, image.info["underdraw"]), np.int16)
        assert np.abs(again - np.asarray(images[i], np.int16)).max() <= 1


def test_callbacks_and_output_types(pipe):
    seen = []
    out = pipe(
        "a",
        output_type="pt",
        callback=lambda i, t, x: seen.append((i, x.shape)),
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append(sorted(tensors)),
        return_dict=False,
        **CALL,
    )
    assert out[0].shape == (1, 3, 64, 64) and out[1] is None
    assert seen[:2] == [["latents"], (0, (1, 4, 8, 8))] and len(seen) == 2 * 4


def test_enable_fuser_belongs_to_the_pipeline(pipe):
    other = type(pipe).from_pipe(pipe)
    grounded = run(pipe, **CALL)
    other.enable_fuser(False)
    plain = run(underdraw.StableDiffusionPipeline.from_pipe(pipe), num_inference_steps=4)
    assert torch.equal(run(other, **CALL), plain) and torch.equal(run(pipe, **CALL), grounded)
    other.enable_fuser()
    assert torch.equal(run(other, **CALL), grounded)


def test_any_base_takes_the_weights(pipe, tmp_path):
    """Lifted off a gated checkpoint, attached to a plain one."""
    pipe.save_pretrained(tmp_path / "gated")
    bare = quiet(underdraw.StableDiffusionGLIGENPipeline(**tiny.components()))
    calls = counted(bare)
    with pytest.raises(InputError, match="need grounding weights of kind 'text'; attached: none"):
        run(bare, **CALL)
    assert calls == []
    bare.load_grounding(tmp_path / "gated")
    assert torch.equal(run(bare, **CALL), run(pipe, **CALL))
    again = type(pipe).from_pretrained(tmp_path / "gated")
    assert torch.equal(run(quiet(again), **CALL), run(pipe, **CALL))


def test_the_folder_with_images(pictured, tmp_path):
    pictured.save_pretrained(tmp_path / "gated")
    images = {"gligen_images": [photo(), None], "gligen_scheduled_sampling_beta": 0.3}
    wanted = run(pictured, **CALL, **images)
    again = quiet(underdraw.DiffusionPipeline.from_pretrained(tmp_path / "gated"))
    assert type(again) is type(pictured)
    # Weights mapped from a file lie otherwise in memory, and some products round otherwise.
    limit = 1e-5 * wanted.abs().max()
    assert (run(again, **CALL, **images) - wanted).abs().max() <= limit
    plain = tiny.pipeline()
    plain.load_grounding(tmp_path / "gated")
    boxes = [underdraw.Box(PHRASES[0], BOXES[0], photo()), underdraw.Box(PHRASES[1], BOXES[1])]
    made = run(plain, controls=[underdraw.Layout(boxes, (0.3, 0, 0.7))], num_inference_steps=4)
    assert (made - wanted).abs().max() <= limit
    plain.unload_grounding()
    plain.load_grounding(again.unet.grounding)
    with pytest.raises(InputError, match="image_encoder and image_project and processor=None"):
        run(plain, controls=boxes)


# -- inpainting ------------------------------------------------------------------------------------
def half():
    mask = np.zeros((48, 80), np.float32)
    mask[:, 40:] = 1
    return mask


@pytest.mark.parametrize("kind", ["pipe", "painter"])
@pytest.mark.parametrize("mask", [None, half(), Image.fromarray(np.uint8(half() * 255))])
def test_the_background_is_kept(kind, mask, request):
    """On plain and on inpainting networks, in boxes and in masks, at a size that is no square."""
    pipe, picture = request.getfixturevalue(kind), photo()
    call = {**CALL, **WIDE, "gligen_inpaint_image": picture, "gligen_inpaint_mask": mask, "seed": 3}
    drawn = run(pipe, **call)
    pixels = pipe.image_processor.preprocess(picture)
    known = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    if mask is None:
        inside = 1 - pipe.draw_inpaint_mask_from_boxes(BOXES, (6, 10))
    else:
        inside = torch.zeros(6, 10)
        inside[:, 5:] = 1
    assert 0 < inside.mean() < 1
    assert ((drawn - known) * (1 - inside)).abs().max() <= 1e-5
    assert ((drawn - known) * inside).abs().mean() > 0.1
    assert torch.equal(run(pipe, **call), drawn)
    assert not torch.equal(run(pipe, **{**call, "seed": 4}), drawn)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_pixels_are_pasted_back(painter, output_type):
    picture = photo((100, 60), 2)
    call = {**CALL, **WIDE, "gligen_inpaint_image": picture, "seed": 3, "prompt": "a"}
    loose, kept = (
        painter(output_type=output_type, paste_back=paste, **call).images for paste in (False, True)
    )
    if output_type == "pt":
        loose, kept = (x.permute(0, 2, 3, 1).numpy() for x in (loose, kept))
    loose, kept = (np.asarray([np.asarray(one) for one in many]) for many in (loose, kept))
    wanted = np.asarray(picture.resize((80, 48), Image.Resampling.LANCZOS))
    wanted = wanted if output_type == "pil" else wanted.astype(np.float32) / np.float32(255)
    inside = np.zeros((48, 80), bool)
    for x0, y0, x1, y1 in BOXES:
        inside[int(y0 * 48) : int(y1 * 48), int(x0 * 80) : int(x1 * 80)] = True
    assert np.array_equal(kept[0][~inside], wanted[~inside])
    assert np.array_equal(kept[0][inside], loose[0][inside])
    assert not np.array_equal(loose[0][~inside], wanted[~inside])


def test_pictures_and_masks_per_image(painter):
    pictures, masks = [photo(seed=1), photo((64, 64), 2)], [half(), 1 - half()]
    nested = {"gligen_boxes": [BOXES, BOXES[:1]], "gligen_phrases": [PHRASES, ["green"]]}
    call = {**CALL, **WIDE, **nested}
    several = {"gligen_inpaint_image": pictures, "gligen_inpaint_mask": masks, "seed": [1, 2]}
    batch = run(painter, ["a", "b"], **call, **several)
    for i in (0, 1):
        one = {name: value[i] for name, value in {**nested, **several}.items()}
        single = run(painter, "ab"[i], **{**call, **one})
        assert (batch[i] - single[0]).abs().max() <= 1e-5 * single.abs().max()
    call |= {**several, "seed": [1, 1, 2, 2]}
    twice = run(painter, ["a", "b"], **call, num_images_per_prompt=2)
    for i in range(4):
        assert (twice[i] - batch[i // 2]).abs().max() <= 1e-5 * batch.abs().max()


def test_pictures_to_paint_into_in_every_form(painter):
    pictures = [photo(seed=1), photo(seed=2)]
    pixels = np.stack([np.asarray(one) for one in pictures])
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    call = {**CALL, **WIDE, "seed": [1, 2], "prompt": ["a", "b"]}
    wanted = run(painter, **call, gligen_inpaint_image=pictures)
    for given in (pixels, tensor, tensor / 255, list(tensor)):
        assert torch.equal(run(painter, **call, gligen_inpaint_image=given), wanted)


def test_a_picture_is_cut_to_the_proportions_of_the_result(painter):
    """Around its middle, as diffusers does for squares."""
    tall = photo((80, 120), 4)
    cut = tall.crop((0, 36, 80, 84))
    call = {**CALL, **WIDE, "seed": 1}
    asked = run(painter, **call, gligen_inpaint_image=tall)
    assert torch.equal(asked, run(painter, **call, gligen_inpaint_image=cut))
    assert painter.target_size_center_crop(tall, 32).size == (32, 32)
    assert painter.crop(tall, 20, 30).size == (20, 30)


def test_inpainting_weights_lifted_off_their_unet(painter, tmp_path):
    """They bring a first convolution for the further channels, to a base that has none."""
    from underdraw.models.grounding_files import load_grounding

    painter.unet.save_pretrained(tmp_path)
    part = load_grounding(tmp_path, tiny.components()["unet"])
    assert part.config.extra_channels == 5
    other = type(painter).from_pipe(painter, unet=tiny.components()["unet"])
    other.load_grounding(part)
    call = {**CALL, **WIDE, "gligen_inpaint_image": photo(), "seed": 3}
    call["gligen_scheduled_sampling_beta"] = 0.5
    drawn = run(other, **call)
    other.unload_grounding()
    part.conv_in.weight.data[:, 4:] *= 3
    other.load_grounding(part)
    assert not torch.equal(run(other, **call), drawn)
    # On a base of the same weights they make the same pictures as the whole checkpoint.
    part.conv_in.weight.data[:, 4:] /= 3
    state = painter.unet.state_dict()
    own = other.unet.state_dict()
    own.update({name: state[name] for name in own if name != "conv_in.weight"})
    other.unet.load_state_dict(own)
    whole = run(painter, **call)
    assert (run(other, **call) - whole).abs().max() <= 1e-4 * whole.abs().max()


# -- refusals --------------------------------------------------------------------------------------
PHOTO = {"gligen_inpaint_image": photo()}
WRONG = [
    ({"gligen_phrases": ["a"]}, InputError, "gligen_phrases has 1 entries; there are 2 boxes"),
    ({"gligen_phrases": None}, InputError, "box 0 of gligen_boxes has neither"),
    ({"gligen_phrases": ["a", 3]}, InputTypeError, r"gligen_phrases\[1\]=3"),
    ({"gligen_boxes": [[0, 0, 2, 1], BOXES[0]]}, InputError, r"gligen_boxes\[0\].* holds 2"),
    ({"gligen_boxes": [BOXES[0], [0.5, 0, 0.2, 1]]}, InputError, r"gligen_boxes\[1\].*x_max"),
    ({"gligen_boxes": [BOXES[0], [0, 0, float("nan"), 1]]}, InputError, "holds nan"),
    ({"gligen_boxes": 3}, InputTypeError, "gligen_boxes=3 is not a list"),
    ({"gligen_boxes": [BOXES] * 3}, InputError, "lists for 3 images; the call makes 1"),
    ({"gligen_boxes": [BOXES]}, InputError, "gligen_phrases.*list per image"),
    ({"gligen_scheduled_sampling_beta": 1.5}, InputError, "beta=1.5"),
    ({"gligen_scheduled_sampling_beta": "x"}, InputTypeError, "beta='x'"),
    ({"cross_attention_kwargs": {"gligen": {}}}, InputError, "cross_attention_kwargs"),
    ({"gligen_inpaint_mask": half()}, InputError, "gligen_inpaint_mask.*needs"),
    ({"paste_back": True}, InputError, "paste_back.*needs gligen_inpaint_image"),
    ({**PHOTO, "paste_back": True, "output_type": "latent"}, InputError, "latents have no pixels"),
    ({"gligen_inpaint_image": "a.png"}, InputTypeError, "gligen_inpaint_image=str"),
    ({"gligen_inpaint_image": [photo()] * 3}, InputError, "3 pictures; allowed: 1 or 1"),
    ({**PHOTO, "gligen_inpaint_mask": half() * 2}, InputError, "gligen_inpaint_mask.*0 to 1"),
    ({**PHOTO, "gligen_inpaint_mask": [half()] * 2}, InputError, "2 masks"),
    ({"latents": torch.zeros(1, 4, 5, 5)}, InputError, "latents has shape"),
]


@pytest.mark.parametrize(("changes", "error", "message"), WRONG, ids=range(len(WRONG)))
def test_errors_come_before_any_work(pipe, changes, error, message):
    calls = counted(pipe)
    with pytest.raises(error, match=message):
        pipe("a", **{**CALL, "height": 48, "width": 80, "seed": None, **changes})
    assert calls == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gligen_images": [photo()]}, "gligen_images has 1 entries; there are 2 boxes"),
        ({"input_phrases_mask": [0.5, 1]}, "input_phrases_mask"),
        ({"gligen_normalize_constant": float("nan")}, "gligen_normalize_constant"),
    ],
)
def test_errors_with_images(pictured, changes, message):
    with pytest.raises(InputError, match=message):
        pictured("a", **{**CALL, **changes})


def test_an_inpainting_network_needs_a_picture(painter):
    with pytest.raises(InputError, match=r"takes 9 channels.*gligen_inpaint_image"):
        painter("a", **CALL)


def test_a_callers_dictionary_stays_as_it_is(pipe):
    mine: dict = {}
    run(pipe, **CALL, cross_attention_kwargs=mine)
    assert mine == {}
    mine = {"scale": 0.5}
    assert torch.equal(run(pipe, **CALL, cross_attention_kwargs=mine), run(pipe, **CALL))
    assert mine == {"scale": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pipe, **CALL)


# -- diffusers' other methods ----------------------------------------------------------------------
def test_familiar_methods(pipe, pictured):
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    pipe.disable_vae_slicing()
    pipe.disable_vae_tiling()
    assert pipe.prepare_latents(2, 4, 48, 80, torch.float32, "cpu", None).shape == (2, 4, 6, 10)
    mask = pictured.complete_mask([0, 1], 4, "cpu")
    assert mask.tolist() == [[0, 1, 1, 1]]
    assert pictured.complete_mask(0, 2, "cpu").tolist() == [[0, 0]]
    assert pictured.complete_mask(None, 2, "cpu").tolist() == [[1, 1]]
    feature = pictured.get_clip_feature(photo(), 28.7, "cpu", is_image=True)
    assert feature.shape == (1, 32) and feature.norm().item() == pytest.approx(28.7, rel=1e-4)
    assert pictured.get_clip_feature(None, 1.0, "cpu") is None
