"""Make pictures of the shipped family in docs/pictures: scenes.png, grounding.png and shown.png.

    python scripts/readme_pictures.py [--second FOLDER]

`grounding.png` shows layouts (left), what comes of them (middle), and, with `--second`, the same
layouts on another UNet of the same widths, given as a pipeline folder (right). `shown.png` has
pictures in the boxes: things alone, which the scenes are to hold. Seeds are 0, 1, 2 and so on, as
they come.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from underdraw import Box, PerImage, StableDiffusionPipeline, scenes
from underdraw.scenes.captions import listed

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
PROMPTS = {
    "a red sphere left of a blue cube": 0,
    "a green cone": 1,
    "a large yellow metal torus": 2,
    "a purple cylinder behind an orange cube": 3,
    "a small gray sphere and a large cyan cylinder": 4,
    "a blue torus in front of a red cone": 5,
    "an orange sphere on a checkered floor": 6,
    "a green cube right of a purple sphere": 7,
}
LAYOUTS = (
    {
        "a red sphere": (0.08, 0.36, 0.38, 0.68),
        "a blue cube": (0.58, 0.32, 0.92, 0.70),
    },
    {
        "a large green cone": (0.32, 0.16, 0.70, 0.62),
        "a yellow cylinder": (0.10, 0.48, 0.32, 0.80),
        "a purple sphere": (0.70, 0.52, 0.92, 0.78),
    },
    {
        "a cyan torus": (0.10, 0.22, 0.42, 0.50),
        "an orange cube": (0.56, 0.24, 0.84, 0.54),
        "a gray cone": (0.20, 0.56, 0.44, 0.88),
        "a red cylinder": (0.60, 0.56, 0.84, 0.90),
    },
)
SHOWN = (
    {
        ("torus", "yellow", "metal"): (0.08, 0.30, 0.42, 0.62),
        ("cube", "purple", "rubber"): (0.58, 0.32, 0.90, 0.68),
    },
    {
        ("cylinder", "cyan", "metal"): (0.36, 0.20, 0.66, 0.58),
        ("sphere", "red", "metal"): (0.08, 0.48, 0.34, 0.76),
        ("cone", "green", "rubber"): (0.68, 0.46, 0.94, 0.82),
    },
)
COLOURS = ("#d81b60", "#1e88e5", "#ffb300", "#00897b")
STEPS = 30


def sheet(rows: list[list[np.ndarray]]) -> Image.Image:
    """Pictures in rows, with thin white lines between them."""
    framed = [
        [np.pad(one, ((2, 2), (2, 2), (0, 0)), constant_values=255) for one in row] for row in rows
    ]
    return Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in framed]))


def drawn(layout: dict[str, tuple[float, ...]], side: int) -> np.ndarray:
    """A layout as boxes with their phrases."""
    scale = 2
    page = Image.new("RGB", (side * scale, side * scale), "#f4f4f4")
    pen = ImageDraw.Draw(page)
    for (phrase, box), colour in zip(layout.items(), COLOURS, strict=False):
        corners = [value * side * scale for value in box]
        pen.rectangle(corners, outline=colour, width=3)
        words = phrase.replace("a ", "", 1).replace("an ", "", 1).split()
        pen.multiline_text((corners[0] + 6, corners[1] + 4), "\n".join(words), fill=colour)
    return np.asarray(page.resize((side, side), Image.Resampling.LANCZOS))


def alone(shape: str, colour: str, material: str, seed: int) -> np.ndarray:
    """A picture of one thing."""
    thing = scenes.SceneObject(shape, colour, material, "large", (0.0, 0.0))
    scene = scenes.alone(thing, scenes.scene_rng(20261121, seed, "held_out"))
    return np.round(scenes.render(scene).image * 255).astype(np.uint8)


def placed(boxes: list[Box], side: int) -> np.ndarray:
    """A layout with the pictures in its boxes."""
    page = Image.new("RGB", (side, side), "#f4f4f4")
    for box in boxes:
        left, top, right, bottom = (round(value * side) for value in box.box)
        picture = Image.fromarray(np.asarray(box.image))
        page.paste(picture.resize((right - left, bottom - top)), (left, top))
    return np.asarray(page)


def pictures(pipe: StableDiffusionPipeline, prompts: list[str], **call: object) -> list[np.ndarray]:
    made = pipe(prompts, num_inference_steps=STEPS, guidance_scale=4.5, **call).images
    return [np.asarray(image) for image in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--second", help="another pipeline folder for the same layouts")
    given = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    made = pictures(pipe, list(PROMPTS), seed=list(PROMPTS.values()))
    sheet([made[:4], made[4:]]).save(PICTURES / "scenes.png", optimize=True)

    layouts = PerImage(
        *([Box(phrase, box) for phrase, box in layout.items()] for layout in LAYOUTS)
    )
    prompts = [" and ".join(layout) for layout in LAYOUTS]
    rows = [[drawn(layout, 128)] for layout in LAYOUTS]
    bases = [pipe]
    if given.second:
        bases.append(StableDiffusionPipeline.from_pretrained(given.second))
        bases[1].load_grounding(pipe.groundings["text-image"])
    for base in bases:
        for row, image in zip(
            rows, pictures(base, prompts, seed=0, controls=[layouts]), strict=True
        ):
            row.append(image)
    sheet(rows).save(PICTURES / "grounding.png", optimize=True)

    told = [
        [Box(None, box, alone(*thing, seed)) for seed, (thing, box) in enumerate(layout.items())]
        for layout in SHOWN
    ]
    prompts = [listed(["a thing"] * len(boxes)) for boxes in told]
    made = pictures(pipe, prompts, seed=0, controls=[PerImage(*told)])
    row = [
        part
        for boxes, image in zip(told, made, strict=True)
        for part in (placed(boxes, 128), image)
    ]
    sheet([row]).save(PICTURES / "shown.png", optimize=True)


if __name__ == "__main__":
    main()
