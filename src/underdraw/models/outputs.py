"""What the model objects return: typed fields that also answer to `[0]` and `["name"]`."""

from __future__ import annotations

import dataclasses
from typing import Any

from underdraw.backends.contract import Array


@dataclasses.dataclass
class Output:
    """Base of the outputs. `output[0]` is the first field that is not None, as in the peer."""

    def __getitem__(self, key: int | slice | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __len__(self) -> int:
        return len(self.to_tuple())

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        values = (getattr(self, f.name) for f in dataclasses.fields(self))
        return tuple(v for v in values if v is not None)


@dataclasses.dataclass
class UNet2DConditionOutput(Output):
    """`sample`: `(batch, out_channels, height, width)`."""

    sample: Array


@dataclasses.dataclass
class DecoderOutput(Output):
    """`sample`: images `(batch, 3, height, width)` near [-1, 1]."""

    sample: Array


@dataclasses.dataclass
class AutoencoderKLOutput(Output):
    """`latent_dist`: the distribution the encoder gives."""

    latent_dist: Any


@dataclasses.dataclass
class CLIPTextOutput(Output):
    """Fields of `CLIPTextModel`'s output; `hidden_states` only when asked for."""

    last_hidden_state: Array
    pooler_output: Array
    hidden_states: tuple[Array, ...] | None = None


@dataclasses.dataclass
class CLIPTextModelOutput(Output):
    """Fields of `CLIPTextModelWithProjection`'s output."""

    text_embeds: Array
    last_hidden_state: Array
    hidden_states: tuple[Array, ...] | None = None


@dataclasses.dataclass
class CLIPVisionModelOutput(Output):
    """Fields of `CLIPVisionModelWithProjection`'s output."""

    image_embeds: Array
    last_hidden_state: Array
    hidden_states: tuple[Array, ...] | None = None
