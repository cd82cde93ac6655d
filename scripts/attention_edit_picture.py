"""Make docs/pictures/attention_edit.png: the same seeds under one prompt, under another one alone,
and under that with the attention of the first.

    python scripts/attention_edit_picture.py [OUT.png]

Left to right: "a red sphere left of a blue cube"; "a green sphere left of a blue cube" from the
same noise; the same with `AttentionEdit`, whose other object and background stay in place.
"""

import sys

import numpy as np
from PIL import Image

from underdraw import AttentionEdit, StableDiffusionPipeline

SOURCE, TARGET = "a red sphere left of a blue cube", "a green sphere left of a blue cube"
SEEDS = (0, 1, 2)


def main(out: str) -> None:
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    prompts, seeds = [SOURCE, TARGET] * len(SEEDS), [seed for seed in SEEDS for _ in range(2)]

    def make(controls: list[AttentionEdit]) -> np.ndarray:
        return pipe(
            prompts,
            num_inference_steps=20,
            guidance_scale=5.0,
            seed=seeds,
            controls=controls,
            output_type="np",
        ).images

    groups = [AttentionEdit(source=i, targets=(i + 1,)) for i in range(0, len(prompts), 2)]
    plain, edited = make([]), make(groups)
    rows = []
    for i in range(0, len(prompts), 2):
        row = [plain[i], plain[i + 1], edited[i + 1]]
        for name, picture in zip(("alone", "edited"), row[1:], strict=True):
            print(f"seed {seeds[i]}, {name}: mean change {np.abs(picture - plain[i]).mean():.3f}")
        row = [np.pad(one, ((2, 2), (2, 2), (0, 0)), constant_values=1.0) for one in row]
        rows.append(np.concatenate(row, 1))
    Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8)).save(out, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures/attention_edit.png")
