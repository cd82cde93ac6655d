"""Edits judged on pairs of renders that differ in one attribute of one object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from underdraw import scenes
from underdraw.errors import InputError
from underdraw.formats.arrays import read_arrays
from underdraw.pictures.pasting import paste
from underdraw.pictures.writing import grid, to_bytes, to_pil
from underdraw.pipelines.diffedit.edit import EditSettings, reversible
from underdraw.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from underdraw.scenes import PAIR_KINDS, Pair
from underdraw.scenes.captions import describe

from .boxes import box_iou
from .detector import Detection, Evaluator, load_evaluator
from .editing import background_change, mask_iou, psnr, unchanged_objects
from .images import as_images
from .rates import Rate, as_json, table
from .report import SHEET, claim, write_report
from .text_to_image import describe_model

SEED = 40_906_117  # no training uses it


@dataclass(frozen=True)
class EditScores:
    """Of pictures after an edit.

    `edited`: the changed thing is as the target says; by kind of change in the four that follow.
    `others`: all other things are still there, same shape and colours, in their place.
    `background`: mean absolute change outside the true change, in [0, 1], against the autoencoder's
    round trip; `outside`: the same outside the mask that the edit found, None where it found none.
    """

    edited: Rate
    colour: Rate
    shape: Rate
    removal: Rate
    addition: Rate
    others: Rate
    background: float
    outside: float | None = None


@dataclass(frozen=True)
class EditingReport:
    """`edits` beside `img2img` at the same strength and on real renders after the change
    (`upper_bound`; its background is the autoencoder's own loss). `mask_iou`: with the true change,
    mean over pairs; `mask_bound`: of the true masks themselves at the size of the latents.
    `reconstruction`: PSNR in dB of inversion and decoding without any edit against the picture;
    `round_trip`: the autoencoder's alone. `pasted`: largest change outside the found masks with
    paste-back."""

    edits: EditScores
    img2img: EditScores | None
    upper_bound: EditScores
    mask_iou: float
    mask_bound: float
    reconstruction: float
    round_trip: float
    pasted: float
    settings: dict[str, Any]
    folder: Path | None = None

    def table(self) -> str:
        """For people."""
        told = [self.edits, self.img2img, self.upper_bound]
        rows: list[tuple[Any, ...]] = []
        for name, words in _ROWS.items():
            found = [None if scores is None else getattr(scores, name) for scores in told]
            if isinstance(found[0], float):
                found = [None if one is None else f"{255 * one:.2f}/255" for one in found]
            rows.append((words, *found))
        rows.append(("mask IoU with the true change", self.mask_iou, None, self.mask_bound))
        rows.append(("reconstruction, PSNR in dB", self.reconstruction, None, self.round_trip))
        rows.append(("largest change outside, pasted", f"{255 * self.pasted:.2f}/255", None, None))
        return table(rows, ("", "edits", "img2img", "bound"))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = [name for name in self.__dataclass_fields__ if name != "folder"]
        return {name: as_json(getattr(self, name)) for name in names}


_ROWS = {
    "edited": "edited as told",
    "colour": "  colour",
    "shape": "  shape",
    "removal": "  removal",
    "addition": "  addition",
    "others": "other things unchanged",
    "background": "change outside the true change",
    "outside": "change outside the found mask",
}


def held_out_pairs(count: int = 64, seed: int = SEED, size: int = 128) -> list[Pair]:
    """Pairs of the split "held_out", the four kinds in turn, the same for the same arguments."""
    if not isinstance(count, int) or count < 1:
        raise InputError(f"count={count!r} is not an integer of at least 1")
    made = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        kind = PAIR_KINDS[i % len(PAIR_KINDS)]
        made.append(scenes.pair(rng, kind, size, size, split="held_out"))
    return made


def edited_as_told(pair: Pair, seen: Sequence[Detection]) -> bool:
    """Whether what was to change has changed.

    Colour and shape: a thing of the new kind stands where the object stands. Removal: no thing of
    its kind is left in its place. Addition: a thing of the new kind is there, wherever.
    """
    after = pair.kind != "removal"
    side = pair.after if after else pair.before
    mention = describe(side.scene.objects[pair.index])
    kind = [thing for thing in seen if thing.is_kind(mention)]
    if pair.kind == "addition":
        return bool(kind)
    box = side.rendering.boxes[pair.index]
    here = any(box_iou([box], [thing.box])[0, 0] >= 0.3 for thing in kind)
    return here if after else not here


def score_edits(
    pairs: Sequence[Pair],
    images: Any,
    reference: Any,
    *,
    evaluator: Evaluator | None = None,
    masks: Any = None,
) -> EditScores:
    """Judge picture i as the edit of `pairs[i].before`.

    Args:
        images: (n, height, width, 3) in [0, 1] or pictures, see `as_images`.
        reference: the same of the pictures before through the autoencoder, for the background.
        masks: (n, height, width), where each edit was free to change.

    Raises InputError for unequal numbers and wrong pictures.
    """
    made, kept = as_images(images), as_images(reference, "reference")
    if not len(made) == len(kept) == len(pairs):
        raise InputError(f"{len(made)} images, {len(kept)} in reference, {len(pairs)} pairs")
    evaluator = evaluator or load_evaluator()
    seen = evaluator.detect(made)
    before = evaluator.detect(np.stack([pair.before.rendering.image for pair in pairs]))
    told = [edited_as_told(pair, found) for pair, found in zip(pairs, seen, strict=True)]
    right, of = 0, 0
    for pair, was, found in zip(pairs, before, seen, strict=True):
        edited = () if pair.kind == "addition" else pair.before.rendering.boxes[pair.index][None]
        same = unchanged_objects(was, found, edited)
        right, of = right + same.right, of + same.of
    by_kind = {
        kind: Rate.count(t for t, pair in zip(told, pairs, strict=True) if pair.kind == kind)
        for kind in PAIR_KINDS
    }
    triples = zip(kept, made, pairs, strict=True)
    background = [background_change(k, m, pair.mask) for k, m, pair in triples]
    outside = None
    if masks is not None:
        triples = zip(kept, made, masks, strict=True)
        outside = [background_change(k, m, mask) for k, m, mask in triples if not mask.all()]
        outside = float(np.mean(outside)) if outside else None
    return EditScores(
        Rate.count(told),
        **by_kind,
        others=Rate(right, of),
        background=float(np.mean(background)),
        outside=outside,
    )


def evaluate_editing(
    pipe: Any,
    count: int = 64,
    *,
    seed: int = 0,
    batch: int = 8,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
    evaluator: Evaluator | None = None,
    compare: bool = True,
    **arguments: Any,
) -> EditingReport:
    """Edit `held_out_pairs(count)` from caption to caption and judge the results.

    Args:
        pipe: a `StableDiffusionDiffEditPipeline` on PyTorch.
        seed: of masks, and of the noise of img2img; pair i has `seed + i`.
        folder: where batches are kept as they are finished, so that an interrupted run goes on;
            `report.json`, `table.txt` and `sheet.png` (before, mask, edit, img2img, the truth) are
            written at the end. It belongs to one model and one set of arguments.
        compare: also img2img with the same steps, strength and guidance.
        arguments: of `pipe.edit`, such as `inpaint_strength`.

    Raises InputError for numbers below 1, and a folder of another run.
    """
    if not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch={batch!r} is not an integer of at least 1")
    evaluator = evaluator or load_evaluator()
    pairs = held_out_pairs(count)
    settings = {
        "model": describe_model(pipe),
        "count": count,
        "seed": seed,
        "compare": compare,
        "arguments": {name: repr(value) for name, value in sorted(arguments.items())},
    }
    place = None if folder is None else Path(folder)
    if place is not None:
        claim(place, settings)
    parts = []
    with tqdm(total=count, unit="edit", disable=not progress) as bar:
        for start in range(0, count, batch):
            chosen = pairs[start : start + batch]
            path = None if place is None else place / f"{start:04d}-{len(chosen)}.npz"
            if path is not None and path.exists():
                parts.append(read_arrays(path))
            else:
                parts.append(_edited(pipe, chosen, seed + start, compare, arguments))
                if path is not None:
                    partial = path.with_suffix(".tmp")
                    with open(partial, "wb") as file:
                        np.savez(file, **parts[-1])
                    os.replace(partial, path)
            bar.update(len(chosen))
    made = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    report = _report(pairs, made, evaluator, settings, place)
    if place is not None:
        write_report(place, report)
        _sheet(pairs, made).save(place / SHEET, "PNG")
    return report


def _edited(
    pipe: Any, pairs: Sequence[Pair], seed: int, compare: bool, arguments: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What the pipeline makes of some pairs, as uint8."""
    before = np.stack([pair.before.rendering.image for pair in pairs])
    source = [pair.before.caption.text for pair in pairs]
    target = [pair.after.caption.text for pair in pairs]
    made = pipe.edit(before, source, target, seed=seed, output_type="np", **arguments)
    found = {"edits": made.images, "mask": np.asarray(made.mask_image, np.uint8)}
    named = ("num_inference_steps", "inpaint_strength")
    way = {name: arguments.get(name, default) for name, default in zip(named, _way(), strict=True)}
    free = np.ones(made.mask_image.shape[1:], np.float32)
    options = {"output_type": "np", **way}
    # With the solver of the inversion, which PNDM's levels would not fit.
    back = reversible(pipe)(source, free, made, guidance_scale=1.0, **options)
    found["reconstruction"] = back.images
    clean = made.clean
    found["round_trip"] = pipe.decode_latents(clean, "np")[0]
    if compare:
        other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        plain: Any = other(
            target,
            clean,
            way["inpaint_strength"],
            way["num_inference_steps"],
            guidance_scale=arguments.get("guidance_scale", EditSettings().guidance),
            seed=seed,
            output_type="np",
        )
        found["img2img"] = plain.images
    shown = {name: to_bytes(np.asarray(x)) for name, x in found.items()}
    return {**shown, "mask": found["mask"]}


def _way() -> tuple[int, float]:
    return EditSettings().steps, EditSettings().strength


def _report(
    pairs: list[Pair],
    made: dict[str, np.ndarray],
    evaluator: Evaluator,
    settings: dict[str, Any],
    folder: Path | None,
) -> EditingReport:
    real = np.stack([pair.after.rendering.image for pair in pairs])
    before = np.stack([pair.before.rendering.image for pair in pairs])
    size = before.shape[1:3]
    masks = [_large(mask, size) for mask in made["mask"]]
    cells = [_large(_small(pair.mask, made["mask"].shape[1:]), size) for pair in pairs]
    trip = made["round_trip"]
    pasted = [
        float(np.abs(paste(b, e / np.float32(255), m) - b)[~m].max(initial=0.0))
        for b, e, m in zip(before, made["edits"], masks, strict=True)
    ]

    def scored(images: np.ndarray, reference: np.ndarray, free: Any = None) -> EditScores:
        return score_edits(pairs, images, reference, evaluator=evaluator, masks=free)

    def ratio(images: np.ndarray) -> float:
        return float(np.mean([psnr(a, b) for a, b in zip(images, before, strict=True)]))

    return EditingReport(
        scored(made["edits"], trip, masks),
        scored(made["img2img"], trip) if "img2img" in made else None,
        scored(real, trip),
        float(np.mean([mask_iou(m, p.mask) for m, p in zip(masks, pairs, strict=True)])),
        float(np.mean([mask_iou(c, p.mask) for c, p in zip(cells, pairs, strict=True)])),
        ratio(made["reconstruction"]),
        ratio(trip),
        max(pasted),
        settings,
        folder,
    )


def _large(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask of latent pixels as one of pixels."""
    return np.kron(mask, np.ones((size[0] // mask.shape[0], size[1] // mask.shape[1]))) > 0.5


def _small(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A mask of pixels as one of latent pixels."""
    rows, columns = mask.shape[0] // size[0], mask.shape[1] // size[1]
    return mask.reshape(size[0], rows, size[1], columns).mean((1, 3)) >= 0.5


def _sheet(pairs: Sequence[Pair], made: dict[str, np.ndarray], most: int = 16) -> Any:
    """Before, found mask, edit, img2img, the real change: a row per pair."""
    shown: list[Any] = []
    for i, pair in enumerate(pairs[:most]):
        before, real = pair.before.rendering.image, pair.after.rendering.image
        mask = _large(made["mask"][i], before.shape[:2])[:, :, None]
        columns = [before, before * (0.35 + 0.65 * mask), made["edits"][i] / 255]
        columns += [made["img2img"][i] / 255] if "img2img" in made else []
        shown += to_pil(np.stack([*columns, real]))
    return grid(shown, columns=len(shown) // min(len(pairs), most))
