"""`underdraw scenes`: look at the data set, with its truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from underdraw.cli import options, outputs, progress
from underdraw.cli.failures import tell
from underdraw.errors import InputError

if TYPE_CHECKING:
    from underdraw.scenes import Sample

MOST_PIXELS = 2**27
"""Of a sheet."""
TRUTH = ("boxes", "segmentation", "depth", "edges", "normals")


def scenes(
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="How many.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same scenes.")] = 0,
    size: Annotated[str, typer.Option(metavar="HxW", help="In pixels, at least 64.")] = "128x128",
    truth: Annotated[
        str, typer.Option(help=f"What to draw beside: {', '.join(TRUTH)}, all or none.")
    ] = "boxes",
    objects: Annotated[
        int | None, typer.Option(min=1, max=4, help="Per scene; 1 to 4 if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="train or held_out.")] = "train",
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Before and after a change, and where it is.")
    ] = False,
    subjects: Annotated[
        bool, typer.Option("--subjects", help="Things with textures of their own, three views.")
    ] = False,
    scale: Annotated[int, typer.Option(min=1, max=8, help="How much to enlarge them.")] = 2,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .png, .jpg or .webp file.")] = Path(
        "scenes.png"
    ),
    force: options.Force = False,
) -> None:
    """Render sample scenes with their truth drawn on them; captions go to standard output."""
    from underdraw.scenes import draw

    height, width = parse_size(size)
    chosen = parse_truth(truth)
    if pairs and subjects:
        raise InputError("--pairs and --subjects are both given; only one of them can be")
    if not outputs.is_picture(out):
        raise InputError(f"--out {out} is no file; {outputs.WRITTEN}")
    pixels = count * (1 + len(chosen)) * height * width * scale**2
    if pixels > MOST_PIXELS:
        raise InputError(
            f"--count {count} at --size {size} makes a sheet of {pixels:,} pixels; allowed: "
            f"{MOST_PIXELS:,}"
        )
    outputs.check_folder(out.parent, [out.name])
    outputs.check_free([out], {}, force)
    how: dict[str, Any] = {
        "height": height,
        "width": width,
        "count": objects,
        "split": split,
        "scale": scale,
    }
    make = pair_rows if pairs else subject_rows if subjects else sample_rows
    rows, captions = make(count, seed, chosen, how)
    pictures = [enlarged(cell, height * scale, width * scale) for row in rows for cell in row]
    across = max(1, 6 // len(rows[0])) * len(rows[0])
    sheet = draw.contact_sheet(pictures, across)
    outputs.save(sheet, out, {"scenes": captions})
    for i, text in enumerate(captions):
        typer.echo(f"{i}\t{text}")
    tell(f"{out}: {sheet.width} x {sheet.height} pixels, seed {seed}, split {split}")


scenes.examples = """Examples:

\b
  underdraw scenes --count 8 --truth all --out sheet.png
  underdraw scenes --pairs --size 128x192 --seed 3
  underdraw scenes --subjects --split held_out"""  # type: ignore[attr-defined]


def parse_size(size: str) -> tuple[int, int]:
    """Height and width from "128x192" or "128"."""
    found = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", size.strip())
    if found is None:
        raise InputError(f"--size {size} is not HEIGHTxWIDTH, such as 128x192")
    return int(found[1]), int(found[2] or found[1])


def parse_truth(truth: str) -> tuple[str, ...]:
    """Names from a list with commas."""
    if truth in ("all", "none"):
        return TRUTH if truth == "all" else ()
    names = tuple(name.strip() for name in truth.split(","))
    for name in names:
        if name not in TRUTH:
            raise InputError(
                f"--truth {name!r} is not known; allowed: {', '.join(TRUTH)}, all, none"
            )
    return names


def enlarged(image: Any, height: int, width: int) -> Any:
    """The picture at this size, its pixels as squares."""
    return image if image.size == (width, height) else image.resize((width, height), 0)


def bar(count: int) -> Any:
    from tqdm import tqdm

    return tqdm(range(count), unit="scene", **progress.bar_options())


def shown(sample: Sample, truth: tuple[str, ...], scale: int) -> list[Any]:
    """A picture and its truth; labels are drawn at the size at which they are seen."""
    from underdraw.scenes import draw, phrases

    seen = sample.rendering
    made = {
        "boxes": lambda: draw.draw_boxes(seen.image, seen.boxes, phrases(sample.scene), scale),
        "segmentation": lambda: draw.draw_segmentation(seen.image, seen.segmentation),
        "depth": lambda: draw.draw_depth(seen.depth),
        "edges": lambda: draw.draw_edges(seen.edges),
        "normals": lambda: draw.draw_normals(seen.normals),
    }
    return [draw.to_image(seen.image), *(made[name]() for name in truth)]


def sample_rows(
    count: int, seed: int, truth: tuple[str, ...], how: dict[str, Any]
) -> tuple[list[list[Any]], list[str]]:
    from underdraw.scenes import sample_at

    scale = how.pop("scale")
    samples = [sample_at(seed, i, **how) for i in bar(count)]
    return [shown(sample, truth, scale) for sample in samples], [s.caption.text for s in samples]


def pair_rows(
    count: int, seed: int, truth: tuple[str, ...], how: dict[str, Any]
) -> tuple[list[list[Any]], list[str]]:
    """Before, after, and what changes, in place of other truth."""
    from underdraw.scenes import draw, pair, scene_rng

    rows, captions = [], []
    how = {name: value for name, value in how.items() if name != "scale"}
    for i in bar(count):
        made = pair(scene_rng(seed, i, how["split"]), **how)
        before, after = made.before.rendering.image, made.after.rendering.image
        mask = draw.draw_segmentation(after, made.mask.astype("int32"))
        rows.append([draw.to_image(before), draw.to_image(after), mask])
        captions.append(f"{made.kind}: {made.before.caption.text} -> {made.after.caption.text}")
    return rows, captions


def subject_rows(
    count: int, seed: int, truth: tuple[str, ...], how: dict[str, Any]
) -> tuple[list[list[Any]], list[str]]:
    """Two views of a subject alone, and one among others."""
    from underdraw import scenes as family
    from underdraw.scenes import draw

    rows, captions = [], []
    height, width = how["height"], how["width"]
    for i in bar(count):
        rng = family.scene_rng(seed, i, how["split"])
        subject = family.sample_subject(rng)
        views = [family.subject_view(subject, rng) for _ in range(2)]
        views.append(family.subject_scene(subject, rng, how["count"], how["split"]))
        pictures = [family.render(view, height, width).image for view in views]
        rows.append([draw.to_image(picture) for picture in pictures])
        captions.append(
            f"{family.describe(subject).phrase()}: {family.caption(views[2], rng).text}"
        )
    return rows, captions
