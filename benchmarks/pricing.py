"""What computing less costs: pictures of the scenes family under each control, judged one by one.

Pictures of all ways begin with the same noise, so two ways are compared picture by picture: how
many things came out right in one and not in the other says more than two shares do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from underdraw import StableDiffusionDiffEditPipeline
from underdraw.evaluation import (
    Evaluator,
    Rate,
    edits,
    grounding,
    held_out_captions,
    score_boxes,
    structure,
    subjects,
)
from underdraw.evaluation.depth import load_depth_estimator
from underdraw.evaluation.editing import unchanged_objects
from underdraw.evaluation.following import score_depth, score_edges
from underdraw.evaluation.judging import judge
from underdraw.pictures.writing import to_bytes
from underdraw.pipelines.diffedit.edit import EditSettings, reversible
from underdraw.preprocessors.canny import lines

ON = (1.0, 0.0, 0.0)
"""Boxes act in the whole run, as where the family was judged."""


@dataclass(frozen=True)
class Marks:
    """How much is right of how much in each picture, `(pictures,)` both; `whole` is the score over
    all of them where that is not a mean, such as the precision of boxes, else None."""

    right: np.ndarray
    of: np.ndarray
    whole: float | None = None

    @classmethod
    def count(cls, rates: Sequence[Rate], whole: float | None = None) -> Marks:
        """Of counts for each picture."""
        right, of = ([getattr(rate, name) for rate in rates] for name in ("right", "of"))
        return cls(np.array(right, float), np.array(of, float), whole)

    @classmethod
    def mean(cls, values: Sequence[float]) -> Marks:
        """Of one value in [0, 1] for each picture."""
        return cls(np.array(values, float), np.ones(len(values)))

    @property
    def score(self) -> float:
        """In percent."""
        return 100 * (self.right.sum() / self.of.sum() if self.whole is None else self.whole)

    def beside(self, exact: Marks) -> dict[str, float]:
        """The score; the difference from that of the exact pictures, in points; how much was right
        there alone (`lost`) and here alone (`won`); and the standard error of the difference of the
        means, over pictures (of `whole` there is none)."""
        change = self.right - exact.right
        error = 100 * np.sqrt(len(change)) * change.std() / self.of.sum()
        told = {
            "score": self.score,
            "points": self.score - exact.score,
            "lost": float(abs(change[change < 0].sum())),
            "won": float(change[change > 0].sum()),
            "error": float(error),
        }
        return {name: round(value, 2) for name, value in told.items()}


Judged = Mapping[str, Marks]


class Task:
    """Something to draw, and what is right in it."""

    def __init__(self, pipe: Any, count: int, steps: int) -> None:
        self.pipe, self.count, self.steps = pipe, count, steps
        self.guided = {"guidance_scale": pipe.advice.guidance_scale}

    def prepare(self, items: Sequence[Any], seeds: list[int]) -> None:
        """Make what is exact in all ways, and belongs to none."""

    def draw(self, items: Sequence[Any], seeds: list[int]) -> Any:
        """Pictures of some of `items`, float32 `(n, height, width, 3)` in [0, 1]."""
        raise NotImplementedError

    def marks(self, pictures: np.ndarray, evaluator: Evaluator) -> Judged:
        """Of pictures of all items, by what is measured."""
        raise NotImplementedError

    @cached_property
    def items(self) -> Sequence[Any]:
        """What is to be drawn."""
        raise NotImplementedError


class Captions(Task):
    """Prompts alone."""

    @cached_property
    def items(self) -> Sequence[Any]:
        return held_out_captions(self.count)

    def draw(self, items: Sequence[Any], seeds: list[int]) -> Any:
        how: dict[str, Any] = {"output_type": "np", **self.guided}
        prompts = [one.text for one in items]
        return self.pipe(prompts, num_inference_steps=self.steps, seed=seeds, **how).images

    def marks(self, pictures: np.ndarray, evaluator: Evaluator) -> Judged:
        seen = evaluator.detect(pictures)
        told = [judge(caption, found) for caption, found in zip(self.items, seen, strict=True)]
        whole = [j.right and all(j.told("material")) and all(j.told("size")) for j in told]
        return {
            "things": Marks.count([Rate.count(at is not None for at in j.found) for j in told]),
            "captions": Marks.mean([float(right) for right in whole]),
        }


class Boxes(Task):
    """Layouts of phrases in boxes."""

    @cached_property
    def items(self) -> Sequence[Any]:
        return grounding.held_out_layouts(self.count)

    def draw(self, items: Sequence[Any], seeds: list[int]) -> Any:
        how = {"steps": self.steps, "strength": ON, **self.guided}
        return grounding.pipeline_generator(self.pipe, **how)(items, seeds)

    def marks(self, pictures: np.ndarray, evaluator: Evaluator) -> Judged:
        seen, wanted = evaluator.detect(pictures), [layout.wanted for layout in self.items]
        pairs = zip(seen, wanted, strict=True)
        each = [score_boxes([found], [boxes]).attributes for found, boxes in pairs]
        whole = score_boxes(seen, wanted)
        alone = [score_boxes([a], [b]).ap50 for a, b in zip(seen, wanted, strict=True)]
        ap50 = Marks.mean(alone)
        return {
            "box AP50": Marks(ap50.right, ap50.of, whole.ap50),
            "right in boxes": Marks.count(each),
        }


class Maps(Task):
    """Captions along maps of edges or of depth, by the family's ControlNets."""

    kind = "edges"

    @cached_property
    def items(self) -> Sequence[Any]:
        return [one.along(self.kind) for one in structure.held_out_maps(self.count)]

    def draw(self, items: Sequence[Any], seeds: list[int]) -> Any:
        nets = {self.kind: self.pipe.adapters["structure"][self.kind]}
        how = {"steps": self.steps, **self.guided}
        return structure.pipeline_generator(self.pipe, nets, **how)(items, seeds)

    def marks(self, pictures: np.ndarray, evaluator: Evaluator) -> Judged:
        triples = zip(self.items, pictures, evaluator.detect(pictures), strict=True)
        f1, things = [], []
        for one, picture, found in triples:
            f1.append(score_edges([lines(picture)], [one.edges > 0.5]).f1)
            things.append(Rate.count(at is not None for at in judge(one.caption, found).found))
        return {"edge F1": Marks.mean(f1), "things": Marks.count(things)}


class DepthMaps(Maps):
    """Along depth: the correlation with what an estimator tells of things on the table."""

    kind = "depth"

    def marks(self, pictures: np.ndarray, evaluator: Evaluator) -> Judged:
        found = load_depth_estimator().estimate(pictures)
        each = [
            score_depth([near], [one.depth], [one.empty]).things
            for near, one in zip(found, self.items, strict=True)
        ]
        return {
            "depth correlation": Marks.mean(each),
            "things": super().marks(pictures, evaluator)["things"],
        }


class Subjects(Task):
    """Subjects by a picture of each."""

    @cached_property
    def items(self) -> Sequence[Any]:
        return subjects.held_out_subjects(self.count)

    def draw(self, items: Sequence[Any], seeds: list[int]) -> Any:
        how = {"steps": self.steps, **self.guided}
        return subjects.pipeline_generators(self.pipe, **how)[0](items, seeds)

    def marks(self, pictures: np.ndarray, evaluator: Evaluator) -> Judged:
        pairs = zip(evaluator.detect(pictures), self.items, strict=True)
        each = [subjects.SubjectScores.of([found], [one]) for found, one in pairs]
        names = {"subject match": "match", "shape and a colour": "kind"}
        return {
            words: Marks.count([getattr(one, name) for one in each])
            for words, name in names.items()
        }


class Edits(Task):
    """One attribute of one thing changed by DiffEdit, as `underdraw evaluate --task editing` does.
    Masks and inversions are exact, whatever is left out of decoding, so they are made once."""

    def __init__(self, pipe: Any, count: int, steps: int) -> None:
        editor = reversible(StableDiffusionDiffEditPipeline.from_pipe(pipe))
        super().__init__(editor, count, EditSettings().steps)
        self.inverted: dict[int, tuple[Any, Any]] = {}

    @cached_property
    def items(self) -> Sequence[Any]:
        return edits.held_out_pairs(self.count)

    def prepare(self, items: Sequence[Any], seeds: list[int]) -> None:
        if seeds[0] in self.inverted:
            return
        before = np.stack([pair.before.rendering.image for pair in items])
        source = [pair.before.caption.text for pair in items]
        how = EditSettings()
        mask = self.pipe.generate_mask(
            before,
            [pair.after.caption.text for pair in items],
            source_prompt=source,
            num_maps_per_mask=how.maps,
            mask_encode_strength=how.mask_strength,
            mask_thresholding_ratio=how.threshold,
            num_inference_steps=how.steps,
            guidance_scale=1.0,
            seed=seeds[0],
        )
        self.inverted[seeds[0]] = mask, self.pipe.invert(source, before, **self.way())

    def way(self) -> dict[str, Any]:
        """Of inversion and decoding."""
        how = EditSettings()
        return {"num_inference_steps": how.steps, "inpaint_strength": how.strength}

    def draw(self, items: Sequence[Any], seeds: list[int]) -> Any:
        mask, levels = self.inverted[seeds[0]]
        how = {**self.way(), **self.guided, "output_type": "np", "seed": seeds[0]}
        return self.pipe([p.after.caption.text for p in items], mask, levels, **how).images

    def marks(self, pictures: np.ndarray, evaluator: Evaluator) -> Judged:
        seen = evaluator.detect(pictures)
        before = evaluator.detect(np.stack([p.before.rendering.image for p in self.items]))
        told, others = [], []
        for pair, was, found in zip(self.items, before, seen, strict=True):
            thing = pair.before.rendering.boxes
            changed = () if pair.kind == "addition" else thing[pair.index][None]
            told.append(float(edits.edited_as_told(pair, found)))
            others.append(unchanged_objects(was, found, changed))
        return {"edited as told": Marks.mean(told), "others unchanged": Marks.count(others)}


TASKS: dict[str, Callable[[Any, int, int], Task]] = {
    "captions": Captions,
    "boxes": Boxes,
    "edges": Maps,
    "depth": DepthMaps,
    "edits": Edits,
    "subjects": Subjects,
}


@dataclass(frozen=True)
class Drawn:
    """`pictures` uint8; multiplications of networks that they took, and processor seconds for one:
    the median of batches, so that the first one, in which engines compile, does not count."""

    pictures: np.ndarray
    products: int
    seconds: float


def drawn(task: Task, ways: tuple[Any, ...], engine: Any, batch: int, kept: Path) -> Drawn:
    """What a file holds, or else is drawn, and written to it. The engine counts `products`."""
    if kept.exists():
        with np.load(kept) as found:
            return Drawn(found["pictures"], int(found["products"]), float(found["seconds"]))
    made, products, seconds = [], 0, []
    task.pipe.engine = engine
    task.pipe.enable_acceleration(*ways)
    for at in range(0, task.count, batch):
        items, seeds = task.items[at : at + batch], list(range(at, min(at + batch, task.count)))
        task.prepare(items, seeds)
        before, begun = engine.products, time.process_time()
        made.append(to_bytes(task.draw(items, seeds)))
        seconds.append((time.process_time() - begun) / len(items))
        products += engine.products - before
    found = Drawn(np.concatenate(made), products, median(seconds))
    beside = kept.with_suffix(".part")
    with beside.open("wb") as file:
        np.savez(file, pictures=found.pictures, products=products, seconds=found.seconds)
    beside.replace(kept)
    return found


def decibels(pictures: np.ndarray, exact: np.ndarray) -> float:
    """Mean over pictures of the peak signal to noise ratio."""
    error = np.mean((pictures.astype(float) - exact) ** 2, axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-3))))


def file_name(task: str, way: str, count: int) -> str:
    """Of the pictures of a way."""
    return f"{task}-{count}-{re.sub('[^A-Za-z0-9.]+', '-', way).strip('-')}.npz"
