"""How tensors of LoRA files are spelt: the module first, then which part of its difference."""

from __future__ import annotations

import re
from typing import NamedTuple

NAMED = r"(?:\.(?!weight\Z|bias\Z)[\w-]+)?"
"""The name of an adapter, which PEFT puts between."""
PARTS: tuple[tuple[str, str], ...] = (
    # kohya and LyCORIS; diffusers of old; diffusers and PEFT; Transformers' text encoders.
    (r"\.lora_up\.weight", "up"),
    (r"\.lora_down\.weight", "down"),
    (r"\.lora_mid\.weight", "mid"),
    (r"[._]lora\.up\.weight", "up"),
    (r"[._]lora\.down\.weight", "down"),
    (r"\.lora_linear_layer\.up\.weight", "up"),
    (r"\.lora_linear_layer\.down\.weight", "down"),
    (rf"\.lora_B{NAMED}(?:\.weight)?", "up"),
    (rf"\.lora_A{NAMED}(?:\.weight)?", "down"),
    (rf"\.lora_magnitude_vector{NAMED}(?:\.weight)?", "magnitude"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.alpha", "alpha"),
    (r"\.(hada_(?:w[12]_[ab]|t[12]))", ""),
    (r"\.(lokr_(?:w[12](?:_[ab])?|t2))", ""),
    (r"\.(oft_blocks)(?:\.weight)?", ""),
    (r"\.(rescale|on_input|diff|diff_b|w_norm|b_norm|scalar)", ""),
    (r"\.(a1|a2|b1|b2|bm)\.weight", ""),
    (r"\.weight", "weight"),
)
"""Endings of names and what they are called here; an empty name is the ending itself."""
BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.(.+)")
"""Textual inversions that a file brings along."""


class Spelt(NamedTuple):
    """A name taken apart."""

    module: str
    part: str


def spelt(name: str) -> Spelt | None:
    """The module and the part that a tensor is of; None for other names."""
    for pattern, part in PARTS:
        found = re.search(rf"{pattern}\Z", name)
        if found is not None and found.start() > 0:
            return Spelt(name[: found.start()], part or found[1])
    return None
