"""diffusers reads what is merged, extracted and written as a single file."""

import diffusers
import pytest
import torch
from checkpoints.test_checkpoints import SIZE, moved_by, weights
from pipelines import tiny

import underdraw
from underdraw import checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")  # of numpy, PEFT and transformers
LIMIT = 1e-4
"""Of latents of size 1 after two steps, in other orders of sums."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    place = tmp_path_factory.mktemp("shelf")
    deep = {"unet": tiny.DEEP}
    tiny.pipeline(**deep).save_pretrained(place / "base")
    moved_by(tiny.pipeline(**deep), 1, rank=2).save_pretrained(place / "low")
    return place


def both(folder):
    """The pipeline of a folder, diffusers' and ours."""
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    ours = underdraw.StableDiffusionPipeline.from_pretrained(folder)
    return theirs, ours


def latents(pipe):
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    return pipe("a red sphere", latents=noise, output_type="latent", **SIZE).images


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_an_extracted_lora(shelf, tmp_path, spelling):
    file = tmp_path / "low.safetensors"
    checkpoints.extract_lora(
        shelf / "low", shelf / "base", file, error=1e-3, dtype="float32", spelling=spelling
    )
    wanted, plain = (
        latents(diffusers.StableDiffusionPipeline.from_pretrained(shelf / name))
        for name in ("low", "base")
    )
    theirs, ours = both(shelf / "base")
    for pipe in (theirs, ours):
        pipe.load_lora_weights(str(file))
        made = latents(pipe)
        assert (made - wanted).abs().max() <= 1e-2 * (plain - wanted).abs().max()


def test_a_merge(shelf, tmp_path):
    """As a folder, and as an original single file, by diffusers' own reader of either."""
    options = {"weights": 0.3}
    models = [shelf / "base", shelf / "low"]
    folder = checkpoints.merge(models, tmp_path / "made", **options)
    theirs, ours = both(folder)
    assert (latents(theirs) - latents(ours)).abs().max() <= LIMIT
    file = checkpoints.merge(models, tmp_path / "made.safetensors", **options)
    unet = diffusers.UNet2DConditionModel.from_single_file(
        str(file), config=str(folder), subfolder="unet"
    )
    held = weights(folder)
    for key, value in unet.state_dict().items():
        assert torch.equal(value, held[f"unet.{key}"])
