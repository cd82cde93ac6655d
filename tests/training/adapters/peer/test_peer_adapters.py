"""What was trained, in diffusers with PEFT and as A1111 reads it."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from pipelines import tiny
from safetensors.numpy import load_file
from training.adapters.shown import SHORT, SMALL, pictures

from underdraw.training.adapters.learners import LoraConfig, Word
from underdraw.training.adapters.lora import train_lora
from underdraw.training.adapters.words import train_textual_inversion

# PEFT and Transformers warn of much on their way.
pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 2e-5
"""Of the largest number, as in `test_peer_lora`; asked for is 1e-4."""
CALL = {"height": 40, "width": 72, "num_inference_steps": 2, "output_type": "latent"}
RUN = replace(SHORT, steps=2, learning_rate=3e-2)


@pytest.fixture
def pair(both):
    """One random pipeline, ours and theirs, with nothing loaded."""
    yield both
    for pipe in both:
        pipe.unload_lora_weights()
        pipe.unload_textual_inversion()


@pytest.fixture(scope="module")
def both():
    ours = tiny.pipeline(compat="diffusers", unet=tiny.DEEP)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    return ours, theirs


def apart(ours, theirs, prompt="a red sphere", **arguments):
    """How far their pictures are apart, of the largest number."""
    latents = torch.randn(1, 4, 5, 9, generator=torch.Generator().manual_seed(3))
    one, other = (
        pipe(prompt, latents=latents, **CALL, **arguments).images for pipe in (ours, theirs)
    )
    return float((one - other).abs().max() / other.abs().max())


# Alphas alike in all layers: with others diffusers itself is wrong (test_peer_lora).
KINDS = {
    "all": LoraConfig(3, alpha=5.0, conv_rank=3, text_encoder=True),
    "dora": LoraConfig(3, alpha=2.0, conv_rank=3, dora=True),
}


@pytest.mark.parametrize(
    ("kind", "spelling"),
    [("all", "diffusers"), ("dora", "diffusers"), ("all", "kohya")],
)
def test_loras(pair, kind, spelling, tmp_path):
    ours = pair[0]
    _, path = train_lora(ours, pictures(), tmp_path, KINDS[kind], SMALL, RUN, spelling=spelling)
    plain = ours("a red sphere", seed=0, **CALL).images
    for pipe in pair:
        pipe.load_lora_weights(path.parent, weight_name=path.name)
    assert apart(*pair) <= BOUND
    assert not torch.allclose(ours("a red sphere", seed=0, **CALL).images, plain, atol=1e-2)


def merged(weight, tensors, module):
    """A weight with a module of a file added as A1111's networks do: `alpha / dim * up @ down`;
    with `dora_scale` its rows then have these lengths."""
    up, down = (tensors[f"{module}.lora_{part}.weight"] for part in ("up", "down"))
    scale = float(tensors[f"{module}.alpha"]) / len(down)
    made = weight + scale * (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(
        weight.shape
    )
    if f"{module}.dora_scale" in tensors:
        lengths = np.linalg.norm(made.reshape(len(made), -1), axis=1)
        ones = (-1,) + (1,) * (weight.ndim - 1)
        assert tensors[f"{module}.dora_scale"].shape == (len(made), *(1,) * (weight.ndim - 1))
        made = made / lengths.reshape(ones) * tensors[f"{module}.dora_scale"]
    return made


@pytest.mark.parametrize("kind", ["all", "unlike"])
def test_kohya_files_as_a1111_reads_them(pair, kind, tmp_path):
    ours = pair[0]
    unlike = LoraConfig(4, alpha=1.0, conv_rank=2, text_encoder=True, dora=True)
    config = KINDS.get(kind, unlike)
    _, path = train_lora(ours, pictures(), tmp_path, config, SMALL, RUN, spelling="kohya")
    tensors, seen = load_file(path), set()
    ours.load_lora_weights(path)
    ours.fuse_lora()
    for component, start, network in (
        ("unet", "lora_unet", pair[1].unet),
        ("text_encoder", "lora_te", pair[1].text_encoder),
    ):
        fused = dict(getattr(ours, component).named_parameters())
        for name, value in network.named_parameters():
            path_of = name.removesuffix(".weight")
            if component == "text_encoder" and not path_of.startswith("text_model."):
                path_of = f"text_model.{path_of}"  # as Transformers 4 has it, and kohya
            module = f"{start}_{path_of.replace('.', '_')}"
            if f"{module}.alpha" in tensors:
                seen.add(module)
                wanted = merged(value.detach().numpy(), tensors, module)
                found = fused[f"{path_of}.weight"].detach().numpy()
                np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=module)
    assert seen == {name.split(".")[0] for name in tensors}


def test_words(pair, tmp_path):
    ours = pair[0]
    word = Word("<toy>", 3, "red")
    _, path = train_textual_inversion(
        ours, pictures(caption="a <toy> on the table"), tmp_path, word, SMALL, RUN
    )
    for pipe in pair:
        pipe.load_textual_inversion(path)
    assert apart(*pair, "a <toy> and a red cube") <= BOUND
    # A1111: the only tensor of a file, which is named by the word.
    _, path = train_textual_inversion(
        ours,
        pictures(caption="a <other> on the table"),
        tmp_path / "other",
        replace(word, text="<other>"),
        SMALL,
        RUN,
        spelling="kohya",
    )
    assert path.name == "other.safetensors"
    (vectors,) = load_file(path).values()
    assert vectors.shape == (3, tiny.WIDTH)
    for pipe in pair:
        pipe.load_textual_inversion(path, token="<other>")
    assert apart(*pair, "a <other> and a red cube") <= BOUND
