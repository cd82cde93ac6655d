"""An image prompt in a run: what is computed before it, and what acts in each call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from underdraw.backends.contract import Array
from underdraw.backends.deltas import Deltas
from underdraw.controls.control import Call, Run
from underdraw.controls.seeing import blank, check_tower, pixels_of, seen
from underdraw.controls.strength import Strength
from underdraw.models.ip_adapter import IPAdapter
from underdraw.networks.gligen.maps import bicubic
from underdraw.networks.ip_adapter.config import IPAdapterConfig
from underdraw.networks.ip_adapter.program import CONSTANTS
from underdraw.networks.ip_adapter.sites import ImageAttention
from underdraw.networks.layers import KeysValues
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.networks.unet import sizes
from underdraw.weights.lora.scales import Scales, weighed

Given = Mapping[str, np.ndarray]
"""Features by name ("embedding", "negative", "face"): `(1 or images, pictures, ..., width)`."""
WHAT = "ImagePrompt"


class Ready(NamedTuple):
    """What a run carries: nothing in it changes between calls but what was found before."""

    over: tuple[tuple[Scales, float, float, Strength], ...]
    """For all images or for each: how much it acts, from when, until when, and over the run."""
    framework: Any
    device: Any
    images: int
    keys: Mapping[str, KeysValues]
    """By place, of all rows of a guided call, or of a run that is never guided."""
    masks: Mapping[str, Array]
    """By place, `(1 or images, 1, positions, 1)`."""
    lora: Deltas
    known: dict[Any, Sites]
    """What acted last, by how much it does in each image: calls alike have the same arrays, so that
    keys and values of the text, which a LoRA changes, are kept."""

    def sites(self, call: Call) -> Sites:
        """What acts in a call."""
        each = tuple(
            strength.at(call) * (start <= call.progress and call.over <= end)
            for _, start, end, strength in self.over
        )
        key = (call.guided, each)
        if key not in self.known:
            self.known.clear()
            self.known[key] = self._made(each, call.guided)
        return self.known[key]

    def _made(self, each: Sequence[float], guided: bool) -> Sites:
        scales = [scales for scales, *_ in self.over]
        factors = {
            place: [
                one.of("unet", place, 0.0) * weight
                for one, weight in zip(scales, each, strict=True)
            ]
            for place in self.keys
        }
        acting = {place: one for place, one in factors.items() if any(one)}
        if not acting:
            return NO_SITES
        rows = self.images * (2 if guided else 1)

        def kept(x: Array) -> Array:
            """Without guidance the conditional half."""
            return x[x.shape[0] - rows :]

        def doubled(x: Array) -> Array:
            alike = x.shape[0] == 1 or not guided
            return x if alike else self.framework.operations.concat((x, x), 0)

        hook = ImageAttention(
            {place: (kept(k), kept(v)) for place, (k, v) in self.keys.items() if place in acting},
            {place: self._scale(one, guided) for place, one in acting.items()},
            {place: doubled(mask) for place, mask in self.masks.items() if place in acting},
        )
        leaves: Deltas = {}
        if self.lora:
            on = [weight * any(one[i] for one in acting.values()) for i, weight in enumerate(each)]
            factor: Any = float(on[0])
            if len(set(on)) > 1:
                factor = self._scale(on, guided).reshape(-1)
            leaves = weighed(self.lora, "unet", Scales(), factor)
        return Sites(beside_cross_attention=(hook,), leaves=leaves)

    def _scale(self, each: Sequence[float], guided: bool) -> Array:
        """One for all rows where all images have the same, `(1 or rows, 1, 1, 1)`."""
        told = each[:1] if len(set(each)) == 1 else [*each] * (2 if guided else 1)
        rows = np.array(told, np.float32)[:, None, None, None]
        return self.framework.array(rows, device=self.device)


def keys_of(
    run: Run,
    adapter: IPAdapter,
    pictures: Sequence[Sequence[Any]],
    given: Given,
    shortcut_scale: float,
) -> dict[str, KeysValues]:
    """Keys and values by place for the rows of a guided call, the unconditional ones first, or for
    those of a run that is never guided."""
    nn, c = run.nn, adapter.config
    known = {name: _array(run, adapter, x) for name, x in given.items()}
    faces = known.get("face")
    features = None
    if c.sees:
        features = _seen(run, adapter, pictures) if pictures else known["embedding"]
    rows = max(x.shape[0] for x in (features, faces) if x is not None)
    count = next(x.shape[1] for x in (features, faces) if x is not None)
    shown = [_expanded(run, x, rows) for x in (features, faces)]
    nulls = 0
    if run.planned.guided:
        null = _null(run, adapter, features, faces, known.get("negative"))
        nulls = max(x.shape[0] for x in null if x is not None)
        pairs = zip((_expanded(run, x, nulls) for x in null), shown, strict=True)
        shown = [None if x is None else nn.concat((n, x), 0) for n, x in pairs]
    flat = (None if x is None else x.reshape(-1, *x.shape[2:]) for x in shown)
    told = run.ask(CONSTANTS, adapter, *flat, float(shortcut_scale), count)

    def each(x: Array) -> Array:
        return nn.expand(x, (run.batch, *x.shape[1:]))

    def ready(x: Array) -> Array:
        return nn.concat((each(x[:nulls]), each(x[nulls:])), 0) if nulls else each(x)

    return {place: (ready(k), ready(v)) for place, (k, v) in told.items()}


def _expanded(run: Run, x: Array | None, rows: int) -> Array | None:
    return None if x is None else run.nn.expand(x, (rows, *x.shape[1:]))


def _array(run: Run, adapter: IPAdapter, x: Any) -> Array:
    return run.framework.array(x, adapter.dtype, getattr(run.latents, "device", None))


def _seen(run: Run, adapter: IPAdapter, pictures: Sequence[Sequence[Any]]) -> Array:
    """Features of pictures `(1 or images, pictures, ..., width)`."""
    c, parts = adapter.config, run.components
    tower = check_tower(parts, c.pooled, c.feature_width, WHAT)
    every = [one for row in pictures for one in row]
    x = seen(parts, tower, pixels_of(parts, tower, every), c.pooled)
    return _array(run, adapter, x).reshape(len(pictures), len(pictures[0]), *x.shape[1:])


def _null(
    run: Run, adapter: IPAdapter, features: Array | None, faces: Array | None, negative: Any
) -> tuple[Array | None, Array | None]:
    """Features and faces of the unconditional half, `(1 or images, pictures, ..., width)`."""
    c, parts = adapter.config, run.components
    nobody = None if faces is None else faces[:1] * 0
    if features is None:
        return None, nobody if negative is None else negative
    if negative is not None:
        return negative, nobody
    if c.pooled:
        return features[:1] * 0, nobody
    tower = check_tower(parts, c.pooled, c.feature_width, WHAT)
    nothing = _array(run, adapter, seen(parts, tower, blank(parts, tower), False))
    return run.nn.expand(nothing[None], (1, *features.shape[1:])), nobody


def masks_of(run: Run, config: IPAdapterConfig, masks: Array) -> dict[str, Array]:
    """Masks `(1 or images, 1, height, width)` at the size of each cross-attention, by place,
    `(1 or images, 1, positions, 1)`."""
    nn, array = run.nn, run.framework.array
    device = getattr(run.latents, "device", None)
    masks = nn.float32(array(masks, device=device))
    size_of = sizes(run.model.config, *run.latents.shape[2:])
    made: dict[tuple[int, int], Array] = {}
    found = {}
    for place, _, _ in config.layers:
        size = size_of(place)
        if size not in made:
            down, across = (
                array(np.array(bicubic(a, b), np.float32), device=device)
                for a, b in zip(masks.shape[2:], size, strict=True)
            )
            small = nn.matmul(nn.matmul(down, masks), nn.permute(across, (1, 0)))
            made[size] = small.reshape(masks.shape[0], 1, size[0] * size[1], 1)
        found[f"{place}.attn2"] = made[size]
    return found
