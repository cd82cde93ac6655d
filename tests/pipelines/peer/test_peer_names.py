"""What diffusers has: each public name is here, too, or its absence is explained."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny

import underdraw
from underdraw import VaeImageProcessor
from underdraw.pipelines.diffusers.checking import PLACES

PICTURES = [
    Image.effect_noise((40, 24), 60).convert("RGB"),
    Image.effect_noise((40, 24), 90).convert("RGB"),
]
ARRAY = np.random.default_rng(1).random((2, 16, 24, 3)).astype(np.float32)


@pytest.mark.parametrize("name", PLACES)
def test_places_of_what_is_checked(name):
    peer = getattr(diffusers, name).check_inputs
    assert PLACES[name].split() == list(inspect.signature(peer).parameters)[1:]


def test_names_of_the_package_are_explained():
    unexplained = []
    for name in dir(diffusers):
        if name.startswith("_") or hasattr(underdraw, name):
            continue
        with pytest.raises(AttributeError) as error:
            getattr(underdraw, name)
        said = str(error.value).partition(f"{name}'")[2]
        if not said:
            unexplained.append(name)
    assert len(unexplained) <= 5, unexplained


SETTINGS = [
    {},
    {"do_normalize": False},
    {"do_resize": False},
    {"vae_scale_factor": 4, "resample": "bilinear"},
    {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True},
]
GIVEN = {
    "picture": (PICTURES[0],),
    "sized": (PICTURES[0], 32, 16),
    "pictures": (PICTURES,),
    "array": (ARRAY,),
    "tensor": (torch.from_numpy(ARRAY).permute(0, 3, 1, 2),),
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pictures_go_in_as_they_do_there(settings, given):
    mask = settings.get("do_binarize")
    args = GIVEN[given]
    if mask:
        if given in ("array", "tensor"):
            args = (torch.from_numpy(ARRAY).permute(0, 3, 1, 2)[:, :1],)
        elif given != "sized":
            args = (args[0][0].convert("L") if isinstance(args[0], list) else args[0].convert("L"),)
        else:
            args = (args[0].convert("L"), *args[1:])
    if settings.get("resample") and given == "sized":
        args = args[:1]
    ours = VaeImageProcessor(**settings).preprocess(*args)
    theirs = diffusers.image_processor.VaeImageProcessor(**settings).preprocess(*args)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("settings", [{}, {"do_normalize": False}], ids=str)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("flags", [None, [True, False]])
def test_pictures_come_out_as_they_do_there(settings, output_type, flags):
    x = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    if not settings.get("do_normalize", True) or flags:
        x = x.sigmoid()
    both = [
        kind(**settings).postprocess(x, output_type, flags)
        for kind in (VaeImageProcessor, diffusers.image_processor.VaeImageProcessor)
    ]
    ours, theirs = (np.stack([np.asarray(one, np.float32) for one in made]) for made in both)
    assert ours.shape == theirs.shape and abs(ours - theirs).max() < 1e-6


def test_helpers():
    peer = diffusers.image_processor.VaeImageProcessor
    ours, theirs = VaeImageProcessor(), peer()
    mask = Image.effect_noise((40, 24), 90)
    for name, args in (
        ("pil_to_numpy", (PICTURES,)),
        ("pil_to_numpy", (PICTURES[0],)),
        ("numpy_to_pt", (ARRAY,)),
        ("pt_to_numpy", (torch.from_numpy(ARRAY),)),
        ("normalize", (ARRAY,)),
        ("denormalize", (torch.from_numpy(ARRAY),)),
        ("numpy_to_pil", (ARRAY,)),
        ("resize", (PICTURES[0], 20, 12)),
        ("binarize", (torch.from_numpy(ARRAY.copy()),)),
        ("convert_to_grayscale", (PICTURES[0],)),
        ("convert_to_rgb", (mask,)),
        ("blur", (PICTURES[0], 3)),
        ("get_crop_region", (ours.binarize(mask), 40, 24, 2)),
        ("apply_overlay", (ours.binarize(mask), *PICTURES)),
    ):
        a, b = getattr(ours, name)(*args), getattr(theirs, name)(*args)
        a, b = (np.asarray(one[0] if isinstance(one, list) else one, np.float32) for one in (a, b))
        assert a.shape == b.shape and abs(a - b).max() <= (1e-6 if name != "numpy_to_pil" else 1)


def test_attention_layers_have_their_names():
    parts = tiny.components()
    for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        theirs = kind.from_config(parts[name].config.to_dict())
        assert set(parts[name].attn_processors) == set(theirs.attn_processors)
