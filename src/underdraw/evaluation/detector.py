"""What the evaluator sees in a picture.

`load_evaluator()` gives a small network (see `network.py`) trained on renders of its own seeds; it
shares no code and no data with the trainings whose pictures it judges.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from underdraw.errors import InputError
from underdraw.scenes import Mention
from underdraw.scenes.vocabulary import RELATIONS, check_choice

from .images import as_images
from .network import ATTRIBUTES, UNIT, Network, cell_centres, split
from .weights import FOLDER, read_network

if TYPE_CHECKING:
    from .network import Network

WEIGHTS = FOLDER / "evaluator.safetensors"
SIDE = 128  # the network sees every picture with a shorter side of this many pixels
THRESHOLD = 0.45
_MOST = 12
_SAME = 0.7  # of two boxes that overlap more than this, the weaker is the same thing seen twice


@dataclass(frozen=True)
class Detection:
    """One thing in a picture.

    `score` in [0, 1]; `box` (x_min, y_min, x_max, y_max) of what is seen of it, `foot` (x, y) of
    the point where its middle stands on the table, all in [0, 1] of width and height. `texture` is
    "plain" or one of TEXTURES; `second_colour` is None for plain things, and with a texture the two
    colours come in no order.
    """

    score: float
    box: tuple[float, float, float, float]
    foot: tuple[float, float]
    shape: str
    colour: str
    material: str
    size: str
    texture: str = "plain"
    second_colour: str | None = None

    def shows(self, mention: Mention, name: str) -> bool:
        """Whether what `mention` says of attribute `name` (a field of Mention) is seen here; true
        where it says nothing."""
        told = getattr(mention, name)
        if told is None:
            return True
        if name in ("colour", "second_colour"):
            return told in (self.colour, self.second_colour)
        return told == getattr(self, name)

    def is_kind(self, mention: Mention) -> bool:
        """Whether colours and shape are as `mention` says: it is the thing meant.

        A mention with a pattern needs a pattern, of whatever kind: the shipped evaluator tells that
        there is one and in which colours, but not well whether it is striped or dotted.
        """
        if mention.texture and self.texture == "plain":
            return False
        return all(self.shows(mention, name) for name in ("shape", "colour", "second_colour"))

    def stands(self, kind: str, other: Detection, margin: float = 0.0) -> bool:
        """Whether this is `kind` (one of RELATIONS) `other` by more than `margin`, as
        `scenes.relations.box_relation` has it, but by feet, which hidden parts do not move."""
        check_choice("kind", kind, RELATIONS)
        across, down = (self.foot[i] - other.foot[i] for i in (0, 1))
        amount = {"left of": -across, "right of": across, "in front of": down, "behind": -down}
        return amount[kind] > margin

    def phrase(self) -> str:
        """In words, such as "a large red metal sphere"."""
        texture = None if self.texture == "plain" else self.texture
        second = self.second_colour
        return Mention(
            None, self.size, self.colour, second, texture, self.material, self.shape
        ).phrase()


class Evaluator:
    """Finds the things in pictures. Deterministic; a picture does not depend on its batch."""

    def __init__(self, network: Network, threshold: float = THRESHOLD) -> None:
        if not 0 < threshold < 1:
            raise InputError(f"threshold={threshold!r} is not in (0, 1)")
        self.network = network.eval()
        self.threshold = threshold

    def detect(self, images: Any, batch: int = 32) -> list[tuple[Detection, ...]]:
        """For each picture the things in it, the surest first.

        `images`: (n, height, width, 3) in [0, 1] or pictures, see `as_images`; any size of at
        least 32: scaled so that the shorter side is 128.
        """
        import torch

        pictures = as_images(images)
        found: list[tuple[Detection, ...]] = []
        with torch.inference_mode():
            for start in range(0, len(pictures), batch):
                chunk = torch.from_numpy(pictures[start : start + batch]).permute(0, 3, 1, 2)
                found += self._detect(chunk.contiguous())
        return found

    def _detect(self, images: Any) -> list[tuple[Detection, ...]]:
        import torch
        from torch.nn import functional as F

        height, width = images.shape[2:]
        scale = SIDE / min(height, width)
        seen = (round(height * scale), round(width * scale))
        if seen != (height, width):
            images = F.interpolate(images, seen, mode="bilinear", antialias=True)
        down, across = (-side % 16 for side in seen)
        output = self.network(F.pad(images, (0, across, 0, down), mode="replicate"))
        told = split(output)
        heat = told["heat"].sigmoid()
        rows, columns = heat.shape[2:]
        peak = heat == F.max_pool2d(heat, 3, 1, 1)
        scores = (heat * peak)[:, 0].flatten(1)
        size = torch.tensor([seen[1], seen[0]])
        places = cell_centres(rows, columns).flatten(1).T
        choices = {name: told[name].softmax(1).flatten(2) for name in ATTRIBUTES}
        edges, feet = told["box"].flatten(2) * UNIT, told["foot"].flatten(2) * UNIT
        found = []
        for n in range(len(scores)):
            best = scores[n].topk(min(_MOST, scores.shape[1]))
            kept: list[Detection] = []
            for score, cell in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                place = places[cell]
                if score < self.threshold or not (place < size).all():
                    continue
                low, high = place - edges[n, :2, cell], place + edges[n, 2:, cell]
                box = torch.cat([low / size, torch.maximum(low, high) / size]).clamp(0, 1)
                if any(_iou(box.tolist(), other.box) > _SAME for other in kept):
                    continue
                foot = ((place + feet[n, :, cell]) / size).tolist()
                told_here = {name: choices[name][n, :, cell] for name in ATTRIBUTES}
                kept.append(_detection(score, box.tolist(), foot, told_here))
            found.append(tuple(kept))
        return found


def _detection(score: float, box: list[float], foot: list[float], told: dict) -> Detection:
    said = {name: ATTRIBUTES[name][int(told[name].argmax())] for name in ATTRIBUTES}
    second = None
    if said["texture"] != "plain":
        # Both at once: by argmax and the second of topk, a tie could give one colour twice.
        pair = told["colour"].topk(2).indices.tolist()
        said["colour"], second = (ATTRIBUTES["colour"][k] for k in pair)
    return Detection(
        score=score,
        box=(box[0], box[1], box[2], box[3]),
        foot=(foot[0], foot[1]),
        second_colour=second,
        **said,
    )


def _iou(a: Any, b: Any) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    shared = wide * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / max(areas - shared, 1e-12)


def load_evaluator(path: str | os.PathLike | None = None) -> Evaluator:
    """The evaluator that ships with the package, or the one that `train_evaluator` wrote to `path`.

    Raises NotFoundError without that file, WeightError when it holds something else.
    """
    return _load(str(WEIGHTS if path is None else path))


@lru_cache(maxsize=4)
def _load(path: str) -> Evaluator:
    return Evaluator(read_network(Path(path), Network, "evaluator"))
