"""Subjects judged: whether what a picture shows stands in other pictures, too."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import scenes
from underdraw.controls.subject import Subject
from underdraw.errors import InputError
from underdraw.pictures.writing import to_bytes
from underdraw.scenes import Mention, Scene, SceneObject
from underdraw.scenes.draw import contact_sheet

from .detector import Detection, Evaluator, load_evaluator
from .images import as_images, same_length
from .rates import Rate, as_json, table
from .report import SHEET, claim, generate_kept, write_picture, write_report

SEED = 71_127_311
COUNTS = (1, 1, 2)
"""Things in scenes i, i + 1, ... in turn, the subject among them."""


@dataclass(frozen=True)
class HeldOutSubject:
    """A subject that no training has seen, and a scene it is to stand in.

    `pictures` show it alone, uint8 `(128, 128, 3)`, each from another side, on another floor and in
    another light. `prompt` is the scene's caption, which calls the subject by its shape alone;
    `described` says all that can be said of it.
    """

    subject: SceneObject
    scene: Scene
    prompt: str
    described: str
    pictures: tuple[np.ndarray, ...]

    @property
    def category(self) -> str:
        """Its shape."""
        return self.subject.shape

    @property
    def mention(self) -> Mention:
        """What is to be seen of it: shape, both colours, that there is a pattern."""
        thing, texture = self.subject, self.subject.texture
        assert texture is not None  # or it were no subject
        return Mention(None, None, thing.colour, texture.second, texture.kind, None, thing.shape)


Generate = Callable[[Sequence[HeldOutSubject], Sequence[int]], Any]
"""Pictures (see `as_images`) of subjects in their scenes, picture i from its seed."""


@cache
def held_out_subjects(
    count: int = 64, pictures: int = 1, seed: int = SEED
) -> tuple[HeldOutSubject, ...]:
    """Large subjects of the split "held_out" in scenes of one or two things. (Of the pattern of a
    small one an autoencoder of factor 8 keeps next to nothing.) The same for the same arguments."""
    for name, value in (("count", count), ("pictures", pictures)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is not an integer of at least 1")
    made = []
    for number in range(count):
        rng = scenes.scene_rng(seed, number, "held_out")
        subject = replace(scenes.sample_subject(rng), size="large")
        # In "held_out" some subjects have no reserved partner; here any company will do.
        scene = scenes.subject_scene(subject, rng, COUNTS[number % len(COUNTS)], "train")
        prompt = scenes.named_plainly(scene, rng)
        shown = tuple(_picture(scenes.subject_view(subject, rng)) for _ in range(pictures))
        phrase = scenes.subject_phrase(subject)
        told = prompt.replace(f"a {subject.shape}", phrase, 1)
        made.append(HeldOutSubject(subject, scene, prompt, told, shown))
    return tuple(made)


@dataclass(frozen=True)
class SubjectScores:
    """`match`: a thing of the subject's shape, with a pattern and in both its colours. `kind`: a
    thing of its shape in one of its colours, or both. `shape`: a thing of its shape."""

    match: Rate
    kind: Rate
    shape: Rate

    @classmethod
    def of(
        cls, seen: Sequence[Sequence[Detection]], subjects: Sequence[HeldOutSubject]
    ) -> SubjectScores:
        """What detections in pictures say of their subjects."""
        same_length(seen=seen, subjects=subjects)
        pairs = list(zip(seen, [one.mention for one in subjects], strict=True))
        return cls(
            Rate.count(any(d.is_kind(m) for d in found) for found, m in pairs),
            Rate.count(any(_kind(d, m) for d in found) for found, m in pairs),
            Rate.count(any(d.shape == m.shape for d in found) for found, m in pairs),
        )


def _kind(seen: Detection, mention: Mention) -> bool:
    colours = {seen.colour, seen.second_colour} & {mention.colour, mention.second_colour}
    return seen.shape == mention.shape and bool(colours)


ROWS = {
    "match": "subject match: shape, pattern, both colours",
    "kind": "shape and a colour of it",
    "shape": "shape",
}


@dataclass(frozen=True)
class SubjectReport:
    """`subjects`: pictures by prompts and pictures of subjects; `prompts`: by the same prompts
    alone; `described`: by prompts that describe the subjects. `through`: real renders of the same
    scenes through the autoencoder; `upper_bound`: these renders."""

    subjects: SubjectScores
    prompts: SubjectScores
    described: SubjectScores
    through: SubjectScores | None
    upper_bound: SubjectScores
    settings: dict[str, Any]
    folder: Path | None = None

    def table(self) -> str:
        """For people."""
        columns = {
            "subjects": "subjects",
            "prompts": "prompts alone",
            "described": "described in words",
            "through": "renders, autoencoder",
            "upper_bound": "real renders",
        }
        rows = [
            (words, *(getattr(getattr(self, column), name, None) for column in columns))
            for name, words in ROWS.items()
        ]
        return table(rows, ("", *columns.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {f.name: as_json(getattr(self, f.name)) for f in fields(self) if f.name != "folder"}


def evaluate_subjects(
    generate: Generate,
    plain: Callable[[Sequence[str], Sequence[int]], Any],
    subjects: Sequence[HeldOutSubject] | None = None,
    *,
    round_trip: Callable[[np.ndarray], Any] | None = None,
    seed: int = 0,
    batch: int = 16,
    folder: str | os.PathLike | None = None,
    settings: dict[str, Any] | None = None,
    weights: str | None = None,
    progress: bool = True,
    evaluator: Evaluator | None = None,
) -> SubjectReport:
    """Draw held-out subjects in their scenes and judge what is seen of them.

    Args:
        generate, plain: by pictures of subjects, and by texts alone; for pipelines see
            `pipeline_generators`. Picture i has the seed `seed + i`.
        subjects: default the 64 of `held_out_subjects()`.
        round_trip: pictures float32 `(n, height, width, 3)` in [0, 1] through the autoencoder.
        folder: keeps every batch as it is finished, so that an interrupted run goes on where it
            stopped; at the end `report.json`, `table.txt` and `sheet.png` stand there, too.
        settings: what made the pictures, kept with them: a folder belongs to one model.
        weights: which subject weights `generate` has; what was made without them stays.

    Raises:
        InputError: wrong pictures or numbers, and a folder of another run.
    """
    for name, value in (("batch", batch), ("seed", seed + 1)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is not an integer that is large enough")
    wanted = list(held_out_subjects() if subjects is None else subjects)
    if not wanted:
        raise InputError("subjects is empty; at least one is needed")
    evaluator = evaluator or load_evaluator()
    place = None if folder is None else Path(folder)
    settings = {**(settings or {}), "seed": seed, "prompts": [one.described for one in wanted]}

    def draw(name: str, items: Sequence[Any], make: Callable[..., Any]) -> np.ndarray:
        def checked(some: Any, seeds: list[int]) -> np.ndarray:
            made = as_images(make(some, seeds), "generated pictures")
            same_length(pictures=made, prompts=some)
            return to_bytes(made)

        inside = None if place is None else place / name
        if inside is not None:
            more = {"weights": weights} if name == "subjects" else {}
            claim(inside, {"part": name, **more, **settings})
        return generate_kept(checked, items, seed, batch, inside, progress)

    def judge(pictures: np.ndarray) -> SubjectScores:
        return SubjectScores.of(evaluator.detect(pictures), wanted)

    alone = draw("prompts", [one.prompt for one in wanted], plain)
    told = draw("described", [one.described for one in wanted], plain)
    made = draw("subjects", wanted, generate)
    real = np.stack([_picture(one.scene) for one in wanted])
    through = None
    if round_trip is not None:
        kept = np.clip(round_trip(as_images(real)), 0, 1)
        through = judge(to_bytes(as_images(kept, "round trip")))
    report = SubjectReport(
        judge(made), judge(alone), judge(told), through, judge(real), settings, place
    )
    if place is not None:
        write_report(place, report)
        write_picture(place / SHEET, sheet(wanted, [made, told, real]))
    return report


def pipeline_generators(
    pipe: Any, *, steps: int = 20, **arguments: Any
) -> tuple[Generate, Callable[[Sequence[str], Sequence[int]], Any]]:
    """`generate` and `plain` by a pipeline with subject weights; `arguments`, such as
    `guidance_scale`, go to its call."""
    how: dict[str, Any] = {"num_inference_steps": steps, "output_type": "np", **arguments}

    def generate(subjects: Sequence[HeldOutSubject], seeds: Sequence[int]) -> Any:
        controls = [
            Subject(list(one.pictures), one.category, prompts=(i,))
            for i, one in enumerate(subjects)
        ]
        prompts = [one.prompt for one in subjects]
        return pipe(prompts, seed=list(seeds), controls=controls, **how).images

    def plain(prompts: Sequence[str], seeds: Sequence[int]) -> Any:
        return pipe(list(prompts), seed=list(seeds), **how).images

    return generate, plain


def sheet(subjects: Sequence[HeldOutSubject], rows: Sequence[np.ndarray], across: int = 16) -> Any:
    """The subjects' pictures, and below each what was made of it."""
    cells: list[Any] = []
    for start in range(0, len(subjects), across):
        some = range(start, min(start + across, len(subjects)))
        cells += [subjects[i].pictures[0] for i in some]
        for pictures in rows:
            cells += [pictures[i] for i in some]
    return contact_sheet(cells, min(across, len(subjects)))


def _picture(scene: Scene) -> np.ndarray:
    return to_bytes(scenes.render(scene).image)
