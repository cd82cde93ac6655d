"""Whether things stand where boxes asked for them. Pure functions of boxes and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from underdraw.errors import InputError
from underdraw.scenes import Mention, SceneObject, describe
from underdraw.scenes.captions import ATTRIBUTES

from .detector import Detection
from .images import as_boxes, same_length
from .rates import Rate, as_json, table
from .staging import as_caption


@dataclass(frozen=True)
class Wanted:
    """A box (x_min, y_min, x_max, y_max) in [0, 1] and what is to be in it (None: anything)."""

    box: tuple[float, float, float, float]
    mention: Mention | None = None

    def __post_init__(self) -> None:
        as_boxes([self.box], "Wanted.box")


def wanted_in(boxes: Any, things: Sequence[str | Mention | SceneObject]) -> tuple[Wanted, ...]:
    """One picture's boxes (n, 4) with their phrases ("a red cube"), mentions or objects."""
    array = as_boxes(boxes)
    if len(things) != len(array):
        raise InputError(f"things has {len(things)} entries for {len(array)} boxes")
    return tuple(
        Wanted((box[0], box[1], box[2], box[3]), _mention(thing))
        for box, thing in zip(array.tolist(), things, strict=True)
    )


def box_iou(first: Any, second: Any) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4); 0 where both are empty."""
    a, b = as_boxes(first, "first")[:, None], as_boxes(second, "second")[None]
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(overlap, 0, None).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def assign(
    detections: Sequence[Detection], wanted: Sequence[Wanted]
) -> list[tuple[int | None, float]]:
    """For each wanted box the number of its detection and their IoU, (None, 0.0) without one, so
    that the sum of the IoUs is the greatest; no detection serves two boxes."""
    found: list[tuple[int | None, float]] = [(None, 0.0)] * len(wanted)
    if not wanted or not detections:
        return found
    iou = box_iou([w.box for w in wanted], [d.box for d in detections])
    if len(wanted) > 6:  # too many ways to try: the best pair first
        return _greedy(iou)
    # Only a box's own best few can matter: as many as there are boxes.
    useful = [[int(k) for k in np.argsort(-row)[: len(wanted)] if row[k] > 0] for row in iou]
    best = -1.0
    for chosen in product(*([*places, None] for places in useful)):
        used = [k for k in chosen if k is not None]
        total = sum(iou[i, k] for i, k in enumerate(chosen) if k is not None)
        if len(set(used)) == len(used) and total > best:
            best = total
            found = [(k, 0.0 if k is None else float(iou[i, k])) for i, k in enumerate(chosen)]
    return found


def average_precision(
    detections: Sequence[Sequence[Detection]],
    wanted: Sequence[Sequence[Wanted]],
    threshold: float = 0.5,
    kinds: bool = False,
) -> float:
    """Area under the precision-recall curve over all pictures (Pascal VOC 2010, all points).

    A detection is right when the wanted box that it overlaps most, of those not yet taken by a
    surer one, has an IoU of at least `threshold`; with `kinds` its colour and shape must be those
    wanted, too. Raises InputError without any wanted box, or for lists of different length.
    """
    same_length(detections=detections, wanted=wanted)
    total = sum(len(boxes) for boxes in wanted)
    if not total:
        raise InputError("wanted holds no box; at least one is needed")
    marks: list[tuple[float, bool]] = []
    for seen, boxes in zip(detections, wanted, strict=True):
        iou = box_iou([d.box for d in seen], [w.box for w in boxes])
        taken: set[int] = set()
        for k in sorted(range(len(seen)), key=lambda k: -seen[k].score):
            free = [
                i
                for i, want in enumerate(boxes)
                if i not in taken and not (kinds and want.mention and not _is(seen[k], want))
            ]
            place = max(free, key=lambda i: iou[k, i], default=None)
            hit = place is not None and iou[k, place] >= threshold
            if hit and place is not None:
                taken.add(place)
            marks.append((seen[k].score, hit))
    marks.sort(key=lambda mark: -mark[0])
    hits = np.cumsum([hit for _, hit in marks])
    precision = hits / np.arange(1, len(marks) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.array([hit for _, hit in marks], bool)
    return float(best_from_here[gained].sum() / total)


@dataclass(frozen=True)
class BoxScores:
    """`ap50`: class-free box AP at IoU 0.5. `mean_iou`: of wanted boxes with their best detections,
    0 for a box without one. Of the boxes with something in them (IoU of at least 0.3): `colour`,
    `shape`, `material`, `size`, where told, and `attributes`, all that was told together; a box
    with nothing in it is wrong in `attributes`, which leaves the kind of a pattern out. `subject`:
    of boxes that want a patterned thing, those that hold one of its shape and both its colours;
    `pattern`: of the filled ones among them, those whose kind of pattern is right, too, which the
    shipped evaluator tells poorly: look at the upper bound."""

    ap50: float
    mean_iou: float
    attributes: Rate
    colour: Rate
    shape: Rate
    material: Rate
    size: Rate
    subject: Rate
    pattern: Rate


INSIDE = 0.3


def score_boxes(
    detections: Sequence[Sequence[Detection]], wanted: Sequence[Sequence[Wanted]]
) -> BoxScores:
    """Picture by picture what was seen and what was wanted; raises as `average_precision` does."""
    ap50 = average_precision(detections, wanted)
    overlaps: list[float] = []
    marks: dict[str, list[bool | None]] = {
        name: []
        for name in ("attributes", "colour", "shape", "material", "size", "subject", "pattern")
    }
    for seen, boxes in zip(detections, wanted, strict=True):
        for want, (place, iou) in zip(boxes, assign(seen, boxes), strict=True):
            overlaps.append(iou)
            if want.mention is None:
                continue
            thing = seen[place] if place is not None and iou >= INSIDE else None
            told = [
                name
                for name in ATTRIBUTES
                if name != "texture" and getattr(want.mention, name) is not None
            ]
            whole = thing is not None and all(thing.shows(want.mention, name) for name in told)
            marks["attributes"].append(whole if told else None)
            if want.mention.texture:
                marks["subject"].append(thing is not None and thing.is_kind(want.mention))
            if thing is not None:
                textured = want.mention.texture is not None
                marks["pattern"].append(thing.shows(want.mention, "texture") if textured else None)
                for name in ("colour", "shape", "material", "size"):
                    marks[name].append(thing.shows(want.mention, name) if name in told else None)
    rates = {name: Rate.count(cases) for name, cases in marks.items()}
    return BoxScores(ap50=ap50, mean_iou=float(np.mean(overlaps)), **rates)


@dataclass(frozen=True)
class BoxReport:
    """`scores` beside `upper_bound`, the same on real renders with the same boxes."""

    scores: BoxScores
    upper_bound: BoxScores

    def table(self) -> str:
        """For people; rows without cases are left out."""
        rows = []
        for name, words in _ROWS.items():
            score, bound = getattr(self.scores, name), getattr(self.upper_bound, name)
            if not isinstance(bound, Rate) or bound.of:
                rows.append((words, score, bound))
        return table(rows, ("", "pictures", "upper bound (real renders)"))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"scores": as_json(self.scores), "upper_bound": as_json(self.upper_bound)}


BOX_ROWS = {
    "ap50": "box AP50",
    "mean_iou": "mean IoU",
    "attributes": "all attributes told, in their boxes",
    "colour": "colour, in filled boxes",
    "shape": "shape, in filled boxes",
    "material": "material, in filled boxes",
    "size": "size, in filled boxes",
}
_ROWS = BOX_ROWS | {
    "subject": "subject match: shape, two colours",
    "pattern": "kind of pattern",
}


def _is(thing: Detection, want: Wanted) -> bool:
    return want.mention is None or thing.is_kind(want.mention)


def _mention(thing: str | Mention | SceneObject) -> Mention:
    if isinstance(thing, SceneObject):
        return describe(thing)
    if isinstance(thing, Mention):
        return thing
    mentions = as_caption(thing).mentions
    if len(mentions) != 1:
        raise InputError(f"phrase={thing!r} names {len(mentions)} things; one is needed")
    return mentions[0]


def _greedy(iou: np.ndarray) -> list[tuple[int | None, float]]:
    found: list[tuple[int | None, float]] = [(None, 0.0)] * len(iou)
    left = iou.copy()
    while left.max() > 0:
        i, k = np.unravel_index(int(left.argmax()), left.shape)
        found[int(i)] = (int(k), float(iou[i, k]))
        left[i], left[:, k] = 0, 0
    return found
