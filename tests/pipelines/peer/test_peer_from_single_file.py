"""A single file written here: diffusers and ours read the same pipeline from it."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
from pipelines.peer import oracle

from underdraw import StableDiffusionPipeline
from underdraw.weights import folders, save, single_file


@pytest.mark.parametrize("kind", ["sd1"])
def test_images_of_the_folder_of_ours_and_of_the_peer(kind, tmp_path):
    place, file = tmp_path / "folder", tmp_path / "model.safetensors"
    peer = oracle.folder(str(place), kind)
    parts = {n: folders.open_component(place, n) for n in ("unet", "vae", "text_encoder")}
    save.save_tensors(file, single_file.to_single_file(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.StableDiffusionPipeline.from_single_file(
            str(file),
            config=str(place),
            tokenizer=peer.tokenizer,
            text_encoder=peer.text_encoder,
            safety_checker=None,
            local_files_only=True,
        )
    ours = StableDiffusionPipeline.from_single_file(file, config=place)
    made = []
    for pipe in (peer, oracle.quiet(theirs), oracle.quiet(ours)):
        generator = torch.Generator().manual_seed(3)
        call = {"num_inference_steps": 4, "height": 40, "width": 72, "output_type": "np"}
        made.append(pipe("a red sphere", generator=generator, **call).images)
    assert np.array_equal(made[0], made[1])
    assert abs(made[0] - made[2]).max() <= 1e-4
