"""Arguments that cannot work: the error names the argument, what it was and what is allowed; it
comes before the UNet is called, and the next good call gives the same bits as before."""

import numpy as np
import pytest
import torch
from pipelines import tiny
from pipelines.tiny import run

from underdraw import StableDiffusionPipeline, schedulers
from underdraw.controls import Control
from underdraw.errors import (
    ControlError,
    InputError,
    InputTypeError,
    NonFiniteError,
    UnderdrawError,
)

NAN, INF = float("nan"), float("inf")
VALUE, TYPE = InputError, InputTypeError


def embeds(*shape, fill=0.5, dtype=torch.float32):
    return torch.full(shape or (1, 77, tiny.WIDTH), fill, dtype=dtype)


def latents(*shape, fill=0.5, dtype=torch.float32):
    return torch.full(shape or (1, 4, 8, 8), fill, dtype=dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


async def later(*_):
    """Called, it runs nothing."""


def yields(*_):
    yield


two = ["a", "b"]
# what is wrong: (arguments, error, what its message says)
CASES = {
    # prompts
    "no prompt": ({"prompt": None}, VALUE, "prompt=None; give prompt or prompt_embeds"),
    "prompt number": ({"prompt": 3}, TYPE, "prompt=3 is not a string or a list of strings"),
    "prompt dict": ({"prompt": {"a": 1}}, TYPE, "prompt={'a': 1} is not a string"),
    "prompt bytes": ({"prompt": b"a"}, TYPE, "prompt=b'a' is not a string"),
    "prompt set": ({"prompt": {"a"}}, TYPE, "prompt={'a'} is not a string"),
    "prompt None inside": ({"prompt": ["a", None]}, TYPE, r"prompt=\['a', None\] is not"),
    "prompt nested": ({"prompt": [["a"]]}, TYPE, r"prompt=\[\['a'\]\] is not"),
    "prompt empty list": ({"prompt": []}, VALUE, "prompt is an empty list; give at least one"),
    "prompt weight": ({"prompt": "(a:x)"}, VALUE, "weight 'x' after 'a': allowed is a number"),
    "prompt bracket": ({"prompt": "a (b"}, VALUE, "is never closed; write"),
    "prompt surrogate": ({"prompt": "\ud800"}, VALUE, "not valid unicode"),
    "negative number": ({"negative_prompt": 1.5}, TYPE, "negative_prompt=1.5 is not a string"),
    "negative None inside": ({"negative_prompt": [None]}, TYPE, r"negative_prompt=\[None\] is"),
    "negative empty list": ({"negative_prompt": []}, VALUE, "negative_prompt is an empty list"),
    "negative count": (
        {"prompt": two, "negative_prompt": ["c"]},
        VALUE,
        "negative_prompt has 1 entries; there are 2 prompts",
    ),
    "negative bracket": ({"negative_prompt": "b)"}, VALUE, "closes nothing"),
    # sizes
    "height off": ({"height": 63}, VALUE, "height=63 is not a multiple of 8; .* 56 and 64"),
    "width off": ({"width": 4}, VALUE, "width=4 is not a multiple of 8; .* 8 and 16"),
    "height zero": ({"height": 0}, VALUE, "height=0 is too small; allowed: 1 or more"),
    "width negative": ({"width": -64}, VALUE, "width=-64 is too small"),
    "height float": ({"height": 64.0}, TYPE, "height=64.0 is not a whole number"),
    "width bool": ({"width": True}, TYPE, "width=True is not a whole number"),
    "height text": ({"height": "64"}, TYPE, "height='64' is not a whole number"),
    "size list": ({"height": [64]}, TYPE, r"height=\[64\] is not a whole number"),
    # steps and times
    "no steps": ({"num_inference_steps": 0}, VALUE, "num_inference_steps=0 is too small"),
    "negative steps": ({"num_inference_steps": -1}, VALUE, "num_inference_steps=-1 is too small"),
    "steps float": ({"num_inference_steps": 2.5}, TYPE, "num_inference_steps=2.5 is not a whole"),
    "steps None": ({"num_inference_steps": None}, TYPE, "num_inference_steps=None is not a whole"),
    "steps bool": ({"num_inference_steps": True}, TYPE, "num_inference_steps=True is not a whole"),
    "many steps": (
        {"num_inference_steps": 1001},
        VALUE,
        "num_inference_steps=1001 is too large.*1000",
    ),
    "both times": (
        {"timesteps": [9, 1], "sigmas": [3.0, 1.0]},
        VALUE,
        "timesteps and sigmas are both given",
    ),
    "times rise": ({"timesteps": [1, 500]}, VALUE, "timesteps=.* must fall"),
    "times twice": ({"timesteps": [500, 500, 1]}, VALUE, "timesteps=.* must fall"),
    "times too large": ({"timesteps": [1000, 1]}, VALUE, "timesteps=.* between 0 and 999"),
    "times negative": ({"timesteps": [500, -1]}, VALUE, "timesteps=.* between 0 and 999"),
    "times empty": ({"timesteps": []}, VALUE, r"timesteps=\[\] must hold at least one number"),
    "times NaN": ({"timesteps": [NAN, 1]}, VALUE, "timesteps=.*nan.* finite"),
    "times text": ({"timesteps": "abc"}, TYPE, "timesteps='abc' must be a list of numbers"),
    "times number": ({"timesteps": 5}, TYPE, "timesteps=5 must be a list of numbers"),
    "sigmas NaN": ({"sigmas": [3.0, NAN]}, VALUE, "sigmas=.*nan.* finite"),
    "sigmas rise": ({"sigmas": [1.0, 3.0]}, VALUE, "sigmas=.* must fall"),
    "sigmas negative": ({"sigmas": [3.0, -1.0]}, VALUE, "sigmas="),
    "sigmas None": ({"sigmas": [3.0, None]}, TYPE, "sigmas=.* must be a list of numbers"),
    # numbers
    "guidance NaN": ({"guidance_scale": NAN}, VALUE, "guidance_scale=nan is out of range"),
    "guidance inf": ({"guidance_scale": INF}, VALUE, "guidance_scale=inf is out of range"),
    "guidance text": ({"guidance_scale": "7"}, TYPE, "guidance_scale='7' is not a number"),
    "guidance None": ({"guidance_scale": None}, TYPE, "guidance_scale=None is not a number"),
    "guidance count": (
        {"prompt": two, "guidance_scale": [1.0]},
        VALUE,
        "guidance_scale has 1 entries; the call makes 2 images",
    ),
    "guidance NaN inside": ({"guidance_scale": [NAN]}, VALUE, "guidance_scale=nan is out of"),
    "guidance None inside": ({"guidance_scale": [None]}, TYPE, "guidance_scale=None is not a num"),
    "rescale": ({"guidance_rescale": 1.5}, VALUE, "guidance_rescale=1.5 is out of range; .*1.0"),
    "rescale NaN": ({"guidance_rescale": NAN}, VALUE, "guidance_rescale=nan is out of range"),
    "eta": ({"eta": 1.5}, VALUE, "eta=1.5 is out of range; allowed: finite, 0.0 .. 1.0"),
    "eta NaN": ({"eta": NAN}, VALUE, "eta=nan is out of range"),
    "eta None": ({"eta": None}, TYPE, "eta=None is not a number"),
    "per prompt": ({"num_images_per_prompt": 0}, VALUE, "num_images_per_prompt=0 is too small"),
    "per prompt None": ({"num_images_per_prompt": None}, TYPE, "num_images_per_prompt=None is not"),
    "clip_skip": ({"clip_skip": 3}, VALUE, r"clip_skip=3 is out of range; allowed: 0 .. 2"),
    "clip_skip negative": ({"clip_skip": -1}, VALUE, "clip_skip=-1 is too small"),
    "clip_skip text": ({"clip_skip": "1"}, TYPE, "clip_skip='1' is not a whole number"),
    "clip_skip float": ({"clip_skip": 1.0}, TYPE, "clip_skip=1.0 is not a whole number"),
    # randomness
    "seed and generator": (
        {"seed": 1, "generator": generator()},
        VALUE,
        "generator and seed are both given",
    ),
    "seed text": ({"seed": "7"}, TYPE, "seed='7' is not an integer"),
    "seed float": ({"seed": 7.0}, TYPE, "seed=7.0 is not an integer"),
    "seed bool": ({"seed": True}, TYPE, "seed=True is not an integer"),
    "seed negative": ({"seed": -1}, VALUE, "seed=-1 is out of range; allowed: 0 "),
    "seed large": ({"seed": 2**63}, VALUE, "seed=9223372036854775808 is out of range"),
    "seed count": ({"prompt": two, "seed": [1]}, VALUE, "seed has 1 entries; the call makes 2"),
    "seed None inside": ({"seed": [None]}, TYPE, "seed=None is not an integer"),
    "generator number": ({"generator": 7}, TYPE, "generator=7 is not a torch.Generator"),
    "generator count": (
        {"prompt": two, "generator": [generator()]},
        VALUE,
        "generator has 1 entries; the call makes 2 images",
    ),
    "generator empty": ({"generator": []}, VALUE, "generator has 0 entries"),
    "generator numpy": (
        {"generator": [np.random.RandomState(0)]},
        TYPE,
        "generator=.* is not a torch.Generator, nor a np.random.Generator",
    ),
    # arrays
    "latents channels": (
        {"latents": latents(1, 3, 8, 8)},
        VALUE,
        r"latents has shape \(1, 3, 8, 8\); needed is \(1, 4, 8, 8\)",
    ),
    "latents count": ({"prompt": two, "latents": latents()}, VALUE, r"needed is \(2, 4, 8, 8\)"),
    "latents size": ({"latents": latents(), "height": 72}, VALUE, r"needed is \(1, 4, 9, 8\)"),
    "latents rank": ({"latents": latents(4, 8, 8)}, VALUE, r"latents has shape \(4, 8, 8\)"),
    "latents NaN": ({"latents": latents(fill=NAN)}, VALUE, "latents holds NaN or infinity"),
    "latents inf": ({"latents": latents(fill=-INF)}, VALUE, "latents holds NaN or infinity"),
    "latents whole": ({"latents": latents(dtype=torch.int64)}, TYPE, "latents has dtype torch.int"),
    "latents numpy": ({"latents": np.zeros((1, 4, 8, 8))}, TYPE, "latents is ndarray; a torch"),
    "latents empty": ({"latents": latents(1, 4, 0, 8)}, VALUE, "latents"),
    "both prompts": (
        {"prompt_embeds": embeds()},
        VALUE,
        "prompt and prompt_embeds are both given; only one",
    ),
    "both negatives": (
        {"negative_prompt": "a", "negative_prompt_embeds": embeds()},
        VALUE,
        "negative_prompt and negative_prompt_embeds are both given",
    ),
    "embeds width": (
        {"prompt": None, "prompt_embeds": embeds(1, 77, 16)},
        VALUE,
        r"prompt_embeds has shape \(1, 77, 16\); needed is \(any, any, 32\)",
    ),
    "embeds rank": (
        {"prompt": None, "prompt_embeds": embeds(77, 32)},
        VALUE,
        r"prompt_embeds has shape \(77, 32\)",
    ),
    "embeds NaN": (
        {"prompt": None, "prompt_embeds": embeds(fill=NAN)},
        VALUE,
        "prompt_embeds holds NaN or infinity",
    ),
    "embeds list": (
        {"prompt": None, "prompt_embeds": [[0.0]]},
        TYPE,
        "prompt_embeds is list; a tor",
    ),
    "embeds empty": (
        {"prompt": None, "prompt_embeds": embeds(0, 77, 32)},
        VALUE,
        "prompt_embeds has shape .*empty",
    ),
    "embeds no tokens": (
        {"prompt": None, "prompt_embeds": embeds(1, 0, 32)},
        VALUE,
        "prompt_embeds has shape .*empty",
    ),
    "negative embeds inf": (
        {"negative_prompt_embeds": embeds(fill=INF)},
        VALUE,
        "negative_prompt_embeds holds NaN or infinity",
    ),
    "negative embeds count": (
        {"prompt": two, "negative_prompt_embeds": embeds()},
        VALUE,
        r"negative_prompt_embeds has shape \(1, 77, 32\); needed is \(2, any, 32\)",
    ),
    "negative embeds tokens": (
        {"negative_prompt_embeds": embeds(1, 50, 32)},
        VALUE,
        "prompt and negative prompt have 77 and 50 tokens",
    ),
    # the rest
    "output type": (
        {"output_type": "jpeg"},
        VALUE,
        "output_type='jpeg' is not known; allowed: 'pil', 'np', 'pt', 'latent'",
    ),
    "output type list": ({"output_type": ["np"]}, VALUE, r"output_type=\['np'\] is not known"),
    "async callback": ({"callback_on_step_end": later}, TYPE, "a coroutine or generator function"),
    "callback that yields": ({"callback": yields}, TYPE, "callback=.* a coroutine or generator"),
    "callback": ({"callback_on_step_end": 3}, TYPE, "callback_on_step_end=3 cannot be called"),
    "old callback": ({"callback": "f"}, TYPE, "callback='f' cannot be called"),
    "callback steps": ({"callback_steps": 0}, VALUE, "callback_steps=0 is too small"),
    "callback tensor": (
        {"callback_on_step_end_tensor_inputs": ["noise"]},
        VALUE,
        "callback_on_step_end_tensor_inputs='noise' is not known; allowed: 'latents', ",
    ),
    "callback tensors text": (
        {"callback_on_step_end_tensor_inputs": "latents"},
        TYPE,
        "callback_on_step_end_tensor_inputs='latents' is not a list",
    ),
    "controls": ({"controls": Control()}, TYPE, "controls=.* is not a list of controls"),
    "controls inside": ({"controls": [3]}, TYPE, "controls holds 3, which is not a Control"),
    "unknown argument": ({"guidance": 3}, TypeError, "guidance"),
}
assert len(CASES) >= 80


@pytest.fixture(scope="module")
def counts(pipe):
    return tiny.counted(pipe)


@pytest.fixture(scope="module")
def before(pipe):
    return run(pipe)


@pytest.mark.parametrize("name", CASES)
def test_arguments_that_cannot_work(pipe, counts, before, name):
    arguments, kind, message = CASES[name]
    call = {"prompt": "a", "num_inference_steps": 2, **arguments}
    settings, parts = pipe.settings, pipe.components
    counts.clear()
    with pytest.raises(kind, match=message) as caught:
        pipe(**call)
    assert not counts, "the UNet was called"
    assert kind is TypeError or isinstance(caught.value, UnderdrawError)
    assert len(str(caught.value)) < 500
    assert pipe.settings == settings and pipe.components == parts


def test_good_calls_give_the_same_bits_after_all_of_them(pipe, counts, before):
    for arguments, kind, _ in CASES.values():
        with pytest.raises(kind):
            pipe(**{"prompt": "a", "num_inference_steps": 2, **arguments})
    assert torch.equal(run(pipe), before)


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("wrong", ["many steps", "no steps", "times rise", "times too large"])
def test_other_solvers_refuse_the_same(pipe, counts, name, wrong):
    scheduler = getattr(schedulers, name)(**tiny.SCHEDULE)
    made = StableDiffusionPipeline.from_pipe(pipe)
    made.scheduler = scheduler
    arguments, _, _ = CASES[wrong]
    counts.clear()
    with pytest.raises(InputError):
        made("a", **arguments)
    assert not counts


# -- what a callback gives back, and what weights hold --------------------------------------------
GIVEN_BACK = {
    "no dict": (3, InputTypeError, "callback_on_step_end's result is 3; a dict or None is needed"),
    "a tensor": (torch.ones(2), InputTypeError, "a dict or None is needed"),
    "unknown": ({"noise": 1}, InputError, "'noise' is not known; allowed: 'latents'"),
    "channels": ({"latents": latents(1, 3, 8, 8)}, InputError, r"latents has shape \(1, 3, 8, 8\)"),
    "NaN": ({"latents": latents(fill=NAN)}, InputError, "latents holds NaN"),
    "width": ({"prompt_embeds": embeds(2, 77, 16)}, InputError, r"needed is \(any, any, 32\)"),
    "rows": ({"prompt_embeds": embeds(3, 77, 32)}, InputError, "has 3 rows; allowed: 1, or .* 2"),
    "numpy": ({"latents": np.zeros((1, 4, 8, 8))}, InputTypeError, "latents is ndarray"),
}


@pytest.mark.parametrize("name", GIVEN_BACK)
def test_what_a_callback_gives_back(pipe, counts, before, name):
    value, kind, message = GIVEN_BACK[name]
    counts.clear()
    with pytest.raises(kind, match=message):
        run(pipe, "a", callback_on_step_end=lambda *_: value)
    assert len(counts) == 1
    assert torch.equal(run(pipe), before)


def test_errors_of_a_callback_come_through(pipe, before):
    def fail(*_):
        raise RuntimeError("stop here")

    for name in ("callback_on_step_end", "callback"):
        with pytest.raises(RuntimeError, match="stop here"):
            run(pipe, "a", **{name: fail})
    assert torch.equal(run(pipe), before)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "mid_block.resnets.0.conv1.weight"),
        ("unet", "conv_out.bias"),
        ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
        ("text_encoder", "text_model.final_layer_norm.bias"),
        ("vae", "decoder.conv_in.weight"),
        ("vae", "post_quant_conv.bias"),
    ],
)
@pytest.mark.parametrize("value", [NAN, INF])
def test_nan_in_weights_never_becomes_a_picture(part, name, value):
    pipe = tiny.pipeline()
    counts = tiny.counted(pipe)
    getattr(pipe, part).get_parameter(name).data.view(-1)[1] = value
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        pipe("a red sphere", num_inference_steps=4, output_type="np")
    assert len(counts) == (4 if part == "vae" else 1)


# -- components that do not belong together -------------------------------------------------------
def test_components_of_different_models():
    parts = tiny.components()
    make = StableDiffusionPipeline
    with pytest.raises(
        InputError, match="text_encoder gives tokens of width 32, the UNet takes 16"
    ):
        make(**{**parts, "unet": tiny.components(unet={"cross_attention_dim": 16})["unet"]})
    with pytest.raises(
        InputTypeError, match="feature_extractor=None; the safety checker needs one"
    ):
        from underdraw.models import StableDiffusionSafetyChecker

        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "projection_dim": 8,
        }
        vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
        make(**parts, safety_checker=StableDiffusionSafetyChecker(**vision))
    with pytest.raises(InputError, match="compat='peer' is not known; allowed: None, 'diffusers'"):
        make(**parts, compat="peer")
    for name in ("vae", "unet", "scheduler"):  # those of texts may lack
        with pytest.raises(InputTypeError, match=f"{name}=None"):
            make(**{**parts, name: None})
        with pytest.raises(InputTypeError, match=name if name != "scheduler" else "scheduler=int"):
            make(**{**parts, name: 3})
    with pytest.raises(InputTypeError, match="vae"):
        make(**{**parts, "vae": parts["scheduler"]})
    with pytest.raises(UnderdrawError, match=r"vae|AutoencoderKL"):
        make(**{**parts, "vae": parts["unet"]})
    with pytest.raises(InputTypeError, match=r"has no components .*'unets'"):
        make.from_pipe(tiny.pipeline(), unets=None)


def test_an_inpainting_unet(before):
    pipe = tiny.pipeline(unet={"in_channels": 9})
    counts = tiny.counted(pipe)
    with pytest.raises(
        InputError, match=r"unet: it takes 9 channels, latents have 4; .*text-to-ima"
    ):
        run(pipe)
    assert not counts


def test_a_tokenizer_of_another_model():
    pipe = tiny.pipeline()
    pipe.tokenizer.add_tokens(["<new>"])
    counts = tiny.counted(pipe)
    with pytest.raises(InputError, match=r"tokenizer: it gives token .*, the text encoder knows"):
        run(pipe, "a <new> sphere")
    assert not counts
    pipe.tokenizer.model_max_length = 100
    with pytest.raises(InputError, match="model_max_length=100, the text encoder takes 77"):
        run(pipe, "a sphere")
    assert not counts


def test_settings_that_do_not_exist(pipe):
    for wrong, kind in (("half", InputError), (0, InputError), (2.5, InputTypeError)):
        with pytest.raises(kind, match="slice_size="):
            pipe.enable_attention_slicing(wrong)
    assert pipe.settings.attention_slice is None


def test_a_control_of_the_wrong_shape_is_named(pipe, before):
    class Wrong(Control):
        def after_step(self, nn, carry, latents, call):
            return latents[:, :3], carry

    with pytest.raises(ControlError, match=r"Wrong.*after_step.*\(1, 3, 8, 8\)"):
        run(pipe, controls=[Wrong()])
    assert torch.equal(run(pipe), before)
