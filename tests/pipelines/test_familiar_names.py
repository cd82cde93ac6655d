"""Names of diffusers that scripts use: they work, or say once that nothing changes."""

import dataclasses
import inspect
import re
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from pipelines.tiny import pipeline, run

import underdraw
from underdraw import (
    DDIMScheduler,
    StableDiffusionPipelineOutput,
    schedulers,
)
from underdraw.errors import InputError, InputTypeError, UnderdrawError
from underdraw.pipelines.diffusers.checking import PLACES

PIPELINES = [
    getattr(underdraw, name)
    for name in underdraw.__all__
    if name.endswith("Pipeline") and name != "DiffusionPipeline" and not name.startswith("Flax")
]
PLAIN = [kind for kind in PIPELINES if "qformer" not in kind.names().needed]
"""Those that begin with the networks of Stable Diffusion."""
SCHEDULERS = [getattr(schedulers, name) for name in schedulers.__all__]


# -- what inspect and editors see ----------------------------------------------------------------
@pytest.mark.parametrize("kind", PIPELINES)
def test_calls_return_pictures(kind):
    told = inspect.signature(kind.__call__)
    assert (
        told.return_annotation
        == StableDiffusionPipelineOutput | tuple[typing.Any, list[bool] | None]
    )
    assert told.parameters["return_dict"].annotation == "bool"
    hints = typing.get_type_hints(kind.__call__)
    assert hints["return"] == told.return_annotation and hints["return_dict"] is bool
    assert set(hints) - {"return"} == set(told.parameters) - {"self"}
    assert "Args:" in kind.__call__.__doc__ or "arguments" in kind.__call__.__doc__


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_show_their_arguments(kind):
    fields = {field.name: field.default for field in dataclasses.fields(kind.Config)}
    told = inspect.signature(kind)
    assert {name: p.default for name, p in told.parameters.items()} == fields
    assert kind(**fields).config == kind(*fields.values()).config


def test_classes_stay_themselves():
    pipe = pipeline()
    for kind in PLAIN:
        if "TextImage" in kind.__name__:  # it needs networks that see pictures
            continue
        made = kind.from_pipe(pipe, **readers(kind, pipe.unet))
        assert type(made.to("cpu")) is kind


def readers(kind, unet):
    """The network that a class needs besides those of the plain pipeline."""
    if "controlnet" in kind.names().needed:
        return {"controlnet": tiny.controlnet(unet)}
    return {"adapter": tiny.adapter()} if "adapter" in kind.names().needed else {}


# -- check_inputs ----------------------------------------------------------------------------------
GOOD = {
    "StableDiffusionPipeline": ("a sphere", 64, 64, 1),
    "StableDiffusionImg2ImgPipeline": ("a sphere", 0.5, 1),
    "StableDiffusionInpaintPipeline": (
        *("a sphere", Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255)),
        *(64, 64, 0.5, 1, "pil"),
    ),
    "StableDiffusionGLIGENPipeline": ("a sphere", 64, 64, 1, ["a"], [[0, 0, 1, 1]]),
    "StableDiffusionGLIGENTextImagePipeline": ("a sphere", 64, 64, 1, None, ["a"]),
    "StableDiffusionDiffEditPipeline": ("a sphere", 0.8, 1),
    "StableDiffusionControlNetPipeline": ("a sphere", Image.new("RGB", (64, 64)), 1),
    "StableDiffusionControlNetImg2ImgPipeline": ("a sphere", Image.new("RGB", (64, 64)), 1),
    "StableDiffusionControlNetInpaintPipeline": (
        *("a sphere", Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255)),
        *(64, 64, 1, "pil"),
    ),
    "StableDiffusionAdapterPipeline": ("a sphere", 64, 64, 1, Image.new("RGB", (64, 64))),
}
BAD = {
    "prompt": 3,
    "height": 63,
    "width": "64",
    "strength": 1.5,
    "callback_steps": 0,
    "negative_prompt": ["a", "b", "c"],
    "callback_on_step_end_tensor_inputs": ["nothing"],
    "output_type": "jpeg",
    "nonsense": 1,
}


@pytest.fixture(scope="module")
def grounded():
    """A pipeline of each class on networks with grounding layers."""
    from underdraw.models import CLIPImageProjection, Grounding
    from underdraw.networks.gligen.config import GroundingConfig

    pipe = pipeline()
    made = {}
    for kind in PLAIN:
        more = readers(kind, pipe.unet)
        if "TextImage" in kind.__name__:
            more = {"processor": lambda *_, **__: None, "image_encoder": _image_encoder()}
            more["image_project"] = CLIPImageProjection(hidden_size=16)
        made[kind.__name__] = one = kind.from_pipe(pipe, **more)
        if "GLIGEN" in kind.__name__:
            what = "text-image" if "TextImage" in kind.__name__ else "text"
            one.load_grounding(Grounding(GroundingConfig.for_unet(pipe.unet.config, what)))
    return made


def _image_encoder():
    from underdraw.models import CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
        image_size=28,
        patch_size=14,
    )


@pytest.mark.parametrize("name", GOOD)
def test_inputs_are_checked_without_a_call(grounded, monkeypatch, name):
    pipe, places = grounded[name], PLACES[name].split()
    monkeypatch.setattr(type(pipe.engine), "run", None)
    assert pipe.check_inputs(*GOOD[name]) is None
    named = dict(zip(places, GOOD[name], strict=False))
    assert pipe.check_inputs(**named) is None
    takes = inspect.signature(type(pipe).__call__).parameters
    for argument, value in BAD.items():
        if argument in takes or argument in places or argument == "nonsense":
            with pytest.raises(UnderdrawError, match=argument):
                pipe.check_inputs(**{**named, argument: value})
    with pytest.raises(InputTypeError, match="at most"):
        pipe.check_inputs(*range(30))
    with pytest.raises(InputTypeError, match="given twice"):
        pipe.check_inputs("a", prompt="b")


def test_a_check_leaves_no_trace():
    pipe = pipeline()
    before, state = run(pipe), torch.get_rng_state()
    pipe.check_inputs("a sphere", 64, 64, 1)
    assert (torch.get_rng_state() == state).all() and torch.equal(run(pipe), before)
    assert pipe.engine.run.__self__ is pipe.engine


# -- notes instead of errors -------------------------------------------------------------------
NOTES = [
    ("pipe", "enable_xformers_memory_efficient_attention", (), "fused attention"),
    ("pipe", "enable_sequential_cpu_offload", (), "changes nothing.*no accelerator"),
    ("pipe", "enable_sequential_cpu_offload", (0, "cuda"), "changes nothing"),
    ("pipe", "set_use_memory_efficient_attention_xformers", (True,), "fused attention"),
    ("unet", "enable_xformers_memory_efficient_attention", (), "fused kernels"),
    ("vae", "set_use_memory_efficient_attention_xformers", (True,), "fused kernels"),
    ("unet", "set_attention_slice", ("auto",), "enable_attention_slicing"),
]
QUIET = [
    ("pipe", "disable_xformers_memory_efficient_attention", ()),
    ("pipe", "reset_device_map", ()),
    ("unet", "disable_xformers_memory_efficient_attention", ()),
    ("unet", "set_default_attn_processor", ()),
    ("vae", "set_use_memory_efficient_attention_xformers", (False,)),
]


@pytest.mark.parametrize(("owner", "name", "args", "words"), NOTES)
def test_switches_that_change_nothing_say_so(owner, name, args, words, caplog, monkeypatch):
    monkeypatch.setattr("underdraw.backends.hardware._count", lambda kind: int(kind == "cpu"))
    pipe = pipeline()
    before = run(pipe)
    getattr(pipe if owner == "pipe" else getattr(pipe, owner), name)(*args)
    assert len(caplog.records) == 1 and caplog.records[0].name.startswith("underdraw")
    assert re.search(words, caplog.text)
    assert torch.equal(run(pipe), before)


@pytest.mark.parametrize(("owner", "name", "args"), QUIET)
def test_switches_back_say_nothing(owner, name, args, caplog):
    pipe = pipeline()
    assert getattr(pipe if owner == "pipe" else getattr(pipe, owner), name)(*args) is None
    assert not caplog.records


def test_attention_processors():
    pipe = pipeline()
    names = pipe.unet.attn_processors
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.processor" in names
    assert "encoder.mid_block.attentions.0.processor" in pipe.vae.attn_processors
    pipe.unet.set_attn_processor(names)
    pipe.unet.set_attn_processor(type("AttnProcessor2_0", (), {})())
    for wrong in (object(), {"nowhere.processor": next(iter(names.values()))}, 3, None):
        with pytest.raises(InputError, match="processor"):
            pipe.unet.set_attn_processor(wrong)


def test_modules_are_registered_as_components():
    pipe, scheduler = pipeline(), DDIMScheduler()
    pipe.register_modules(scheduler=scheduler, safety_checker=None)
    assert pipe.scheduler is scheduler
    with pytest.raises(InputTypeError, match="no components"):
        pipe.register_modules(nonsense=1)
    with pytest.raises(InputTypeError, match="unet=None"):
        pipe.register_modules(unet=None)


def test_loops_of_ones_own():
    pipe = pipeline()
    generator = torch.Generator()
    given = pipe.prepare_extra_step_kwargs(generator, 0.5)
    assert given == {"eta": 0.5, "generator": generator}
    pipe.scheduler.set_timesteps(10)
    times, steps = pipe.get_timesteps(10, 0.4)
    assert steps == 4 and torch.equal(times, pipe.scheduler.timesteps[6:])
    for wrong in ((0, 0.5), (10, 2), ("10", 0.5), (10, None)):
        with pytest.raises(UnderdrawError, match=r"num_inference_steps|strength"):
            pipe.get_timesteps(*wrong)


def test_a_checker_looks_at_arrays_too():
    pipe = pipeline()

    class Checker:
        dtype, device = torch.float32, "cpu"

        def flags(self, pixels, ask):
            return [False, True, False][: len(pixels)]

    pipe.parts.named |= {"safety_checker": Checker(), "feature_extractor": tiny_reader()}
    pixels = np.random.default_rng(0).random((3, 8, 8, 3)).astype(np.float32)
    made, flags = pipe.run_safety_checker(pixels, "cpu", torch.float32)
    assert flags == [False, True, False] and made.dtype == np.float32
    assert (made[1] == 0).all() and (made[[0, 2]] == pixels[[0, 2]]).all() and pixels[1].any()
    tensor, flags = pipe.run_safety_checker(torch.zeros(2, 3, 8, 8))
    assert (tensor[0] == 0).all() and (tensor[1] == -1).all()
    for wrong in (np.zeros((8, 8, 3)), np.full((1, 8, 8, 3), np.nan), torch.zeros(3, 8, 8), "a"):
        with pytest.raises(UnderdrawError, match="image"):
            pipe.run_safety_checker(wrong)
    pipe.safety_checker = None
    assert pipe.run_safety_checker(pixels)[1] is None


def tiny_reader():
    from underdraw.models import CLIPImageProcessor

    return CLIPImageProcessor(8, (8, 8))


def test_the_script_that_lint_checks_runs(tmp_path, capsys):
    tiny.pipeline().save_pretrained(tmp_path / "model")
    script = Path(__file__).parents[1] / "typed" / "user_script.py"
    found: dict = {"__name__": "script"}
    exec(compile(script.read_text(), script, "exec"), found)
    made = found["main"](str(tmp_path / "model"), tmp_path, 2)
    assert [path.name for path in made] == ["first.png", "streamed.png", "changed.png", "grid.png"]
    assert all(path.exists() for path in made)
