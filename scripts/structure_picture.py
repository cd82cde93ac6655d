"""Make docs/pictures/structure.png: edges, a depth map, and what is drawn along them.

python scripts/structure_picture.py [OUT.png]
"""

import sys

import numpy as np
from PIL import Image

from underdraw import StableDiffusionPipeline, Structure
from underdraw.evaluation.structure import held_out_maps
from underdraw.pictures.writing import grid

SCENE = 1  # of `held_out_maps`: the first with two things
COLUMNS = 6


def main(out: str) -> None:
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    scene = held_out_maps(SCENE + 1)[SCENE]
    count = COLUMNS - 1
    rows: list[Image.Image] = []
    for kind in ("edges", "depth", None):
        shown = scene.picture / 255 if kind is None else getattr(scene, kind)[..., None]
        pixels = np.broadcast_to(shown * 255, (*scene.picture.shape[:2], 3))
        rows.append(Image.fromarray(pixels.round().astype(np.uint8)))
        controls = [] if kind is None else [Structure(kind, scene.along(kind).map)]
        rows += pipe([scene.prompt] * count, controls=controls, seed=list(range(count))).images
    print(scene.prompt)
    sheet = grid(rows, columns=COLUMNS)
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures/structure.png")
