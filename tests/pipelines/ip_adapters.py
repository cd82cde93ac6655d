"""Random IP-Adapters of every kind for the tiny networks, as published files hold them, and a
tower that sees."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from pipelines import tiny

from underdraw.models import CLIPVisionModelWithProjection
from underdraw.networks.ip_adapter.config import cross_attentions, number

KINDS = ("plain", "full", "plus", "face-id", "face-id-plus")
EMBEDDING, HIDDEN, FACE, PIXELS = 24, 48, 20, 28
"""Widths of the tower's embeddings and hidden states, of faces, and the side of its pictures."""


def tower(**changes: Any) -> CLIPVisionModelWithProjection:
    """An image tower that sees 2 x 2 patches."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 40, "projection_dim": EMBEDDING}
    depth = {"num_hidden_layers": 3, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {**sizes, **depth, "image_size": PIXELS, "patch_size": 14, **changes}
        return tiny.shake(CLIPVisionModelWithProjection(**config))


def pipeline(**changes: Any) -> Any:
    """A tiny pipeline with an image tower."""
    pipe = tiny.pipeline(**changes)
    pipe.image_encoder = tower()
    return pipe


def picture(seed: int = 0) -> Image.Image:
    """Noise, of which no two seeds look alike."""
    pixels = torch.randint(0, 256, (37, 29, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def faces(count: int = 1, seed: int = 0) -> torch.Tensor:
    """Features of faces."""
    return torch.randn(count, FACE, generator=torch.Generator().manual_seed(seed))


def adapter(
    unet: Any, kind: str = "plain", seed: int = 0, tokens: int = 3, lora: int = 0
) -> dict[str, dict[str, torch.Tensor]]:
    """A state dict; `lora` is the rank of the LoRA inside, 0 for none."""
    generator = torch.Generator().manual_seed(seed)
    context = unet.config.cross_attention_dim

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    def linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": draw(out, into)} | ({f"{name}.bias": draw(out)} if bias else {})

    def norm(name: str, width: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}

    def resampler(width: int, inner: int = 128, depth: int = 4) -> dict[str, torch.Tensor]:
        made = linear("proj_in", width, HIDDEN) | linear("proj_out", context, width)
        made |= norm("norm_out", context)
        for i in range(depth):
            at = f"layers.{i}"
            made |= norm(f"{at}.0.norm1", width) | norm(f"{at}.0.norm2", width)
            made |= linear(f"{at}.0.to_q", inner, width, False)
            made |= linear(f"{at}.0.to_kv", 2 * inner, width, False)
            made |= linear(f"{at}.0.to_out", width, inner, False)
            made |= norm(f"{at}.1.0", width) | linear(f"{at}.1.1", 4 * width, width, False)
            made |= linear(f"{at}.1.3", width, 4 * width, False)
        return made

    if kind == "plain":
        project = linear("proj", 4 * context, EMBEDDING) | norm("norm", context)
    elif kind == "full":
        project = linear("proj.0", HIDDEN, HIDDEN) | linear("proj.2", context, HIDDEN)
        project |= norm("proj.3", context)
    elif kind == "plus":
        project = {"latents": draw(1, tokens, 40)} | resampler(40)
    elif kind == "face-id":
        project = linear("proj.0", 2 * FACE, FACE) | linear("proj.2", tokens * context, 2 * FACE)
        project |= norm("norm", context)
    else:
        project = linear("proj.0", 2 * FACE, FACE) | linear("proj.2", 4 * context, 2 * FACE)
        project |= norm("norm", context)
        inside = resampler(context)
        project |= {f"perceiver_resampler.{name}": value for name, value in inside.items()}
    layers: dict[str, torch.Tensor] = {}
    for i, (_, width, _) in enumerate(cross_attentions(unet.config)):
        for at, into in ((2 * i, width), (number(i), context)) if lora else ():
            for name in ("to_q", "to_k", "to_v", "to_out"):
                own = into if name in ("to_k", "to_v") else width
                layers |= linear(f"{at}.{name}_lora.down", lora, own, False)
                layers |= linear(f"{at}.{name}_lora.up", width, lora, False)
        for name in ("to_k_ip", "to_v_ip"):
            layers |= linear(f"{number(i)}.{name}", width, context, False)
    return {"image_proj": project, "ip_adapter": layers}


def flat(state: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As a file of safetensors names the tensors."""
    return {f"{part}.{name}": value for part, held in state.items() for name, value in held.items()}
