"""A photograph through mask, inversion and edit on networks of Stable Diffusion 1.5's size.

    python scripts/edit_photograph.py [PICTURE] [--steps N] [--maps N] [--guidance G]

The weights are random, so the result means nothing; that it comes back within memory, and untouched
outside the mask, does. PICTURE is by default scikit-image's astronaut, 512 x 512. Prints the peak
memory and the seconds, and fails unless every pixel outside the mask is the photograph's.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from PIL import Image

from underdraw import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDIMScheduler,
    StableDiffusionDiffEditPipeline,
    UNet2DConditionModel,
)


def full_size() -> StableDiffusionDiffEditPipeline:
    unet = UNet2DConditionModel(
        sample_size=64,
        attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextModel(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        vocab_size=49408,
    )
    tokenizer = CLIPTokenizer.from_pretrained("underdraw/scenes", subfolder="tokenizer")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    solver = DDIMScheduler(**schedule, steps_offset=1, clip_sample=False, set_alpha_to_one=False)
    return StableDiffusionDiffEditPipeline(vae, text, tokenizer, unet, solver)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--maps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=7.5)
    asked = parser.parse_args()
    if asked.picture is None:
        from skimage import data  # type: ignore[import-not-found]

        photo = Image.fromarray(data.astronaut())
    else:
        photo = Image.open(asked.picture).convert("RGB")
    began = time.perf_counter()
    pipe = full_size()
    print(f"networks: {time.perf_counter() - began:.0f} s, {peak():.1f} GB", flush=True)
    made = pipe.edit(
        photo,
        "an astronaut",
        "a robot",
        num_inference_steps=asked.steps,
        inpaint_strength=0.5,
        guidance_scale=asked.guidance,
        num_maps_per_mask=asked.maps,
        paste=True,
    )
    after, mask = made.images[0], made.mask_image[0]
    changed = (np.asarray(after) != np.asarray(photo)).any(2)
    cells = Image.fromarray(np.uint8(255) * mask.astype(np.uint8))
    free = np.asarray(cells.resize(photo.size, Image.Resampling.NEAREST)) > 0
    print(f"mask: {100 * free.mean():.0f} %; changed inside: {100 * changed[free].mean():.0f} %")
    print(f"changed outside: {int(changed[~free].sum())} pixels")
    print(f"all: {time.perf_counter() - began:.0f} s, peak {peak():.1f} GB")
    assert after.size == photo.size
    assert not changed[~free].any()


def peak() -> float:
    """The most memory this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
