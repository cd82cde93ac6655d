"""Generation along maps judged on held-out scenes: whether pictures follow their map."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import scenes
from underdraw.controls.structure import Structure
from underdraw.errors import InputError
from underdraw.pictures.writing import to_bytes
from underdraw.preprocessors.canny import lines
from underdraw.scenes import Caption, Scene
from underdraw.scenes.depth import depth_of
from underdraw.scenes.draw import contact_sheet

from .depth import DepthEstimator, load_depth_estimator
from .detector import Evaluator, load_evaluator
from .following import DepthScores, EdgeScores, score_depth, score_edges
from .images import as_images, same_length
from .judging import score_captions
from .rates import Rate, as_json, table
from .report import SHEET, claim, generate_kept, write_picture, write_report

SEED = 60_211_041
KINDS = ("edges", "depth")


@dataclass(frozen=True)
class HeldOutMap:
    """A caption, a render of its scene, uint8 `(128, 128, 3)`, and the maps of that, in [0, 1] and
    float32 `(128, 128)`. `empty` is the depth map of the table alone, in the units of `depth`.
    `kind` says along which map to draw; None: by the caption alone."""

    caption: Caption
    scene: Scene
    picture: np.ndarray
    edges: np.ndarray
    depth: np.ndarray
    empty: np.ndarray
    kind: str | None = None

    @property
    def prompt(self) -> str:
        """What the caption says."""
        return self.caption.text

    @property
    def map(self) -> np.ndarray | None:
        """What to draw along."""
        return None if self.kind is None else getattr(self, self.kind)

    def along(self, kind: str | None) -> HeldOutMap:
        """The same, to be drawn along another map."""
        return replace(self, kind=kind)


Generate = Callable[[Sequence[HeldOutMap], Sequence[int]], Any]
"""Pictures (see `as_images`), all along maps of one kind, picture i from its seed."""
RoundTrip = Callable[[np.ndarray], Any]
"""Pictures float32 (n, height, width, 3) in [0, 1] through the autoencoder and back."""


@cache
def held_out_maps(count: int = 64, seed: int = SEED) -> tuple[HeldOutMap, ...]:
    """Of scenes of the split "held_out", as many of one thing as of two, three and four; the same
    for the same arguments."""
    if not isinstance(count, int) or count < 1:
        raise InputError(f"count={count!r} is not an integer of at least 1")
    return tuple(_held_out(seed, number) for number in range(count))


def _held_out(seed: int, number: int) -> HeldOutMap:
    sample = scenes.sample_at(seed, number, count=1 + number % 4, split="held_out")
    picture = to_bytes(sample.rendering.image[None])[0]
    near = 1 / depth_of(sample.scene)
    low, spread = near.min(), np.ptp(near)
    bare = 1 / depth_of(replace(sample.scene, objects=()))
    maps = (lines(picture).astype(np.float32), (near - low) / spread, (bare - low) / spread)
    return HeldOutMap(sample.caption, sample.scene, picture, *maps)


@dataclass(frozen=True)
class Along:
    """What was drawn along maps of one kind, by the prompts alone, and real renders (through the
    autoencoder, where one is given): `edges` and `depth` of each, whatever the kind of map;
    `mentions`: of the things the captions name, those found in colour and shape."""

    edges: EdgeScores
    depth: DepthScores
    mentions: Rate


@dataclass(frozen=True)
class StructureReport:
    """`along`: by kind of map; `prompts`: the same prompts without; `upper_bound`: real renders."""

    along: Mapping[str, Along]
    prompts: Along
    upper_bound: Along
    settings: dict[str, Any]
    folder: Path | None = None

    def table(self) -> str:
        """For people."""
        rows: list[tuple[Any, ...]] = []
        for words, part, name in _ROWS:
            each = (*self.along.values(), self.prompts, self.upper_bound)
            scores = [getattr(one, part) for one in each]
            rows.append((words, *(getattr(one, name) if name else one for one in scores)))
        heads = ("", *(f"along {kind}" for kind in self.along), "prompts alone", "real renders")
        return table(rows, heads)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {f.name: as_json(getattr(self, f.name)) for f in fields(self) if f.name != "folder"}


_ROWS = (
    ("edge F1", "edges", "f1"),
    ("  precision", "edges", "precision"),
    ("  recall", "edges", "recall"),
    ("depth correlation", "depth", "whole"),
    ("  of things on the table", "depth", "things"),
    ("colour and shape, each mention", "mentions", ""),
)


def evaluate_structure(
    generate: Generate,
    maps: Sequence[HeldOutMap] | None = None,
    *,
    kinds: Sequence[str] = KINDS,
    round_trip: RoundTrip | None = None,
    seed: int = 0,
    batch: int = 16,
    folder: str | os.PathLike | None = None,
    settings: dict[str, Any] | None = None,
    progress: bool = True,
    evaluator: Evaluator | None = None,
    estimator: DepthEstimator | None = None,
) -> StructureReport:
    """Draw held-out captions along maps of their scenes, and judge how far the pictures follow.

    Args:
        generate: for pipelines see `pipeline_generator`. Picture i has the seed `seed + i`.
        maps: default the 64 of `held_out_maps()`.
        kinds: of maps, "edges" and "depth".
        round_trip: through which real renders are judged; None: as they are.
        folder: keeps every batch as it is finished, so that an interrupted run goes on where it
            stopped; at the end `report.json`, `table.txt` and `sheet.png` stand there, too.
        settings: what made the pictures, kept with them: a folder belongs to one model.

    Raises:
        InputError: wrong pictures, kinds or numbers, and a folder of another run.
    """
    for name, value in (("batch", batch), ("seed", seed + 1)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is not an integer that is large enough")
    if not kinds or set(kinds) - set(KINDS):
        raise InputError(f"kinds={list(kinds)}; allowed: one or more of {', '.join(KINDS)}")
    wanted = list(held_out_maps() if maps is None else maps)
    if not wanted:
        raise InputError("maps is empty; at least one is needed")
    judges = (evaluator or load_evaluator(), estimator or load_depth_estimator())
    place = None if folder is None else Path(folder)
    told = {**(settings or {}), "seed": seed, "prompts": [one.prompt for one in wanted]}

    def draw(kind: str | None) -> np.ndarray:
        def checked(some: Any, seeds: list[int]) -> np.ndarray:
            made = as_images(generate(some, seeds), "generated pictures")
            same_length(pictures=made, maps=some)
            return to_bytes(made)

        inside = None if place is None else place / (kind or "prompts")
        if inside is not None:
            claim(inside, {"part": kind, **told})
        items = [one.along(kind) for one in wanted]
        return generate_kept(checked, items, seed, batch, inside, progress)

    pictures = {kind: draw(kind) for kind in (*kinds, None)}
    real = np.stack([one.picture for one in wanted])
    if round_trip is not None:
        back = np.clip(round_trip(as_images(real)), 0, 1)
        real = to_bytes(as_images(back, "round trip"))
    judged = {kind: _judge(made, wanted, *judges) for kind, made in pictures.items()}
    along = {kind: judged[kind] for kind in kinds}
    report = StructureReport(along, judged[None], _judge(real, wanted, *judges), told, place)
    if place is not None:
        write_report(place, report)
        _sheet(place / SHEET, wanted, pictures)
    return report


def pipeline_generator(
    pipe: Any, nets: Mapping[str, Any], *, steps: int = 20, scale: float = 1.0, **arguments: Any
) -> Generate:
    """`generate` by a pipeline and its nets by kind (networks, or names of attached ones);
    `arguments`, such as `guidance_scale`, go to its call."""

    def generate(maps: Sequence[HeldOutMap], seeds: Sequence[int]) -> Any:
        (kind,) = {one.kind for one in maps}
        controls = []
        if kind is not None:
            controls = [Structure(nets[kind], [one.map for one in maps], scale)]
        return pipe(
            [one.prompt for one in maps],
            num_inference_steps=steps,
            seed=list(seeds),
            output_type="np",
            controls=controls,
            **arguments,
        ).images

    return generate


def _judge(
    pictures: np.ndarray,
    wanted: Sequence[HeldOutMap],
    evaluator: Evaluator,
    estimator: DepthEstimator,
) -> Along:
    edges = score_edges([lines(one) for one in pictures], [one.edges > 0.5 for one in wanted])
    depth = score_depth(
        list(estimator.estimate(pictures)),
        [one.depth for one in wanted],
        [one.empty for one in wanted],
    )
    captions, real = [one.caption for one in wanted], [one.picture for one in wanted]
    told = score_captions(pictures, captions, evaluator=evaluator, real_images=real)
    return Along(edges, depth, told.scores.mention)


def _sheet(
    path: Path, wanted: Sequence[HeldOutMap], pictures: Mapping[str | None, np.ndarray]
) -> None:
    """Rows of eight: the map and what was drawn along it, for each kind; by the prompt alone."""
    cells: list[Any] = []
    for start in range(0, len(wanted) - len(wanted) % 8 or len(wanted), 8):
        some = range(start, min(start + 8, len(wanted)))
        for kind, made in pictures.items():
            if kind is not None:
                cells += [np.repeat(getattr(wanted[i], kind)[..., None], 3, 2) for i in some]
            cells += [made[i] for i in some]
    write_picture(path, contact_sheet(cells))
