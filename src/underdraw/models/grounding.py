"""`Grounding`: GLIGEN's trained part as an object of its own, for any UNet of the same widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.errors import InputError
from underdraw.formats.stored import stored
from underdraw.models.base import Model
from underdraw.networks.config import UNetConfig
from underdraw.networks.gligen import grounding, maps as grounding_maps, sites as grounding_sites
from underdraw.networks.gligen.config import BOXES, KEYPOINTS, MAPS, GroundingConfig
from underdraw.networks.gligen.grounding import Constants, Strength, Tokens
from underdraw.networks.program import Ask, directly
from underdraw.networks.sites import Sites

Self = TypeVar("Self", bound="Grounding")


class Grounding(Model):
    """Position network and fusers (GLIGEN, Li et al. 2023). Config: `GroundingConfig`.

    The UNet stays as it is; this part acts inside a call through `Sites`:

        part = Grounding.for_unet(unet, "text")          # new: gates closed, changes nothing yet
        part = unet.grounding                            # of a UNet from a gated folder
        tokens = part.boxes(boxes, present, phrases)     # before the loop
        ready = part.constants(tokens)                   # before the loop
        unet(x, t, context, sites=part.sites(ready, strength=0.5))

    Parameters carry the published names (`position_net.linears.0.weight`,
    `down_blocks.0.attentions.0.transformer_blocks.0.fuser.alpha_attn`, ...). Training: freeze the
    UNet, optimise `part.parameters()`, and call the three methods at each step.
    """

    config_class = GroundingConfig
    network = "grounding"

    @classmethod
    def layout(cls, config: GroundingConfig) -> Layout:
        return grounding_sites.layout(config)

    @classmethod
    def for_unet(
        cls: type[Self],
        unet: Any,
        kind: str | None = None,
        *,
        backend: str | None = None,
        **fields: Any,
    ) -> Self:
        """A new grounding part for a UNet (or its config): gates 0, so that it changes nothing yet.

        Args:
            kind: "text", "text-image", "keypoints", "hed", "canny", "depth", "normal" or
                "semantic"; None takes what `attention_type` of the UNet says.
            backend: None is that of the UNet.
            fields: others of `GroundingConfig`, such as `limit`.

        Raises:
            InputError: the kind is not known, or the UNet has no grounding layers to name it.
        """
        config = GroundingConfig.for_unet(_config_of(unet), kind, **fields)
        model = isinstance(unet, Model)
        part = cls(config, backend=backend or (unet.nn.name if model else "torch"))
        return part._begun_from(unet) if config.extra_channels and model else part

    def _begun_from(self: Self, unet: Any) -> Self:
        """This part with a first convolution that does as the UNet's: extra channels count 0."""
        c, framework = self.config, unet._framework
        given = framework.to_numpy(unet.conv_in.weight)
        weight = np.zeros((c.first_width, c.in_channels + c.extra_channels, *given.shape[2:]), "f4")
        weight[:, : c.in_channels] = given
        tensors = self.stored_tensors()
        tensors["conv_in.weight"] = stored(weight)
        tensors["conv_in.bias"] = stored(framework.to_numpy(unet.conv_in.bias).copy())
        return type(self).from_tensors(c.to_dict(), tensors, backend=self.nn.name)

    def require_fit(self, unet: Any) -> None:
        """Raise an `InputError` unless this part was made for such UNets (or configs)."""
        self.config.require_fit(_config_of(unet))

    # -- before the loop --------------------------------------------------------------------------
    def boxes(
        self,
        boxes: Any,
        present: Any,
        phrases: Any = None,
        phrase_present: Any = None,
        images: Any = None,
        image_present: Any = None,
        ask: Ask = directly,
    ) -> Tokens:
        """Tokens of boxes; arrays of this backend, numpy or nested lists.

        Rows are those of the UNet call: under guidance twice the images, unconditional first, and
        `present` 0 throughout where a row is unconditional (GLIGEN drops boxes together with the
        text). `n` is the most boxes any row has, 0 included; nothing has to be padded to 30, and
        the numbers are those of padding to 30.

        Args:
            boxes: `(rows, n, 4)`: x_min, y_min, x_max, y_max in [0, 1] of width and height.
            present: `(rows, n)`: 1 where there is a box, 0 elsewhere.
            phrases: `(rows, n, phrase_width)`: `pooler_output` of the text encoder for the phrase;
                None where no box has one (kind "text-image").
            phrase_present: `(rows, n)`: 0 for a box without phrase; None: as `present`.
            images: `(rows, n, phrase_width)`: CLIP image features through the projection matrix;
                kind "text-image" only.
            image_present: `(rows, n)`: 0 for a box without picture; None: as `present`.
            ask: runs the program, here and in the other methods.

        Raises:
            InputError: more than `config.limit` boxes, or this part is not for boxes, or not for
                pictures.
        """
        self._require_kind("boxes", *BOXES)
        if images is not None and self.config.kind == "text":
            raise InputError(
                "images are given; these grounding weights are for phrases only "
                "(kind 'text'); weights of kind 'text-image' take both"
            )
        boxes, present = self._array(boxes, "float32"), self._array(present)
        if (n := boxes.shape[1]) > self.config.limit:
            raise InputError(
                f"{n} boxes; these grounding weights take at most {self.config.limit} per image"
            )
        given = [
            None if x is None else self._array(x)
            for x in (phrases, phrase_present, images, image_present)
        ]
        return ask(grounding.BOX_TOKENS, self, boxes, present, *given)

    def keypoints(
        self, people: Sequence[Sequence[Sequence[tuple[float, float]]]], ask: Ask = directly
    ) -> Tokens:
        """Tokens of people: for each row its people, for each of them 17 points.

        Args:
            people: x and y of a point in [0, 1], in COCO's order (nose, eyes, ears, shoulders,
                elbows, wrists, hips, knees, ankles; left before right). (0, 0) is not seen, as in
                COCO. A row without people is unconditional.

        Raises:
            InputError: more people than the weights know (8), a person without 17 points, or this
                part is not for keypoints.
        """
        self._require_kind("keypoints", "keypoints")
        c = self.config
        rows = []
        for row in people:
            if len(row) > c.people:
                raise InputError(f"{len(row)} people; these weights take at most {c.people}")
            if any(len(person) != KEYPOINTS for person in row):
                raise InputError(f"a person has {KEYPOINTS} points, (0, 0) where one is not seen")
            seen = [(i, j, xy) for i, one in enumerate(row) for j, xy in enumerate(one) if any(xy)]
            rows.append(seen)
        n = max(map(len, rows), default=0)
        points, present = np.zeros((len(rows), n, 2)), np.zeros((len(rows), n))
        person, joint = np.zeros((len(rows), n, c.people)), np.zeros((len(rows), n, KEYPOINTS))
        for r, seen in enumerate(rows):
            for k, (i, j, xy) in enumerate(seen):
                points[r, k], present[r, k], person[r, k, i], joint[r, k, j] = xy, 1, 1, 1
        given = self._array(points, "float32"), *map(self._array, (present, person, joint))
        return ask(grounding_maps.KEYPOINT_TOKENS, self, *given)

    def maps(self, maps: Any, present: Any, ask: Ask = directly) -> Tokens:
        """Tokens of maps, one row per row of the UNet call.

        Args:
            maps: `(rows, 3, height, width)` in [-1, 1] (of grey maps three equal channels), of
                kind "semantic" `(rows, classes, height, width)` with 1 at the class of a pixel.
            present: `(rows,)`: 0 makes a row unconditional.

        Raises:
            InputError: other channels, or this part is not for maps.
        """
        self._require_kind("maps", *MAPS)
        maps = self._maps(maps)
        return ask(grounding_maps.MAP_TOKENS, self, maps, self._array(present))

    def map_channels(self, maps: Any, height: int, width: int, ask: Ask = directly) -> Array:
        """What maps add to latents `(rows, 4, height, width)`: `extra` for `sites`.

        Maps as for `maps`. All rows get theirs, unconditional ones too.
        """
        self._require_kind("maps", *MAPS)
        nn, c = self.nn, self.config
        maps = self._maps(maps)
        tall, wide = grounding_maps.channel_size(c, height, width)
        if c.kind == "semantic":
            x = nn.upsample(maps, tall, wide)
        else:
            down = self._array(grounding_maps.bicubic(maps.shape[2], tall), "float32")
            across = self._array(grounding_maps.bicubic(maps.shape[3], wide), "float32")
            x = nn.matmul(nn.matmul(down, nn.float32(maps)), nn.permute(across, (1, 0)))
            x = nn.cast(x, maps)
        return ask(grounding_maps.MAP_CHANNELS, self, x)

    def _maps(self, maps: Any) -> Array:
        maps, wanted = self._array(maps), self.config.map_channels
        if len(maps.shape) != 4 or maps.shape[1] != wanted:
            raise InputError(
                f"maps are {tuple(maps.shape)}; needed are (rows, {wanted}, height, width)"
            )
        return maps

    def constants(self, tokens: Tokens, ask: Ask = directly) -> Constants:
        """Keys and values of the tokens in every fuser: the same at every step of a run.

        Under guidance that ends early, `constants.rows(images, 2 * images)` keeps one half.
        """
        return ask(grounding.CONSTANTS, self, tokens)

    # -- at each call
    def sites(
        self, constants: Constants, strength: Strength = 1.0, extra: Array | None = None
    ) -> Sites:
        """What acts inside one UNet call.

        Args:
            strength: factor on the gates, from the schedule: 1 is on, 0 off, and then the call is a
                plain one; or one factor per row `(rows, 1, 1)`.
            extra: `(rows | 1, extra_channels, height, width)` beside the latents, for this part's
                own first convolution: `map_channels`, or of a part lifted off an inpainting UNet
                the masked picture's latents and the mask. None leaves the UNet's own convolution.
                At strength 0 a map's goes, an inpainting part's stays.
        """
        if extra is not None and not self.config.extra_channels:
            raise InputError(
                "extra is given; these grounding weights have no first convolution for it"
            )
        return grounding_sites.sites(self, self.config, constants, strength, extra)

    def forward(
        self, tokens: Tokens, strength: Strength = 1.0, extra: Array | None = None
    ) -> Sites:
        """`constants` and `sites` at once, for training."""
        return self.sites(self.constants(tokens), strength, extra)

    def _require_kind(self, what: str, *kinds: str) -> None:
        if self.config.kind not in kinds:
            raise InputError(
                f"these grounding weights are for {self.config.kind!r}, not for {what} "
                f"({', '.join(map(repr, kinds))})"
            )

    def _array(self, values: Any, dtype: Any = None) -> Array:
        framework = self._framework
        kept = framework.resolve_dtype(dtype) or self.dtype
        return framework.array(values, kept, self.device)


def _config_of(unet: Any) -> UNetConfig:
    return unet if isinstance(unet, UNetConfig) else unet.config
