"""Prompt encoding of BLIP-Diffusion at its published size, against diffusers.

    PYTHONPATH=/tmp/oracle:src python benchmarks/blip_prompt.py [--quick] [--json FILE]

From a picture and its category to the context of a guided call: image tower (ViT-L/14 without its
last layer), Q-Former, projection, and the text encoder on the prompt with the subject's tokens and
on the negative prompt. Random weights, of which one copy is in memory; float32. Both sides take
turns in one run. Bar 0.95.

diffusers 0.33.1 with transformers 4.48.3 can run it (`scripts/record_blip.py` says how they are
installed); its constructor gets a vocabulary made here, since it would fetch one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from timing import arguments, compare, report

from underdraw import BlipDiffusionPipeline, schedulers
from underdraw.benchmark.random_weights import SD15_TEXT, random_network
from underdraw.models import (
    AutoencoderKL,
    Blip2QFormerModel,
    BlipImageProcessor,
    ContextCLIPTextModel,
    UNet2DConditionModel,
)
from underdraw.models.wordpiece import WordPiece
from underdraw.pipelines.blip.arguments import read_subjects
from underdraw.pipelines.call.conditioning import encode_texts
from underdraw.pipelines.call.plan import check_prompts
from underdraw.pipelines.call.request import Request
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.text.vocabulary import train_vocabulary

BLIP: dict[str, Any] = {
    "num_query_tokens": 16,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "quick_gelu",
    },
    "qformer_config": {
        "vocab_size": 30523,
        "cross_attention_frequency": 1,
        "encoder_hidden_size": 1024,
    },
}
TEXT = {**SD15_TEXT, "eos_token_id": 2}
TINY: dict[str, Any] = {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "attention_head_dim": 4,
}
"""Of the networks that nobody runs here."""
PROMPT, CATEGORY, NEGATIVE = "in the snow, at night", "dog", "blurry, bad anatomy"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", CATEGORY]


def tokenizer() -> CLIPTokenizer:
    """A small vocabulary of CLIP's kind; both sides read with it."""
    return CLIPTokenizer(*train_vocabulary([f"a {CATEGORY} {PROMPT} {NEGATIVE}"] * 2, 600))


def ours(blip: dict[str, Any], text: dict[str, Any]) -> BlipDiffusionPipeline:
    """A pipeline whose encoders have the published size."""
    tokens = tokenizer()
    text = {**text, "vocab_size": max(text.get("vocab_size", 49408), len(tokens))}
    qformer = random_network(Blip2QFormerModel, blip)
    encoder = random_network(ContextCLIPTextModel, text)
    qformer.tokenizer = WordPiece(PIECES)
    return BlipDiffusionPipeline(
        tokens,
        encoder.eval(),
        AutoencoderKL(norm_num_groups=32),
        UNet2DConditionModel(**TINY, cross_attention_dim=text["hidden_size"]),
        schedulers.PNDMScheduler(),
        qformer.eval(),
        BlipImageProcessor(),
    )


def theirs(pipe: BlipDiffusionPipeline, blip: dict[str, Any], folder: Path) -> Any:
    """diffusers' pipeline on the same parameters."""
    from diffusers.pipelines.blip_diffusion import modeling_blip2
    from diffusers.pipelines.blip_diffusion.blip_image_processing import (
        BlipImageProcessor as Processor,
    )
    from diffusers.pipelines.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel as Tower
    from transformers import BertTokenizer, Blip2Config, CLIPTextConfig, CLIPTokenizer as Tokens

    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    pipe.tokenizer.save_pretrained(folder / "clip")

    def local(*_: Any, **__: Any) -> Any:
        return BertTokenizer(str(folder / "vocab.txt"))

    modeling_blip2.BertTokenizer = type("Local", (), {"from_pretrained": staticmethod(local)})
    with torch.device("meta"):
        qformer = modeling_blip2.Blip2QFormerModel(Blip2Config(**blip))
        encoder = Tower(CLIPTextConfig(**pipe.text_encoder.config.to_dict()))
    for mine, other in ((pipe.qformer, qformer), (pipe.text_encoder, encoder)):
        other.load_state_dict(mine.state_dict(), strict=False, assign=True)
    positions = torch.arange(pipe.text_encoder.config.max_position_embeddings)[None]
    encoder.text_model.embeddings.position_ids = positions
    embeddings = qformer.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_embeddings.weight.shape[0])[None]
    return diffusers.pipelines.BlipDiffusionPipeline(
        tokenizer=Tokens.from_pretrained(folder / "clip"),
        text_encoder=encoder.eval(),
        vae=diffusers.AutoencoderKL(),
        unet=diffusers.UNet2DConditionModel(**TINY, cross_attention_dim=32),
        scheduler=diffusers.PNDMScheduler(),
        qformer=qformer.eval(),
        image_processor=Processor(),
    )


def encode(pipe: BlipDiffusionPipeline, pictures: list[Any]) -> torch.Tensor:
    """The context of a guided call, as a call makes it: `(2 * prompts, tokens, width)`."""
    count = len(pictures)
    told = read_subjects(pipe.parts, [PROMPT] * count, pictures, CATEGORY, CATEGORY, 1.0, 20)
    own = told.subjects(pipe.ctx_begin_pos)
    request = Request(told.texts, NEGATIVE, own=own, cut=True)
    texts = check_prompts(pipe.parts, request)
    found = encode_texts(pipe.parts, request, texts, True, texts.count)
    return found.joined(pipe.parts.nn)


@torch.no_grad()
def encode_with(peer: Any, pictures: list[Any]) -> torch.Tensor:
    """The same, as diffusers' call makes it."""
    count = len(pictures)
    pixels = peer.image_processor.preprocess(pictures, return_tensors="pt")["pixel_values"]
    prompts = peer._build_prompt([PROMPT] * count, [CATEGORY] * count)
    tokens = peer.get_query_embeddings(pixels, [CATEGORY] * count)
    context = peer.encode_prompt(tokens, prompts, "cpu")
    negative = peer.tokenizer(
        [NEGATIVE] * count,
        padding="max_length",
        max_length=peer.text_encoder.text_model.config.max_position_embeddings,
        return_tensors="pt",
    )
    against = peer.text_encoder(input_ids=negative.input_ids, ctx_embeddings=None)[0]
    return torch.cat([against, context])


def main(
    blip: dict[str, Any] = BLIP,
    text: dict[str, Any] = TEXT,
    batches: tuple[int, ...] = (1, 4),
    runs: int = 7,
    path: str | None = None,
) -> None:
    """Measure, print, and write if asked for."""
    pipe, results = ours(blip, text), []
    with tempfile.TemporaryDirectory() as folder:
        peer = theirs(pipe, blip, Path(folder))
        for count in batches:
            random = np.random.default_rng(0).integers(0, 256, (count, 300, 400, 3), np.uint8)
            pictures = [Image.fromarray(one) for one in random]
            a, b = encode(pipe, pictures), encode_with(peer, pictures)
            print(f"largest difference {float((a - b).abs().max()):.1e}")
            results.append(
                compare(
                    f"BLIP prompt encoding, {count} subject{'s' * (count > 1)}, float32",
                    lambda pictures=pictures: encode(pipe, pictures),
                    lambda pictures=pictures: encode_with(peer, pictures),
                    runs=runs,
                    bar=0.95,
                )
            )
    report(results, path)


if __name__ == "__main__":
    flags, path = arguments("--quick")
    quick = "--quick" in flags
    main(batches=(1,) if quick else (1, 4), runs=3 if quick else 7, path=path)
