"""What calls compute, over all pipelines, solvers and controls: to see that a change of the code's
shape changes no bit.

    python scripts/record_calls.py write before.npz     # in the commit before
    python scripts/record_calls.py check before.npz     # in the commit after, on the same machine

`tests/data/calls.npz` holds the arrays as they were before the second edition of the house; a test
compares with a tolerance, for other processors round in another order. Networks are random and tiny
and always the same ones; public names are used only, so that the script runs in any commit.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import underdraw as ud
from underdraw.text.vocabulary import train_vocabulary

WORDS = "a red green sphere blue cube left of and on the table".split()
WIDTH = 32
SIZE = {"height": 40, "width": 72}  # latents 5 x 9
PAIR = ["a red sphere left of a blue cube", "a green sphere on the table"]
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": WIDTH,
}
MAPS = {"resize": 32, "backbone_widths": (8, 12), "backbone_depths": (1, 1)}
POSE = np.random.default_rng(0).uniform(0.1, 0.9, (17, 2))
RED = ud.Box("red sphere", (0.1, 0.2, 0.5, 0.6))
BLUE = ud.Box("a blue cube on the table", (0.5, 0.4, 1.0, 1.0))


# -- networks --------------------------------------------------------------------------------------
def shaken(module: Any) -> Any:
    """No parameter stays at 0 or 1, and gates are open."""
    for name, value in module.named_parameters():
        if value.ndim == 1:
            value.data += 0.1 * torch.randn_like(value)
        if "alpha" in name:
            value.data.fill_(0.7)
    return module.eval()


def parts(scheduler: Any = None, **unet: Any) -> dict[str, Any]:
    """Components, always the same numbers."""
    tokenizer = ud.CLIPTokenizer(*train_vocabulary([" ".join(WORDS)] * 2, 600))
    count = len(tokenizer)
    torch.manual_seed(0)
    return {
        "unet": shaken(ud.UNet2DConditionModel(**{**UNET, **unet})),
        "vae": shaken(ud.AutoencoderKL(**VAE)),
        "text_encoder": shaken(
            ud.CLIPTextModel(
                hidden_size=WIDTH,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                projection_dim=16,
                vocab_size=count,
                bos_token_id=count - 2,
                eos_token_id=count - 1,
                pad_token_id=count - 1,
            )
        ),
        "tokenizer": tokenizer,
        "scheduler": scheduler or ud.EulerDiscreteScheduler(**SCHEDULE),
    }


def pipeline(cls: Any = None, scheduler: Any = None, compat: Any = None, **unet: Any) -> Any:
    given = parts(scheduler, **unet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an outdated configuration is mended
        pipe = (cls or ud.StableDiffusionPipeline)(**given, compat=compat)
    pipe.scheduler = given["scheduler"]  # as it is: assigned later, none is mended
    pipe.set_progress_bar_config(disable=True)
    return pipe


def grounding(unet: Any, kind: str, **fields: Any) -> Any:
    from underdraw.models import Grounding

    torch.manual_seed(3)
    return shaken(Grounding.for_unet(unet, kind, **fields))


def gligen(kind: str = "text", **unet: Any) -> Any:
    """A GLIGEN pipeline on a gated UNet."""
    given = parts(**unet)
    given["unet"] = given["unet"].with_grounding(grounding(given["unet"], kind))
    cls: Any = ud.StableDiffusionGLIGENPipeline
    if kind == "text-image":
        cls = ud.StableDiffusionGLIGENTextImagePipeline
        given |= sight(given["tokenizer"])
    pipe = cls(**given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sight(tokenizer: Any) -> dict[str, Any]:
    torch.manual_seed(9)
    return {
        "image_encoder": shaken(ud.CLIPVisionModelWithProjection(**VISION)),
        "image_project": ud.CLIPImageProjection(hidden_size=WIDTH),
        "processor": ud.CLIPProcessor(ud.CLIPImageProcessor(32, (32, 32)), tokenizer),
    }


# -- inputs ----------------------------------------------------------------------------------------
def photo(seed: int = 0, size: tuple[int, int] = (72, 40)) -> Any:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


def mask(size: tuple[int, int] = (72, 40)) -> Any:
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[8:30, 16:56] = 255
    return Image.fromarray(pixels)


def run(pipe: Any, prompt: Any = PAIR, **changes: Any) -> Any:
    call = {"num_inference_steps": 4, "output_type": "latent", "seed": 3, **SIZE, **changes}
    return pipe(prompt, **{k: v for k, v in call.items() if v is not ...}).images


def pixels(images: Any) -> np.ndarray:
    return np.stack([np.asarray(image, np.float32) for image in images])


# -- the calls -------------------------------------------------------------------------------------
CALLS: dict[str, Callable[[], Any]] = {}


def call(make: Callable[[], Any]) -> Callable[[], Any]:
    CALLS[make.__name__] = make
    return make


def _solver(name: str, options: dict[str, Any], arguments: dict[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        scheduler = getattr(ud, name).from_config({**SCHEDULE, **options})
        return run(pipeline(scheduler=scheduler), num_inference_steps=6, **arguments)

    return make


for label, name, options, arguments in (
    ("ddim", "DDIMScheduler", {"clip_sample": False}, {"eta": 0.5}),
    ("ddpm", "DDPMScheduler", {"clip_sample": True}, {}),
    ("dpm", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
    ("dpm_sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("dpm_single", "DPMSolverSinglestepScheduler", {}, {}),
    ("deis", "DEISMultistepScheduler", {}, {}),
    ("unipc", "UniPCMultistepScheduler", {}, {}),
    ("pndm", "PNDMScheduler", {}, {}),
    ("heun", "HeunDiscreteScheduler", {}, {}),
    ("kdpm2_ancestral", "KDPM2AncestralDiscreteScheduler", {}, {}),
    ("euler_ancestral", "EulerAncestralDiscreteScheduler", {}, {}),
    ("lms", "LMSDiscreteScheduler", {}, {}),
    ("tcd", "TCDScheduler", {}, {"eta": 0.3}),
):
    CALLS[f"solver_{label}"] = _solver(name, options, arguments)


@call
def long_prompts() -> Any:
    long = " ".join(["a (red:1.4) sphere and a blue cube"] * 12)
    return run(
        pipeline(),
        [long, "a [green] cube"],
        negative_prompt="a sphere",
        guidance_scale=[3.0, 7.5],
        guidance_rescale=0.4,
        clip_skip=1,
        num_images_per_prompt=1,
    )


@call
def pictures_out() -> Any:
    pipe = pipeline()
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    pipe.enable_attention_slicing(1)
    return run(pipe, height=88, width=72, output_type="np", num_images_per_prompt=2)


@call
def distilled() -> Any:
    scheduler = ud.LCMScheduler(**{**SCHEDULE, "steps_offset": 0}, original_inference_steps=20)
    pipe = pipeline(scheduler=scheduler, time_cond_proj_dim=16)
    return run(pipe, guidance_scale=[2.0, 8.0])


@call
def v_prediction() -> Any:
    scheduler = ud.EulerDiscreteScheduler(**SCHEDULE, prediction_type="v_prediction")
    return run(pipeline(scheduler=scheduler))


@call
def half() -> Any:
    return run(pipeline().to(dtype=torch.bfloat16)).float()


@call
def callbacks() -> Any:
    def changed(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if step == 2 else 3.0
        return {"latents": tensors["latents"] * 1.1, "prompt_embeds": tensors["prompt_embeds"] * 2}

    names = ["latents", "prompt_embeds"]
    return run(
        pipeline(),
        callback_on_step_end=changed,
        callback_on_step_end_tensor_inputs=names,
    )


@call
def streamed() -> Any:
    pipe = pipeline()
    stream = pipe.stream(PAIR, num_inference_steps=4, output_type="latent", seed=3, **SIZE)
    previews = [step.preview()[0] for step in stream]
    return [stream.output.images, pixels(previews)]


@call
def img2img() -> Any:
    pipe = pipeline(ud.StableDiffusionImg2ImgPipeline, ud.DPMSolverMultistepScheduler())
    pictures = [photo(1), photo(2)]
    one = run(pipe, image=pictures, strength=0.6, height=..., width=..., num_images_per_prompt=2)
    old = pipeline(ud.StableDiffusionImg2ImgPipeline, compat="diffusers")
    generator = torch.Generator().manual_seed(5)
    return [
        one,
        run(old, image=photo(1), height=..., width=..., seed=..., generator=generator),
    ]


@call
def inpaint() -> Any:
    pipe = pipeline(ud.StableDiffusionInpaintPipeline)
    given = {"image": photo(1, (90, 60)), "mask_image": mask((90, 60))}
    return [
        run(pipe, **given, strength=0.7),
        pixels(run(pipe, **given, paste_back=True, output_type="pil")),
        pixels(run(pipe, "a cube", **given, padding_mask_crop=4, output_type="pil")),
    ]


@call
def inpaint_wide() -> Any:
    pipe = pipeline(ud.StableDiffusionInpaintPipeline, in_channels=9)
    return run(pipe, image=photo(1), mask_image=mask())


@call
def diffedit() -> Any:
    scheduler = ud.DDIMScheduler(**SCHEDULE, clip_sample=False)
    pipe = pipeline(ud.StableDiffusionDiffEditPipeline, scheduler)
    pipe.enable_vae_slicing()
    texts = {"source_prompt": "a red sphere", "target_prompt": "a blue cube"}
    found = pipe.generate_mask(photo(1), **texts, seed=3, num_maps_per_mask=3)
    inverted = pipe.invert("a red sphere", photo(1), num_inference_steps=8, decode_latents=True)
    guided = pipe.invert("a red sphere", photo(1), num_inference_steps=8, guidance_scale=3.0)
    regular = pipe.invert("a red sphere", photo(1), num_inference_steps=4, num_reg_steps=1, seed=5)
    solved = pipe.invert("a red sphere", photo(1), num_inference_steps=4, method="fixed-point")
    made = pipe(
        "a blue cube",
        mask_image=found,
        image_latents=inverted,
        num_inference_steps=8,
        output_type="latent",
        num_images_per_prompt=2,
        seed=4,
    ).images
    by_mean = {"num_maps_per_mask": 5, "mask_encode_strength": 0.5, "mask_thresholding_ratio": 2.5}
    texts = {"source": "a red sphere", "target": "a blue cube"}
    edited = pipe.edit(photo(1), **texts, num_inference_steps=8, paste=True, **by_mean)
    levels = [x.latents for x in (inverted, guided, regular, solved)]
    return [found, *levels, pixels(inverted.images), made, pixels(edited.images)]


@call
def diffedit_upwards() -> Any:
    given = parts(ud.DPMSolverMultistepScheduler(beta_schedule="scaled_linear"))
    pipe = ud.StableDiffusionDiffEditPipeline(
        **given,
        inverse_scheduler=ud.DPMSolverMultistepInverseScheduler(beta_schedule="scaled_linear"),
        compat="diffusers",
    )
    pipe.set_progress_bar_config(disable=True)
    inverted = pipe.invert("a cube", photo(1), num_inference_steps=8, seed=2)
    return [
        inverted.latents,
        pipe(
            "a sphere",
            mask_image=mask(),
            image_latents=inverted,
            num_inference_steps=8,
            output_type="latent",
        ).images,
    ]


BOXES = [[0.1, 0.2, 0.5, 0.6], [0.5, 0.45, 1.0, 1.0]]
PHRASES = ["red sphere", "a blue cube on the table"]


@call
def gligen_text() -> Any:
    pipe, boxes = gligen(), {"gligen_boxes": BOXES, "gligen_phrases": PHRASES}
    each = {"gligen_boxes": [BOXES, BOXES[:1]], "gligen_phrases": [PHRASES, PHRASES[:1]]}
    painted = {"gligen_inpaint_image": photo(2, (80, 60)), "paste_back": True}
    return [
        run(pipe, **boxes, gligen_scheduled_sampling_beta=0.6),
        run(pipe, **each),
        pixels(run(pipe, **boxes, **painted, output_type="pil")),
        run(gligen(in_channels=9), **boxes, gligen_inpaint_image=photo(2)),
    ]


@call
def gligen_text_image() -> Any:
    pipe = gligen("text-image")
    boxes = {"gligen_boxes": BOXES, "gligen_phrases": [PHRASES[0], None]}
    return run(pipe, **boxes, gligen_images=[None, photo(3)])


@call
def boxes_everywhere() -> Any:
    pipe = pipeline()
    pipe.load_grounding(grounding(pipe.unet, "text"))
    layouts = ud.PerImage(ud.Layout([RED, BLUE], (0.5, 0.5, 0.0)), [BLUE])
    picture = ud.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    picture.load_grounding(grounding(pipe.unet, "text"))
    return [
        run(pipe, controls=[layouts]),
        run(pipe, controls=[RED, ud.Region(mask(), image=photo(4))]),
        run(picture, image=photo(1), height=..., width=..., controls=[RED, BLUE]),
    ]


@call
def pictures_in_boxes() -> Any:
    pipe = pipeline()
    torch.manual_seed(4)
    pipe.load_grounding(grounding(pipe.unet, "text-image"), **sight(pipe.tokenizer))
    box = ud.Box("a cube", (0.1, 0.2, 0.7, 0.9), image=photo(5))
    return run(pipe, controls=[box, ud.Style(photo(6))])


@call
def maps_and_people() -> Any:
    pipe = pipeline()
    for kind in ("canny", "depth", "keypoints", "semantic"):
        fields = {} if kind == "keypoints" else MAPS
        fields = {**fields, "classes": 5} if kind == "semantic" else fields
        pipe.load_grounding(grounding(pipe.unet, kind, **fields))
    classes = np.random.default_rng(1).integers(0, 5, (20, 31))
    return [
        run(pipe, controls=[ud.CannyMap(photo(7)), ud.Keypoints([POSE])]),
        run(pipe, controls=[ud.DepthMap([photo(7), photo(8)], (0.5, 0.25, 0.25))]),
        run(pipe, controls=[ud.SemanticMap(classes)]),
    ]


@call
def attention() -> Any:
    pipe = pipeline()
    two = ["a red sphere left of a blue cube", "a green sphere left of a blue cube"]
    edit = ud.AttentionEdit(weights={"green": 2.0}, blend=("sphere",), cross_of={"cube": 0.4})
    refine = ud.AttentionEdit(mode="refine", self_attention=(0.2, 0.7))
    return [
        run(pipe, two, controls=[edit]),
        run(pipe, ["a cube", "a blue cube on the table"], controls=[refine]),
    ]


@call
def inversions() -> Any:
    try:
        from underdraw.pipelines.inversion import ddim, invert_pictures
    except ImportError:
        from underdraw import ddim, invert_pictures
    from underdraw.sampling.inversion import finish

    pipe = pipeline()
    found = finish(invert_pictures(pipe, photo(1), "a cube", "null-text", num_inference_steps=4))
    pipe.scheduler = ddim(pipe)
    back = run(
        pipe, "a cube", latents=found.noise, controls=list(found.controls), height=..., width=...
    )
    return [found.noise, *found.negatives, back]


# -- comparing -------------------------------------------------------------------------------------
def arrays(name: str) -> dict[str, np.ndarray]:
    """What a call gives, by name and number."""
    torch.manual_seed(11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = CALLS[name]()
    listed = made if isinstance(made, list) else [made]
    return {
        f"{name}.{i}": x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
        for i, x in enumerate(listed)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "check"))
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, np.ndarray] = {}
    for name in CALLS:
        found |= arrays(name)
    if given.what == "write":
        np.savez_compressed(given.file, **found)  # type: ignore[arg-type]
        print(f"{len(CALLS)} calls, {len(found)} arrays")
        return 0
    with np.load(given.file) as held:
        known = dict(held)
    equal = 0
    for name, array in found.items():
        old = known[name]
        same = old.shape == array.shape and old.tobytes() == array.tobytes()
        equal += same
        if not same:
            apart = np.abs(old.astype(np.float64) - array).max() if old.shape == array.shape else ""
            print(f"{name}: not the same bits, {old.shape} and {array.shape}, apart {apart}")
    print(f"{len(CALLS)} calls: {equal} of {len(found)} arrays have the same bits")
    return int(equal < len(found))


if __name__ == "__main__":
    sys.exit(main())
