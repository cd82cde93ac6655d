"""Record what diffusers 0.33.1 with transformers 4.48.3 computes of BLIP-Diffusion, which current
versions cannot load any more: both pipelines, and each network of theirs.

Run it where these versions come first, with any PyTorch (about 20 seconds):

    pip install --target /tmp/oracle --no-deps "diffusers==0.33.1" "transformers==4.48.3" \
        "tokenizers==0.21.0" "huggingface_hub==0.29.3"
    PYTHONPATH=/tmp/oracle python scripts/record_blip.py tests/data/blip.npz

Weights, latents and pictures are not stored: both sides make them by `numbers`, from names alone.
The Q-Former's constructor fetches BERT's vocabulary from the network; here it gets `PIECES`.
"""

from __future__ import annotations

import importlib.util
import json
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

WIDTH, QUERIES, WINDOW = 24, 5, 33
"""Of tokens, tokens of a subject, and tokens of the text encoder's window."""
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!", "-", "a", "b", "ball", "##s", "cube"]
PIECES += ["red", "##dish", "sphere", "the", "toy", "un", "##cube"]
"""BERT's kind of vocabulary; "[DEC]" is added behind it."""

VISION: dict[str, Any] = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "image_size": 28,
    "patch_size": 9,
    "hidden_act": "quick_gelu",
}
QFORMER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": VISION["hidden_size"],
    "max_position_embeddings": 17,
    "vocab_size": len(PIECES) + 1,
}
BLIP: dict[str, Any] = {
    "num_query_tokens": QUERIES,
    "vision_config": VISION,
    "qformer_config": QFORMER,
}
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "projection_dim": WIDTH,
    "max_position_embeddings": WINDOW,
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CONTROLNET: dict[str, Any] = {
    name: UNET[name]
    for name in (
        *("block_out_channels", "down_block_types", "cross_attention_dim", "attention_head_dim"),
        *("layers_per_block", "norm_num_groups"),
    )
} | {"conditioning_embedding_out_channels": [4, 8, 12]}
VAE: dict[str, Any] = {
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 32,
}
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
}
PNDM: dict[str, Any] = {**SCHEDULE, "skip_prk_steps": True}

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
SIDES = (24, 36)
"""Height and width of the pictures that are made."""
THREE: dict[str, Any] = {
    "prompt": ["left of the blue cube", " on the table ", "a green sphere and a red cube of the"],
    "source_subject_category": ["red ball", "cube", "the reddish toy"],
    "target_subject_category": ["sphere", "red cube", "table"],
}
ONE: dict[str, Any] = {
    "prompt": "on the table",
    "source_subject_category": "toy cubes",
    "target_subject_category": "cube",
}
CALLS: dict[str, dict[str, Any]] = {
    "three": {**THREE, "guidance_scale": 4.5, "neg_prompt": "blue table"},
    "one": ONE,
    "one_unguided": {**ONE, "guidance_scale": 1.0},
    "one_short": {**ONE, "prompt_strength": 0.5, "prompt_reps": 2},
    "one_ddim": {**ONE, "scheduler": "DDIMScheduler"},
    "one_dpm": {**ONE, "scheduler": "DPMSolverMultistepScheduler"},
    "one_euler": {**ONE, "scheduler": "EulerDiscreteScheduler"},
}
"""`scheduler` is none of the call's arguments: what the pipeline has meanwhile."""
FIXED: dict[str, Any] = {
    "height": SIDES[0],
    "width": SIDES[1],
    "num_inference_steps": 3,
    "output_type": "np",
}


def count_of(call: dict[str, Any]) -> int:
    """Images of a call."""
    return 1 if isinstance(call["prompt"], str) else len(call["prompt"])


def latents(count: int) -> np.ndarray:
    """What a call begins with."""
    return numbers("latents", (3, 4, SIDES[0] // 4, SIDES[1] // 4))[:count]


def picture(number: int, sides: tuple[int, int] = (23, 31)) -> np.ndarray:
    """A picture `(height, width, 3)`, uint8, that is neither flat nor noise."""
    rows, columns = np.mgrid[: sides[0], : sides[1]]
    waves = [np.sin((number + 1) * 0.2 * (rows + i * columns)) for i in range(3)]
    return ((np.stack(waves, -1) + 1) * 127.5).round().astype(np.uint8)


def text_config() -> dict[str, Any]:
    """Of the text encoder, over the vocabulary."""
    count = len(vocabulary()[0])
    ends = {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    return {**TEXT, "vocab_size": count, **ends}


def write_tokenizers(folder: Path) -> None:
    """CLIP's kind of vocabulary in `tokenizer`, BERT's in `bert`."""
    vocab, merges = vocabulary()
    clip, bert = folder / "tokenizer", folder / "bert"
    for place in (clip, bert):
        place.mkdir(parents=True, exist_ok=True)
    (clip / "vocab.json").write_text(json.dumps(vocab))
    (clip / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {"model_max_length": WINDOW, "tokenizer_class": "CLIPTokenizer"}
    (clip / "tokenizer_config.json").write_text(json.dumps(settings))
    (bert / "vocab.txt").write_text("\n".join(PIECES) + "\n")


def record(folder: Path) -> dict[str, np.ndarray]:
    """All arrays, by name."""
    import diffusers
    import torch
    from diffusers.pipelines.blip_diffusion import modeling_blip2
    from diffusers.pipelines.blip_diffusion.blip_image_processing import BlipImageProcessor
    from diffusers.pipelines.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
    from PIL import Image
    from transformers import BertTokenizer, Blip2Config, CLIPTextConfig, CLIPTokenizer

    write_tokenizers(folder)

    def bert(*_: Any, **__: Any) -> Any:
        return BertTokenizer(str(folder / "bert" / "vocab.txt"))

    modeling_blip2.BertTokenizer = type("Local", (), {"from_pretrained": staticmethod(bert)})
    networks = {
        "unet": diffusers.UNet2DConditionModel(**UNET),
        "vae": diffusers.AutoencoderKL(**VAE),
        "text_encoder": ContextCLIPTextModel(CLIPTextConfig(**text_config())),
        "qformer": modeling_blip2.Blip2QFormerModel(Blip2Config(**BLIP)),
        "controlnet": diffusers.ControlNetModel(**CONTROLNET),
    }
    for part, network in networks.items():
        for name, value in network.named_parameters():
            value.data = torch.from_numpy(numbers(f"{part}.{name}", tuple(value.shape)))
        network.eval()
    controlnet = networks.pop("controlnet")
    parts = {
        **networks,
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "scheduler": diffusers.PNDMScheduler(**PNDM),
        "image_processor": BlipImageProcessor(size={"height": 28, "width": 28}),
    }
    pipe = diffusers.pipelines.BlipDiffusionPipeline(**parts, mean=list(MEAN), std=list(STD))
    pictures = [Image.fromarray(picture(i)) for i in range(3)]
    recorded: dict[str, np.ndarray] = {}

    with torch.no_grad():
        processed = pipe.image_processor.preprocess(
            pictures, image_mean=list(MEAN), image_std=list(STD), return_tensors="pt"
        )["pixel_values"]
        recorded["pixels"] = processed.numpy()
        seen = pipe.qformer.visual_encoder(processed)
        recorded["vision"] = seen.last_hidden_state.numpy()
        recorded["vision_pooled"] = seen.pooler_output.numpy()
        categories = THREE["source_subject_category"]
        out = pipe.qformer(categories, processed, return_dict=True)
        recorded["qformer"] = out.last_hidden_state.numpy()
        queries = pipe.get_query_embeddings(processed, categories)
        recorded["queries"] = queries.numpy()
        recorded["bert_ids"] = pipe.qformer.tokenizer(categories, padding=True)["input_ids"]
        prompts = pipe._build_prompt(THREE["prompt"], THREE["target_subject_category"])
        recorded["context"] = pipe.encode_prompt(queries, prompts, "cpu").numpy()
        ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        plain = networks["text_encoder"](input_ids=ids.input_ids, ctx_embeddings=None)
        recorded["plain_context"] = plain.last_hidden_state.numpy()

    for kind, controlled in (("", False), ("controlled_", True)):
        if controlled:
            pipe = diffusers.BlipDiffusionControlNetPipeline(
                **parts, controlnet=controlnet, mean=list(MEAN), std=list(STD)
            )
        pipe.set_progress_bar_config(disable=True)
        for name, call in CALLS.items():
            if controlled and name not in ("three", "one_unguided", "one_ddim"):
                continue
            arguments = dict(call)
            scheduler = arguments.pop("scheduler", None)
            settings = SCHEDULE if scheduler else PNDM
            settings = (
                {k: v for k, v in settings.items() if k != "set_alpha_to_one"}
                if (scheduler in ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler"))
                else {**settings, **({"clip_sample": False} if scheduler else {})}
            )
            pipe.scheduler = getattr(diffusers, scheduler or "PNDMScheduler")(**settings)
            count = count_of(call)
            if controlled:
                arguments["condtioning_image"] = Image.fromarray(picture(7, (30, 50)))
            made = pipe(
                reference_image=pictures[:count],
                latents=torch.from_numpy(latents(count)),
                **arguments,
                **FIXED,
            )
            recorded[kind + name] = np.asarray(made.images)
    return recorded


def main(target: Path) -> None:
    import diffusers
    import transformers

    versions = (diffusers.__version__, transformers.__version__)
    if versions != ("0.33.1", "4.48.3"):
        sys.exit(f"diffusers and transformers are {versions}; needed: 0.33.1 and 4.48.3")
    with tempfile.TemporaryDirectory() as folder:
        np.savez_compressed(target, **record(Path(folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
