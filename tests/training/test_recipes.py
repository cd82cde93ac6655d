"""The stages of the scenes family, one step each, on an accelerator that is only pretended."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipelines.elsewhere import DEVICE, Accelerator, There

from underdraw.errors import InputError, NotFoundError
from underdraw.formats.arrays import read_array
from underdraw.models.grounding import Grounding
from underdraw.pipelines.blip_diffusion import BlipDiffusionPipeline
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline
from underdraw.training import checkpoints, recipes
from underdraw.training.data import RenderedScenes
from underdraw.training.recipes import ScenesRecipe, train_stage
from underdraw.training.subject_scenes import SubjectScenes
from underdraw.training.views import Views
from underdraw.training.workshop import Workshop

pytestmark = pytest.mark.usefixtures("onednn")
STAGES = (
    *("autoencoder", "latents", "denoiser", "clip", "grounding", "maps", "structure", "edges"),
    *("subjects", "patterns", "alignment", "subject"),
)


def to_host(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: to_host(one) for key, one in value.items()}
    if isinstance(value, list):
        return [to_host(one) for one in value]
    return value.held if isinstance(value, There) else value


@pytest.fixture(scope="module")
def recipe() -> ScenesRecipe:
    """That for an accelerator, as small as it goes."""
    found = ScenesRecipe(start="underdraw/scenes").on_accelerator()
    assert found.runs["denoiser"].workers > 1
    small = {"steps": 1, "batch": 2, "workers": 0, "log_steps": 1, "precision": "float32"}
    runs = {name: replace(run, **small) for name, run in found.runs.items()}
    denoiser = replace(found.denoiser, prompts=found.denoiser.prompts[:1], preview_steps=2)
    return replace(found, scenes=9, views=9, subjects=6, runs=runs, denoiser=denoiser)


def test_every_stage_runs_where_devices_cannot_be_mixed(
    recipe: ScenesRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pretended device's tensors cannot be written as they are, those of a real one can.
    save = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", lambda path, state: save(path, to_host(state)))
    # Each stage reads those before it, which takes half of the time; nobody writes into a state.
    monkeypatch.setattr(checkpoints, "load", cache(checkpoints.load))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(RenderedScenes.__init__, "__defaults__", (4,))  # held back: 64
    monkeypatch.setattr(SubjectScenes.__init__, "__defaults__", (2,))
    train_stage("renders", tmp_path, recipe)
    assert len(Views(tmp_path / "views")) == 9
    for stage in STAGES:
        with Accelerator():
            train_stage(stage, tmp_path, recipe, device=str(DEVICE))
    with pytest.raises(InputError, match="run it before the stage 'patterns'"):
        train_stage("decoder", tmp_path, recipe)
    train_stage("export", tmp_path, recipe)
    made = StableDiffusionPipeline.from_pretrained(tmp_path / "export", dtype="float32")
    shipped = StableDiffusionPipeline.from_pretrained("underdraw/scenes", dtype="float32")
    for name in ("vae", "unet", "image_encoder"):
        changed = [
            not torch.equal(a, b)
            for a, b in zip(
                getattr(made, name).state_dict().values(),
                getattr(shipped, name).state_dict().values(),
                strict=True,
            )
        ]
        assert any(changed), name
    assert (tmp_path / "export" / "truth" / "heads.safetensors").exists()
    layers = Grounding.from_pretrained(tmp_path / "export", subfolder="grounding")
    assert layers.config.kind == "text-image"
    assert list(made.adapters["structure"]) == ["edges"]  # the one that was trained
    made.load_structure(made.adapters["structure"]["edges"], name="mine")
    assert list(made.adapters["structure"]) == ["edges", "mine"]
    # The start's subject encoder goes on without heads, which nobody kept.
    trained = checkpoints.load(tmp_path / "subject" / checkpoints.NAME)["modules"]
    assert {*trained} == {"qformer", "differences"}
    blip = BlipDiffusionPipeline.from_pretrained(tmp_path / "export", dtype="float32")
    assert blip.subjects["own"].overlay.unet
    assert made.subjects.keys() == {"subject"}


def test_a_stage_goes_on_with_a_network_of_the_start(
    recipe: ScenesRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(task: Any, config: Any, folder: Path, **where: Any) -> None:
        folder.mkdir()
        held = {name: module.state_dict() for name, module in task.modules.items()}
        if "vae" in held:
            held["vae"] = {name: value * 1.01 for name, value in held["vae"].items()}
        checkpoints.save(folder / checkpoints.NAME, {"step": 1, "modules": held, "average": {}})

    monkeypatch.setattr(recipes, "train", moved)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(RenderedScenes.__init__, "__defaults__", (4,))
    recipe = replace(recipe, again=("autoencoder",), views=1, scenes=6, mapped=1)
    recipe = replace(recipe, without=("structure",), anew=("structure/edges",))
    for stage in ("renders", "autoencoder", "latents", "maps", "edges"):
        train_stage(stage, tmp_path, recipe)
    shop = Workshop(recipe, tmp_path)
    before = Workshop(ScenesRecipe(start="underdraw/scenes"), tmp_path).vae(trained=False)
    name = "decoder.conv_in.weight"
    old = before.state_dict()[name]
    assert torch.equal(shop.vae(trained=False).state_dict()[name], old)
    assert torch.equal(shop.vae().state_dict()[name], old * 1.01)
    # Its latents are scaled as they are measured.
    measured = shop.scaling_factor()
    assert measured != before.config.scaling_factor
    assert shop.family(trained=False)["vae"].config.scaling_factor == measured
    kept = read_array(tmp_path / "latents.npy")
    assert measured == pytest.approx(1 / kept.astype(np.float64).std(), abs=1e-5)
    # A net for edges begins from nothing, and is taught to read them, if no stage went before.
    assert len(read_array(tmp_path / "maps" / "edges.npy")) == 1
    assert {*checkpoints.load(tmp_path / "edges" / "state.pt")["modules"]} == {"controlnet", "head"}
    assert not shop.reads("edges")
    assert shop.reads("depth")  # the start's
    with pytest.raises(NotFoundError, match="run the stage 'structure' first"):
        Workshop(replace(recipe, without=()), tmp_path).structure("edges", trained=False)
