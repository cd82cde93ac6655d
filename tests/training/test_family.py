"""The whole family within a time: who gets how much, and a chain of tiny networks to its scores."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from underdraw.errors import InputError, UnderdrawError, WeightError
from underdraw.networks.config import CLIPTextConfig, CLIPVisionConfig, UNetConfig, VAEConfig
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline
from underdraw.training import beside, family
from underdraw.training.data import ArrivingScenes, RenderedScenes
from underdraw.training.family import (
    ACCELERATED,
    PLAN,
    SHARES,
    Ledger,
    sized,
    stages_of,
    train_family,
)
from underdraw.training.loop import Stopped
from underdraw.training.recipes import STAGES, ScenesRecipe, train_stage
from underdraw.training.subject_encoder import EncoderConfig
from underdraw.training.subject_scenes import SubjectScenes

LEVELS = ("DownBlock2D", "UpBlock2D")


FORKS = pytest.mark.filterwarnings("ignore:.*fork\\(\\)")
"""JAX, which other tests may have imported, warns of what it does not see: these children do not
compute by it."""


def tiny() -> ScenesRecipe:
    """The recipe with networks as small as they go, of a step for each stage."""
    wide = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = ScenesRecipe(
        scenes=10,
        views=8,
        subjects=6,
        vae=VAEConfig(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            sample_size=128,
        ),
        text=CLIPTextConfig(**wide, **heads),
        unet=UNetConfig(
            sample_size=16,
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=16,
            norm_num_groups=4,
        ),
        vision=CLIPVisionConfig(**wide, **heads, image_size=32, patch_size=16),
        encoder=EncoderConfig(2, 1, 1, 2, 32),
    )
    short = {"steps": 1, "batch": 2, "log_steps": 1, "precision": "float32"}
    runs = {name: replace(run, **short) for name, run in recipe.runs.items()}
    denoiser = replace(recipe.denoiser, prompts=(), captions=1)
    return replace(recipe, runs=runs, denoiser=denoiser)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(RenderedScenes.__init__, "__defaults__", (4,))  # held back: 64
    monkeypatch.setattr(ArrivingScenes.__init__, "__defaults__", (4, 120.0))
    monkeypatch.setattr(SubjectScenes.__init__, "__defaults__", (2,))
    for name, value in (("_LEAST", 1), ("_MOST", 1), ("_PROBED", 1)):
        monkeypatch.setattr(family, name, value)


def test_a_family_from_nothing_to_its_scores(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def stopped_once(stage: str, *arguments: Any, **how: Any) -> None:
        if stage == "grounding" and "grounding" not in ran:
            ran.append(stage)
            raise Stopped("as by a signal")
        train_stage(stage, *arguments, **how)
        ran.append(stage)

    monkeypatch.setattr(family, "train_stage", stopped_once)
    told: list[str] = []
    with pytest.raises(Stopped):
        train_family(tmp_path, 30.0, tiny(), progress=False, tell=told.append)
    table = train_family(tmp_path, 30.0, tiny(), progress=False, tell=told.append)
    stages = [stage for stage in SHARES if stage != "scores"]
    again = stages.index("grounding")
    # What was done is not done again.
    assert ran == [*stages[:again], "grounding", *stages[again:]]
    assert [line.split(":")[0] for line in told] == ran
    assert "right" in table
    made = StableDiffusionPipeline.from_pretrained(tmp_path / "export", dtype="float32")
    assert made.unet.config.block_out_channels == (8, 8, 16)
    assert {*made.adapters["structure"]} == {"edges", "depth"}
    assert made.subjects.keys() == {"subject"}
    assert (tmp_path / "scores" / "report.json").exists()
    kept = json.loads((tmp_path / PLAN).read_text())
    assert kept["counts"] == {"scenes": 10, "views": 8, "subjects": 6, "scored": 1}
    ran.clear()
    assert train_family(tmp_path, 30.0, tiny(), progress=False) == table
    assert ran == []


def test_a_family_is_trained_by_one_run_at_a_time(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def stage(name: str, folder: Path, *arguments: Any, **how: Any) -> None:
        ran.append(name)
        if name == "latents":
            before = (folder / PLAN).read_bytes()
            with pytest.raises(InputError, match=r"folder='.*': another run.*\(family\)"):
                train_family(folder, 60.0, tiny(), progress=False, tell=ran.append)
            assert (folder / PLAN).read_bytes() == before

    monkeypatch.setattr(family, "train_stage", stage)
    monkeypatch.setattr(family, "_score", lambda *arguments: "scores")
    how: dict[str, Any] = {"progress": False, "tell": lambda line: None}
    assert train_family(tmp_path, 60.0, tiny(), **how) == "scores"
    assert ran == [name for name in SHARES if name != "scores"]
    assert [path.name for path in tmp_path.iterdir()] == [PLAN]


def test_a_stage_is_run_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def renders(shop: Any, *arguments: Any) -> None:
        ran.append("renders")
        with pytest.raises(InputError, match=r"folder='.*': another run.*\(renders\)"):
            train_stage("renders", shop.folder)
        train_stage("export", shop.folder)  # which can be written early

    monkeypatch.setitem(STAGES, "renders", renders)
    monkeypatch.setitem(STAGES, "export", lambda *arguments: ran.append("export"))
    train_stage("renders", tmp_path / "work")
    assert ran == ["renders", "export"]
    assert list((tmp_path / "work").iterdir()) == []


@FORKS
def test_examples_are_made_beside_the_training(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "START", "fork")  # as small as it is in this process
    ran: list[tuple[str, int | None]] = []

    def trained(stage: str, *arguments: Any, arriving: int | None = None, **how: Any) -> None:
        ran.append((stage, arriving))
        if stage == "denoiser" and len(ran) < 5:
            raise Stopped("as by a signal")
        if stage == "autoencoder":
            train_stage(stage, *arguments, arriving=arriving, **how)

    monkeypatch.setattr(family, "train_stage", trained)
    monkeypatch.setattr(family, "_score", lambda *arguments: "scores")
    recipe = replace(tiny(), mapped=5, without=("structure",))
    how: dict[str, Any] = {"beside": True, "progress": False, "tell": lambda line: None}
    with pytest.raises(Stopped):
        train_family(tmp_path, 600.0, recipe, **how)
    kept = json.loads((tmp_path / PLAN).read_text())
    assert kept["done"] == ["autoencoder", "renders", "text", "latents"]
    assert train_family(tmp_path, 600.0, recipe, **how) == "scores"
    waiting = {*family.WAITING, "structure", "scores"}
    wanted = [stage for stage in ACCELERATED if stage not in waiting]
    assert [stage for stage, _ in ran] == [*wanted[:4], *wanted[3:]]
    assert ran[0] == ("autoencoder", 10)
    assert all(arriving is None for _, arriving in ran[1:])
    kept = json.loads((tmp_path / PLAN).read_text())
    assert kept["counts"] == {"scenes": 10, "views": 8, "subjects": 6, "mapped": 5}
    assert {*kept["done"]} == {*SHARES} - {"structure"}
    assert {*kept["beside"]} == {"scenes", "views", "maps", "subjects"}
    assert len(np.load(tmp_path / "maps" / "edges.npy")) == 5
    ran.clear()
    assert train_family(tmp_path, 600.0, recipe, **how) == "scores"
    assert ran == []
    with pytest.raises(InputError, match=r"begun with .*'without': \['structure'\]"):
        train_family(tmp_path, 600.0, tiny(), **how)


@FORKS
def test_what_fails_beside_the_training_is_told(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "START", "fork")

    def fails(*arguments: Any) -> None:
        raise OSError("no space left")

    def endless(stage: str, *arguments: Any, **how: Any) -> None:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(family, "render_the_views", fails)
    monkeypatch.setattr(family, "train_stage", endless)
    how: dict[str, Any] = {"beside": True, "progress": False, "tell": lambda line: None}
    with pytest.raises(UnderdrawError, match="views failed: OSError: no space left"):
        train_family(tmp_path, 600.0, tiny(), **how)
    assert json.loads((tmp_path / PLAN).read_text())["done"] == []
    # Nor is anything waited for that never comes.
    monkeypatch.setattr(family, "render_the_scenes", lambda *arguments: os._exit(3))
    monkeypatch.setattr(family, "shards_of", lambda folder: [])
    with pytest.raises(UnderdrawError, match="scenes failed: its process ended with exit code 3"):
        train_family(tmp_path / "other", 600.0, tiny(), **how)


def _no_space() -> None:
    raise OSError("no space left")


@FORKS
def test_who_ignores_interrupts_is_interrupted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beside, "START", "fork")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    try:
        with pytest.raises(KeyboardInterrupt), beside.Beside({"views": _no_space}) as cores:
            for _ in range(1000):
                time.sleep(0.01)
        assert cores.fault == "views failed: OSError: no space left"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_counts_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr(family, "_seconds_of_a_scene", lambda recipe: 0.02)
    recipe = ScenesRecipe().on_accelerator()
    ledger, stages = Ledger(tmp_path / PLAN, None), list(ACCELERATED)
    whole = sum(ACCELERATED.values())
    planned = family._planned(recipe, stages, whole, ledger)
    assert planned.scenes == ACCELERATED["autoencoder"] * 16 / 0.02
    assert (planned.views, planned.subjects, planned.mapped) == (24_000, 16_000, 24_000)
    short = Ledger(tmp_path / "short.json", None)
    planned = family._planned(recipe, stages, whole / 10, short)
    assert planned.scenes == ACCELERATED["autoencoder"] / 10 * 16 / 0.02
    made = 0.6 * planned.views + 2 * planned.subjects + 0.35 * (planned.mapped or 0)
    assert made * 0.02 / 16 == pytest.approx(0.5 * ACCELERATED["denoiser"] / 10, rel=0.01)


def test_shares_are_of_what_is_left(tmp_path: Path) -> None:
    assert list(STAGES) and {*SHARES} - {"scores"} == {*STAGES}
    ledger, stages = Ledger(tmp_path / PLAN, None), list(SHARES)
    whole = sum(SHARES.values())
    assert ledger.allotted("renders", stages, 600) == pytest.approx(600 * 0.08 / whole)
    ledger.seconds, ledger.done = {"renders": 200.0, "text": 17.0}, ["renders"]
    left = whole - SHARES["renders"]  # renders took too long; text, interrupted, has its own time
    assert ledger.allotted("text", stages, 600) == pytest.approx(400 * 0.02 / left)
    ledger.done.append("text")
    rest = sum(ledger.allotted(stage, stages, 600) for stage in stages[2:])
    assert rest == pytest.approx(383)
    ledger.seconds["text"] = 9999.0
    assert ledger.allotted("clip", stages, 600) == 0.1


def test_as_many_examples_as_there_is_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(family, "_seconds_of_a_scene", lambda recipe: 0.04)
    recipe, ledger = (
        ScenesRecipe(scenes=5000, views=500, subjects=700),
        Ledger(tmp_path / PLAN, None),
    )
    made = sized(recipe, "renders", 10.6, ledger)
    assert (made.scenes, made.views, made.subjects) == (1000, 256, 700)
    assert sized(recipe, "denoiser", 1.0, ledger).scenes == 1000
    assert sized(recipe, "subjects", 6.0, ledger).subjects == 300
    assert sized(recipe, "subjects", 600.0, ledger).subjects == 300  # decided
    again = Ledger.opened(tmp_path, None)
    assert again.counts == {"scenes": 1000, "views": 256, "subjects": 300}
    much = Ledger(tmp_path / "other.json", None)
    assert sized(recipe, "renders", 1e6, much).scenes == 5000


def test_a_run_of_before_there_were_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained behind another autoencoder is not left with a new one."""
    ran: list[str] = []
    monkeypatch.setattr(family, "train_stage", lambda stage, *rest, **how: ran.append(stage))
    monkeypatch.setattr(family, "_score", lambda *arguments: "scores")
    stages = [stage for stage in SHARES if stage not in ("patterns", "export", "scores")]
    for done, wanted in ((stages, ["export"]), (stages[:-2], ["patterns", *stages[-2:], "export"])):
        folder = tmp_path / str(len(done))
        folder.mkdir()
        Ledger(folder / PLAN, None, counts=COUNTS, done=done).write()
        ran.clear()
        assert train_family(folder, 60, tell=lambda line: None, progress=False) == "scores"
        assert ran == wanted


COUNTS = {"scenes": 256, "views": 256, "subjects": 256}


def test_a_family_to_start_from_has_stages_behind_it() -> None:
    stages = stages_of(ScenesRecipe(start="underdraw/scenes"))
    behind = {"text", "autoencoder", "decoder", "patterns", "clip", "structure"}
    assert {*SHARES} - {*stages} == behind
    anew = stages_of(ScenesRecipe(start="underdraw/scenes", anew=("structure/edges",)))
    assert "structure" in anew
    anew = stages_of(ScenesRecipe(start="underdraw/scenes", anew=("vae", "unet")))
    assert {*stages} | {"autoencoder", "decoder", "patterns"} == {*anew}
    again = ScenesRecipe(start="underdraw/scenes", again=("autoencoder",), without=("edges",))
    assert {*stages} | {"autoencoder"} == {*stages_of(again), "edges"}
    assert "decoder" not in stages_of(ScenesRecipe(without=("decoder",)))
    for name in ("again", "without"):
        with pytest.raises(InputError, match=rf"{name}=\['unet'\]; allowed: renders, text"):
            stages_of(replace(ScenesRecipe(), **{name: ("unet",)}))
    with pytest.raises(InputError, match=r"without=\['text'\]"):
        stages_of(ScenesRecipe(without=("text",)))
    assert stages_of(replace(again, without=("text",)))  # the family has it
    with pytest.raises(InputError, match=r"anew=\['unt'\]; allowed: text_encoder, vae, unet"):
        ScenesRecipe(start="underdraw/scenes", anew=("unt",))
    maps = ("maps", "structure", "edges", "depth")
    assert not {*maps} & {*stages_of(ScenesRecipe(without=maps))}
    for missing, needing in (
        ("maps", "structure, edges, depth"),
        ("clip", "grounding"),
        ("subjects", "patterns, alignment, subject"),
        ("alignment", "subject"),
    ):
        with pytest.raises(InputError, match=rf"without=\['{missing}'\]: {needing} need"):
            stages_of(ScenesRecipe(without=(missing,)))
    # The family has the networks of these.
    assert stages_of(ScenesRecipe(start="underdraw/scenes", without=("clip", "alignment")))


def test_folders_of_other_runs_are_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / PLAN, "underdraw/scenes").write()
    with pytest.raises(InputError, match=r"start=None.*'underdraw/scenes'"):
        train_family(tmp_path, 60, ScenesRecipe())
    with pytest.raises(InputError, match="budget=-1"):
        train_family(tmp_path, -1)
    for damaged in ('{"start": null}', '{"counts": {"scenes": "1"}, "seconds": {}, "done": []}'):
        (tmp_path / PLAN).write_text(damaged)
        with pytest.raises(WeightError, match=r"family\.json is damaged"):
            train_family(tmp_path, 60)
