"""Record what diffusers 0.33.1 with transformers 4.48.3 computes where 0.42.1 with 5.23 fails:
`clip_skip`, and slicing and tiling of the autoencoder switched on at the pipeline.

Run it in an environment of its own, which has no underdraw (about 20 seconds):

    python -m venv /tmp/old
    /tmp/old/bin/pip install "diffusers==0.33.1" "transformers==4.48.3" "torch" "numpy<3"
    /tmp/old/bin/python scripts/record_oracle.py tests/data/oracle

It writes configs, a vocabulary and `calls.npz`. Weights and latents are not stored: both sides make
them by `numbers`, from names alone.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np

UNET = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": [8, 8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 32,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "projection_dim": 16,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
WORDS = "a red green sphere blue cube left of and on the table".split()

CALLS = {
    "plain": {},
    "clip_skip_0": {"clip_skip": 0},
    "clip_skip_1": {"clip_skip": 1},
    "clip_skip_3": {"clip_skip": 3, "negative_prompt": ["green", "table on"]},
    "clip_skip_1_unguided": {"clip_skip": 1, "guidance_scale": 1.0},
    "sliced": {},
    "tiled": {"height": 72, "width": 40},
    "sliced_and_tiled": {"height": 40, "width": 56},
}
PROMPTS = ["a red sphere left of the blue cube", "table"]
FIXED = {"num_inference_steps": 3, "output_type": "np", "height": 32, "width": 48}


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers that depend on a name alone, float32; as weights, of a size that keeps
    activations near 1."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.startswith("latents"):
        return drawn.astype(np.float32)
    if len(shape) == 1:
        return (0.1 * drawn + name.endswith("weight")).astype(np.float32)
    return (drawn / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def latents(call: dict) -> np.ndarray:
    """What a call begins with."""
    call = {**FIXED, **call}
    return numbers("latents", (len(PROMPTS), 4, call["height"] // 8, call["width"] // 8))


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """All bytes, and merges that make each of `WORDS` one token."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = " ".join(parts[:2])
            parts = ["".join(parts[:2]), *parts[2:]]
            if merge not in merges:
                merges.append(merge)
            if parts[0] not in tokens:
                tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def main(target: Path) -> None:
    import diffusers
    import torch
    import transformers

    versions = (diffusers.__version__, transformers.__version__)
    if versions != ("0.33.1", "4.48.3"):
        sys.exit(f"diffusers and transformers are {versions}; needed: 0.33.1 and 4.48.3")
    vocab, merges = vocabulary()
    ends = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1}
    text = dict(TEXT, vocab_size=len(vocab), pad_token_id=len(vocab) - 1, **ends)
    tokens = target / "tokenizer"
    tokens.mkdir(parents=True, exist_ok=True)
    (tokens / "vocab.json").write_text(json.dumps(vocab))
    (tokens / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (tokens / "tokenizer_config.json").write_text(json.dumps(settings))
    configs = {"unet": UNET, "vae": VAE, "text_encoder": text, "scheduler": SCHEDULE}
    (target / "configs.json").write_text(json.dumps(configs, indent=1))

    networks = {
        "unet": diffusers.UNet2DConditionModel(**UNET),
        "vae": diffusers.AutoencoderKL(**VAE),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
    }
    for part, network in networks.items():
        for name, value in network.named_parameters():
            value.data = torch.from_numpy(numbers(f"{part}.{name}", tuple(value.shape)))
        network.eval()
    pipe = diffusers.StableDiffusionPipeline(
        **networks,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(tokens),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    recorded = {}
    for name, call in CALLS.items():
        (pipe.enable_vae_slicing if "sliced" in name else pipe.disable_vae_slicing)()
        (pipe.enable_vae_tiling if "tiled" in name else pipe.disable_vae_tiling)()
        start = torch.from_numpy(latents(call))
        recorded[name] = pipe(PROMPTS, latents=start, **{**FIXED, **call}).images
    np.savez_compressed(target / "calls.npz", **recorded)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
