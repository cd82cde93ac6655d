"""`repr` of what users hold is short and tells what matters; notebooks show pictures."""

from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from pipelines.tiny import pipeline, run

from underdraw import (
    DDIMScheduler,
    StableDiffusionDiffEditPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionPipeline,
    batched,
)
from underdraw.backends.node import Node
from underdraw.models import CLIPImageProcessor, Grounding
from underdraw.models.outputs import Output, Tree
from underdraw.networks.gligen.config import GroundingConfig
from underdraw.shown import html, short

LONGEST = 200
"""Characters of a line."""


def subclasses(kind):
    return [kind, *(one for below in kind.__subclasses__() for one in subclasses(below))]


def test_a_pipeline_lists_components_and_how_they_run():
    pipe = pipeline()
    text = repr(pipe)
    assert text.splitlines()[0] == "StableDiffusionPipeline: torch, cpu, float32, engine eager"
    assert "  unet: UNet2DConditionModel(203,204 parameters, float32, cpu, torch)\n" in text
    assert "  safety_checker: None\n" in text and text.endswith("attached: nothing")
    for name in pipe.components:
        assert f"  {name}: " in text
    assert max(map(len, text.splitlines())) < LONGEST

    pipe.enable_vae_tiling()
    pipe.compat, pipe.source, pipe.engine = "diffusers", "some/where", "compiled"
    pipe.vae.to("bfloat16")
    text = repr(pipe)
    assert "StableDiffusionPipeline of 'some/where': torch, cpu, float32, engine compiled" in text
    assert "settings: vae_tiling\n" in text and "compat: diffusers\n" in text
    assert "bfloat16, cpu, torch)\n" in text
    pipe.parts.named["vae"] = SimpleNamespace(_orig_mod=pipe.vae)
    assert "cpu, torch), compiled\n" in repr(pipe)  # by torch.compile


def test_a_pipeline_lists_what_is_attached():
    pipe = StableDiffusionGLIGENPipeline.from_pipe(pipeline())
    pipe.load_grounding(Grounding(GroundingConfig.for_unet(pipe.unet.config, "text")))
    assert repr(pipe).endswith("attached: grounding 'text'")
    gated = pipe.unet.with_grounding(pipe.groundings["text"])
    assert "(in the UNet)" in repr(StableDiffusionPipeline.from_pipe(pipeline(), unet=gated))


def test_a_folder_is_not_read_for_it(monkeypatch):
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    monkeypatch.setattr("underdraw.weights.folders.open_component", None)
    assert "grounding (in its folder, read when it is used)" in repr(pipe)
    assert not pipe.parts.attached.by_kind


def test_what_is_not_set_up_has_one_too():
    for kind in (StableDiffusionPipeline, type(pipeline().unet)):
        assert kind.__name__ in repr(object.__new__(kind))


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_networks_are_one_line(backend):
    pytest.importorskip(backend)
    for value in tiny.on(backend, tiny.components()).values():
        if hasattr(value, "num_parameters"):
            assert repr(value).startswith(f"{type(value).__name__}({value.num_parameters():,} par")
            assert len(repr(value)) < LONGEST and backend in repr(value)
    assert repr(Node({"a": 1})) == "Node(a)"


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_outputs_are_one_line(output_type):
    made = pipeline()("a sphere", num_inference_steps=1, output_type=output_type, seed=1)
    assert repr(made).startswith("StableDiffusionPipelineOutput(images=")
    assert len(repr(made)) < LONGEST and "\n" not in repr(made)
    shown = made._repr_html_(), made._repr_png_()
    if output_type == "pil":
        assert shown[0].count("<img") == 1 and Image.open(BytesIO(shown[1])).size == (64, 64)
    else:
        assert shown == (None, None)


def test_every_kind_of_output_is_short():
    """Those to come, too: arrays are told by dtype and shape, not by their numbers."""
    for kind in subclasses(Tree):
        assert "__repr__" in vars(kind) or kind is Tree
    for kind in subclasses(Output)[1:]:
        made = object.__new__(kind)
        for name in kind.__dataclass_fields__:
            setattr(made, name, torch.zeros(300, 300))
        assert "float32 (300, 300)" in repr(made) and len(repr(made)) < 2 * LONGEST


def test_streams():
    pipe = pipeline()
    stream = pipe.stream("a sphere", num_inference_steps=2, seed=1)
    assert repr(stream) == "<Stream of StableDiffusionPipeline, before its first call>"
    step = next(stream)
    assert repr(stream) == "<Stream of StableDiffusionPipeline, call 1 of 2 done>"
    assert repr(step) == (
        "Progress(index=0, calls=2, timestep=999.0, latents=float32 (1, 4, 8, 8))"
    )
    assert Image.open(BytesIO(step._repr_png_())).size == (64, 64)
    stream.close()
    assert repr(stream) == "<Stream of StableDiffusionPipeline, ended, call 1 of 2 done>"
    runs = batched([pipe.stream("a sphere"), pipe.stream("a cube")])
    assert repr(runs) == "<Batched: 2 of 2 streams going on>"
    runs.close()


def test_edits_show_pictures_and_masks():
    pipe = StableDiffusionDiffEditPipeline.from_pipe(
        pipeline(), scheduler=DDIMScheduler(clip_sample=False, steps_offset=1)
    )
    picture = Image.effect_noise((64, 64), 40).convert("RGB")
    made = pipe.edit(picture, "a sphere", "a cube", num_inference_steps=2)
    assert made._repr_html_().count("<img") == 2 and len(repr(made)) < LONGEST
    found = pipe.invert("a sphere", picture, num_inference_steps=3, decode_latents=True)
    assert found._repr_html_().count("<img") == 2 and len(repr(found)) < LONGEST
    plain = pipe.invert("a sphere", picture, num_inference_steps=3)
    assert plain._repr_html_() is None


def test_steps_and_processed_pictures():
    scheduler, x = DDIMScheduler(), torch.zeros(1, 4, 2, 2)
    scheduler.set_timesteps(2)
    assert repr(scheduler.step(x, 500, x)).startswith("StepOutput(prev_sample=float32 (1, 4, 2, 2)")
    pixels = CLIPImageProcessor()(Image.new("RGB", (9, 9)))
    assert repr(pixels) == "ProcessedImages(pixel_values=float32 (1, 3, 224, 224))"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((2, 3), np.uint8), "uint8 (2, 3)"),
        (torch.zeros(2, dtype=torch.bfloat16), "bfloat16 (2,)"),
        ([torch.zeros(2)] * 5, "[5 x float32 (2,)]"),
        (Image.new("RGB", (4, 3)), "Image 4x3"),
        ([1, 2, 3, 4, 5], "[1, 2, 3, ... 5 items]"),
        ((True, True), "(True, True)"),
        ({"a": np.zeros(2)}, "{'a': float64 (2,)}"),
        ([], "[]"),
        (None, "None"),
        ("x" * 300, "'" + "x" * 116 + "..."),
    ],
)
def test_values(value, text):
    assert short(value) == text


def test_many_pictures_are_a_few_and_a_number():
    shown = html([Image.new("L", (1, 1))] * 30)
    assert shown.count("<img") == 16 and "and 14 more" in shown


def test_a_run_is_what_it_was(tmp_path):
    """Being shown changes nothing."""
    pipe = pipeline()
    before = run(pipe)
    repr(pipe), repr(pipe.unet)
    assert torch.equal(run(pipe), before)
