"""Model objects against the peers': distributions, image processing, what goes in and comes out."""

import warnings

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from PIL import Image
from pipelines.peer.oracle import checker, pair

from underdraw.models import CLIPImageProcessor, StableDiffusionSafetyChecker


def pictures():
    drawn = np.random.default_rng(0)
    sizes = [(40, 64), (64, 40), (33, 91), (32, 32), (200, 150)]
    return [Image.fromarray(drawn.integers(0, 256, (h, w, 3), np.uint8)) for h, w in sizes]


@pytest.mark.parametrize("side", [32, 48, 224])
@pytest.mark.parametrize("form", ["pil", "array", "grey"])
def test_the_image_processor(side, form):
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    ours = CLIPImageProcessor.from_config(theirs.to_dict())
    for image in pictures():
        given = {"pil": image, "array": np.asarray(image), "grey": image.convert("L")}[form]
        if form == "grey":
            expected = theirs(given.convert("RGB"), return_tensors="np")["pixel_values"]
        else:
            expected = theirs(given, return_tensors="np")["pixel_values"]
        found = ours(given)["pixel_values"]
        assert found.shape == expected.shape and found.dtype == np.float32
        assert np.abs(found - expected).max() <= 2e-2  # one grey level, rounded otherwise
        assert np.abs(found - expected).mean() <= 1e-3
    batch = ours(pictures(), return_tensors="pt").pixel_values
    assert batch.shape == (5, 3, side, side)


def test_distributions_of_the_encoder():
    theirs, ours = (pipe.vae for pipe in pair("sd1"))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 40, 24, generator=g)
    with torch.no_grad():
        a, b = theirs.encode(x).latent_dist, ours.encode(x).latent_dist
        for one, two in (
            (a.mean, b.mean),
            (a.mode(), b.mode()),
            (a.std, b.std),
            (a.var, b.var),
            (a.logvar, b.logvar),
            (a.kl(), b.kl()),
            (
                a.sample(torch.Generator().manual_seed(3)),
                b.sample(torch.Generator().manual_seed(3)),
            ),
            (theirs(x).sample, ours(x).sample),
            (theirs.encode(x, return_dict=False)[0].mean, ours.encode(x, False)[0].mean),
            (theirs.decode(a.mean, return_dict=False)[0], ours.decode(b.mean, False)[0]),
        ):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_divergence_and_likelihood_under_distributions():
    theirs, ours = (pipe.vae for pipe in pair("sd1"))
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 3, 3, 40, 24, generator=g)
    with torch.no_grad():
        a, b = ([vae.encode(z).latent_dist for z in (x, y)] for vae in (theirs, ours))
    z = a[1].mean + 0.3
    torch.testing.assert_close(b[0].kl(b[1]), a[0].kl(a[1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b[0].nll(z), a[0].nll(z), rtol=1e-4, atol=1e-4)
    assert b[0].nll(z).shape == (3,)


def test_tiles_have_the_peers_sizes():
    theirs, ours = (pipe.vae for pipe in pair("sd1"))
    for name in ("tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert not ours.use_tiling
    ours.use_tiling = True
    assert ours.use_tiling and ours.tiling == ours.default_tiling()
    ours.disable_tiling()
    assert not ours.use_tiling


@pytest.mark.parametrize("kind", ["sd1", "mask"])
def test_outputs_of_the_text_encoder(kind):
    theirs, ours = pair(kind)
    ids = theirs.tokenizer(
        ["a red sphere", "blue"], padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        a = theirs.text_encoder(ids, output_hidden_states=True)
        b = ours.text_encoder(ids, output_hidden_states=True)
        assert len(ours.text_encoder(ids)) == 2
        assert ours.text_encoder(ids, return_dict=False)[0].shape == (2, 77, 32)
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(a.pooler_output, b["pooler_output"], rtol=0, atol=1e-5)
    assert len(a.hidden_states) == len(b.hidden_states)
    for one, two in zip(a.hidden_states[:-1], b.hidden_states[:-1], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_the_unet_as_it_is_called_elsewhere():
    theirs, ours = (pipe.unet for pipe in pair("sd1"))
    g = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 5, 9, generator=g), torch.randn(2, 7, 32, generator=g)
    with torch.no_grad():
        for t in (3, 3.5, torch.tensor(7), torch.tensor([1, 900])):
            a = theirs(x, t, context).sample
            torch.testing.assert_close(a, ours(x, t, context).sample, rtol=0, atol=1e-5)
            out = ours(x, t, encoder_hidden_states=context, return_dict=False)
            assert isinstance(out, tuple) and torch.equal(out[0], ours(x, t, context)[0])


def test_the_checker_called_directly():
    theirs, _ = checker(0.0)
    ours = StableDiffusionSafetyChecker.adopt(theirs)
    g = torch.Generator().manual_seed(0)
    pixels, images = torch.randn(6, 3, 32, 32, generator=g), torch.rand(6, 3, 8, 8, generator=g)
    for weights in (theirs.concept_embeds_weights, theirs.special_care_embeds_weights):
        weights.data = 0.3 * torch.randn(weights.shape, generator=g)
    ours = StableDiffusionSafetyChecker.adopt(theirs)
    for copy in (images, images.numpy()):
        kept = copy.clone() if isinstance(copy, torch.Tensor) else copy.copy()
        with torch.no_grad():
            expected, flags = theirs(clip_input=pixels, images=kept)
            found, own = ours(pixels, copy)
        assert [bool(flag) for flag in flags] == own
        assert (np.asarray(expected) == np.asarray(found)).all()
        assert (np.asarray(copy) == images.numpy()).all()  # the caller's images stay


def test_gradients_flow_as_in_the_peer():
    """The objects are modules: their users train them."""
    theirs, ours = (pipe.unet for pipe in pair("sd1"))
    g = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 4, 5, 9, generator=g), torch.randn(1, 7, 32, generator=g)
    grads = []
    for unet in (theirs, ours):
        unet(x, 500, context).sample.square().mean().backward()
        grads.append({name: p.grad for name, p in unet.named_parameters()})
        unet.zero_grad(set_to_none=True)
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-3, atol=1e-5)
