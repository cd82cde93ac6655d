"""One way for pictures: whatever encodes or decodes obeys tiles, slices and the engine."""

import numpy as np
import pytest
import torch
from pipelines import test_gligen as gligen, tiny

import underdraw
from underdraw import schedulers
from underdraw.controls.region import Region
from underdraw.engines.eager import EAGER
from underdraw.networks import vae
from underdraw.pipelines.call.stream import fit_colours
from underdraw.pipelines.inversion import invert_pictures
from underdraw.sampling.inversion import finish

SIDE = 64  # of the tiles, in pixels
TALL, WIDE = 72, 104


class Recording:
    """Runs programs as they are written and notes the shapes that reach the autoencoder."""

    def __init__(self):
        self.encoded, self.decoded = [], []

    def run(self, question):
        for program, seen in ((vae.ENCODE, self.encoded), (vae.DECODE, self.decoded)):
            if question.program == program:
                seen.append(tuple(question.inputs[0].shape))
        return EAGER.run(question)


def picture(count=None):
    drawn = np.random.default_rng(3).random((count or 1, TALL, WIDE, 3)).astype(np.float32)
    return drawn if count else drawn[0]


def masked():
    mask = np.zeros((TALL, WIDE), np.float32)
    mask[:40, :48] = 1
    return mask


def pipeline(kind=underdraw.StableDiffusionPipeline, **changes):
    ddim = schedulers.DDIMScheduler(**tiny.SCHEDULE, clip_sample=False)
    pipe = kind(**tiny.components(scheduler=ddim, **changes))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffedit():
    return pipeline(underdraw.StableDiffusionDiffEditPipeline)


def boxes():
    pipe = gligen.made()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def as_tensor(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1


STEPS = {"num_inference_steps": 2}
WORDS = {"source_prompt": "a red sphere", "target_prompt": "a green cube"}
WAYS = {
    "img2img": (
        lambda: pipeline(underdraw.StableDiffusionImg2ImgPipeline),
        lambda pipe: pipe("a cube", image=picture(2), seed=1, **STEPS),
    ),
    "inpainting": (
        lambda: pipeline(underdraw.StableDiffusionInpaintPipeline),
        lambda pipe: pipe(
            "a cube", picture(2), masked(), height=TALL, width=WIDE, strength=0.6, seed=1, **STEPS
        ),
    ),
    "a region": (
        pipeline,
        lambda pipe: pipe(
            "a cube",
            height=TALL,
            width=WIDE,
            seed=1,
            controls=[Region(masked(), image=picture())],
            **STEPS,
        ),
    ),
    "DiffEdit's mask": (
        diffedit,
        lambda pipe: pipe.generate_mask(picture(2), num_maps_per_mask=1, seed=1, **WORDS, **STEPS),
    ),
    "DiffEdit's inversion": (
        diffedit,
        lambda pipe: pipe.invert("a cube", picture(2), decode_latents=True, **STEPS),
    ),
    "an edit": (
        diffedit,
        lambda pipe: pipe.edit(
            picture(), "a red sphere", "a green cube", num_maps_per_mask=1, **STEPS
        ),
    ),
    "GLIGEN's inpainting": (
        boxes,
        lambda pipe: pipe(
            "a cube",
            height=TALL,
            width=WIDE,
            gligen_phrases=["a cube"],
            gligen_boxes=[(0.1, 0.1, 0.6, 0.6)],
            gligen_inpaint_image=picture(),
            seed=1,
            **STEPS,
        ),
    ),
    "inversion": (
        pipeline,
        lambda pipe: finish(invert_pictures(pipe, picture(2), "a cube", "plain", **STEPS)),
    ),
    "prepare_image_latents": (
        diffedit,
        lambda pipe: pipe.prepare_image_latents(as_tensor(picture(2)), 2),
    ),
    "prepare_latents": (
        lambda: pipeline(underdraw.StableDiffusionImg2ImgPipeline),
        lambda pipe: pipe.prepare_latents(as_tensor(picture(2)), torch.tensor([500]), 2, 1),
    ),
    "colours of previews": (pipeline, lambda pipe: fit_colours(pipe.parts)),
}


@pytest.mark.parametrize("name", WAYS)
def test_pictures_are_worked_on_in_tiles_and_slices(name):
    make, do = WAYS[name]
    pipe = make()
    pipe.engine = engine = Recording()
    do(pipe)
    assert engine.encoded and max(max(shape[2:]) for shape in engine.encoded) > SIDE
    factor = pipe.vae.config.factor
    pipe.enable_vae_tiling()
    pipe.enable_vae_slicing()
    pipe.engine = engine = Recording()
    do(pipe)
    assert engine.encoded
    assert {shape[0] for shape in (*engine.encoded, *engine.decoded)} == {1}
    assert max(max(shape[2:]) for shape in engine.encoded) <= SIDE
    assert all(max(shape[2:]) <= SIDE // factor for shape in engine.decoded)


def test_settings_of_the_autoencoder_itself_count_too():
    pipe = diffedit()
    pipe.engine = engine = Recording()
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    pipe.invert("a cube", picture(2), **STEPS)
    assert {shape[0] for shape in engine.encoded} == {1}
    assert max(max(shape[2:]) for shape in engine.encoded) <= SIDE


@pytest.mark.parametrize("name", ["DiffEdit's inversion", "GLIGEN's inpainting", "inversion"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_autoencoder_that_gives_nan_is_told(name, part):
    make, do = WAYS[name]
    pipe = make()
    getattr(pipe.vae, part).conv_in.bias.data[0] = float("nan")
    with pytest.raises(underdraw.NonFiniteError, match=f"vae: {part[:2]}coding gave NaN"):
        do(pipe)
