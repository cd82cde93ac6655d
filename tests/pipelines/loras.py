"""Random LoRAs for the tiny networks, as files hold them."""

from __future__ import annotations

import math
from typing import Any

import torch

UNET = ("to_q", "to_k", "to_out.0", "conv1", "proj_in", "time_emb_proj")
TEXTS = ("q_proj", "fc2")


def lora(
    pipe: Any, seed: int = 0, unet: Any = UNET, texts: Any = TEXTS, size: float = 0.2
) -> dict[str, torch.Tensor]:
    """PyTorch tensors under PEFT's names, for layers whose paths end so."""
    tensors = {}
    for component, ends in (("unet", unet), ("text_encoder", texts)):
        generator = torch.Generator().manual_seed(seed)
        network = getattr(pipe, component)
        for path, leaf in type(network).layout(network.config).leaves.items():
            if leaf.kind not in ("linear", "conv2d") or not path.endswith(tuple(ends) or ("-",)):
                continue
            out, *rest = leaf.shape
            ones = (1,) * (len(rest) - 1)
            down, up = (torch.randn(*s, generator=generator) for s in ((2, *rest), (out, 2, *ones)))
            tensors[f"{component}.{path}.lora_A.weight"] = down * size
            tensors[f"{component}.{path}.lora_B.weight"] = up * size
    return tensors


def loha(pipe: Any, seed: int = 0, ends: Any = ("to_v", "conv2")) -> dict[str, torch.Tensor]:
    """A LoHa of the UNet's layers whose paths end so, under kohya's names."""
    tensors, generator = {}, torch.Generator().manual_seed(seed)
    for path, leaf in type(pipe.unet).layout(pipe.unet.config).leaves.items():
        if leaf.kind not in ("linear", "conv2d") or not path.endswith(ends):
            continue
        out, *rest = leaf.shape
        name = f"lora_unet_{path.replace('.', '_')}"
        for part in ("w1", "w2"):
            for side, shape in (("a", (out, 2)), ("b", (2, math.prod(rest)))):
                values = torch.randn(*shape, generator=generator) * 0.3
                tensors[f"{name}.hada_{part}_{side}"] = values
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return tensors
