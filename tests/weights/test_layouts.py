"""Single files of one network or several: under any prefix, by either kind of names, with buffers
of samplers beside."""

import numpy as np
import pytest
from pipelines import tiny

from underdraw import AutoencoderKL, UNet2DConditionModel
from underdraw.errors import WeightError
from underdraw.formats.stored import Checkpoint, stored
from underdraw.weights import single_file
from underdraw.weights.layouts import TEXT_PREFIXES, UNET_PREFIXES, VAE_PREFIXES

PREFIXES = {"unet": UNET_PREFIXES, "vae": VAE_PREFIXES}
GROUPS = {"norm_num_groups": 32}


@pytest.fixture(scope="module")
def parts():
    """(config, tensors as in a folder) of networks with Stable Diffusion's groups and heads."""
    wide = {"block_out_channels": (32, 64, 64), "attention_head_dim": 8, **GROUPS}
    sizes = {**tiny.DEEP, **wide}
    vae = {"block_out_channels": (32, 32, 64, 64), **GROUPS}
    made = tiny.components(unet=sizes, vae=vae)
    found = {}
    for name in ("unet", "vae", "text_encoder"):
        state = {key: stored(value.numpy()) for key, value in made[name].state_dict().items()}
        found[name] = made[name].export_config(), state
    return found


def original(parts, name):
    """Names of the original without their prefix."""
    whole = single_file.to_single_file({name: parts[name]})
    prefix = PREFIXES[name][0]
    assert all(key.startswith(prefix) for key in whole)
    return {key.removeprefix(prefix): value for key, value in whole.items()}


def assert_read(parts, tensors, *names):
    read = single_file.read_single_file(Checkpoint(tensors, {}))
    assert set(read.components) == set(names)
    for name in names:
        config, found = read.components[name]
        wanted = parts[name][1]
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[key].load(), wanted[key].load()) for key in wanted)
        for key in ("block_out_channels", "layers_per_block", "in_channels", "norm_num_groups"):
            if key in config:
                assert np.array_equal(config[key], parts[name][0][key]), key
    return read


ALONE = [(name, prefix, form) for name in PREFIXES for prefix in PREFIXES[name] for form in (0, 1)]


@pytest.mark.parametrize(("name", "prefix", "form"), ALONE)
def test_a_network_alone(parts, name, prefix, form):
    tensors = original(parts, name) if form == 0 else parts[name][1]
    read = assert_read(parts, {prefix + key: value for key, value in tensors.items()}, name)
    assert sum("must come from elsewhere" in note for note in read.notes) == 2
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[name]
    kind.from_tensors(*read.components[name])  # the config that was found fits


@pytest.mark.parametrize("prefix", TEXT_PREFIXES[::2])
def test_several_under_the_prefixes_of_other_tools(parts, prefix):
    tensors = {f"unet.{key}": value for key, value in parts["unet"][1].items()}
    tensors |= {f"vae.{key}": value for key, value in parts["vae"][1].items()}
    tensors |= {f"{prefix}{key}": value for key, value in parts["text_encoder"][1].items()}
    read = single_file.read_single_file(Checkpoint(tensors, {}))
    assert read.components.keys() == parts.keys()
    assert read.tokenizer.tokens == parts["text_encoder"][0]["vocab_size"]


def test_an_autoencoder_by_the_names_before_2023(parts):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, value in parts["vae"][1].items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        tensors[key] = value
    assert_read(parts, tensors, "vae")


def test_a_unet_without_a_middle():
    made = tiny.components(unet={"mid_block_type": None, "attention_head_dim": 8})["unet"]
    tensors = {key: stored(value.numpy()) for key, value in made.state_dict().items()}
    own = {"unet": {"norm_num_groups": 8}}
    read = single_file.read_single_file(Checkpoint(tensors, {}), configs=own)
    assert read.components["unet"][0]["mid_block_type"] is None
    UNet2DConditionModel.from_tensors(*read.components["unet"])


BUFFERS = """denoiser.sigmas denoiser.log_sigmas model_sampling.sigmas model_sampling.log_sigmas
model_sampling.sigma_data model.model_sampling.sigmas model_sampling.alphas_cumprod sigmas
log_sigmas model_wrap.sigmas model_wrap.log_sigmas betas alphas_cumprod alphas_cumprod_prev
alphas_cumprod_next ddim_sigmas ddim_alphas ddim_alphas_prev ddim_sqrt_one_minus_alphas
model.betas diffusion.betas noise_scheduler.alphas_cumprod sqrt_recipm1_alphas_cumprod
posterior_mean_coef1 lvlb_weights model_ema.decay model_ema.num_updates sigma_max""".split()


@pytest.mark.parametrize("form", ["whole", "unet", "vae", "unet of a folder"])
def test_buffers_of_samplers_beside_the_weights(parts, form):
    junk = {name: stored(np.zeros(3, np.float32)) for name in BUFFERS}
    if form == "whole":
        tensors = single_file.to_single_file({name: parts[name] for name in ("unet", "vae")})
        assert_read(parts, tensors | junk, "unet", "vae")
    else:
        name = form.split()[0]
        tensors = parts[name][1] if "folder" in form else original(parts, name)
        assert_read(parts, tensors | junk, name)


def test_unets_of_folders_may_have_them_too(parts):
    config, tensors = parts["unet"]
    junk = {"model_sampling.sigmas": stored(np.zeros(3, np.float32))}
    UNet2DConditionModel.from_tensors(config, tensors | junk)
    with pytest.raises(WeightError, match="left over: sigma_network"):
        UNet2DConditionModel.from_tensors(config, tensors | {"sigma_network": junk.popitem()[1]})


@pytest.mark.parametrize("name", ["down_blocks.7.surprise.weight", "surprise"])
def test_unknown_names_are_told(parts, name):
    tensors = parts["unet"][1] | {name: stored(np.zeros(3, np.float32))}
    with pytest.raises(WeightError, match=f"1 tensors of .* are unknown: {name}"):
        single_file.read_single_file(Checkpoint(tensors, {}))


@pytest.mark.parametrize("form", ["folder", "original", "prefixed"])
def test_a_controlnet_is_no_unet(parts, form):
    """It is the way down of a UNet, with convolutions of its own."""
    whole = parts["unet"][1] if form == "folder" else original(parts, "unet")
    up = ("up_", "conv_norm_out", "conv_out", "output_blocks", "out.")
    tensors = {name: tensor for name, tensor in whole.items() if not name.startswith(up)}
    own = "controlnet_mid_block.weight" if form == "folder" else "input_hint_block.0.weight"
    tensors[own] = stored(np.zeros(3, np.float32))
    if form == "prefixed":
        tensors = {f"control_model.{name}": tensor for name, tensor in tensors.items()}
    with pytest.raises(WeightError, match="looks like a ControlNet"):
        single_file.read_single_file(Checkpoint(tensors, {}))
