"""diffusers' pipeline with small random networks: it saves a folder, both load it."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the peers' own imports warn about
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import (
        CLIPConfig,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer as PeerTokenizer,
    )

from pipelines import tiny
from pipelines.peer import recorded
from solvers.peer.oracle import quickly

import underdraw
from underdraw.models import CLIPImageProcessor

for name in ("diffusers", "transformers"):
    logging.getLogger(name).setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()

KINDS: dict[str, dict[str, Any]] = {
    "sd1": {},
    # SD 2: linear projections, heads per level, gelu in the text encoder, v-prediction.
    "sd2": {
        "unet": {"use_linear_projection": True, "attention_head_dim": (2, 4, 4)},
        "text": {"hidden_act": "gelu", "num_hidden_layers": 2},
        "scheduler": {"prediction_type": "v_prediction"},
    },
    "wide": {"unet": {"sample_size": [5, 7], "only_cross_attention": (True, False, False)}},
    "lcm": {"unet": {"time_cond_proj_dim": 33}},
    # Old configs say 2, so the end token is the largest id; SD 2 pads with "!".
    "mask": {"text": {"use_attention_mask": True, "eos_token_id": 2}, "pad": "!"},
}


def folder(place: str, kind: str = "sd1", **options: Any) -> diffusers.StableDiffusionPipeline:
    """diffusers' pipeline of a kind, and the folder it wrote to `place`."""
    changes = KINDS[kind]
    tokens = f"{place}-tokens"
    tiny.tokenizer(pad_token=changes.get("pad", "<|endoftext|>")).save_pretrained(tokens)
    tokenizer = PeerTokenizer.from_pretrained(tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        text = tiny.text_config(len(tokenizer), **changes.get("text", {}))
        schedule = dict(skip_prk_steps=True, **tiny.SCHEDULE, **changes.get("scheduler", {}))
        pipe = diffusers.StableDiffusionPipeline(
            vae=tiny.shake(diffusers.AutoencoderKL(**tiny.VAE)),
            text_encoder=tiny.shake(CLIPTextModel(CLIPTextConfig(**text))),
            tokenizer=tokenizer,
            unet=tiny.shake(
                diffusers.UNet2DConditionModel(**{**tiny.DEEP, **changes.get("unet", {})})
            ),
            scheduler=diffusers.PNDMScheduler(**schedule),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(place, **options)
    return quiet(pipe)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def new_folder() -> str:
    """For files that are mapped into memory as long as this process lives."""
    place = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


@cache
def pair(kind: str) -> tuple[Any, Any]:
    """diffusers' pipeline and ours, both read from the same folder."""
    place = f"{new_folder()}/{kind}"
    folder(place, kind)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(place, local_files_only=True)
    return quiet(theirs), quiet(underdraw.StableDiffusionPipeline.from_pretrained(place))


def checker(threshold: float) -> tuple[Any, Any]:
    """diffusers' safety checker, whose thresholds all are `threshold`, and an image processor."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "image_size": 32}
    vision |= {"num_attention_heads": 2, "patch_size": 8, "projection_dim": 12}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made = tiny.shake(
            StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=12))
        )
        for table in (made.concept_embeds, made.special_care_embeds):
            table.data = torch.randn(table.shape)
        for table in (made.concept_embeds_weights, made.special_care_embeds_weights):
            table.data = torch.full(table.shape, threshold)
    return made, CLIPImageProcessor(32, (32, 32))


def scheduler(name: str, config: Any, **changes: Any) -> Any:
    """diffusers', of a class and configuration."""
    with quickly(getattr(diffusers, name)) as kind:
        return kind.from_config(dict(config), **changes)


def generators(*seeds: int) -> Any:
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made if len(made) > 1 else made[0]


def images(pipe: Any, **arguments: Any) -> np.ndarray:
    """The images of a call, as an array; `seeds` make one generator or a list."""
    seeds = arguments.pop("seeds", (3,))
    arguments = {"num_inference_steps": 5, "output_type": "np", **arguments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' deprecations
        made = pipe(generator=generators(*seeds), **arguments).images
    return np.asarray([np.asarray(image) for image in made]).astype(np.float64)


def apart(pipes: tuple[Any, Any], live: bool = False, **arguments: Any) -> float:
    """The largest difference between what diffusers' pipeline, or its record unless `live`, and
    ours make of the same arguments; each has its own copies of generators."""
    peer, pipe = pipes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's and diffusers' own
        ours = images(pipe, **arguments)
        if live or arguments.get("output_type") == "pil":  # pasted, they may differ at few places
            theirs = images(peer, **arguments)
        else:
            theirs, ours = recorded.beside(lambda: images(peer, **arguments), pipe, ours)
    assert theirs.shape == ours.shape
    assert theirs.std() > 1e-3  # not one flat colour, which any two pipelines agree on
    return float(np.abs(theirs - ours).max())


def deviation(kind: str, **arguments: Any) -> float:
    """The same of the pipelines of a kind."""
    return apart(pair(kind), **arguments)
