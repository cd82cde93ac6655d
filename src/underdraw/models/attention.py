"""diffusers' names for the attention of a network: its layers, and switches of how it is computed.

What acts on attention here is a control, given to a call; nothing is set on a network.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from underdraw.arguments import checked
from underdraw.errors import InputError
from underdraw.models.base import Model

FUSED = (
    "attention: PyTorch's own fused kernels are used already, whatever "
    "enable_xformers_memory_efficient_attention says"
)
SLICED = "attention slices are a setting of a pipeline: pipe.enable_attention_slicing(...)"
PLAIN = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "FusedAttnProcessor2_0")
"""Processors of diffusers that compute the same attention, each in another way."""


@dataclass(frozen=True)
class AttnProcessor:
    """Stands for the attention of a layer, which the network's program computes."""


class FamiliarAttention(Model):
    """A network with attention, under diffusers' names for it."""

    @property
    def attn_processors(self) -> dict[str, AttnProcessor]:
        """The attention layers by name, such as `mid_block.attentions.0...attn1.processor`."""
        leaves = self.layout(self.config).leaves
        places = (path.removesuffix(".to_q") for path in leaves if path.endswith(".to_q"))
        return {f"{place}.processor": AttnProcessor() for place in places}

    def set_attn_processor(self, processor: Any) -> None:
        """Nothing, for processors that compute plain attention.

        Raises:
            InputError: others, or names that are no layers: controls do their work.
        """
        given = processor if isinstance(processor, Mapping) else {"": processor}
        known = self.attn_processors
        for name, one in given.items():
            if name and name not in known:
                raise InputError(f"processor has no layer {name!r}; there are {', '.join(known)}")
            kind = one.__name__ if isinstance(one, type) else type(one).__name__
            if kind not in PLAIN:
                raise InputError(
                    f"processor={kind} is not taken; allowed: {', '.join(PLAIN)}, which change "
                    "nothing. What acts on attention is given to a call as controls=[...]"
                )

    def set_default_attn_processor(self) -> None:
        """Nothing: there is no other."""

    def set_attention_slice(self, slice_size: Any = "auto") -> None:
        """Nothing but a note: `pipe.enable_attention_slicing` is a setting of a pipeline."""
        logging.getLogger(__name__).warning(SLICED)

    def enable_xformers_memory_efficient_attention(self, *_: Any, **__: Any) -> None:
        """Nothing but a note: PyTorch's own fused attention is used already."""
        logging.getLogger(__name__).warning(FUSED)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Nothing: it is never on."""

    @checked
    def set_use_memory_efficient_attention_xformers(self, valid: bool, *_: Any, **__: Any) -> None:
        """Nothing but a note where it is switched on."""
        if valid:
            self.enable_xformers_memory_efficient_attention()
