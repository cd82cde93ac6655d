"""The tiny autoencoder: the original's files, as `vae` of pipelines, and as decoder of previews."""

import copy

import pytest
import torch
from pipelines import tiny
from safetensors.torch import save_file

import underdraw
from underdraw import AutoencoderTiny
from underdraw.errors import InputError, WeightError

HALVES = ("encoder", "decoder")
Z = torch.linspace(-3, 3, 2 * 4 * 5 * 3).reshape(2, 4, 5, 3)


@pytest.fixture(scope="module")
def small():
    return tiny.small_vae()


def wrapped(small, before):
    return {
        f"{before}{half}.{name}": value
        for half in HALVES
        for name, value in tiny.taesd(small, half).items()
    }


def test_files_of_the_original(small, tmp_path):
    """Halves apart, beside each other, in one file under several names, in a pickle."""
    wanted = small.decode(Z).sample
    for half in HALVES:
        save_file(tiny.taesd(small, half), tmp_path / f"taesd_{half}.safetensors")
    torch.save(tiny.taesd(small, "decoder"), tmp_path / "taesd_decoder.pth")
    save_file(wrapped(small, "taesd_"), tmp_path / "both.safetensors")
    more = {**wrapped(small, "vae."), "vae_scale": torch.ones(1)}
    save_file(more, tmp_path / "more.safetensors")
    save_file({k: v.clone() for k, v in small.state_dict().items()}, tmp_path / "own.safetensors")
    for name in ("taesd_decoder.safetensors", "taesd_encoder.safetensors", "both.safetensors",
                 "more.safetensors", "own.safetensors"):  # fmt: skip
        read = AutoencoderTiny.from_single_file(tmp_path / name)
        assert read.config == small.config, name
        assert torch.equal(read.decode(Z).sample, wanted), name
    alone = AutoencoderTiny.from_single_file(tmp_path / "taesd_decoder.pth")
    assert not alone.config.encodes
    assert torch.equal(alone.decode(Z).sample, wanted)
    other = tmp_path / "taesd_encoder.safetensors"
    both = AutoencoderTiny.from_single_file(tmp_path / "taesd_decoder.pth", other=other)
    assert both.config == small.config
    with pytest.raises(InputError, match="decoder alone, and encodes nothing"):
        alone.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="decoder alone"):
        alone.save_pretrained(tmp_path / "saved")


def spoilt(tensors, **changes):
    return {name: value for name, value in (tensors | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {}, "not those of a tiny autoencoder"),
        (lambda t: spoilt(t, extra=torch.ones(1)), "extra"),
        (lambda t: spoilt(t, **{"1.weight": None}), "TAESD|missing"),
        (lambda t: spoilt(t, **{"3.conv.0.weight": None}), "missing"),
        (lambda t: spoilt(t, **{"1.weight": torch.ones(8, 4)}), "not those of a tiny autoencoder"),
        (lambda t: spoilt(t, **{"3.conv.0.bias": torch.ones(9)}), "another kind"),
        (lambda t: {"conv_in.weight": torch.ones(8, 4, 3, 3)}, "conv_in"),
    ],
)
def test_files_that_hold_none(small, tmp_path, change, says):
    place = tmp_path / "a.safetensors"
    save_file(change(tiny.taesd(small, "decoder")), place)
    with pytest.raises(WeightError, match=says):
        AutoencoderTiny.from_single_file(place)


def test_an_encoder_alone_is_named(small, tmp_path):
    save_file(tiny.taesd(small, "encoder"), tmp_path / "a.safetensors")
    with pytest.raises(WeightError, match="only the encoder"):
        AutoencoderTiny.from_single_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {"num_encoder_blocks": (1, 2)},
        {"decoder_block_out_channels": (8, 8, 8, 16)},
        {"num_decoder_blocks": (1, 1), "decoder_block_out_channels": (8, 8)},
        {"upsample_fn": "bilinear"},
    ],
)
def test_configs_that_cannot_be(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        tiny.small_vae(**fields)


def test_in_pipelines(small, tmp_path):
    """From noise, in a folder; from pictures it is in `test_peer_few_steps.py`."""
    parts = {**tiny.components(), "vae": small}
    call = {"seed": 4, "num_inference_steps": 2, "output_type": "pt"}
    pipe = underdraw.StableDiffusionPipeline(**parts)
    made = pipe("a red sphere", height=24, width=40, **call).images
    latents = tiny.run(pipe, height=24, width=40, seed=4, num_inference_steps=2)
    assert torch.equal(made, (small.decode(latents).sample / 2 + 0.5).clamp(0, 1))
    pipe.save_pretrained(tmp_path)
    again = underdraw.DiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(again("a red sphere", height=24, width=40, **call).images, made)


def test_previews(small, tmp_path):
    """Decoded by what was attached, which calls do not notice; in a folder `preview`, too."""
    pipe = tiny.pipeline()
    call = {"height": 24, "width": 40, "num_inference_steps": 2, "seed": 3}
    plain = [step.preview()[0].tobytes() for step in pipe.stream("a red sphere", **call)]
    latents = tiny.run(pipe, **call)
    pipe.load_preview(small)
    steps = pipe.stream("a red sphere", **call)
    shown = []
    for step in steps:
        image = (small.decode(step.clean()).sample / 2 + 0.5).clamp(0, 1)
        shown.append(step.preview()[0])
        levels = (image[0].permute(1, 2, 0) * 255).round().byte().detach().numpy()
        assert shown[-1].tobytes() == levels.tobytes()
    assert [one.tobytes() for one in shown] != plain
    assert torch.equal(tiny.run(pipe, **call), latents)
    pipe.save_adapter("preview", tmp_path / "saved")
    pipe.unload_preview()
    assert [s.preview()[0].tobytes() for s in pipe.stream("a red sphere", **call)] == plain
    pipe.save_pretrained(tmp_path / "folder")
    (tmp_path / "saved").rename(tmp_path / "folder/preview")
    read = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    again = [step.preview()[0].tobytes() for step in read.stream("a red sphere", **call)]
    assert again == [one.tobytes() for one in shown]
    with pytest.raises(InputError, match="latents of 3 channels"):
        pipe.load_preview(tiny.small_vae(latent_channels=3))


def test_an_object_of_diffusers_is_adopted(small):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderTiny(**tiny.SMALL_VAE)
    theirs.load_state_dict(small.state_dict())
    pipe = copy.copy(tiny.pipeline())
    pipe.vae = theirs
    assert isinstance(pipe.vae, AutoencoderTiny)
    assert torch.equal(pipe.vae.decode(Z).sample, small.decode(Z).sample)
