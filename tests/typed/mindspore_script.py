"""What users of mindone's port write, as type checkers see it: tuples unless an object is asked
for."""

import numpy as np
from typing_extensions import assert_type

from underdraw import StableDiffusionPipelineOutput
from underdraw.mindspore import AutoencoderKL, StableDiffusionPipeline


def main(folder: str) -> list[str]:
    pipe = StableDiffusionPipeline.from_pretrained(folder, mindspore_dtype="float16")
    assert_type(pipe, StableDiffusionPipeline)
    images, flags = pipe("a red sphere", generator=np.random.default_rng(0))
    assert_type(flags, list[bool] | None)
    whole = pipe("a red sphere", return_dict=True)
    assert_type(whole, StableDiffusionPipelineOutput)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    pictures = vae.decode(vae.diag_gauss_dist.mode(vae.encode(images)[0]))[0]
    return [str(pictures), str(whole.images)]
