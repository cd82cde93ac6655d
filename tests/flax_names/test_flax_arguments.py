"""Wrong values: an error is one of ours and names the argument, and nothing was computed."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_names.recorded import all_params, components, key, network, params, pipeline, record
from zoo import ZOO

import underdraw
from underdraw.errors import InputError, InputTypeError, UnderdrawError

STATE = underdraw.FlaxDDIMScheduler().create_state()
LATENTS = jnp.zeros((1, 4, 4, 6))


def ids(prompts=1):
    return pipeline().prepare_inputs(record.THREE[:prompts])


CALL = {"prompt_ids": ids(), "params": {}, "prng_seed": key()}
METHODS = {
    "pipeline": (
        lambda: pipeline(),
        CALL,
        "prompt_ids params prng_seed num_inference_steps height width guidance_scale latents "
        "neg_prompt_ids return_dict jit",
    ),
    "prepare_inputs": (lambda: pipeline().prepare_inputs, {"prompt": "a"}, "prompt"),
    "numpy_to_pil": (lambda: pipeline().numpy_to_pil, {"images": np.zeros((2, 2, 3))}, "images"),
    "FlaxStableDiffusionPipeline": (
        lambda: underdraw.FlaxStableDiffusionPipeline,
        components(),
        "dtype compat vae unet tokenizer scheduler text_encoder",
    ),
    "from_pretrained": (
        lambda: underdraw.FlaxStableDiffusionPipeline.from_pretrained,
        {"name_or_path": "nowhere at all"},
        "name_or_path dtype from_pt variant compat",
    ),
    "from_pipe": (lambda: underdraw.FlaxStableDiffusionPipeline.from_pipe, {}, "pipeline"),
    "save_pretrained": (lambda: pipeline().save_pretrained, {"folder": "x"}, "params"),
    "FlaxAutoencoderKL": (lambda: underdraw.FlaxAutoencoderKL, {}, "config dtype"),
    "from_config": (lambda: underdraw.FlaxAutoencoderKL.from_config, {}, "config"),
    "init_weights": (lambda: network("vae").init_weights, {}, "rng"),
    "apply": (
        lambda: network("vae").apply,
        {"variables": {"params": params("vae")}, "args": LATENTS},
        "variables method",
    ),
    "to_bf16": (lambda: network("vae").to_bf16, {"params": {"a": LATENTS}}, "params mask"),
    "set_timesteps": (
        lambda: underdraw.FlaxDDIMScheduler().set_timesteps,
        {"state": STATE, "num_inference_steps": 2},
        "state num_inference_steps shape",
    ),
    "create_state": (lambda: underdraw.FlaxDDIMScheduler().create_state, {}, "common"),
    "FlaxDDIMScheduler": (lambda: underdraw.FlaxDDIMScheduler, {}, "num_train_timesteps"),
}
"""What is called, arguments that stand beside the one that is tried, and those that are."""
TRIED = [
    (name, argument) for name, (_, _, listed) in METHODS.items() for argument in listed.split()
]


@pytest.mark.parametrize(("name", "argument"), TRIED)
def test_a_part_of_the_zoo(name, argument, tmp_path, monkeypatch):
    """Either refused in one line that names the argument, or accepted: never another error."""
    monkeypatch.chdir(tmp_path)
    function, base, _ = METHODS[name]
    wrong = {}
    for which in list(ZOO)[TRIED.index((name, argument)) % 5 :: 5]:
        given = {**base, argument: ZOO[which]()}
        try:
            function()(**given)
        except UnderdrawError as error:
            told = str(error)
            named = argument in told or "nowhere" in told or isinstance(ZOO[which](), str)
            # What comes first is told first.
            named = named or (name == "pipeline" and "params" in told)
            if not named or "\n" in told or len(told) > 600:
                wrong[which] = told[:200]
        except Exception as error:
            wrong[which] = f"{type(error).__name__}: {error!s:.200}"
    assert wrong == {}


WRONG = [
    ({"prompt_ids": np.zeros((1, 30), int)}, "prompt_ids"),
    ({"prompt_ids": np.zeros((1, 1, 1, 5), int)}, "prompt_ids"),
    ({"prompt_ids": np.zeros((0, 5), int)}, "prompt_ids"),
    ({"prompt_ids": ids().astype(float)}, "prompt_ids"),
    ({"prompt_ids": np.zeros((99, 1, 5), int)}, "devices"),
    ({"neg_prompt_ids": ids(2)}, "neg_prompt_ids"),
    ({"prng_seed": 0}, "prng_seed"),
    ({"prng_seed": jax.random.split(key(), 2)}, "prng_seed"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": 1001}, "num_inference_steps"),
    ({"height": 25}, "height=25"),
    ({"width": -8}, "width"),
    ({"guidance_scale": [1.0, 2.0]}, "guidance_scale"),
    ({"guidance_scale": float("nan")}, "guidance_scale"),
    ({"latents": np.zeros((1, 4, 3, 3), np.float32)}, "latents"),
    ({"latents": np.full((1, 4, 12, 12), np.nan, np.float32)}, "latents"),
    ({"params": {**all_params(), "unet": params("wide")}}, "params"),
]


@pytest.mark.parametrize(("changes", "told"), WRONG)
def test_what_cannot_work_is_told_before_anything_is_computed(changes, told, monkeypatch):
    pipe = pipeline()
    monkeypatch.setattr(type(pipe), "ask", None)
    given = {"prompt_ids": ids(), "params": all_params(), "prng_seed": key(), **changes}
    with pytest.raises((InputError, InputTypeError, underdraw.WeightError), match=told):
        pipe(**given)


def test_typed_keys_are_taken(monkeypatch):
    drawn = []
    monkeypatch.setattr(type(pipeline()), "ask", lambda *given: drawn.append(given) or 1 / 0)
    for one in (key(3), jax.random.key(3)):
        with pytest.raises(ZeroDivisionError):
            pipeline()(ids(), all_params(), one, 2)
    assert len(drawn) == 2


def test_importing_loads_no_framework_and_jax_is_told_where_it_is_missing():
    code = (
        "import sys, underdraw\n"
        "cls = underdraw.FlaxStableDiffusionPipeline, underdraw.FlaxDDIMScheduler\n"
        "print(sorted({'jax', 'torch', 'msgpack'} & set(sys.modules)))\n"
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'jax' else find(name, *more)\n"
        "try:\n"
        "    underdraw.FlaxUNet2DConditionModel()\n"
        "except underdraw.InputError as error:\n"
        "    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first, second = done.stdout.strip().splitlines()
    assert first == "[]"
    assert "pip install 'underdraw[jax]'" in second


def test_the_base_is_no_pipeline(tmp_path):
    base = underdraw.FlaxDiffusionPipeline
    for make in (base, lambda: base.from_pretrained(tmp_path), lambda: base.from_single_file("x")):
        with pytest.raises(InputTypeError, match="FlaxStableDiffusionPipeline"):
            make()
