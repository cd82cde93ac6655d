"""Training a ControlNet (Zhang et al. 2023) beside a frozen UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from underdraw.errors import InputError
from underdraw.models.controlnet import ControlNetModel
from underdraw.networks import encoder
from underdraw.networks.controlnet import program
from underdraw.networks.controlnet.config import ControlNetConfig
from underdraw.training.data import Examples, shuffled
from underdraw.training.loop import Batch, Draw, Figures
from underdraw.training.objectives import Objective, ObjectiveConfig
from underdraw.training.tokens import tokenize
from underdraw.training.wire import at_hand, images, signed

HINT = (8, 16, 32, 64)
"""Widths of the layers in front of a small net: at the published ones they cost half of a step."""


@dataclass(frozen=True)
class StructureConfig:
    """`drop_caption` of the examples lose their caption: guidance compares with an empty one under
    the same map, and a net that has seen many of them must read the map. (The original drops half.)

    `early` 1 draws all noise levels alike, 2 draws a level as often as it is noisy: where things
    are is decided early. `reading` weighs how well the layers in front tell the latents from the
    map alone, through a head that is thrown away: they learn to read it before the zero
    convolutions let the denoiser's own error through.
    """

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    drop_caption: float = 0.3
    early: float = 2.0
    reading: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.drop_caption <= 1:
            raise InputError(f"drop_caption={self.drop_caption} must be in [0, 1]")
        if not self.early >= 1:
            raise InputError(f"early={self.early} must be at least 1")
        if not self.reading >= 0:
            raise InputError(f"reading={self.reading} must be at least 0")


class StructureTask:
    """`Task` for a ControlNet that reads maps of one kind or several.

    Args:
        net: such as `new_net` makes.
        family: `unet`, `text_encoder`, `tokenizer` and, if there are no `latents`, `vae` by name.
        examples: captions, and images where there are no `latents`.
        maps: by kind uint8 `(len(examples), height, width)` or `(len(examples), height, width,
            channels)` of the pictures' size; of several kinds each example draws one.
        latents: `(len(examples), channels, h, w)`, unscaled means of the autoencoder.
        scale: `scaling_factor` of the autoencoder, where the family lacks it.

    Raises:
        InputError: the net is for another UNet; there are more or fewer latents or maps than
            examples; nothing tells how latents are scaled.
    """

    def __init__(
        self,
        net: ControlNetModel,
        family: dict[str, Any],
        examples: Examples,
        maps: Mapping[str, Any],
        config: StructureConfig | None = None,
        latents: np.ndarray | None = None,
        *,
        scale: float | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.net = config or StructureConfig(), net
        self.family, self.examples, self.latents, self.seed = family, examples, latents, seed
        self.unet, self.maps = family["unet"], list(maps.values())
        self._gray = all(isinstance(one, np.ndarray) and one.ndim == 3 for one in self.maps)
        self.objective = Objective(self.config.objective)
        net.require_fit(self.unet)
        if not self.maps:
            raise InputError("maps is empty; give one kind or several")
        counted = {"latents": latents, **{f"maps of {kind}": one for kind, one in maps.items()}}
        for name, given in counted.items():
            if given is not None and len(given) != len(examples):
                raise InputError(f"{len(given)} {name} for {len(examples)} examples")
        if family.get("vae") is None and (latents is None or scale is None):
            raise InputError("family has no 'vae'; without it, give latents and scale")
        vae = family.get("vae")
        if vae is not None and vae.config.factor != net.config.factor:
            raise InputError(
                f"net brings maps to 1/{net.config.factor} of their size; latents have "
                f"1/{vae.config.factor} of a picture's"
            )
        self.scale: float = family["vae"].config.scaling_factor if scale is None else scale
        for part in family.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        trained: Any = net
        modules: dict[str, nn.Module] = {"controlnet": trained.requires_grad_(True)}
        if self.config.reading:
            width = net.config.block_out_channels[0]
            head: Any = nn.Conv2d(width, self.unet.config.out_channels, 1)
            modules["head"] = head
            for p in head.parameters():
                nn.init.zeros_(p)  # the same each time
        self.modules: Mapping[str, nn.Module] = modules
        self._empty: Tensor | None = None

    # -- what a step sees
    def draw(self, draw: Draw) -> Batch:
        c, rng, count = self.config, draw.rng, draw.count
        indices = shuffled(len(self.examples), draw.first, count, self.seed)
        captions = self.examples.captions(indices, rng)
        dropped = rng.random(count) < c.drop_caption
        kinds = rng.integers(len(self.maps), size=count)
        texts = ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]
        generator = draw.generator()
        values = self._clean(indices, generator)
        shape = values["clean" if "clean" in values else "posterior"].shape
        return {
            **values,
            "maps": self._maps(indices, kinds),
            "ids": self._tokenize(texts),
            "noise": torch.randn(shape, generator=generator),
            "timesteps": self.objective.timesteps(count, generator, self.config.early),
        }

    def _clean(self, indices: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        """Clean latents, or pixels and the noise by which latents are drawn from them."""
        if self.latents is not None:
            clean = self.latents[np.sort(indices)][np.argsort(np.argsort(indices))]
            return {"clean": torch.from_numpy(clean.astype(np.float32)) * self.scale}
        pixels = images(self.examples, indices)
        c = self.family["vae"].config
        sides = [side // c.factor for side in pixels.shape[2:]]
        shape = (len(indices), c.latent_channels, *sides)
        return {"pixels": pixels, "posterior": torch.randn(shape, generator=generator)}

    def _maps(self, indices: np.ndarray, kinds: np.ndarray) -> Tensor:
        """`(examples, channels, height, width)`, uint8; one channel where none has more."""
        channels = 1 if self._gray else self.net.config.conditioning_channels
        found = []
        for i, kind in zip(indices, kinds, strict=True):
            one = np.asarray(self.maps[kind][int(i)])
            one = one[..., None] if one.ndim == 2 else one
            found.append(np.broadcast_to(one, (*one.shape[:2], channels)))
        return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2).copy())

    def _tokenize(self, texts: Sequence[str]) -> Tensor:
        length = self.family["text_encoder"].config.max_position_embeddings
        return torch.from_numpy(tokenize(self.family["tokenizer"], length, texts))

    # -- what it learns
    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        with torch.no_grad():
            context, clean = self._context(batch["ids"]), self._latents(batch)
        times = batch["timesteps"]
        noisy = self.objective.add_noise(clean, batch["noise"], times)
        nn, net = self.net.nn, self.net
        maps = batch["maps"].to(clean.dtype) / 255
        maps = maps.expand(-1, net.config.conditioning_channels, -1, -1)
        hint = program.embed_hint(nn, net, net.config, maps)
        temb = encoder.embed_time(nn, net, net.config.encoder, times, noisy)
        told = program.controlnet(nn, net, net.config, noisy, temb, context, hint)
        output = self.unet(
            noisy,
            times,
            context,
            down_block_additional_residuals=told.down,
            mid_block_additional_residual=told.mid,
        ).sample
        loss = self.objective.loss(output, clean, batch["noise"], times)
        figures: Figures = {"denoising": loss.detach(), "said": told.mid.detach().abs().mean()}
        if "head" not in self.modules:
            return loss, figures
        read = (self.modules["head"](hint).float() - clean).square().mean()
        return loss + self.config.reading * read, {**figures, "reading": read.detach()}

    def _latents(self, batch: Batch) -> Tensor:
        if "clean" in batch:
            return batch["clean"]
        found = self.family["vae"].encode(signed(batch["pixels"])).latent_dist
        return (found.mean + found.std * batch["posterior"]).float() * self.scale

    def _context(self, ids: Tensor) -> Tensor:
        """Contexts of token ids. Where texts can be told apart, each is encoded once. That of the
        empty one is kept; others are not, for the last bits of a context depend on what is encoded
        with it, and a step on nothing but its number."""
        if not at_hand(ids):
            return self._encode(ids)
        silence = self._tokenize([""])
        if self._empty is None:
            (self._empty,) = self._encode(silence)
        rows = [row.tobytes() for row in ids.numpy()]
        first = {row: number for number, row in reversed(list(enumerate(rows)))}
        first.pop(silence.numpy().tobytes(), None)
        told = sorted(first.values())
        made = self._encode(ids[told]) if told else ()
        known = dict(zip((rows[number] for number in told), made, strict=True))
        return torch.stack([known.get(row, self._empty) for row in rows])

    def _encode(self, ids: Tensor) -> Tensor:
        return self.family["text_encoder"](ids).last_hidden_state

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        return {}


def hint_of(widths: Sequence[int], factor: int) -> tuple[int, ...]:
    """Widths of layers that halve a map as often as an autoencoder of that factor, the last of
    `widths` last."""
    halvings = factor.bit_length() - 1
    more = halvings + 1 - len(widths)
    return (*tuple(widths[:1]) * more, *widths[-halvings - 1 :])


def new_net(
    unet: Any,
    *,
    hint: Sequence[int] = HINT,
    middle: bool = True,
    seed: int | None = None,
) -> Any:
    """A `ControlNetModel` to be trained beside `unet`, in which it changes nothing yet.

    It begins as the UNet's way down. Only the convolutions behind its blocks are zero: with those
    behind the map at zero, too, as in the original, the map would have to wait for them. The layers
    in front begin so that what they make of a map is about as large as the map (by PyTorch's own
    weights, of eight such layers only a thousandth of it would arrive).

    Args:
        hint: widths of the layers that bring a map to the size of the latents, one halving less
            than there are.
        middle: with the attention of the UNet's middle; without it, a net of few levels has two
            thirds of the size.
        seed: of its weights, which are then always the same; None draws from PyTorch's own stream.
    """
    fields = {} if middle else {"mid_block_type": "UNetMidBlock2D"}
    config = ControlNetConfig.of_unet(
        unet.config, conditioning_embedding_out_channels=tuple(hint), **fields
    )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        net: Any = ControlNetModel(config)
        _begin_hint(net.controlnet_cond_embedding)
    theirs = unet.state_dict()
    own = net.state_dict()
    net.load_state_dict({name: theirs.get(name, value) for name, value in own.items()})
    return net.to(unet.device)


def louder(net: Any, factor: float) -> Any:
    """The same net, whose residuals are `factor` times as large: in place."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
                p.mul_(factor)
    return net


_SILU = 2.0
"""What keeps the size of values through SiLU: 1.68 of values of size 1, 2 of small ones."""


def _begin_hint(layers: Any) -> None:
    """As He et al. 2015 do for another activation."""
    convolutions: list[Any] = [m for m in layers.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for layer in convolutions:
            inputs = layer.weight[0].numel()
            gain = 1.0 if layer is layers.conv_out else _SILU
            layer.weight.normal_(0, gain / inputs**0.5)
            layer.bias.zero_()
