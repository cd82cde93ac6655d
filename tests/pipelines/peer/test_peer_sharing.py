"""The peers' objects in our pipeline, folders both ways, the safety checker."""

import json
import warnings

import diffusers
import numpy as np
import pytest
import torch
from pipelines.peer import oracle
from pipelines.peer.oracle import images, pair

import underdraw
from underdraw import schedulers
from underdraw.models import CLIPImageProcessor, StableDiffusionSafetyChecker, UNet2DConditionModel

LIMIT = 1e-4
CALL = {"prompt": ["a red sphere", "blue cube"], "seeds": (1, 2), "height": 40, "width": 72}
CALL |= {"num_inference_steps": 3}
PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")

FOREIGN = {
    "DDIMScheduler": {"eta": 0.5},
    "PNDMScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"timesteps": [900, 500, 100]},
    "DPMSolverSDEScheduler": None,  # not among ours
    "IPNDMScheduler": {},  # neither
}


@pytest.mark.parametrize("name", [n for n, call in FOREIGN.items() if call is not None])
def test_a_scheduler_of_the_peer(name, monkeypatch):
    theirs, ours = pair("sd1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = {**theirs.scheduler.config, "clip_sample": False}
        schedule = getattr(diffusers, name)
        monkeypatch.setattr(theirs, "scheduler", schedule.from_config(config))
        made = underdraw.StableDiffusionPipeline.from_pipe(
            ours, scheduler=schedule.from_config(config)
        )
    oracle.quiet(made)
    call = {**CALL, **FOREIGN[name]}
    assert np.abs(images(theirs, **call) - images(made, **call)).max() <= LIMIT
    previews = []

    def note(pipe, step, t, tensors):
        previews.append(step)
        return {}

    images(made, callback_on_step_end=note, **call)
    assert previews == list(range(len(made.scheduler.timesteps)))


def test_networks_of_the_peers_are_adopted():
    theirs, _ = pair("sd1")
    parts = {name: getattr(theirs, name) for name in PARTS}
    ours = oracle.quiet(underdraw.StableDiffusionPipeline(**parts))
    for name in ("unet", "vae", "text_encoder"):
        mine = dict(getattr(ours, name).named_parameters())
        pointers = {value.data_ptr() for value in mine.values()}
        assert pointers == {value.data_ptr() for value in getattr(theirs, name).parameters()}
    assert isinstance(ours.unet, UNet2DConditionModel)
    assert np.abs(images(theirs, **CALL) - images(ours, **CALL)).max() <= LIMIT


def test_a_pipeline_of_the_peer_is_taken_over():
    theirs, _ = pair("sd2")
    ours = oracle.quiet(underdraw.StableDiffusionPipeline.from_pipe(theirs))
    assert np.abs(images(theirs, **CALL) - images(ours, **CALL)).max() <= LIMIT


@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        *(("sd1", solver) for solver in (None, "DPMSolverMultistepScheduler", "DDIMScheduler")),
        ("sd2", "DDIMScheduler"),
        ("mask", None),
    ],
)
def test_the_peer_reads_what_we_save(tmp_path, kind, solver):
    _, ours = pair(kind)
    if solver:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = getattr(schedulers, solver).from_config(
                ours.scheduler.config, clip_sample=False, set_alpha_to_one=False
            )
        ours = oracle.quiet(underdraw.StableDiffusionPipeline.from_pipe(ours, scheduler=made))
    ours.save_pretrained(tmp_path / "ours")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    expected = images(ours, **CALL)
    assert np.abs(images(oracle.quiet(theirs), **CALL) - expected).max() <= LIMIT
    again = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert (images(oracle.quiet(again), **CALL) == expected).all()


def test_what_went_through_the_peer_comes_back(tmp_path):
    _, ours = pair("sd1")
    ours.save_pretrained(tmp_path / "a")
    diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "a").save_pretrained(
        tmp_path / "b"
    )
    again = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "b")
    assert (images(oracle.quiet(again), **CALL) == images(ours, **CALL)).all()


@pytest.mark.parametrize(
    ("saved", "read"),
    [
        ({"variant": "fp16"}, {"variant": "fp16"}),
        ({"max_shard_size": "60KB"}, {}),
        ({"safe_serialization": False}, {}),
    ],
)
def test_forms_of_folders(tmp_path, saved, read):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = oracle.folder(str(tmp_path / "pipe"), "sd1", **saved)
    ours = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "pipe", **read)
    assert np.abs(images(theirs, **CALL) - images(oracle.quiet(ours), **CALL)).max() <= LIMIT


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_transformers_4_and_5(tmp_path, prefix):
    """Published keys begin with `text_model.`; transformers 5 writes them without."""
    from safetensors.torch import load_file, save_file

    theirs = oracle.folder(str(tmp_path / "pipe"))
    path = tmp_path / "pipe" / "text_encoder" / "model.safetensors"
    tensors = {prefix + k.removeprefix("text_model."): v for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    ours = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    assert np.abs(images(theirs, **CALL) - images(oracle.quiet(ours), **CALL)).max() <= LIMIT


def test_a_half_precision_pipeline():
    """bfloat16 has three digits: both lose the same, not more."""
    for dtype, limit in ((torch.bfloat16, 0.1),):
        theirs, ours = pair("sd1")
        exact = images(theirs, **CALL)
        halves = []
        for library, pipe in ((diffusers, theirs), (underdraw, ours)):
            parts = {
                name: part.__class__.from_config(part.config) if name == "scheduler" else part
                for name, part in pipe.components.items()
                if part is not None
            }
            parts["unet"], parts["vae"], parts["text_encoder"] = (
                __import__("copy").deepcopy(parts[n]) for n in ("unet", "vae", "text_encoder")
            )
            extra = {} if library is underdraw else {"requires_safety_checker": False}
            extra |= {"safety_checker": None, "feature_extractor": None}
            half = oracle.quiet(library.StableDiffusionPipeline(**parts, **extra)).to(dtype)
            g = torch.Generator().manual_seed(0)
            latents = torch.randn(2, 4, 5, 9, generator=g)
            made = images(half, latents=latents.to(dtype), **CALL)
            whole = images(pipe, latents=latents, **CALL)
            halves.append(np.abs(made - whole).mean())
        assert halves[1] <= 1.1 * halves[0] + 1e-3
        assert halves[1] < limit
        assert np.isfinite(exact).all()


# -- the safety checker ---------------------------------------------------------------------------
@pytest.mark.parametrize("threshold", [-1.0, 0.29, 0.295, 0.3, 2.0])
def test_the_safety_checker(monkeypatch, threshold):
    theirs, ours = pair("sd1")
    checker, processor = oracle.checker(threshold)
    monkeypatch.setattr(theirs, "safety_checker", checker)
    monkeypatch.setattr(theirs, "feature_extractor", Peer(processor))
    made = underdraw.StableDiffusionPipeline.from_pipe(
        ours, safety_checker=checker, feature_extractor=processor
    )
    oracle.quiet(made)
    assert isinstance(made.safety_checker, StableDiffusionSafetyChecker)
    prompts = ["a red sphere", "blue cube", "", "table on table", "green"]
    for output_type in ("np", "pt", "pil"):
        call = {"num_inference_steps": 2, "output_type": output_type}
        results = []
        for pipe in (theirs, made):
            results.append(pipe(prompts, generator=oracle.generators(4), **call))
        flags = [result.nsfw_content_detected for result in results]
        assert [bool(flag) for flag in flags[0]] == flags[1]
        if abs(threshold) >= 1:
            assert set(flags[1]) == {threshold < 0}
        for a, b, flag in zip(results[0].images, results[1].images, flags[1], strict=True):
            a, b = np.asarray(a, float), np.asarray(b, float)
            assert np.abs(a - b).max() <= (1 if output_type == "pil" else LIMIT)
            assert (b.max() == 0) == flag
    latents = made(prompts[0], num_inference_steps=1, output_type="latent")
    assert latents.nsfw_content_detected is None


class Peer:
    """Our image processor with diffusers' way to return tensors (its own needs torchvision)."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, pictures, return_tensors):
        return self.processor(pictures, return_tensors=return_tensors)


def test_a_checker_in_a_folder(tmp_path):
    theirs = oracle.folder(str(tmp_path / "pipe"))
    checker, processor = oracle.checker(-1.0)
    checker.save_pretrained(tmp_path / "pipe" / "safety_checker")
    processor.save_pretrained(tmp_path / "pipe" / "feature_extractor")
    path = tmp_path / "pipe" / "model_index.json"
    index = json.loads(path.read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    path.write_text(json.dumps(index))
    load = underdraw.StableDiffusionPipeline.from_pretrained
    ours = oracle.quiet(load(tmp_path / "pipe"))
    assert isinstance(ours.feature_extractor, CLIPImageProcessor)
    assert ours("a", num_inference_steps=1).nsfw_content_detected == [True]
    assert ours("a", num_inference_steps=1).images[0].getextrema() == ((0, 0),) * 3
    free = oracle.quiet(load(tmp_path / "pipe", safety_checker=None))
    assert free.safety_checker is None
    assert np.abs(images(free, **CALL) - images(theirs, **CALL)).max() <= LIMIT
    ours.save_pretrained(tmp_path / "ours")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    call = {"num_inference_steps": 1, "output_type": "np"}
    assert oracle.quiet(again)("a", **call).nsfw_content_detected == [True]


# -- tiles ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (24, 8), (13, 22)])
def test_tiles_of_the_autoencoder(size):
    theirs, ours = (pipe.vae for pipe in pair("sd1"))
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, *size, generator=g)
    picture = torch.randn(1, 3, 8 * size[0], 8 * size[1], generator=g)
    with torch.no_grad():
        whole = ours.decode(z).sample
        for vae in (theirs, ours):
            vae.enable_tiling()
        try:
            for a, b in (
                (theirs.decode(z).sample, ours.decode(z).sample),
                (theirs.encode(picture).latent_dist.mean, ours.encode(picture).latent_dist.mean),
            ):
                assert a.shape == b.shape
                assert (a - b).abs().max() <= 1e-5 * a.abs().max()
            assert ((ours.decode(z).sample - whole).abs().max() > 1e-3) == (max(size) > 8)
        finally:
            for vae in (theirs, ours):
                vae.disable_tiling()
        assert torch.equal(ours.decode(z).sample, whole)
