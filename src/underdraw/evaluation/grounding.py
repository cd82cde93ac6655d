"""Grounded generation judged on held-out layouts: whether things stand in their boxes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import scenes
from underdraw.controls.boxes import Box, Layout, PerImage
from underdraw.controls.region import Region
from underdraw.errors import InputError
from underdraw.pictures.writing import to_bytes
from underdraw.scenes.draw import contact_sheet, draw_boxes

from .boxes import BOX_ROWS, BoxScores, score_boxes
from .detector import Evaluator, load_evaluator
from .editing import background_change
from .images import as_images, same_length
from .layouts import (
    HeldOutHole,
    HeldOutLayout,
    held_out_holes,
    held_out_layouts,
    held_out_subjects,
)
from .rates import Rate, as_json, table
from .report import SHEET, claim, generate_kept, write_picture, write_report

Generate = Callable[[Sequence[HeldOutLayout], Sequence[int]], Any]
"""Pictures (see `as_images`) of layouts, picture i from its seed; one that is not `grounded` is
drawn by its prompt alone."""
Fill = Callable[[Sequence[HeldOutHole], Sequence[int]], Any]
"""Pictures with their boxes filled, nothing pasted back."""
RoundTrip = Callable[[np.ndarray], Any]
"""Pictures float32 (n, height, width, 3) in [0, 1] through the autoencoder and back."""


@dataclass(frozen=True)
class Filling:
    """`change`: mean over pictures of the mean absolute change outside the box, in [0, 1], against
    the autoencoder's own round trip; `worst` of them. `filled`: boxes that hold the thing asked
    for, in colour and shape."""

    change: float
    worst: float
    filled: Rate


@dataclass(frozen=True)
class GroundingReport:
    """`boxes`: what stands in phrases' boxes; `prompts`: the same prompts without boxes;
    `upper_bound`: real renders. `subjects`: of boxes with pictures, those that hold a thing of its
    colour and shape, beside `subjects_bound`. `filling`: inpainting; None where not tried."""

    boxes: BoxScores
    prompts: BoxScores
    upper_bound: BoxScores
    subjects: BoxScores | None
    subjects_bound: Rate
    filling: Filling | None
    settings: dict[str, Any]
    folder: Path | None = None

    def table(self) -> str:
        """For people; rows without cases are left out."""
        rows: list[tuple[Any, ...]] = []
        for name, words in BOX_ROWS.items():
            scores = [getattr(s, name) for s in (self.boxes, self.prompts, self.upper_bound)]
            if not isinstance(scores[-1], Rate) or scores[-1].of:
                rows.append((words, *scores))
        if self.subjects is not None:
            rows.append(("box AP50, boxes with pictures", self.subjects.ap50, None, None))
            rows.append(("subject match", self.subjects.attributes, None, self.subjects_bound))
        if self.filling is not None:
            rows.append(("filled as told", self.filling.filled, None, None))
            for words, change in (("mean", self.filling.change), ("worst", self.filling.worst)):
                told = f"{255 * change:.2f}/255"
                rows.append((f"change outside the hole, {words}", told, None, None))
        return table(rows, ("", "pictures", "prompts alone", "real renders"))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {f.name: as_json(getattr(self, f.name)) for f in fields(self) if f.name != "folder"}


def evaluate_grounding(
    generate: Generate,
    layouts: Sequence[HeldOutLayout] | None = None,
    *,
    subjects: Sequence[HeldOutLayout] | None = None,
    holes: Sequence[HeldOutHole] = (),
    fill: Fill | None = None,
    round_trip: RoundTrip | None = None,
    seed: int = 0,
    batch: int = 16,
    folder: str | os.PathLike | None = None,
    settings: dict[str, Any] | None = None,
    progress: bool = True,
    evaluator: Evaluator | None = None,
) -> GroundingReport:
    """Draw held-out layouts and judge what stands in their boxes.

    Args:
        generate: for pipelines see `pipeline_generator`. Picture i has the seed `seed + i`.
        layouts: with phrases; default the 128 of `held_out_layouts()`.
        subjects: with pictures, such as `held_out_subjects()`; None or empty leaves them out.
        holes: to be filled by `fill` and compared outside with `round_trip`.
        folder: keeps every batch as it is finished, so that an interrupted run goes on where it
            stopped; at the end `report.json`, `table.txt` and `sheet.png` stand there, too.
        settings: what made the pictures, kept with them: a folder belongs to one model.

    Raises:
        InputError: wrong pictures or numbers, holes without `fill` and `round_trip`, and a folder
            of another run.
    """
    for name, value in (("batch", batch), ("seed", seed + 1)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is not an integer that is large enough")
    if holes and (fill is None or round_trip is None):
        raise InputError("holes are given; fill and round_trip are needed with them")
    wanted = list(held_out_layouts() if layouts is None else layouts)
    if not wanted:
        raise InputError("layouts is empty; at least one is needed")
    evaluator = evaluator or load_evaluator()
    place = None if folder is None else Path(folder)
    settings = {**(settings or {}), "seed": seed, "layouts": [_told(one) for one in wanted]}

    def draw(name: str, items: Sequence[Any], make: Callable[..., Any]) -> np.ndarray:
        def checked(some: Any, seeds: list[int]) -> np.ndarray:
            made = as_images(make(some, seeds), "generated pictures")
            same_length(pictures=made, layouts=some)
            return to_bytes(made)

        inside = None if place is None else place / name
        if inside is not None:
            claim(inside, {"part": name, **settings})
        return generate_kept(checked, items, seed, batch, inside, progress)

    def judge(pictures: np.ndarray, some: Sequence[HeldOutLayout]) -> BoxScores:
        return score_boxes(evaluator.detect(pictures), [one.wanted for one in some])

    grounded = draw("boxes", wanted, generate)
    plain = draw("prompts", [one.prompt_only() for one in wanted], generate)
    bound = judge(_renders(wanted), wanted)
    shown = subject_scores = None
    subject_bound = Rate()
    if subjects:
        shown = draw("subjects", subjects, generate)
        subject_scores = judge(shown, subjects)
        subject_bound = judge(_renders(subjects), subjects).attributes
    filling = filled = None
    if holes and fill is not None and round_trip is not None:
        filled = draw("holes", holes, fill)
        filling = _judge_filling(filled, holes, round_trip, evaluator)
    report = GroundingReport(
        judge(grounded, wanted),
        judge(plain, wanted),
        bound,
        subject_scores,
        subject_bound,
        filling,
        settings,
        place,
    )
    if place is not None:
        write_report(place, report)
        _sheet(place / SHEET, wanted, grounded, plain, subjects or (), shown)
    return report


def pipeline_generator(pipe: Any, *, steps: int = 20, **arguments: Any) -> Generate:
    """`generate` by a pipeline with grounding weights; `arguments`, such as `guidance_scale`, go to
    its call, and `strength` (on, decay, off) to the layouts."""
    strength = arguments.pop("strength", None)

    def generate(layouts: Sequence[HeldOutLayout], seeds: Sequence[int]) -> Any:
        grounded = any(layout.grounded for layout in layouts)
        each = [_as_control(layout, strength) for layout in layouts]
        return pipe(
            [layout.prompt for layout in layouts],
            num_inference_steps=steps,
            seed=list(seeds),
            output_type="np",
            controls=[PerImage(*each)] if grounded else [],
            **arguments,
        ).images

    return generate


def pipeline_filler(pipe: Any, *, steps: int = 20, **arguments: Any) -> Fill:
    """`fill` by a pipeline with grounding weights, as `pipeline_generator`."""
    strength = arguments.pop("strength", None)

    def fill(holes: Sequence[HeldOutHole], seeds: Sequence[int]) -> Any:
        masks = np.stack([hole.mask for hole in holes]).astype(np.float32)
        pictures = np.stack([hole.picture for hole in holes])
        each = [_as_control(hole.layout, strength) for hole in holes]
        return pipe(
            [hole.layout.prompt for hole in holes],
            num_inference_steps=steps,
            seed=list(seeds),
            output_type="np",
            controls=[PerImage(*each), Region(masks, pictures)],
            **arguments,
        ).images

    return fill


def _as_control(layout: HeldOutLayout, strength: Any) -> Any:
    corners = [tuple(box) for box in layout.boxes.tolist()]
    named = zip(layout.phrases, corners, strict=False)
    shown = zip(layout.images, corners, strict=False)
    boxes = [Box(p, box) for p, box in named] + [Box(None, box, image) for image, box in shown]
    return Layout(tuple(boxes), strength)


def _judge_filling(
    filled: np.ndarray, holes: Sequence[HeldOutHole], round_trip: RoundTrip, evaluator: Evaluator
) -> Filling:
    before = as_images(np.stack([hole.picture for hole in holes]))
    kept = as_images(np.clip(round_trip(before), 0, 1), "round trip")
    changes = [
        background_change(a, b, hole.mask)
        for a, b, hole in zip(kept, as_images(filled), holes, strict=True)
    ]
    scores = score_boxes(evaluator.detect(filled), [hole.layout.wanted for hole in holes])
    return Filling(float(np.mean(changes)), float(np.max(changes)), scores.attributes)


def _renders(layouts: Sequence[HeldOutLayout]) -> np.ndarray:
    made = np.stack([scenes.render(layout.scene).image for layout in layouts])
    return to_bytes(made)


def _told(layout: HeldOutLayout) -> dict[str, Any]:
    """What a folder remembers of a layout."""
    boxes = np.asarray(layout.boxes, np.float64).round(4).tolist()
    return {"prompt": layout.prompt, "phrases": list(layout.phrases), "boxes": boxes}


def _sheet(
    path: Path,
    wanted: Sequence[HeldOutLayout],
    grounded: np.ndarray,
    plain: np.ndarray,
    subjects: Sequence[HeldOutLayout],
    shown: np.ndarray | None,
) -> None:
    """Rows of eight: drawn by boxes, the same with the boxes, and by the prompt alone."""
    cells: list[Any] = []
    for start in range(0, len(wanted), 8):
        some = range(start, min(start + 8, len(wanted)))
        cells += [grounded[i] for i in some]
        cells += [draw_boxes(grounded[i], wanted[i].boxes) for i in some]
        cells += [plain[i] for i in some]
    if shown is not None:
        cells += [draw_boxes(p, one.boxes) for p, one in zip(shown, subjects, strict=True)]
    write_picture(path, contact_sheet(cells))


__all__ = [
    "Filling",
    "GroundingReport",
    "evaluate_grounding",
    "held_out_holes",
    "held_out_layouts",
    "held_out_subjects",
    "pipeline_filler",
    "pipeline_generator",
]
