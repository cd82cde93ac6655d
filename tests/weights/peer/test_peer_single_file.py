"""Original checkpoints against diffusers' own conversion, name by name, at true architectures."""

import json
from collections import OrderedDict
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as peer
from transformers import CLIPTextConfig, CLIPTextModel

from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats.stored import Checkpoint, StoredTensor, stored
from underdraw.networks import clip, unet, vae
from underdraw.networks.config import read as read_config
from underdraw.weights import single_file
from underdraw.weights.match import match_network
from underdraw.weights.save import save_tensors

UNETS = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "upcast_attention": True,
        "sample_size": 96,
    },
}
TEXTS = {
    "sd1": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    "sd2": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "projection_dim": 512,
        "hidden_act": "gelu",
    },
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
# Published text configs number their special tokens otherwise than this version's defaults.
WRITTEN_OTHERWISE = "sample_size _class_name architectures bos_token_id eos_token_id".split()
SMALL_UNET = {"block_out_channels": [32, 64, 64, 96], "norm_num_groups": 8}


def peers(family, small=False, **unet_changes):
    """diffusers' networks of a family: on the meta device at full size, or small with numbers."""
    unet, text, vae = dict(UNETS[family]), dict(TEXTS[family]), dict(VAE)
    if small:
        text |= {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1}
        text |= {"vocab_size": 30, "num_hidden_layers": 3}
        unet |= {"cross_attention_dim": 64, **SMALL_UNET}
        unet["attention_head_dim"] = [1, 1, 1, 1] if family == "sd2" else 8
        vae |= {"block_out_channels": [32, 32, 64, 64], "norm_num_groups": 8}
        torch.manual_seed(3)
    unet |= unet_changes
    with torch.device("cpu" if small else "meta"):
        networks = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }
    return {
        name: (dict(net.config) if name != "text_encoder" else net.config.to_dict(), net)
        for name, net in networks.items()
    }


def lazy(tensor):
    """A StoredTensor of a tensor's shape; numbers only where it has some."""
    if tensor.is_meta:
        return StoredTensor("float32", tuple(tensor.shape), lambda: pytest.fail("was loaded"))
    return stored(tensor.numpy())


def components_of(networks):
    return {
        name: (config, {key: lazy(t) for key, t in net.state_dict().items()})
        for name, (config, net) in networks.items()
    }


@cache
def original_of(family):
    """The tensors (without numbers) of a published checkpoint of a family."""
    return single_file.to_single_file(components_of(peers(family)))


def with_channels(family, channels):
    first = "model.diffusion_model.input_blocks.0.0.weight"
    changed = StoredTensor("float32", (320, channels, 3, 3), lambda: pytest.fail("was loaded"))
    return original_of(family) | {first: changed}


def as_torch(tensors, meta):
    """One object per tensor, so that diffusers' renaming can be followed by identity."""
    if meta:
        return {name: torch.empty(t.shape, device="meta") for name, t in tensors.items()}
    return {name: torch.from_numpy(np.array(t.load())) for name, t in tensors.items()}


def peer_conversion(original, networks):
    """What diffusers makes of an original checkpoint, by component."""
    text_config, text_model = networks["text_encoder"]
    if text_config["hidden_act"] == "gelu":
        text = peer.convert_open_clip_checkpoint(text_model, dict(original))
    else:
        text = peer.convert_ldm_clip_checkpoint(dict(original))
    return {
        "unet": peer.convert_ldm_unet_checkpoint(dict(original), dict(networks["unet"][0])),
        "vae": peer.convert_ldm_vae_checkpoint(dict(original), dict(networks["vae"][0])),
        "text_encoder": {n.removeprefix("text_model."): t for n, t in text.items()},
    }


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_names_at_full_size_are_those_the_peer_translates(family):
    networks = peers(family)
    components = components_of(networks)
    original = single_file.to_single_file(components)
    theirs = peer_conversion(as_torch(original, meta=True), networks)
    for name, (_, wanted) in components.items():
        shapes = {key: t.shape for key, t in wanted.items()}
        got = {key: tuple(t.shape) for key, t in theirs[name].items()}
        assert got == shapes, name

    ours = single_file.read_single_file(Checkpoint(original, {}))
    assert ours.family == family
    for name, (config, tensors) in ours.components.items():
        wanted_config, net = networks[name]
        got = {key.removeprefix("text_model."): t.shape for key, t in tensors.items()}
        assert got == {key: tuple(t.shape) for key, t in net.state_dict().items()}
        for key, value in config.items():
            if key in wanted_config and key not in WRITTEN_OTHERWISE:
                expected = wanted_config[key]
                assert value == (list(expected) if isinstance(expected, tuple) else expected), key


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_our_networks_want_exactly_what_is_read(family):
    read = single_file.read_single_file(Checkpoint(original_of(family), {}))
    for name, (kind, layout) in {
        "unet": (unet.UNetConfig, unet.layout),
        "vae": (vae.VAEConfig, vae.layout),
        "text_encoder": (clip.CLIPTextConfig, clip.text_layout),
    }.items():
        raw, tensors = read.components[name]
        wanted = layout(read_config(kind, raw)).shapes
        assert match_network(name, wanted, tensors).keys() == tensors.keys()


def test_some_names_as_they_stand_in_the_published_files():
    sd1 = original_of("sd1")
    shapes = {name: t.shape for name, t in sd1.items()}
    assert shapes["model.diffusion_model.input_blocks.0.0.weight"] == (320, 4, 3, 3)
    assert shapes["model.diffusion_model.time_embed.2.bias"] == (1280,)
    assert shapes["model.diffusion_model.input_blocks.3.0.op.weight"] == (320, 320, 3, 3)
    name = "model.diffusion_model.output_blocks.11.0.skip_connection.weight"
    assert shapes[name] == (320, 640, 1, 1)
    assert shapes["model.diffusion_model.output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes["model.diffusion_model.output_blocks.8.2.conv.weight"] == (640, 640, 3, 3)
    assert shapes["model.diffusion_model.middle_block.1.proj_in.weight"] == (1280, 1280, 1, 1)
    assert shapes["first_stage_model.encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert shapes["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    assert shapes["first_stage_model.decoder.up.3.upsample.conv.weight"] == (512, 512, 3, 3)
    prefix = "cond_stage_model.transformer.text_model."
    assert shapes[f"{prefix}embeddings.token_embedding.weight"] == (49408, 768)
    assert len(sd1) == 686 + 248 + 196
    sd2 = original_of("sd2")
    prefix = "cond_stage_model.model."
    assert sd2[f"{prefix}positional_embedding"].shape == (77, 1024)
    assert sd2[f"{prefix}transformer.resblocks.23.attn.in_proj_weight"].shape == (3072, 1024)
    assert sd2["model.diffusion_model.middle_block.1.proj_in.weight"].shape == (1280, 1280)


def junk(original, family):
    """What else published files carry."""
    extra = {
        name: np.zeros(1000, "f4")
        for name in (
            *("betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod logvar").split(),
            *("sqrt_one_minus_alphas_cumprod log_one_minus_alphas_cumprod").split(),
            *("sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance").split(),
            *("posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2").split(),
        )
    }
    extra["model_ema.decay"] = np.zeros((), "f4")
    extra["model_ema.num_updates"] = np.zeros((), "i4")
    extra["first_stage_model.loss.logvar"] = np.zeros((), "f4")
    if family == "sd2":
        extra["cond_stage_model.model.logit_scale"] = np.zeros((), "f4")
        extra["cond_stage_model.model.text_projection"] = np.zeros((64, 64), "f4")
        extra["cond_stage_model.model.attn_mask"] = np.zeros((77, 77), "f4")
    else:
        extra["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.zeros(
            (1, 77), "i8"
        )
    return {name: stored(array) for name, array in extra.items()}


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_numbers_are_those_the_peer_reads_from_the_same_file(family, suffix, tmp_path):
    networks = peers(family, small=True)
    original = single_file.to_single_file(components_of(networks))
    everything = original | junk(original, family)
    path = tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_tensors(path, everything)
    else:
        state = OrderedDict(as_torch(everything, meta=False))
        torch.save({"state_dict": state, "global_step": 12, "epoch": 1}, path)
    read = single_file.read_single_file(path)
    theirs = peer_conversion(peer.load_single_file_checkpoint(str(path)), networks)
    for name, (_, tensors) in read.components.items():
        tensors = {key.removeprefix("text_model."): t for key, t in tensors.items()}
        wanted = theirs[name]
        if name == "text_encoder" and family == "sd2":
            wanted = {k: t for k, t in wanted.items() if "layers.3." not in k}
            wanted.pop("text_projection.weight", None)
        assert tensors.keys() == {k for k in wanted if not k.endswith("position_ids")}
        state = networks[name][1].state_dict()
        for key, tensor in tensors.items():
            assert np.array_equal(tensor.load(), wanted[key].numpy()), key
            assert np.array_equal(tensor.load(), state[key].numpy()), key


def test_the_peer_reads_unet_and_vae_of_a_file_written_here(tmp_path):
    networks = peers("sd1", small=True)
    path = tmp_path / "ours.safetensors"
    components = components_of(networks)
    save_tensors(path, single_file.to_single_file(components))
    for name in ("unet", "vae"):
        networks[name][1].save_config(tmp_path / name)
        kind = type(networks[name][1])
        loaded = kind.from_single_file(str(path), config=str(tmp_path / name))
        got = loaded.state_dict()
        for key, tensor in networks[name][1].state_dict().items():
            assert torch.equal(tensor, got[key]), key


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_round_trip_with_metadata_gives_configs_and_numbers_back(family, tmp_path):
    networks = peers(family, small=True)
    components = components_of(networks)
    metadata = single_file.single_file_metadata(components, {"prediction_type": "sample"})
    save_tensors(tmp_path / "x.safetensors", single_file.to_single_file(components), metadata)
    read = single_file.read_single_file(tmp_path / "x.safetensors")
    assert read.prediction_type == read.scheduler["prediction_type"] == "sample"
    for name, (config, tensors) in components.items():
        got_config, got = read.components[name]
        plain = json.loads(json.dumps(config))
        assert {key: got_config[key] for key in plain} == plain
        for key, tensor in tensors.items():
            inner = got[f"text_model.{key}" if name == "text_encoder" else key]
            assert np.array_equal(inner.load(), tensor.load())


@pytest.mark.parametrize("channels", [4, 5, 8, 9])
def test_input_channels_are_found(channels):
    original = with_channels("sd1", channels)
    read = single_file.read_single_file(Checkpoint(original, {}))
    assert read.components["unet"][0]["in_channels"] == channels
    assert read.components["unet"][0]["out_channels"] == 4


@pytest.mark.parametrize(
    ("channels", "metadata", "asked", "expected"),
    [
        (4, {}, None, "v_prediction"),
        (9, {}, None, "epsilon"),
        (5, {}, None, "epsilon"),
        (4, {"global_step": 875000}, None, "epsilon"),
        (4, {"global_step": 110000}, None, "v_prediction"),
        (4, {"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        (4, {"modelspec.architecture": "stable-diffusion-v2-512"}, None, "epsilon"),
        (4, {}, "epsilon", "epsilon"),
        (4, {"global_step": 875000}, "v_prediction", "v_prediction"),
    ],
)
def test_prediction_type_of_sd2(channels, metadata, asked, expected):
    original = with_channels("sd2", channels)
    read = single_file.read_single_file(Checkpoint(original, metadata), prediction_type=asked)
    assert read.prediction_type == expected
    assert read.scheduler["prediction_type"] == expected
    size = 96 if expected == "v_prediction" else 64
    assert read.components["unet"][0]["sample_size"] == size
    assert read.components["vae"][0]["sample_size"] == 8 * size
    assert read.tokenizer.pad_token == "!"


def test_sd1_predicts_noise_unless_the_file_says_otherwise():
    original = original_of("sd1")
    assert single_file.read_single_file(Checkpoint(original, {})).prediction_type == "epsilon"
    marked = original | {"v_pred": stored(np.zeros(0, "f4"))}
    read = single_file.read_single_file(Checkpoint(marked, {}))
    assert read.prediction_type == "v_prediction"
    assert any("v_pred" in note for note in read.notes)


def test_averaged_weights_are_read_when_asked_as_the_peer_does():
    networks = peers("sd1", small=True)
    original = single_file.to_single_file(components_of(networks))
    for name, tensor in list(original.items()):
        if name.startswith("model.diffusion_model."):
            flat = "model_ema." + "".join(name.split(".")[1:])
            original[flat] = stored(tensor.load() + np.float32(1))
    plain = single_file.read_single_file(Checkpoint(original, {}))
    averaged = single_file.read_single_file(Checkpoint(original, {}), extract_ema=True)
    torch_original = as_torch(original, meta=False)
    config = dict(networks["unet"][0])
    theirs = peer.convert_ldm_unet_checkpoint(torch_original, config, extract_ema=True)
    for key, tensor in plain.components["unet"][1].items():
        got = averaged.components["unet"][1][key].load()
        assert np.array_equal(got, tensor.load() + np.float32(1))
        assert np.array_equal(got, theirs[key].numpy())
    partial = {k: t for k, t in original.items() if "model_ema.diffusion_modelout2" not in k}
    with pytest.raises(WeightError, match="averaged weights of 2 tensors are missing"):
        single_file.read_single_file(Checkpoint(partial, {}), extract_ema=True)


def test_parts_may_be_absent_and_are_named():
    original = original_of("sd1")
    unet_only = {k: t for k, t in original.items() if k.startswith("model.")}
    read = single_file.read_single_file(Checkpoint(unet_only, {}))
    assert list(read.components) == ["unet"]
    assert read.family == "sd1"
    assert sum("must come from elsewhere" in note for note in read.notes) == 2
    vae_only = {
        k.removeprefix("first_stage_model."): t
        for k, t in original.items()
        if k.startswith("first_stage_model.")
    } | {"loss.logvar": stored(np.zeros((), "f4"))}
    read = single_file.read_single_file(Checkpoint(vae_only, {}))
    assert list(read.components) == ["vae"]
    assert len(read.components["vae"][1]) == 248


def test_text_encoder_names_without_their_inner_prefix():
    original = original_of("sd1")
    merged = {
        k.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."): t
        for k, t in original.items()
    }
    read = single_file.read_single_file(Checkpoint(merged, {}))
    assert len(read.components["text_encoder"][1]) == 196


def test_an_openclip_tower_of_23_blocks_loses_none():
    original = original_of("sd2")
    cut = {k: t for k, t in original.items() if ".resblocks.23." not in k}
    for tensors in (original, cut):
        config, text = single_file.read_single_file(Checkpoint(tensors, {})).components[
            "text_encoder"
        ]
        assert config["num_hidden_layers"] == 23
        assert len(text) == 23 * 16 + 4


def test_gated_checkpoints_keep_their_grounding():
    networks = peers("sd1", small=True, attention_type="gated")
    components = components_of(networks)
    read = single_file.read_single_file(Checkpoint(single_file.to_single_file(components), {}))
    config, tensors = read.components["unet"]
    assert config["attention_type"] == "gated"
    assert tensors.keys() == components["unet"][1].keys()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "LoRA"),
        (["conditioner.embedders.0.transformer.x"], "SDXL"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight"], "component of a diffusers folder"),
        (["text_model.embeddings.x"], "CLIP model"),
        (["model.diffusion_model.double_blocks.0.x"], "Flux"),
        (["something.else"], "neither a UNet"),
        ([], "0 tensors"),
    ],
)
def test_other_files_are_named_for_what_they_are(names, says):
    tensors = {name: stored(np.zeros((2, 2), "f4")) for name in names}
    with pytest.raises(WeightError, match=says):
        single_file.read_single_file(Checkpoint(tensors, {}))


def test_unknown_and_missing_names_are_errors():
    original = original_of("sd1")
    more = original | {"model.diffusion_model.surprise.weight": stored(np.zeros(2, "f4"))}
    with pytest.raises(WeightError, match=r"1 tensors of \d+ are unknown.*surprise"):
        single_file.read_single_file(Checkpoint(more, {}))
    for name in ("model.diffusion_model.out.2.weight", "first_stage_model.post_quant_conv.weight"):
        less = {k: t for k, t in original.items() if k != name}
        with pytest.raises(WeightError, match="missing"):
            single_file.read_single_file(Checkpoint(less, {}))
    xl = original | {"model.diffusion_model.label_emb.0.0.weight": stored(np.zeros(2, "f4"))}
    with pytest.raises(WeightError, match="SDXL"):
        single_file.read_single_file(Checkpoint(xl, {}))


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="prediction_type='noise'; allowed are epsilon"):
        single_file.read_single_file(tmp_path / "x.ckpt", prediction_type="noise")
    with pytest.raises(NotFoundError, match="no such file"):
        single_file.read_single_file(tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="safety_checker"):
        single_file.to_single_file({"safety_checker": ({}, {})})
    broken = {"underdraw.configs": "{"}
    with pytest.raises(WeightError, match="JSON"):
        single_file.read_single_file(Checkpoint(original_of("sd1"), broken))
