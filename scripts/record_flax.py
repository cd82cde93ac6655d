"""Record what the Flax pipelines of diffusers 0.33.1 compute (flax 0.10.2, jax 0.4.38, transformers
4.48.3): text to image, image to image, inpainting, ControlNet, what is prepared for them, one call
sharded over two devices, and how their checkpoints are written.

Run it where these versions come first; PyTorch is not needed (about two minutes):

    pip install --target /tmp/flax-oracle/site "diffusers==0.33.1" "flax==0.10.2" "jax==0.4.38" \
        "jaxlib==0.4.38" "transformers==4.48.3" "tokenizers==0.21.0" "huggingface_hub==0.29.3" \
        "numpy==1.26.4" safetensors pillow
    PYTHONPATH=/tmp/flax-oracle/site python -S scripts/record_flax.py tests/data/flax.npz

Weights are not stored: both sides make them by `numbers`, from names alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

spec = importlib.util.spec_from_file_location(
    "oracle", Path(__file__).with_name("record_oracle.py")
)
assert spec is not None and spec.loader is not None
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)
numbers, vocabulary = oracle.numbers, oracle.vocabulary

WIDTH, WINDOW = 24, 21
"""Of tokens, and tokens of the text encoder's window."""
SIDES = (24, 40)
"""Height and width; Flax's UNet needs latents that halve evenly."""
CONTROL_SIDES = (64, 128)
"""With a ControlNet they are multiples of 64."""

# The UNet's groups are 32 whatever its config says.
UNET: dict[str, Any] = {
    "sample_size": 12,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "layers_per_block": 1,
}
WIDE: dict[str, Any] = {**UNET, "in_channels": 9}
CONTROLNET: dict[str, Any] = {
    name: UNET[name]
    for name in (
        *("block_out_channels", "down_block_types", "cross_attention_dim", "attention_head_dim"),
        "layers_per_block",
    )
} | {"conditioning_embedding_out_channels": [4, 8, 8]}
VAE: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 24,
    "latent_channels": 4,
}
DEEP: dict[str, Any] = {
    **VAE,
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
"""Beside a ControlNet: a quarter of the latents for its large pictures."""
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "projection_dim": WIDTH,
    "max_position_embeddings": WINDOW,
}
VISION: dict[str, Any] = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 12,
}
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm3": ("DPMSolverMultistepScheduler", {"solver_order": 3, "solver_type": "heun"}),
}
THREE = ["a red sphere left of the blue cube", "table", "a green sphere and a cube on the table"]
AGAINST = ["blue table", "", "the red"]
SEED, STEPS, GUIDANCE = 7, 5, 4.5
CALLS: dict[str, dict[str, Any]] = {
    "ddim": {"negatives": AGAINST},
    "ddim_latents": {"negatives": AGAINST, "latents": True, "guidance": 2.0},
    "pndm": {"negatives": AGAINST, "steps": STEPS - 1},  # a call more than steps
    "dpm": {"negatives": AGAINST},
    "dpm3": {"negatives": AGAINST},
    "img2img": {"negatives": AGAINST, "strength": 0.65},
    "inpaint": {"negatives": AGAINST},
    "controlnet": {"prompts": THREE[:1], "strength": 0.8, "steps": 2},
}
"""The part of a name before the first underscore says the scheduler, else it is DDIM."""


def picture(number: int, sides: tuple[int, int]) -> np.ndarray:
    """A picture `(height, width, 3)`, uint8, that is neither flat nor noise."""
    rows, columns = np.mgrid[: sides[0], : sides[1]]
    waves = [np.sin((number + 1) * 0.2 * (rows + i * columns)) for i in range(3)]
    return ((np.stack(waves, -1) + 1) * 127.5).round().astype(np.uint8)


def mask(sides: tuple[int, int]) -> np.ndarray:
    """White where something is to be painted, uint8."""
    made = np.zeros(sides, np.uint8)
    made[sides[0] // 3 :, sides[1] // 4 : sides[1] // 2] = 255
    return made


def latents() -> np.ndarray:
    """What a call begins with."""
    return numbers("latents", (len(THREE), 4, SIDES[0] // 2, SIDES[1] // 2))


def text_config() -> dict[str, Any]:
    """Of the text encoder, over the vocabulary."""
    count = len(vocabulary()[0])
    ends = {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    return {**TEXT, "vocab_size": count, **ends}


def write_tokenizer(folder: Path) -> None:
    """CLIP's kind of vocabulary in `tokenizer`."""
    vocab, merges = vocabulary()
    clip = folder / "tokenizer"
    clip.mkdir(parents=True, exist_ok=True)
    (clip / "vocab.json").write_text(json.dumps(vocab))
    (clip / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {"model_max_length": WINDOW, "tokenizer_class": "CLIPTokenizer"}
    (clip / "tokenizer_config.json").write_text(json.dumps(settings))


def digest(tree: Any) -> np.ndarray:
    """Of all leaves of a checkpoint by their paths: names, shapes, dtypes and bytes."""
    flat: dict[str, np.ndarray] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, child in value.items():
                walk(child, f"{path}/{name}")
        else:
            flat[path] = np.asarray(value)

    walk(tree, "")
    found = hashlib.sha256()
    for path in sorted(flat):
        value = flat[path]
        found.update(f"{path} {value.shape} {value.dtype}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return np.frombuffer(found.digest(), np.uint8)


ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the autoencoder; the UNet's have published names."""


def weight(part: str, path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of a leaf, by its published name and in its published shape."""
    *parents, last = path
    parents = [
        name if name in ("linear_1", "linear_2") else re.sub(r"_(\d+)$", r".\1", name)
        for name in (ATTENTION.get(name, name) for name in parents)
    ]
    named = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(last, last)
    name = ".".join([part, *parents, named])
    if last != "kernel":
        return numbers(name, shape)
    if len(shape) == 2:
        return numbers(name, shape[::-1]).T
    return numbers(name, (shape[3], shape[2], *shape[:2])).transpose(2, 3, 1, 0)


def record(folder: Path) -> dict[str, np.ndarray]:
    """All arrays, by name."""
    import diffusers
    import jax
    import jax.numpy as jnp
    from diffusers.pipelines.stable_diffusion.safety_checker_flax import (
        FlaxStableDiffusionSafetyChecker,
    )
    from flax.core import unfreeze
    from flax.jax_utils import replicate
    from flax.serialization import msgpack_restore, to_bytes
    from flax.training.common_utils import shard
    from flax.traverse_util import flatten_dict, unflatten_dict
    from PIL import Image
    from transformers import CLIPConfig, CLIPTextConfig, CLIPTokenizer, FlaxCLIPTextModel

    jax.config.update("jax_default_matmul_precision", "highest")
    write_tokenizer(folder)

    def filled(part: str, shapes: Any) -> Any:
        flat = flatten_dict(unfreeze(shapes))
        made = {path: jnp.asarray(weight(part, path, leaf.shape)) for path, leaf in flat.items()}
        return unflatten_dict(made)

    key = jax.random.PRNGKey(0)
    networks = {
        "unet": diffusers.FlaxUNet2DConditionModel(**UNET),
        "wide": diffusers.FlaxUNet2DConditionModel(**WIDE),
        "vae": diffusers.FlaxAutoencoderKL(**VAE),
        "deep": diffusers.FlaxAutoencoderKL(**DEEP),
        "controlnet": diffusers.FlaxControlNetModel(**CONTROLNET),
    }
    params = {
        name: filled(name, jax.eval_shape(network.init_weights, key))
        for name, network in networks.items()
        if name != "controlnet"
    }

    def begun(key: Any) -> Any:
        """Its own `init_weights` takes for granted that the autoencoder's factor is 8."""
        inputs = [jnp.zeros(shape) for shape in ((1, 4, 8, 8), (1,), (1, 1, WIDTH), (1, 3, 32, 32))]
        return networks["controlnet"].init({"params": key, "dropout": key}, *inputs)["params"]

    params["controlnet"] = filled("controlnet", jax.eval_shape(begun, key))
    text = FlaxCLIPTextModel(CLIPTextConfig(**text_config()), _do_init=False)
    params["text_encoder"] = filled("text_encoder", text.params_shape_tree)
    checker = FlaxStableDiffusionSafetyChecker(
        CLIPConfig(vision_config=VISION, projection_dim=VISION["projection_dim"]),
        input_shape=(1, VISION["image_size"], VISION["image_size"], 3),
        _do_init=False,
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    parts = {"text_encoder": text, "tokenizer": tokenizer}
    parts |= {"safety_checker": None, "feature_extractor": None}
    recorded: dict[str, np.ndarray] = {}

    def scheduler(name: str) -> tuple[Any, Any]:
        kind, settings = SCHEDULERS.get(name, SCHEDULERS["ddim"])
        made = getattr(diffusers, f"Flax{kind}")(**SCHEDULE, **settings)
        return made, made.create_state()

    pictures = [Image.fromarray(picture(i, (70, 90))) for i in range(3)]
    masks = [Image.fromarray(mask((70, 90)))] * 3
    for name, call in CALLS.items():
        steps, state = scheduler(name.partition("_")[0])
        kinds = {
            "img2img": diffusers.FlaxStableDiffusionImg2ImgPipeline,
            "inpaint": diffusers.FlaxStableDiffusionInpaintPipeline,
            "controlnet": diffusers.FlaxStableDiffusionControlNetPipeline,
        }
        kind = kinds.get(name, diffusers.FlaxStableDiffusionPipeline)
        unet = "wide" if name == "inpaint" else "unet"
        vae, beside = "vae", {}
        if name == "controlnet":
            vae, beside = "deep", {"controlnet": networks["controlnet"]}
        made_of = {**parts, **beside, "unet": networks[unet], "vae": networks[vae]}
        pipe = kind(**made_of, scheduler=steps)
        prompts = call.get("prompts", THREE)
        given: dict[str, Any] = {
            "params": {**params, "unet": params[unet], "vae": params[vae], "scheduler": state},
            "prng_seed": jax.random.PRNGKey(SEED),
            "num_inference_steps": call.get("steps", STEPS),
            "guidance_scale": jnp.float32(call.get("guidance", GUIDANCE)),
        }
        if "negatives" in call:
            given["neg_prompt_ids"] = tokenizer(
                call["negatives"], padding="max_length", max_length=WINDOW, return_tensors="np"
            ).input_ids
        if call.get("latents"):
            given["latents"] = jnp.asarray(latents())
        if name == "controlnet":
            given["prompt_ids"] = pipe.prepare_text_inputs(prompts)
            given["image"] = pipe.prepare_image_inputs(Image.fromarray(picture(4, CONTROL_SIDES)))
            given["controlnet_conditioning_scale"] = call["strength"]
        else:
            given |= {"height": SIDES[0], "width": SIDES[1]}
        if name == "img2img":
            made = pipe.prepare_inputs(prompts, pictures)
            given["prompt_ids"], image = made
            recorded["prepared_image"] = np.asarray(image)[:, :, ::8, ::8]
            small = [Image.fromarray(picture(i, SIDES)) for i in range(3)]
            # Sides are rounded down to multiples of 32, which these are not.
            given["image"] = jnp.asarray(
                np.stack([np.asarray(one) for one in small]).transpose(0, 3, 1, 2) / 127.5 - 1.0,
                jnp.float32,
            )
            given["strength"] = call["strength"]
        elif name == "inpaint":
            made = pipe.prepare_inputs(prompts, pictures, masks)
            given["prompt_ids"], given["masked_image"], given["mask"] = made
            recorded["prepared_masked"] = np.asarray(made[1])[:, :, ::8, ::8]
            recorded["prepared_mask"] = np.asarray(made[2])[:, :, ::8, ::8]
        elif name != "controlnet":
            given["prompt_ids"] = pipe.prepare_inputs(prompts)
            recorded["ids"] = given["prompt_ids"]
        recorded[name] = np.asarray(pipe(**given).images, np.float32)
        if name == "ddim":
            pipe.save_pretrained(folder / "saved", params=given["params"])
            for part in ("unet", "vae", "text_encoder"):
                (file,) = (folder / "saved" / part).glob("*.msgpack")
                recorded[f"file_{part}"] = digest(msgpack_restore(file.read_bytes()))
            index = json.loads((folder / "saved" / "model_index.json").read_text())
            recorded["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
            two = {**given, "params": replicate(given["params"]), "jit": True}
            two["prompt_ids"] = shard(given["prompt_ids"][:2])
            two["neg_prompt_ids"] = shard(given["neg_prompt_ids"][:2])
            two["prng_seed"] = jax.random.split(given["prng_seed"], 2)
            two["guidance_scale"] = GUIDANCE
            recorded["keys"] = np.asarray(two["prng_seed"])
            recorded["sharded"] = np.asarray(pipe(**two).images, np.float32)
    for part, network in (("controlnet", networks["controlnet"]), ("wide", networks["wide"])):
        network.save_pretrained(folder / part, params=params[part])
        (file,) = (folder / part).glob("*.msgpack")
        recorded[f"file_{part}"] = digest(msgpack_restore(file.read_bytes()))
    checking = filled("safety_checker", checker.params_shape_tree)
    recorded["file_safety_checker"] = digest(checking)
    # Of all kinds of leaves, as bytes.
    small = {
        "b": {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "bias": np.ones(3)},
        "a_0": {"half": np.arange(4, dtype=np.float16), "scalar": np.float32(2.5)},
        "empty": np.zeros((0, 3), np.float32),
    }
    recorded["msgpack"] = np.frombuffer(to_bytes(small), np.uint8)
    return recorded


def main(target: Path) -> None:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import diffusers
    import flax
    import jax

    versions = (diffusers.__version__, flax.__version__, jax.__version__)
    if versions != ("0.33.1", "0.10.2", "0.4.38"):
        sys.exit(f"diffusers, flax and jax are {versions}; needed: 0.33.1, 0.10.2 and 0.4.38")
    with tempfile.TemporaryDirectory() as folder:
        np.savez_compressed(target, **record(Path(folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
