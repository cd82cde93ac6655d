"""Make docs/pictures/edit.png: renders before an edit, the place that was found, and after it.

Pairs and seeds are the first ones, as they come.

python scripts/edit_picture.py [OUT.png]
"""

import sys

import numpy as np
from PIL import Image

from underdraw import StableDiffusionDiffEditPipeline, StableDiffusionPipeline
from underdraw.evaluation import held_out_pairs
from underdraw.pictures.writing import grid, to_pil

PAIRS = range(4)  # of `held_out_pairs`: another colour, another shape, a removal, an addition


def main(out: str) -> None:
    plain = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    pipe = StableDiffusionDiffEditPipeline.from_pipe(plain)
    pairs = held_out_pairs(max(PAIRS) + 1)
    rows = []
    for i in PAIRS:
        before = to_pil(pairs[i].before.rendering.image[None])[0]
        texts = [side.caption.text for side in (pairs[i].before, pairs[i].after)]
        scale = pipe.advice.guidance_scale or 7.5
        made = pipe.edit(before, *texts, guidance_scale=scale, seed=i, paste=True)
        mask = Image.fromarray(np.uint8(255) * made.mask_image[0].astype(np.uint8))
        mask = mask.resize(before.size, Image.Resampling.NEAREST)
        dark = Image.blend(before, Image.new("RGB", before.size), 0.65)
        rows += [before, Image.composite(before, dark, mask), made.images[0]]
        print(" -> ".join(texts))
    sheet = grid(rows, columns=3)
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.LANCZOS).save(out)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures/edit.png")
