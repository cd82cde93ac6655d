"""Make docs/pictures/subjects.png: `python scripts/subject_picture.py [--model FOLDER]`.

A row for each of three held-out subjects: its picture, three new scenes, and a picture with another
thing of its shape before and after the subject was put in that one's place. Seeds 0, 1, 2 as they
come; nothing is picked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from underdraw import BlipDiffusionPipeline, StableDiffusionPipeline, Subject
from underdraw.evaluation.subjects import held_out_subjects
from underdraw.scenes.draw import contact_sheet

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "subjects.png"
SCENES = ("a {}", "a {} on a checkered floor", "a {} left of a red sphere")
ROWS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="underdraw/scenes")
    parser.add_argument("--steps", type=int, default=20)
    told = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(told.model, dtype="float32")
    editor = BlipDiffusionPipeline.from_pretrained(told.model, dtype="float32")
    cells = []
    for one in held_out_subjects()[:ROWS]:
        made = pipe(
            [scene.format(one.category) for scene in SCENES],
            num_inference_steps=told.steps,
            guidance_scale=pipe.advice.guidance_scale,
            seed=list(range(len(SCENES))),
            controls=[Subject(one.pictures[0], one.category)],
        ).images
        edited = editor.generate_then_edit(
            "on a plain floor",
            one.pictures[0],
            one.category,
            one.category,
            guidance_scale=pipe.advice.guidance_scale,
            num_inference_steps=told.steps,
            seed=0,
        ).images
        cells += [one.pictures[0], *made, *edited]
    contact_sheet(cells, len(SCENES) + 3).quantize(128).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
