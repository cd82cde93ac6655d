"""Configurations of old folders: mended where diffusers' constructors mend them, and only there."""

import copy
import json
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image
from pipelines.blip import recorded
from pipelines.peer import gligen, oracle
from pipelines.peer.oracle import diffusers
from pipelines.peer.structure import NETS, theirs as theirs_of

import underdraw
from underdraw.names import HOMES
from underdraw.pipelines.components.outdated import RIGHT
from underdraw.pipelines.latent import LatentPipeline

EVERY = [
    name
    for name in sorted(HOMES)
    if name.endswith("Pipeline") and issubclass(getattr(underdraw, name), LatentPipeline)
]
SUBJECTS = [name for name in EVERY if name.startswith("Blip")]
PIPELINES = [name for name in EVERY if name not in SUBJECTS]
SAID = {"steps_offset": 1, "clip_sample": False, "skip_prk_steps": True}
# What scheduler_config.json says; a value that it does not say is the class's default.
CONFIGS = {
    "ddim, as first published": ("DDIMScheduler", {"beta_schedule": "scaled_linear"}),
    "ddim, clipped": ("DDIMScheduler", {**SAID, "clip_sample": True}),
    "ddim": ("DDIMScheduler", SAID),
    "pndm, as first published": ("PNDMScheduler", {"beta_schedule": "scaled_linear"}),
    "pndm, what others read": ("PNDMScheduler", {**SAID, "clip_sample": True}),
    "pndm, with prk": ("PNDMScheduler", {**SAID, "skip_prk_steps": False}),
    "pndm": ("PNDMScheduler", SAID),
    "ddpm": ("DDPMScheduler", {"steps_offset": 3, "timestep_spacing": "trailing"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun, clipped": ("HeunDiscreteScheduler", {"clip_sample": True, "steps_offset": 1}),
    "dpm++, another's flags": (
        "DPMSolverMultistepScheduler",
        {"steps_offset": 1, "skip_prk_steps": False, "clip_sample": 1},
    ),
    "no offset": ("DPMSolverSinglestepScheduler", {}),
}


@cache
def parts_of(name, which):
    """Components of a pipeline of this name: diffusers' (0) or ours (1)."""
    pipe = (gligen.pair("image") if "TextImage" in name else oracle.pair("sd1"))[which]
    parts = dict(pipe.components)
    if "DiffEdit" in name:
        parts.pop("image_encoder")
        parts["inverse_scheduler"] = None
    if ("GLIGEN" in name and "TextImage" not in name) or "Adapter" in name:
        parts.pop("image_encoder")
    for reader, nets in (("controlnet", "one"), ("adapter", "full")):
        if reader in getattr(underdraw, name).names().needed:
            net = NETS[nets](oracle.pair("sd1")[1].unet)
            parts[reader] = net if which else theirs_of(net)
    return parts


def made(name, which, **parts):
    """A pipeline, and the warnings about configurations that its constructor gave."""
    library = (diffusers, underdraw)[which]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe = getattr(library, name)(
            **{**parts_of(name, which), **parts}, requires_safety_checker=False
        )
    return pipe, [str(one.message) for one in caught if "configuration" in str(one.message)]


def scheduler(which, kind, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr((diffusers, underdraw)[which], kind).from_config(dict(config))


def told(config):
    return {name: config[name] for name in RIGHT if name in config}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("name", PIPELINES)
def test_schedulers_are_mended_alike(name, case):
    kind, config = CONFIGS[case]
    given = [scheduler(which, kind, config) for which in (0, 1)]
    before = told(given[1].config)
    (theirs, _), (ours, said) = (made(name, which, scheduler=given[which]) for which in (0, 1))
    after = told(ours.scheduler.config)
    assert after == told(theirs.scheduler.config)
    changed = {field for field in before if before[field] != after[field]}
    assert len(said) == bool(changed)
    assert all(f"{field}={before[field]!r} -> {after[field]!r}" in said[0] for field in changed)
    # What other solvers read of it afterwards is mended or not as there, too.
    for other in ("DDIMScheduler", "PNDMScheduler"):
        read = [scheduler(i, other, p.scheduler.config) for i, p in enumerate((theirs, ours))]
        assert told(read[0].config) == told(read[1].config)
    table = ours.scheduler.make_table(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's
        theirs.scheduler.set_timesteps(10)
    np.testing.assert_allclose(table.timesteps, theirs.scheduler.timesteps.numpy(), atol=1e-3)
    assert told(given[1].config) == before
    assert (ours.scheduler is given[1]) == (not changed)


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_pipelines_of_subjects_mend_nothing(name, case):
    """diffusers' constructors look at no network, so they are given none."""
    cls, (theirs, given) = getattr(underdraw, name), (scheduler(i, *CONFIGS[case]) for i in (0, 1))
    needed = cls.names().needed
    peer = getattr(diffusers, name)(**{**dict.fromkeys(needed), "scheduler": theirs})
    assert told(peer.scheduler.config) == told(theirs.config)
    nets = {part: net for part, net in recorded.shared().items() if part in needed}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = recorded.pipeline(cls, scheduler=given, **nets)
    assert pipe.scheduler is given


VERSIONS = ["0.2.2", "0.8.1", "0.8.0.dev0", "0.9.0.dev0", "0.9.0", "0.10.2", "1.0", None]


@pytest.mark.parametrize("name", PIPELINES)
def test_sizes_of_old_networks_are_mended_alike(name):
    own, right = parts_of(name, 1)["unet"], scheduler(1, "DDIMScheduler", SAID)
    peer, same = copy.copy(parts_of(name, 0)["unet"]), scheduler(0, "DDIMScheduler", SAID)
    for version in VERSIONS:
        for size in (8, 63, 64, 96) if version in ("0.8.1", "0.9.0") else (63,):
            config = {**peer.config, "sample_size": size, "_diffusers_version": version}
            if version is None:
                del config["_diffusers_version"]
            peer._internal_dict = diffusers.configuration_utils.FrozenDict(config)
            unet = copy.copy(own)
            unet.config = replace(own.config, sample_size=size)
            unet.diffusers_version = version
            theirs, _ = made(name, 0, unet=peer, scheduler=same)
            ours, said = made(name, 1, unet=unet, scheduler=right)
            after = theirs.unet.config.sample_size
            assert ours.unet.config.sample_size == after, version
            assert len(said) == (after != size)
            assert not said or f"sample_size={size} -> 64" in said[0]


@pytest.fixture
def folder(tmp_path):
    """A folder as of 2022: DDIM without a word about clipping, a UNet with another size."""
    oracle.folder(str(tmp_path))
    for path, changes in (
        ("model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}),
        ("unet/config.json", {"_diffusers_version": "0.6.0", "sample_size": 5}),
    ):
        content = json.loads((tmp_path / path).read_text())
        (tmp_path / path).write_text(json.dumps({**content, **changes}))
    old = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.6.0"}
    old |= {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(old))
    return tmp_path


IMAGE = Image.fromarray(np.arange(40 * 56 * 3, dtype=np.uint8).reshape(40, 56, 3))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StableDiffusionPipeline", {"height": 40, "width": 56}),
        ("StableDiffusionImg2ImgPipeline", {"image": IMAGE, "strength": 0.8}),
    ],
)
def test_old_folders_give_the_pictures_of_diffusers(folder, name, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = oracle.quiet(getattr(diffusers, name).from_pretrained(folder))
    with pytest.warns(UserWarning, match="outdated") as caught:
        ours = oracle.quiet(getattr(underdraw, name).from_pretrained(folder))
    assert len(caught) == 1
    assert ours.unet.config.sample_size == theirs.unet.config.sample_size == 64
    call = {"prompt": "a red sphere", **arguments}
    mended = oracle.images(ours, **call)
    assert np.abs(oracle.images(theirs, **call) - mended).max() < 1e-4
    # Assigned later, a scheduler stays as it is: nobody mends it there either.
    old = ours.scheduler.with_config({"clip_sample": True, "steps_offset": 0})
    ours.scheduler = old
    assert ours.scheduler is old
    assert np.abs(oracle.images(ours, **call) - mended).max() > 1e-2


def test_saved_anew_a_folder_is_no_longer_outdated(folder):
    with pytest.warns(UserWarning, match="outdated"):
        pipe = underdraw.StableDiffusionPipeline.from_pretrained(folder)
    pipe.save_pretrained(folder / "again")
    again = underdraw.StableDiffusionPipeline.from_pretrained(folder / "again")
    assert again.unet.config.sample_size == 64
    assert again.scheduler.config.clip_sample is False


def test_a_scheduler_of_another_library_is_mended_in_a_copy():
    theirs = scheduler(0, "DDIMScheduler", {})
    with pytest.warns(UserWarning, match="steps_offset=0 -> 1; scheduler: clip_sample=True"):
        pipe = underdraw.StableDiffusionPipeline.from_pipe(oracle.pair("sd1")[1], scheduler=theirs)
    assert told(pipe.scheduler.config) == {"steps_offset": 1, "clip_sample": False}
    assert told(theirs.config) == {"steps_offset": 0, "clip_sample": True}
