"""IP-Adapters beside diffusers: the same files, the same pictures; and where it goes wrong."""

from __future__ import annotations

import tempfile

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor as TheirMasks
from PIL import Image
from pipelines import ip_adapters, tiny

import underdraw
from underdraw import ImagePrompt
from underdraw.controls import image_prompt_run
from underdraw.errors import InputError, WeightError
from underdraw.networks.unet import sizes

CALL = {"height": 40, "width": 72, "num_inference_steps": 2, "output_type": "latent"}
PROMPTS = ["a red sphere", "a blue cube", "green"]
# Transformers and diffusers warn of much on their way.
pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 2e-5
"""Of the largest number; the pipelines without an adapter differ by 3e-6."""


@pytest.fixture(scope="module")
def both():
    """One random pipeline with an image tower, ours and theirs."""
    ours = ip_adapters.pipeline(compat="diffusers", unet=tiny.DEEP)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    return ours, theirs


@pytest.fixture
def pair(both):
    """The same, without an IP-Adapter before and after."""
    ours, theirs = both
    tower = theirs.image_encoder
    yield both
    ours.unload_ip_adapter()
    theirs.unload_ip_adapter()
    theirs.unload_lora_weights()
    theirs.image_encoder = tower


def attach(pair, *states):
    ours, theirs = pair
    ours.load_ip_adapter(list(states))
    theirs.load_ip_adapter(list(states), subfolder="", weight_name=[""] * len(states))


def made(pipe, **arguments):
    call = {**CALL, **arguments}
    shape = (3, 4, call["height"] // 8, call["width"] // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return pipe(PROMPTS, latents=latents, **call).images


def apart(pair, **arguments):
    """How far their latents are apart, of the largest number."""
    one, other = (made(pipe, **arguments) for pipe in pair)
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize(
    ("kind", "guidance", "count"),
    [*((kind, 5.0, 2) for kind in ip_adapters.KINDS), ("plus", 1.0, 1), ("face-id-plus", 1.0, 1)],
)
def test_each_kind(pair, kind, guidance, count):
    """Batch 3, odd sizes, three levels, with guidance and without, one picture and several."""
    ours, theirs = pair
    faces = kind.startswith("face")
    attach(pair, ip_adapters.adapter(ours.unet, kind, lora=2 * faces))
    pictures = [ip_adapters.picture(i) for i in range(count)]
    call = {"guidance_scale": guidance}
    if not faces:
        assert apart(pair, ip_adapter_image=[pictures], **call) <= BOUND
        return
    found = ip_adapters.faces(count)
    embeds = torch.stack((found * 0, found) if guidance > 1 else (found,))
    call["ip_adapter_image_embeds"] = [embeds]
    if kind == "face-id":
        assert apart(pair, **call) <= BOUND
        return
    # What the tower sees is given to diffusers' layer by hand, for all rows.
    layer = theirs.unet.encoder_hid_proj.image_projection_layers[0]
    (seen,) = ours.prepare_ip_adapter_image_embeds([pictures], None, None, 1, guidance > 1)
    layer.clip_embeds = torch.cat([half.repeat(3, 1, 1, 1) for half in seen.chunk(len(seen))])
    peer = made(theirs, **call)
    mine = made(ours, ip_adapter_image=[pictures], **call)
    assert (mine - peer).abs().max() <= BOUND * peer.abs().max()
    layer.shortcut, layer.shortcut_scale = True, 0.7
    peer = made(theirs, **call)
    ours.load_ip_adapter(ip_adapters.adapter(ours.unet, kind, lora=2), shortcut=True)
    prompt = ImagePrompt(pictures, face=found, shortcut_scale=0.7)
    mine = made(ours, controls=[prompt], guidance_scale=guidance)
    assert (mine - peer).abs().max() <= BOUND * peer.abs().max()


def test_several_by_block(pair):
    ours, _ = pair
    states = [ip_adapters.adapter(ours.unet, kind, i) for i, kind in enumerate(("plain", "plus"))]
    attach(pair, *states)
    images = {"ip_adapter_image": [ip_adapters.picture(1), [ip_adapters.picture(2)] * 2]}
    inside = {"down": {"block_0": 0.3, "block_1": [0.8]}, "up": {"block_1": [0.2, 0.9]}}
    for scale in ([0.4, 1.2], [inside, 0.5], [0.0, {"mid": 0.7, "down": 0.2}]):
        for pipe in pair:
            pipe.set_ip_adapter_scale(scale)
        assert apart(pair, **images) <= BOUND
    plain = made(ours)
    ours.unload_ip_adapter()
    assert torch.equal(made(ours), plain)


@pytest.mark.parametrize("size", [(32, 64), (96, 32)])
def test_masks(pair, size):
    """One for each of two pictures, of different scales; at sizes whose levels diffusers guesses
    right."""
    ours, _ = pair
    height, width = size
    attach(pair, ip_adapters.adapter(ours.unet), ip_adapters.adapter(ours.unet, "plus", 1))
    left = Image.fromarray(np.repeat(np.arange(width)[None] < width // 3, height, 0))
    low = Image.fromarray(np.repeat(np.arange(height)[:, None] > height // 2, width, 1))
    processors = TheirMasks(), underdraw.IPAdapterMaskProcessor()
    theirs, mine = (one.preprocess([left, low], height, width) for one in processors)
    assert torch.equal(theirs, mine)
    masks = [mine.reshape(1, 2, height, width), mine[:1]]
    for pipe in pair:
        pipe.set_ip_adapter_scale([[0.7, 1.1], 0.4])
    images = [[ip_adapters.picture(1), ip_adapters.picture(2)], ip_adapters.picture(3)]
    call = {"ip_adapter_image": images, "cross_attention_kwargs": {"ip_adapter_masks": masks}}
    call |= {"height": height, "width": width}
    assert apart(pair, **call) <= BOUND


def test_what_is_prepared(pair):
    """`encode_image`, `prepare_ip_adapter_image_embeds`, and calls with what they give."""
    ours, theirs = pair
    attach(pair, ip_adapters.adapter(ours.unet), ip_adapters.adapter(ours.unet, "plus"))
    pictures = [ip_adapters.picture(1), [ip_adapters.picture(2), ip_adapters.picture(3)]]
    for hidden in (None, True):
        for mine, other in zip(
            *(pipe.encode_image(pictures[1], "cpu", 2, hidden) for pipe in pair), strict=True
        ):
            assert mine.shape == other.shape and (mine - other).abs().max() <= 1e-5
    for guided in (False, True):
        mine, other = (
            pipe.prepare_ip_adapter_image_embeds(pictures, None, "cpu", 1, guided) for pipe in pair
        )
        for a, b in zip(mine, other, strict=True):
            assert a.shape == b.shape and (a - b).abs().max() <= 1e-5
        more = ours.prepare_ip_adapter_image_embeds(None, mine, "cpu", 2, guided)
        again = theirs.prepare_ip_adapter_image_embeds(None, other, "cpu", 2, guided)
        assert all((a - b).abs().max() <= 1e-5 for a, b in zip(more, again, strict=True))
    assert apart(pair, ip_adapter_image_embeds=mine) <= BOUND
    pixels = torch.randn(1, 3, ip_adapters.PIXELS, ip_adapters.PIXELS)
    assert apart(pair, ip_adapter_image=[pixels, pixels]) <= BOUND


def test_diffusers_reads_what_is_written(pair, tmp_path):
    ours, theirs = pair
    ours.load_ip_adapter(ip_adapters.adapter(ours.unet, "plus"))
    ours.save_adapter("ip-adapter", tmp_path / "mine.safetensors")
    theirs.load_ip_adapter(tmp_path, subfolder="", weight_name="mine.safetensors")
    assert apart(pair, ip_adapter_image=ip_adapters.picture()) <= BOUND


# -- where diffusers goes wrong ----------------------------------------------------------------
def test_half_a_file_passes_its_check(pair, tmp_path):
    """It asks whether both groups are missing, and fills in both when it reads safetensors."""
    from safetensors.torch import save_file

    ours, theirs = pair
    state = ip_adapters.flat(ip_adapters.adapter(ours.unet))
    cases = {
        "half": {name: value for name, value in state.items() if name.startswith("image_proj")},
        "lora": {"lora_unet_x.lora_down.weight": torch.ones(2, 2)},
    }
    plain = made(ours)
    for name, tensors in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(KeyError):  # of a name deep inside, and not the check's ValueError
            theirs.load_ip_adapter(tmp_path, subfolder="", weight_name=f"{name}.safetensors")
        with pytest.raises(WeightError, match=r"half an IP-Adapter|looks like a LoRA"):
            ours.load_ip_adapter(tmp_path / f"{name}.safetensors")
        assert torch.equal(made(ours), plain)


def test_its_masks_are_of_guessed_sizes(pair, monkeypatch):
    """It guesses height and width of a level from their product: 3 x 4 positions of a picture of 5
    x 7 latents are to it 2 x 6, so that a mask of columns has none."""
    ours, (height, width), level = pair[0], (5, 7), (3, 4)
    assert sizes(ours.unet.config, height, width)("down_blocks.1") == level
    mask = torch.zeros(1, height * 8, width * 8)
    mask[..., : width * 4] = 1
    theirs = TheirMasks.downsample(mask, 1, 12, 1).reshape(level)
    assert not torch.equal(theirs[0], theirs[1])
    masks, hook = [], image_prompt_run.ImageAttention
    monkeypatch.setattr(
        image_prompt_run, "ImageAttention", lambda *args: masks.append(args[2]) or hook(*args)
    )
    ours.load_ip_adapter(ip_adapters.adapter(ours.unet))
    prompt = ImagePrompt(ip_adapters.picture(), mask=mask)
    call = {"height": 8 * height, "width": 8 * width, "controls": [prompt]}
    made(ours, **call)
    found = {place: one.reshape(-1) for place, one in masks[0].items() if one.numel() == 12}
    assert found
    for one in (one.reshape(level) for one in found.values()):
        assert torch.allclose(one, one[:1], atol=1e-5) and one[0, 0] > 0.9 > 0.1 > one[0, 3]


def test_its_faces_stay_when_they_are_unloaded(pair):
    """The LoRA of a FaceID file goes on acting, and other LoRAs have stopped."""
    ours, theirs = pair
    before = [made(pipe) for pipe in pair]
    attach(pair, ip_adapters.adapter(ours.unet, "face-id", lora=2))
    for pipe in pair:
        pipe.unload_ip_adapter()
    assert torch.equal(made(ours), before[0])
    assert (made(theirs) - before[1]).abs().max() > 0.1


def test_pictures_of_their_own_for_each_image(pair):
    """Features of three images: diffusers repeats them for all, and takes the tokens of 18 rows for
    those of 6, which then see each other's, without a word."""
    ours, theirs = pair
    attach(pair, ip_adapters.adapter(ours.unet))
    embeds = torch.randn(6, 1, ip_adapters.EMBEDDING)
    whole = made(ours, ip_adapter_image_embeds=[embeds])
    theirs = made(theirs, ip_adapter_image_embeds=[embeds])
    for i in range(3):
        single = made(ours, ip_adapter_image_embeds=[embeds[[i, 3 + i]]])
        assert (single[i] - whole[i]).abs().max() <= BOUND * whole.abs().max()
        assert (single[i] - theirs[i]).abs().max() > 0.1
    with pytest.raises(InputError, match="entries"):
        made(ours, ip_adapter_image_embeds=[embeds[:5]])
