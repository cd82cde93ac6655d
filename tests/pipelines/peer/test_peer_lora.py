"""LoRAs beside diffusers and PEFT: the same files, the same pictures."""

from __future__ import annotations

import copy
import tempfile

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from pipelines import tiny

CALL = {"height": 40, "width": 72, "num_inference_steps": 2, "output_type": "latent"}
TARGETS = ["to_k", "to_q", "to_out.0", "conv1", "proj_in", "time_emb_proj", "ff.net.2"]
ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]
# PEFT and Transformers warn of much on their way.
pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 2e-5
"""Of the largest number; the pipelines without a LoRA differ by 3e-6."""


@pytest.fixture
def pair():
    """One random pipeline, ours and theirs."""
    ours = tiny.pipeline(compat="diffusers", unet=tiny.DEEP)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    return ours, theirs


def written(theirs, place, targets, seed=0, alpha=5, dora=False):
    """A random LoRA of PEFT for both networks, as diffusers saves it."""
    torch.manual_seed(seed)
    layers, settings = {}, {}
    # Transformers loses the magnitudes of a text encoder.
    texts = ["q_proj", "k_proj", "out_proj", "fc1"]
    for name, ends, use in (("unet", targets, dora), ("text_encoder", texts, False)):
        config = LoraConfig(
            r=3, lora_alpha=alpha, target_modules=ends, use_dora=use, init_lora_weights=False
        )
        network = copy.deepcopy(getattr(theirs, name))
        network.add_adapter(config)
        for key, value in network.named_parameters():
            if "magnitude" in key:
                value.data *= 1 + 0.1 * torch.randn_like(value)
            elif "lora_" in key:
                value.data = torch.randn_like(value) * 0.2
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(network)
        settings[f"{name}_lora_adapter_metadata"] = config.to_dict()
    type(theirs).save_lora_weights(place, **layers, **settings)
    return place


def apart(ours, theirs, **arguments):
    """How far their pictures are apart, of the largest number."""
    latents = torch.randn(1, 4, 5, 9, generator=torch.Generator().manual_seed(3))
    one, other = (
        pipe("a red sphere", latents=latents, **CALL, **arguments).images for pipe in (ours, theirs)
    )
    return float((one - other).abs().max() / other.abs().max())


def test_files_of_peft(pair, tmp_path):
    written(pair[1], tmp_path / "a", TARGETS)
    written(pair[1], tmp_path / "b", ATTENTION, seed=1, alpha=2)
    for pipe in pair:
        pipe.load_lora_weights(tmp_path / "a", adapter_name="a")
    assert apart(*pair) <= BOUND
    assert apart(*pair, cross_attention_kwargs={"scale": 0.4}) <= BOUND
    for pipe in pair:
        pipe.load_lora_weights(tmp_path / "b", adapter_name="b")
    assert pair[0].get_active_adapters() == pair[1].get_active_adapters()
    assert pair[0].get_list_adapters() == pair[1].get_list_adapters()
    for pipe in pair:
        pipe.set_adapters(["a", "b"], [0.7, -0.4])
    assert apart(*pair) <= BOUND
    inside = {"down": 0.9, "mid": 0.5, "up": {"block_1": 0.6, "block_2": [0.4, 0.8]}}
    for pipe in pair:
        pipe.set_adapters("b", {"unet": inside, "text_encoder": 0.3})
    assert apart(*pair) <= BOUND
    for pipe in pair:
        pipe.disable_lora()
    assert apart(*pair) <= BOUND
    for pipe in pair:
        pipe.enable_lora()
        pipe.set_adapters(["a", "b"], [0.7, -0.4])
        pipe.fuse_lora(lora_scale=0.8)
    assert apart(*pair) <= BOUND
    for pipe in pair:
        pipe.unload_lora_weights()


def test_dora(pair, tmp_path):
    written(pair[1], tmp_path, TARGETS, dora=True)
    for pipe in pair:
        pipe.load_lora_weights(tmp_path)
    assert apart(*pair) <= BOUND


def test_diffusers_reads_what_is_written(pair, tmp_path):
    ours, theirs = pair
    written(theirs, tmp_path / "a", TARGETS, dora=True)
    ours.load_lora_weights(tmp_path / "a", "a")
    ours.save_adapter("lora", tmp_path / "again")
    theirs.load_lora_weights(tmp_path / "again")
    assert apart(ours, theirs) <= BOUND


def kohya(state, alphas):
    """The UNet's part of a PEFT state dict as kohya's trainer names it, with an alpha per layer."""
    tensors = {}
    for name, value in state.items():
        module, _, part = name.removesuffix(".weight").rpartition(".lora_")
        start = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{start}.lora_{'down' if part == 'A' else 'up'}.weight"] = value
        tensors[f"{start}.alpha"] = torch.tensor(alphas["attn2" in module])
    return tensors


def test_defect_alphas_of_kohya_that_differ(pair):
    """diffusers keeps one alpha for attention layers of a kohya file, whatever the file says of
    each; here the sum of two files is the file with both halves."""
    theirs = pair[1]
    config = LoraConfig(r=3, target_modules=ATTENTION, init_lora_weights=False)
    torch.manual_seed(0)
    network = copy.deepcopy(theirs.unet)
    network.add_adapter(config)
    state = get_peft_model_state_dict(network)
    for alphas in ((3.0, 3.0), (6.0, 0.75)):
        for pipe in pair:
            pipe.unload_lora_weights()
            pipe.load_lora_weights(kohya(state, alphas))
        equal = apart(*pair) <= BOUND
        assert equal == (alphas[0] == alphas[1]), alphas
    whole = {}
    for name, value in state.items():
        factor = (6.0, 0.75)["attn2" in name] / 3
        whole[f"unet.{name}"] = value * factor if ".lora_B" in name else value
    theirs.unload_lora_weights()
    theirs.load_lora_weights(whole)
    assert apart(*pair) <= BOUND


def test_defect_the_scale_stays_after_unfusing(pair, tmp_path):
    """After `unfuse_lora` diffusers goes on with the scale that it was merged with."""
    written(pair[1], tmp_path, ATTENTION)
    for pipe in pair:
        pipe.load_lora_weights(tmp_path)
    assert apart(*pair) <= BOUND
    for pipe in pair:
        pipe.fuse_lora(lora_scale=0.3)
        pipe.unfuse_lora()
    assert apart(*pair) > 1e-3
    theirs = pair[1]
    theirs.unload_lora_weights()
    theirs.load_lora_weights(tmp_path)
    assert apart(*pair) <= BOUND


def test_defect_files_without_a_network_are_nothing(pair):
    """Names without `unet.` load as nothing at all, in silence."""
    ours, theirs = pair
    config = LoraConfig(r=3, target_modules=ATTENTION, init_lora_weights=False)
    network = copy.deepcopy(theirs.unet)
    network.add_adapter(config)
    state = get_peft_model_state_dict(network)
    base = apart(ours, theirs)
    theirs.load_lora_weights(dict(state))
    assert apart(ours, theirs) == base
    ours.load_lora_weights(dict(state))
    theirs.load_lora_weights({f"unet.{name}": value for name, value in state.items()})
    assert apart(ours, theirs) <= BOUND
