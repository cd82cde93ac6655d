"""Every pipeline of `underdraw.mindspore` against the same class on PyTorch, called as users of
mindone call it, and every kind of control and adapter. Sizes are odd, images of a batch differ."""

import numpy as np
import pytest
import torch
from controls.test_grounding import BLUE, EVER, RED, opened
from controls.test_subject import OVERLAY, encoder, picture
from pipelines import ip_adapters, tiny
from pipelines.blip import recorded
from pipelines.loras import loha, lora
from pipelines.test_backends import TWO, mask
from pipelines.test_gligen import BOXES, PHRASES, VISION, photo
from pipelines.test_textual_inversion import vectors

import underdraw
from underdraw import (
    AttentionEdit,
    ImagePrompt,
    Layout,
    Lora,
    PerImage,
    Region,
    Structure,
    Subject,
    backends,
    mindspore as room,
    schedulers,
)
from underdraw.models import CLIPImageProcessor, CLIPImageProjection, CLIPVisionModelWithProjection

CALL = {"num_inference_steps": 2, "output_type": "latent"}
SIZE = {"height": 40, "width": 72}  # latents 5 x 9
BOUND = 1e-4
"""Of the largest value: two guided steps of float32 in another order of sums."""
LATE = (0.0, 0.5, 0.5)


def random(seed=3):
    """As mindone's users give it."""
    return np.random.default_rng(seed)


def parts(**more):
    return {**tiny.components(unet=tiny.ONE_LEVEL), **more}


def quiet(home, kind, components=None):
    pipe = getattr(home, kind)(**(parts() if components is None else components))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def net(seed=5):
    return tiny.controlnet({**tiny.UNET, **tiny.ONE_LEVEL}, seed)


def moved(pipe, network):
    """A network beside the pipeline, on its backend."""
    return tiny.moved(network, pipe.parts.nn.name)


def ddim():
    return schedulers.DDIMScheduler(**tiny.SCHEDULE, clip_sample=False)


def sight():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        tower = tiny.shake(CLIPVisionModelWithProjection(**VISION))
        project = CLIPImageProjection(hidden_size=tiny.WIDTH)
    processor = underdraw.CLIPProcessor(CLIPImageProcessor(32, (32, 32)), tiny.tokenizer())
    return {"image_encoder": tower, "image_project": project, "processor": processor}


def gated(kind):
    made = parts()
    return {**made, "unet": made["unet"].with_grounding(opened(made["unet"], kind))}


# -- pipelines -------------------------------------------------------------------------------------
def text_to_image(home):
    pipe = quiet(home, "StableDiffusionPipeline")
    generators = [random(1), random(2)]
    return pipe(TWO, **SIZE, **CALL, generator=generators, guidance_scale=[3.0, 7.5])


def img2img(home):
    pipe = quiet(home, "StableDiffusionImg2ImgPipeline")
    images = [photo((72, 40), 1), photo((72, 40), 2)]
    return pipe(TWO, images, strength=0.9, **CALL, generator=random())


def inpaint(home):
    pipe = quiet(home, "StableDiffusionInpaintPipeline")
    return pipe(TWO, photo((72, 40)), mask(), **SIZE, **CALL, generator=random())


def controlnet(home):
    pipe = quiet(home, "StableDiffusionControlNetPipeline", parts(controlnet=[net(), net(6)]))
    maps = [[photo((72, 40), 1), photo((72, 40), 2)], [photo((72, 40), 3)] * 2]
    scales = [0.7, 1.2]
    return pipe(TWO, maps, controlnet_conditioning_scale=scales, **SIZE, **CALL, generator=random())


def controlnet_img2img(home):
    pipe = quiet(home, "StableDiffusionControlNetImg2ImgPipeline", parts(controlnet=net()))
    images = photo((72, 40), 1), photo((72, 40), 2)
    return pipe(TWO[0], *images, strength=0.9, **SIZE, **CALL, generator=random())


def controlnet_inpaint(home):
    pipe = quiet(home, "StableDiffusionControlNetInpaintPipeline", parts(controlnet=net()))
    images = photo((72, 40), 1), mask(), photo((72, 40), 2)
    return pipe(TWO[0], *images, **SIZE, **CALL, generator=random())


def adapter(home):
    pipe = quiet(
        home, "StableDiffusionAdapterPipeline", parts(adapter=tiny.adapter(channels=(16,)))
    )
    return pipe(TWO[0], photo((72, 40), 1), **SIZE, **CALL, generator=random())


def gligen(home):
    pipe = quiet(home, "StableDiffusionGLIGENPipeline", gated("text"))
    boxes = {"gligen_boxes": [BOXES, BOXES[:1]], "gligen_phrases": [PHRASES, PHRASES[:1]]}
    beta = {"gligen_scheduled_sampling_beta": 0.7}
    return pipe(TWO, **boxes, **beta, **SIZE, **CALL, generator=random())


def gligen_text_image(home):
    kind = "StableDiffusionGLIGENTextImagePipeline"
    pipe = quiet(home, kind, {**gated("text-image"), **sight()})
    boxes = {"gligen_boxes": BOXES, "gligen_phrases": [PHRASES[0], None]}
    images = [None, photo(seed=4)]
    return pipe(TWO, **boxes, gligen_images=images, **SIZE, **CALL, generator=random())


def diffedit(home):
    pipe = quiet(home, "StableDiffusionDiffEditPipeline", parts(scheduler=ddim()))
    steps = {"num_inference_steps": 2, "inpaint_strength": 1.0}
    texts = {"source_prompt": TWO[0], "target_prompt": TWO[1]}
    found = pipe.generate_mask(photo((72, 40)), **texts, generator=random(), num_maps_per_mask=2)
    assert found.shape == (1, 5, 9)
    inverted = pipe.invert(TWO[0], photo((72, 40)), **steps)
    given = np.zeros((5, 9), np.float32)
    given[:, 3:] = 1
    # Of mindone the first of two are the latents.
    return pipe(TWO[1], given, inverted[0], **steps, output_type="latent", generator=random())


def edited(home):
    """The three calls in one, whose inner ones give objects."""
    pipe = quiet(home, "StableDiffusionDiffEditPipeline", parts(scheduler=ddim()))
    made = pipe.edit(
        photo((72, 40)), TWO[0], TWO[1], seed=3, num_inference_steps=2, output_type="np"
    )
    return pipe.parts.framework.array(made.images), None


def blip(home):
    pipe = quiet(home, "BlipDiffusionPipeline", recorded.components())
    return pipe(**recorded.arguments("three", pipe, **CALL))


def blip_controlnet(home):
    components = {**recorded.components(), "controlnet": recorded.shared()["controlnet"]}
    pipe = quiet(home, "BlipDiffusionControlNetPipeline", components)
    return pipe(**recorded.arguments("three", pipe, condtioning_image=recorded.edges(), **CALL))


# -- controls and adapters -------------------------------------------------------------------------
def loras(home):
    """One for all images, another in the second one alone."""
    pipe = quiet(home, "StableDiffusionPipeline")
    pipe.load_lora_weights(lora(pipe, 1), "clay")
    pipe.load_lora_weights(loha(pipe, 2), "moss")
    pipe.set_adapters("clay", 0.8)
    steering = [Lora("moss", scale=[0.0, 0.7])]
    return pipe(TWO, **SIZE, **CALL, generator=random(), controls=steering)


def ip_adapter(home):
    components = parts()
    tower = ip_adapters.tower()
    pipe = quiet(home, "StableDiffusionPipeline", {**components, "image_encoder": tower})
    pipe.load_ip_adapter(ip_adapters.adapter(components["unet"], "plus"))
    pipe.set_ip_adapter_scale(0.6)
    images = [photo((40, 40), 1)]
    return pipe(TWO, **SIZE, **CALL, generator=random(), ip_adapter_image=images)


def image_prompt(home):
    components = parts()
    tower = ip_adapters.tower()
    pipe = quiet(home, "StableDiffusionPipeline", {**components, "image_encoder": tower})
    pipe.load_ip_adapter(ip_adapters.adapter(components["unet"], "plain"))
    steering = [ImagePrompt(photo((40, 40), 1), scale=0.5, mask=mask())]
    return pipe(TWO, **SIZE, **CALL, generator=random(), controls=steering)


def learned_words(home):
    pipe = quiet(home, "StableDiffusionPipeline")
    pipe.load_textual_inversion(vectors(), token="<toy>")
    return pipe("a <toy> on the table", **SIZE, **CALL, generator=random(), negative_prompt="red")


def subjects(home):
    pipe = quiet(home, "StableDiffusionPipeline")
    reader = encoder()
    reader.overlay = OVERLAY
    pipe.load_subject(room.networks.brought(reader) if home is room else reader)
    whole = Subject(picture(1), "red sphere", word="sphere", strength=LATE)
    return pipe(TWO[0], **SIZE, **CALL, generator=random(), controls=[whole])


def together(home):
    """Boxes of its own for each image, a region, an attention edit and a map in one call."""
    pipe = quiet(home, "StableDiffusionPipeline")
    pipe.load_grounding(moved(pipe, opened(parts()["unet"])))
    steering = [
        PerImage(Layout([RED, BLUE], EVER), [BLUE]),
        Region(mask(), image=photo((72, 40), 3)),
        AttentionEdit(weights={"sphere": 1.5}, blend=("sphere",)),
        Structure(moved(pipe, net()), [photo((72, 40), seed) for seed in (1, 2)], [0.4, 1.2]),
    ]
    prompts = [TWO[0], TWO[0].replace("red", "green")]
    return pipe(prompts, **SIZE, **CALL, generator=random(), controls=steering)


CASES = (
    text_to_image,
    img2img,
    inpaint,
    controlnet,
    controlnet_img2img,
    controlnet_inpaint,
    adapter,
    gligen,
    gligen_text_image,
    diffedit,
    edited,
    blip,
    blip_controlnet,
    loras,
    ip_adapter,
    image_prompt,
    learned_words,
    subjects,
    together,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_pictures_of_pytorch(case):
    expected = case(underdraw)
    found = case(room)
    assert isinstance(found, tuple) and len(found) == 2 and found[1] is None
    mine, theirs = backends.get("mindspore").to_numpy(found[0]), expected[0].numpy()
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() <= BOUND * np.abs(theirs).max()
