"""Training grounding layers on a frozen UNet (GLIGEN, Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underdraw.errors import InputError
from underdraw.models.grounding import Grounding
from underdraw.networks.gligen.config import BOXES, INPAINTING_CHANNELS
from underdraw.scenes.captions import listed
from underdraw.training.clip import normalise
from underdraw.training.data import cut, shuffled
from underdraw.training.layouts import GroundedExamples, Layout
from underdraw.training.loop import Batch, Draw, Figures
from underdraw.training.objectives import Objective, ObjectiveConfig
from underdraw.training.tokens import tokenize
from underdraw.training.truth import Recorder, TruthHeads
from underdraw.training.watched import Watched
from underdraw.training.wire import at_hand, images, in_bytes, signed, windows

SHORT = 16
"""Tokens into which the phrases of scenes fit, with some to spare."""
_PHRASES = 50_000
"""Phrases whose features are kept in memory."""
Another = Callable[[int, np.ndarray, np.random.Generator, int], "Tensor | None"]
"""`(index, box, rng, size)` to another picture of what stands in a box of an example, in [-1, 1],
`(1, 3, size, size)`; None where there is none."""


@dataclass(frozen=True)
class GroundingTrainingConfig:
    """What is left out of examples, and what counts how much.

    Of the examples, `drop_all` lose caption and boxes at once, which is the unconditional side of
    guidance; `drop_caption` and `drop_boxes` lose one of the two, and boxes that stay go one by one
    with `drop_box`. (The original drops the caption of half of its examples and everything of a
    tenth.) With layers for pictures, a box has its picture with probability `images`, and of those
    with one, `images_only` have no phrase. A picture is the box itself, cut out `margin` times as
    wide, or with probability `views` another one of the same thing, where a task can show one.
    `counted` of the captions only count ("a thing and a thing") and leave the rest to the boxes.

    `early` 1 draws all noise levels alike, 2 draws a level as often as it is noisy: where things
    are is decided early. `inside` is how much more the error counts inside boxes; `attention`
    weighs what `Watched` asks; `truth` what the heads of `training.truth` tell, where a task has
    them. The last two are ours: with them the layers find their places in a fraction of the steps.
    """

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    drop_all: float = 0.1
    drop_caption: float = 0.3
    drop_boxes: float = 0.05
    drop_box: float = 0.1
    images: float = 0.5
    images_only: float = 0.6
    margin: tuple[float, float] = (1.0, 1.7)
    views: float = 0.0
    counted: float = 0.0
    image_norm: float = 28.7
    early: float = 1.5
    inside: float = 1.0
    attention: float = 0.1
    truth: float = 0.0

    def __post_init__(self) -> None:
        drops = ("drop_all", "drop_caption", "drop_boxes", "drop_box")
        for name in (*drops, "images", "images_only", "views", "counted"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must be in [0, 1]")
        if self.drop_all + self.drop_caption + self.drop_boxes > 1:
            raise InputError("drop_all, drop_caption and drop_boxes must not add up to over 1")
        if self.early < 1 or self.inside < 0:
            raise InputError(f"early={self.early} must be at least 1, inside={self.inside} 0")


class GroundingTask:
    """`Task` for a `Grounding` beside a frozen UNet, on text boxes and image boxes.

    A part with a first convolution of its own (`new_part(..., inpainting=True)`) is trained to
    inpaint: it also sees the picture with holes and the mask. So is any part beside a UNet with
    nine input channels.

    Args:
        grounding: of kind "text" or "text-image", such as `new_part` makes.
        family: `unet`, `text_encoder`, `tokenizer` and, if there are no `latents`, `vae` by name;
            for pictures in boxes `image_encoder`, and `image_project` where a family has one.
        latents: `(len(examples), channels, h, w)`, unscaled means of the autoencoder.
        scale: `scaling_factor` of the autoencoder, where the family lacks it.
        heads: trained with the UNet (`training.truth`), for examples with `truth(indices)`.
        another: shows a thing of an example once more; needed for `views`.
    """

    def __init__(
        self,
        grounding: Grounding,
        family: dict[str, Any],
        examples: GroundedExamples,
        config: GroundingTrainingConfig | None = None,
        latents: np.ndarray | None = None,
        *,
        scale: float | None = None,
        heads: TruthHeads | None = None,
        another: Another | None = None,
        seed: int = 0,
    ) -> None:
        self.config = config or GroundingTrainingConfig()
        self.grounding: Any = grounding
        self.another = another
        self.family, self.examples, self.latents, self.seed = family, examples, latents, seed
        self.unet, self.heads = family["unet"], heads
        self.objective = Objective(self.config.objective)
        grounding.require_fit(self.unet)
        if grounding.config.kind not in BOXES:
            raise InputError(f"a grounding part for {grounding.config.kind!r} is not trained here")
        if self.config.views and another is None:
            raise InputError(f"views={self.config.views} needs `another`, which shows them")
        if latents is not None and len(latents) != len(examples):
            raise InputError(f"{len(latents)} latents for {len(examples)} examples")
        if family.get("vae") is None and (latents is None or scale is None):
            raise InputError("family has no 'vae'; without it, give latents and scale")
        self.scale: float = family["vae"].config.scaling_factor if scale is None else scale
        self.pictured = grounding.config.kind == "text-image" and self.config.images > 0
        if self.pictured and family.get("image_encoder") is None:
            raise InputError(
                "family has no 'image_encoder', which reads the pictures of boxes; with images=0 "
                "boxes have phrases only"
            )
        for part in (*family.values(), heads):
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.modules: Mapping[str, nn.Module] = {"grounding": self.grounding.requires_grad_(True)}
        self.inpainting = self._who_inpaints()
        self._phrases: dict[bytes | None, Tensor] = {}
        self._phrases_lock = Lock()  # threads may share a step

    def _who_inpaints(self) -> str:
        """Whose first convolution sees the picture with holes: "part", "unet", or "" for none."""
        c = self.unet.config
        if self.grounding.config.extra_channels:
            return "part"
        return "unet" if c.in_channels == c.out_channels + INPAINTING_CHANNELS else ""

    # -- what a step sees
    def draw(self, draw: Draw) -> Batch:
        c, rng, count = self.config, draw.rng, draw.count
        indices = shuffled(len(self.examples), draw.first, count, self.seed)
        captions = self.examples.captions(indices, rng)
        whole = self.examples.layouts(indices, rng)
        generator = draw.generator()
        fate = rng.random(count)
        no_caption = fate < c.drop_all + c.drop_caption
        bare = (fate < c.drop_all) | (1 - fate < c.drop_boxes)
        layouts = [
            layout.keep((rng.random(len(layout)) >= c.drop_box) & ~bare[i])
            for i, layout in enumerate(whole)
        ]
        if c.counted:
            mere = rng.random(count) < c.counted
            captions = [
                listed(["a thing"] * len(w)) if m and len(w) else text
                for text, w, m in zip(captions, whole, mere, strict=True)
            ]
        texts = ["" if drop else text for text, drop in zip(captions, no_caption, strict=True)]
        values: dict[str, Any] = self._clean(indices, generator)
        shape = values["clean" if "clean" in values else "posterior"].shape
        return {
            **values,
            **self._boxes(indices, layouts, rng),
            "ids": self._tokenize(texts),
            "noise": torch.randn(shape, generator=generator),
            "timesteps": self.objective.timesteps(count, generator, self.config.early),
            "area": torch.stack([_covered(w.boxes, shape[2:]) for w in whole]),
            **self._holes(layouts, shape, rng),
            **self._truth(indices),
        }

    def _clean(self, indices: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        """Clean latents, or pixels and the noise by which latents are drawn from them."""
        if self.latents is not None:
            order = np.argsort(indices)  # memory-mapped: read in order
            clean = np.empty((len(indices), *self.latents.shape[1:]), np.float32)
            clean[order] = self.latents[indices[order]]
            return {"clean": torch.from_numpy(clean) * self.scale}
        pixels = images(self.examples, indices)
        c = self.family["vae"].config
        sides = [side // c.factor for side in pixels.shape[2:]]
        shape = (len(indices), c.latent_channels, *sides)
        return {"pixels": pixels, "posterior": torch.randn(shape, generator=generator)}

    def _boxes(
        self, indices: np.ndarray, layouts: Sequence[Layout], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Boxes padded to as many as any example has, and what is known of each: of all examples
        where these tell it, so that every step has one shape, or of those drawn."""
        count, most = len(layouts), max(getattr(self.examples, "most", 0), *map(len, layouts))
        boxes = torch.zeros(count, most, 4)
        present = torch.zeros(count, most)
        for i, layout in enumerate(layouts):
            boxes[i, : len(layout)] = torch.from_numpy(layout.boxes)
            present[i, : len(layout)] = 1
        made: dict[str, Any] = {
            "boxes": boxes,
            "present": present,
            "phrases": self._said(layouts, most),
        }
        if self.pictured:
            c = self.config
            pictured = torch.from_numpy(rng.random((count, most)) < c.images) * present
            alone = torch.from_numpy(rng.random((count, most)) < c.images_only)
            made["pictured"] = pictured
            made["named"] = present * (1 - pictured * alone)
            size = self.family["image_encoder"].config.image_size
            shown = torch.zeros(count, most, 3, size, size, dtype=torch.uint8)
            for k, (i, layout) in enumerate(zip(indices, layouts, strict=True)):
                numbers = np.flatnonzero(pictured[k].numpy())
                pictures = self._shown(int(i), layout.boxes[numbers], rng, size)
                for number, picture in zip(numbers, pictures, strict=True):
                    shown[k, number] = picture
            made["pictures"] = shown
        return made

    def _said(self, layouts: Sequence[Layout], most: int) -> Tensor:
        """Token ids of phrases, `(examples, most, tokens)`; an empty text where there is no box."""
        empty = ("",)
        said = [phrase for one in layouts for phrase in one.phrases + empty * (most - len(one))]
        told = list(dict.fromkeys([*said, *empty]))
        length = self.family["text_encoder"].config.max_position_embeddings
        ids = windows(self.family["tokenizer"], length, told, SHORT)
        number = {phrase: i for i, phrase in enumerate(told)}
        rows = ids[[number[phrase] for phrase in said]] if said else ids[:0]
        return torch.from_numpy(rows.reshape(len(layouts), most, ids.shape[1]))

    def _shown(
        self, index: int, boxes: np.ndarray, rng: np.random.Generator, size: int
    ) -> list[Tensor]:
        """Pictures of boxes, each uint8 `(3, size, size)`."""
        made: list[Tensor] = []
        pixels: np.ndarray | None = None
        for box in boxes:
            view = None
            if self.another is not None and rng.random() < self.config.views:
                view = self.another(index, box, rng, size)
            if view is None:
                pixels = self._pixels(index) if pixels is None else pixels
                view = cut(pixels, box, size, float(rng.uniform(*self.config.margin)))
            made.append(in_bytes(view[0]))
        return made

    def _pixels(self, index: int) -> np.ndarray:
        (image,) = images(self.examples, np.array([index]))
        image = in_bytes(image) if image.is_floating_point() else image
        return image.permute(1, 2, 0).numpy()

    @torch.no_grad()
    def _phrase_features(self, ids: Tensor, present: Tensor) -> Tensor:
        """Pooled text features `(examples, most, width)`, zero where there is no phrase. Where
        phrases can be told apart, those of each are computed once."""
        width, encoder = self.grounding.config.phrase_width, self.family["text_encoder"]
        if not present.numel():
            return torch.zeros(*present.shape, width, device=present.device)
        if not at_hand(ids):
            pooled = encoder(ids.flatten(0, 1)).pooler_output.float()
            return pooled.view(*present.shape, width) * present[..., None]
        there = present.flatten().tolist()
        said = [
            row.tobytes() if here else None
            for row, here in zip(ids.flatten(0, 1).numpy(), there, strict=True)
        ]
        with self._phrases_lock:
            if len(self._phrases) > _PHRASES:
                self._phrases.clear()
            if new := sorted({row for row in said if row is not None} - self._phrases.keys()):
                rows = torch.from_numpy(np.frombuffer(b"".join(new), np.int64).copy())
                pooled = encoder(rows.view(len(new), -1)).pooler_output
                self._phrases.update(zip(new, pooled.float(), strict=True))
            known = dict(self._phrases)
        none = torch.zeros(width)
        return torch.stack([known.get(row, none) for row in said]).view(*present.shape, width)

    def _tokenize(self, texts: Sequence[str]) -> Tensor:
        length = self.family["text_encoder"].config.max_position_embeddings
        return torch.from_numpy(tokenize(self.family["tokenizer"], length, texts))

    def _holes(
        self, layouts: Sequence[Layout], shape: Sequence[int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """For inpainting, `keep (examples, 1, h, w)`: 0 in holes, which are the boxes, a little
        wider now and then, with another somewhere half of the time; one in ten is all hole."""
        if not self.inpainting:
            return {}
        kept = []
        for layout in layouts:
            grown = [_grown(box, float(rng.uniform(0, 0.2))) for box in layout.boxes]
            if not grown or rng.random() < 0.5:
                corner, side = rng.uniform(0, 0.7, 2), rng.uniform(0.1, 0.5, 2)
                grown.append(np.concatenate([corner, corner + side]))
            if rng.random() < 0.1:
                grown = [np.array([0.0, 0.0, 1.0, 1.0])]
            kept.append(1 - _covered(np.stack(grown), shape[2:]))
        return {"keep": torch.stack(kept)[:, None]}

    def _truth(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {} if self.heads is None else {"truth": self.heads.asked(self.examples, indices)}

    # -- what it learns
    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        with torch.no_grad():
            context = self.family["text_encoder"](batch["ids"]).last_hidden_state
            clean = self._latents(batch)
            phrases = self._phrase_features(batch["phrases"], batch["present"])
            pictures = self._picture_features(batch)
        tokens = self.grounding.boxes(
            batch["boxes"], batch["present"], phrases, batch.get("named"), **pictures
        )
        times = batch["timesteps"]
        noisy = self.objective.add_noise(clean, batch["noise"], times)
        extra = None
        if self.inpainting:
            extra = torch.cat([clean * batch["keep"], batch["keep"]], 1)
        if self.inpainting == "unet" and extra is not None:
            noisy, extra = torch.cat([noisy, extra], 1), None
        record = None if self.heads is None else Recorder(self.heads.places)
        acting = self.grounding(tokens, extra=extra)
        watched = Watched(self.grounding, acting, batch["boxes"], batch["present"], clean.shape[2:])
        sites = watched.sites if record is None else watched.sites + record.sites
        output = self.unet(noisy, times, context, sites=sites).sample
        error = output.float() - self.objective.target(clean, batch["noise"], times)
        area = 1 + self.config.inside * batch["area"][:, None]
        squared = (error.square() * (area / area.mean((1, 2, 3), keepdim=True))).mean((1, 2, 3))
        denoising = (squared * self.objective.weights(times)).mean()
        asked = torch.stack(watched.losses).mean()
        told: Figures = {"denoising": denoising.detach(), "asked": asked.detach()}
        told["gate"] = self._gate()
        loss = denoising + self.config.attention * asked
        if record is None or self.heads is None:
            return loss, told
        truth, figures = self.heads(record.seen, batch["truth"])
        return loss + self.config.truth * truth, told | figures

    def _latents(self, batch: Batch) -> Tensor:
        if "clean" in batch:
            return batch["clean"]
        found = self.family["vae"].encode(signed(batch["pixels"])).latent_dist
        return (found.mean + found.std * batch["posterior"]).float() * self.scale

    def _picture_features(self, batch: Batch) -> dict[str, Tensor]:
        """Image features in their places, at length `image_norm`."""
        if not self.pictured:
            return {}
        present, pictures = batch["pictured"], batch["pictures"]
        width = self.grounding.config.phrase_width
        features = torch.zeros(*present.shape, width, device=present.device)
        if not at_hand(present):  # all, also those that are not there: nobody can tell
            if present.numel():
                seen = self._look(pictures.flatten(0, 1)).view(*present.shape, width)
                features = seen * present[..., None]
        elif (there := present > 0).any():
            features[there] = self._look(pictures[there])
        return {"images": features, "image_present": present}

    def _look(self, pictures: Tensor) -> Tensor:
        """Features of pictures `(n, 3, size, size)`, float32 `(n, width)`."""
        encoder, project = self.family["image_encoder"], self.family.get("image_project")
        embeds = encoder(normalise(pictures, encoder.config.image_size)).image_embeds
        embeds = embeds if project is None else project(embeds)
        return F.normalize(embeds.float(), dim=-1) * self.config.image_norm

    def _gate(self) -> Tensor:
        """How far the gates are open on average."""
        gates = [p for n, p in self.grounding.named_parameters() if "alpha_" in n]
        return torch.stack([p.detach().float().tanh().abs() for p in gates]).mean()

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        return {}


def new_part(
    unet: Any,
    kind: str = "text",
    *,
    inpainting: bool = False,
    gate: float = 1.0,
    seed: int | None = None,
    **fields: Any,
) -> Any:
    """A `Grounding` to be trained beside `unet`, in which it changes nothing yet.

    Its gates are open and the layers before them at zero instead, so that all layers learn from the
    first steps on; behind the closed gates of the original they would have to wait until those have
    opened. With `inpainting` it has a first convolution of its own, which begins as the UNet's and
    blind to the picture with holes.

    Args:
        kind: "text" or "text-image".
        gate: before the hyperbolic tangent; 0 begins as the original does.
        seed: of its weights, which are then always the same; None draws from PyTorch's own stream.
        fields: of `GroundingConfig`.
    """
    if inpainting:
        fields["extra_channels"] = INPAINTING_CHANNELS
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        part: Any = Grounding.for_unet(unet, kind, **fields)
    with torch.no_grad():
        for name, p in part.named_parameters():
            if name.endswith(("alpha_attn", "alpha_dense")):
                p.fill_(gate)
            elif gate and (".fuser.attn.to_out.0." in name or ".fuser.ff.net.2." in name):
                p.zero_()
    return part.to(unet.device)


def _grown(box: np.ndarray, share: float) -> np.ndarray:
    """The box, wider on each side by a share of its own sides."""
    more = np.tile(box[2:] - box[:2], 2) * share
    return box + more * np.array([-1, -1, 1, 1])


def _covered(boxes: np.ndarray, size: Sequence[int]) -> Tensor:
    """`(height, width)`: 1 in cells that a box touches."""
    height, width = (int(side) for side in size)
    made = torch.zeros(height, width)
    for x0, y0, x1, y1 in np.clip(boxes, 0, 1) * np.array([width, height] * 2):
        made[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = 1
    return made
