"""Components: their dtypes, what may take their place, copies of a whole pipeline."""

import numpy as np
import pytest
import torch
from pipelines import tiny
from pipelines.tiny import run

SIZE = {"height": 40, "width": 72}


@pytest.mark.parametrize("name", ["vae", "unet", "text_encoder"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_one_network_in_another_dtype(name, dtype):
    pipe = tiny.pipeline()
    plain = pipe("a red sphere", seed=3, num_inference_steps=2, output_type="np", **SIZE).images
    getattr(pipe, name).to(dtype)
    made = pipe("a red sphere", seed=3, num_inference_steps=2, output_type="np", **SIZE).images
    assert made.shape == (1, 40, 72, 3)
    assert np.abs(made - plain).max() < (0.1 if dtype == torch.bfloat16 else 1e-4)
    assert run(pipe).dtype == pipe.unet.dtype
