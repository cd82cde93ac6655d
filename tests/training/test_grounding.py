"""Grounding layers learn where things go, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import tiny
from training import recorded

from underdraw.errors import InputError
from underdraw.models import CLIPVisionModelWithProjection, UNet2DConditionModel
from underdraw.models.grounding import Grounding
from underdraw.networks.config import CLIPVisionConfig
from underdraw.training.data import render_cache, shuffled
from underdraw.training.grounding import (
    GroundingTask,
    GroundingTrainingConfig,
    new_part,
)
from underdraw.training.layouts import GroundedScenes, Layout
from underdraw.training.loop import Draw, Stopped, TrainingConfig, train
from underdraw.training.truth import TruthHeads
from underdraw.training.wire import in_bytes, signed

RUN = TrainingConfig(
    steps=40, batch=6, learning_rate=3e-3, warmup=4, ema=0.5, precision="float32", log_steps=4
)
VISION = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=32,
    projection_dim=tiny.WIDTH,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=32,
    patch_size=16,
)
SIDES = (64, 96)  # pixels: never square
NOTHING = GroundingTrainingConfig(drop_all=0, drop_caption=0, drop_boxes=0, drop_box=0, images=0)


class Patches:
    """One or two boxes filled with red or blue on gray; latents are pictures pooled to cells."""

    names = ("a red cube", "a blue sphere")

    def __init__(self, count: int = 24) -> None:
        rng = np.random.default_rng(0)
        self._boxes, self._kinds = [], []
        for i in range(count):
            kinds = rng.permutation(2)[: 1 + i % 2]
            x = (np.arange(2) / 2)[rng.permutation(2)][: len(kinds)]
            y = rng.integers(0, 3, len(kinds)) / 4
            self._boxes.append(np.stack([x, y, x + 0.5, y + 0.5], 1).astype(np.float32))
            self._kinds.append(kinds)

    def __len__(self) -> int:
        return len(self._boxes)

    def images(self, indices: np.ndarray) -> torch.Tensor:
        made = torch.zeros(len(indices), 3, *SIDES)
        inks = torch.tensor([[1.0, -1, -1], [-1, -1, 1]])
        sides = np.array([SIDES[1], SIDES[0]] * 2)
        for image, i in zip(made, indices, strict=True):
            for box, kind in zip(self._boxes[int(i)], self._kinds[int(i)], strict=True):
                x0, y0, x1, y1 = np.round(box * sides).astype(int)
                image[:, y0:y1, x0:x1] = inks[kind][:, None, None]
        return made

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        return ["the table" for _ in indices]

    def layouts(self, indices: np.ndarray, rng: np.random.Generator) -> list[Layout]:
        return [
            Layout(tuple(self.names[k] for k in self._kinds[int(i)]), self._boxes[int(i)])
            for i in indices
        ]

    def latents(self) -> np.ndarray:
        pictures = self.images(np.arange(len(self)))
        cells = torch.nn.functional.avg_pool2d(pictures, 8)
        return torch.cat([cells, cells[:, :1]], 1).numpy()

    def truth(self, indices: np.ndarray) -> np.ndarray:
        cells = self.latents()[indices]
        filled = (np.abs(cells[:, 0]) > 0.5).astype(np.int64)
        return np.stack([filled, (cells[:, 2] > 0.5).astype(np.int64)], 1)


PATCHES = Patches()


def family(**changes: Any) -> dict[str, Any]:
    parts = tiny.components(**changes)
    torch.manual_seed(1)
    return {**parts, "image_encoder": CLIPVisionModelWithProjection(VISION)}


def part(parts: dict[str, Any], kind: str = "text-image", **fields: Any) -> Grounding:
    torch.manual_seed(2)
    return new_part(parts["unet"], kind, **fields)


def make(parts: dict[str, Any], kind: str = "text-image", **changes: Any) -> GroundingTask:
    config = replace(NOTHING, **changes)
    return GroundingTask(part(parts, kind), parts, PATCHES, config, PATCHES.latents(), scale=1.0)


def draw(task: GroundingTask, count: int = 6, seed: int = 0) -> dict[str, Any]:
    return dict(task.draw(Draw(0, count, np.random.default_rng(seed))))


def column(folder: Path, name: str = "denoising") -> list[float]:
    rows = (folder / "curve.csv").read_text().splitlines()
    place = rows[0].split(",").index(name)
    return [float(row.split(",")[place]) for row in rows[1:]]


def state(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def error(task: GroundingTask, batch: dict[str, Any]) -> float:
    with torch.no_grad():
        return float(task.loss(batch)[1]["denoising"])


@pytest.mark.parametrize(("kind", "images"), [("text", 0.0), ("text-image", 0.5)])
def test_layers_learn_and_the_rest_stays(tmp_path: Path, kind: str, images: float) -> None:
    parts = family()
    before = {name: state(parts[name]) for name in ("unet", "text_encoder", "image_encoder", "vae")}
    task = make(parts, kind, images=images)
    train(task, RUN, tmp_path)
    found = column(tmp_path)
    assert np.mean(found[-2:]) < 0.9 * found[0]
    for name, old in before.items():
        new = parts[name].state_dict()
        assert all(torch.equal(value, new[key]) for key, value in old.items()), name
        assert all(p.grad is None for p in parts[name].parameters()), name
    asked = column(tmp_path, "asked")
    assert asked[-1] < 0.85 * asked[0]


def test_open_gates_change_nothing_and_let_every_layer_learn() -> None:
    parts = family()
    task = make(parts, images=0.5)
    batch = draw(task)
    batch["pictured"][0, 0] = 0
    told = task.loss(batch)[1]
    assert told["gate"] == pytest.approx(np.tanh(1))
    with torch.no_grad():
        for p in task.grounding.parameters():
            p.zero_()
    closed = task.loss(batch)[1]
    assert closed["gate"] == 0
    assert closed["denoising"] == told["denoising"]  # the frozen network alone
    task = make(parts, images=0.5)
    optimizer = torch.optim.SGD(task.grounding.parameters(), 1e-2)
    for _ in range(2):  # the first step opens the last layers, the second reaches those before
        optimizer.zero_grad()
        task.loss(batch)[0].backward()
        optimizer.step()
    still = [
        name
        for name, p in task.grounding.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert still == []


def test_dropping_is_at_the_stated_rates() -> None:
    parts = family()
    count = 4 * len(PATCHES)

    def shares(**changes: float) -> tuple[float, float, float, float]:
        task = make(parts, **changes)
        batch = draw(task, count)
        silent = (batch["ids"] == task._tokenize([""])).all(1)
        bare = batch["present"].sum(1) == 0
        full = torch.tensor([len(boxes) for boxes in PATCHES._boxes]).repeat(4).sum()
        kept = batch["present"].sum() / full
        return tuple(
            float(v)
            for v in (
                silent.float().mean(),
                bare.float().mean(),
                kept,
                (silent & bare).float().mean(),
            )
        )

    assert shares() == (0, 0, 1, 0)
    assert shares(drop_all=1) == (1, 1, 0, 1)
    assert shares(drop_caption=1) == (1, 0, 1, 0)
    assert shares(drop_boxes=1) == (0, 1, 0, 0)
    assert shares(drop_box=1)[:3] == (0, 1, 0)
    silent, bare, _, both = shares(drop_all=0.3, drop_caption=0.3, drop_boxes=0.3)
    assert silent == pytest.approx(0.6, abs=0.15)
    assert bare == pytest.approx(0.6, abs=0.15)
    assert both == pytest.approx(0.3, abs=0.15)


def test_features_are_those_of_the_encoders() -> None:
    parts = family()
    task = make(parts, images=1.0, images_only=0.5)
    batch = draw(task, 12)
    named, pictured = batch["named"], batch["pictured"]
    assert torch.equal(pictured, batch["present"])
    assert 0 < named.sum() < batch["present"].sum()
    tokens = parts["tokenizer"](list(PATCHES.names), padding="max_length", max_length=77)
    with torch.no_grad():
        expected = parts["text_encoder"](torch.tensor(tokens["input_ids"])).pooler_output
    said = task._phrase_features(batch["phrases"], batch["present"])
    assert not said[batch["present"] == 0].any()
    rows = said[batch["present"] > 0]
    apart = torch.cdist(rows, expected).min(1).values
    assert apart.max() < 1e-5
    assert len(task._phrases) == 2
    features = task._picture_features(batch)["images"]
    lengths = features.norm(dim=-1)[pictured > 0]
    torch.testing.assert_close(lengths, torch.full_like(lengths, 28.7))
    # A cut-out shows mostly its own patch.
    layouts = PATCHES.layouts(shuffled(24, 0, 12), np.random.default_rng(0))
    for layout, cells in zip(layouts, batch["pictures"], strict=True):
        assert cells.shape == (2, 3, 32, 32) and not cells[len(layout) :].any()
        for phrase, cell in zip(layout.phrases, signed(cells), strict=False):
            red, blue = (cell[k].gt(0.9).float().mean() for k in (0, 2))
            assert (red > blue) == ("red" in phrase)
            assert max(red, blue) > 0.3


class Told(Patches):
    most = 3


def test_a_step_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, patches = family(unet=tiny.DEEP), Told()
    config = replace(NOTHING, images=0.5, images_only=0.5, drop_boxes=0.3, drop_box=0.3, truth=0.1)
    task = GroundingTask(
        part(parts),
        parts,
        patches,
        config,
        patches.latents(),
        scale=1.0,
        heads=TruthHeads.for_unet(parts["unet"].config, (2, 2)),
    )
    recorded.check(task, monkeypatch)
    batch = draw(task)
    assert batch["boxes"].shape == (6, 3, 4) and batch["truth"].dtype == torch.uint8
    # Boxes that are nowhere change nothing.
    of_boxes = ("boxes", "present", "phrases", "pictured", "named", "pictures")
    fewer = {**batch, **{name: batch[name][:, :2] for name in of_boxes}}
    torch.testing.assert_close(task.loss(fewer)[0], task.loss(batch)[0])


def test_boxes_show_another_picture_of_their_thing() -> None:
    asked = []

    def another(index: int, box: np.ndarray, rng: np.random.Generator, size: int) -> Any:
        asked.append((index, box.tolist(), size))
        return None if len(asked) % 3 == 0 else torch.full((1, 3, size, size), 0.5)

    parts = family()
    config = replace(NOTHING, images=1.0, views=1.0)
    task = GroundingTask(
        part(parts), parts, PATCHES, config, PATCHES.latents(), scale=1.0, another=another
    )
    batch = draw(task, 6)
    shown = batch["pictures"][batch["pictured"] > 0]
    assert len(shown) == len(asked) > 3
    # Where there is no other picture, the box itself is cut out.
    for number, picture in enumerate(shown, 1):
        assert bool((picture == in_bytes(torch.tensor(0.5))).all()) == (number % 3 != 0)
    indices = shuffled(len(PATCHES), 0, 6)
    boxes = [(int(i), box.tolist()) for i in indices for box in PATCHES._boxes[int(i)]]
    assert [(i, box) for i, box, _ in asked] == boxes
    assert np.isfinite(error(task, batch))

    task.config = replace(config, views=0.5)
    asked.clear()
    for seed in range(10):
        draw(task, 6, seed)
    assert 0.3 < len(asked) / (10 * len(shown)) < 0.7
    with pytest.raises(InputError, match=r"views=1.0 needs `another`"):
        make(parts, images=1.0, views=1.0)
    with pytest.raises(InputError, match=r"views=1.5 must be in"):
        replace(NOTHING, views=1.5)


def test_some_captions_only_count() -> None:
    parts = family()
    task = make(parts, "text", counted=1.0, drop_boxes=0.5)
    batch = draw(task, 12)
    indices = shuffled(len(PATCHES), 0, 12)
    for ids, i in zip(batch["ids"], indices, strict=True):
        # As many as there are, also where boxes were left out.
        told = " and ".join(["a thing"] * len(PATCHES._boxes[int(i)]))
        assert torch.equal(ids, task._tokenize([told])[0])


def test_scenes_know_what_stands_in_a_box(tmp_path: Path) -> None:
    render_cache(tmp_path, 6, seed=2, size=64)
    examples = GroundedScenes(tmp_path, held_back=1)
    for i in range(5):
        things = examples.scene(i).objects
        found = [examples.thing(i, box) for box in examples.boxes(i)]
        assert found == list(things)


def test_steps_resume_to_the_same_bits(tmp_path: Path) -> None:
    def run(folder: str, stop: int | None = None) -> GroundingTask:
        task = make(family(), images=0.5, drop_all=0.1, drop_box=0.3)
        train(task, replace(RUN, steps=6, accumulate=2), tmp_path / folder, stop_after=stop)
        return task

    whole = run("whole")
    with pytest.raises(Stopped):
        run("parts", stop=3)
    resumed = run("parts")
    again = resumed.grounding.state_dict()
    assert all(torch.equal(v, again[name]) for name, v in whole.grounding.state_dict().items())


def test_pixels_are_encoded_where_there_are_no_latents() -> None:
    parts = family()
    task = GroundingTask(part(parts, "text"), parts, PATCHES, NOTHING)
    batch = draw(task, 3)
    assert batch["pixels"].shape == (3, 3, *SIDES)
    assert batch["noise"].shape == (3, 4, SIDES[0] // 8, SIDES[1] // 8)
    assert np.isfinite(error(task, batch))


@pytest.mark.parametrize("own", [True, False])
def test_inpainting_sees_what_is_kept(tmp_path: Path, own: bool) -> None:
    """By a first convolution of the part's own, or by a UNet with nine channels."""
    parts = family() if own else family(unet={"in_channels": 9})
    unet = state(parts["unet"])
    grounding = part(parts, "text", inpainting=own)
    task = GroundingTask(grounding, parts, PATCHES, NOTHING, PATCHES.latents(), scale=1.0)
    batch = draw(task, 24)
    keep, boxes = batch["keep"], batch["area"][:, None]
    assert keep.shape == (24, 1, 8, 12)
    assert set(keep.unique().tolist()) == {0, 1}
    assert (keep * boxes).max() == 0  # every box is in a hole
    assert ((1 - keep).sum((1, 2, 3)) > boxes.sum((1, 2, 3))).any()
    early = {**batch, "timesteps": torch.full((24,), 900)}
    blind = {**early, "keep": torch.zeros_like(keep)}
    assert (error(task, early) == error(task, blind)) == own  # the new channels begin at zero
    train(task, replace(RUN, steps=30 if own else 2), tmp_path)
    task.grounding.eval()
    if own:
        assert error(task, early) < 0.993 * error(task, blind)
    now = parts["unet"].state_dict()
    assert all(torch.equal(value, now[name]) for name, value in unet.items())


def test_truth_reaches_the_grounding_layers() -> None:
    parts = family(unet=tiny.DEEP)
    heads = TruthHeads.for_unet(parts["unet"].config, (2, 2))
    config = replace(NOTHING, truth=0.5)
    latents = PATCHES.latents()
    task = GroundingTask(
        part(parts, "text"), parts, PATCHES, config, latents, scale=1.0, heads=heads
    )
    loss, told = task.loss(draw(task))
    assert 0 <= told["cells_right"] <= 1
    assert loss.item() > told["denoising"]
    loss.backward()
    assert all(p.grad is None for p in heads.parameters())


def test_noise_levels_lean_to_the_early_ones() -> None:
    parts = family()
    mean = {}
    for early in (1.0, 2.0):
        times = draw(make(parts, "text", early=early), 200)["timesteps"]
        assert 0 <= times.min() < times.max() <= 999
        mean[early] = times.float().mean().item()
    assert mean[1.0] == pytest.approx(500, abs=10)
    assert mean[2.0] == pytest.approx(1000 * 2 / 3, abs=10)


def test_wrong_tasks_are_named() -> None:
    parts = family()
    small = dict(parts)
    del small["image_encoder"]
    with pytest.raises(InputError, match="no 'image_encoder'"):
        make(small, images=0.5)
    make(small, images=0.0)
    with pytest.raises(InputError, match="3 latents for 24 examples"):
        GroundingTask(part(parts), parts, PATCHES, latents=PATCHES.latents()[:3], scale=1.0)
    del small["vae"]
    with pytest.raises(InputError, match="no 'vae'"):
        GroundingTask(part(small), small, PATCHES, NOTHING)
    other = UNet2DConditionModel(**{**tiny.UNET, "block_out_channels": (16, 64)})
    with pytest.raises(InputError, match="trained for another UNet"):
        GroundingTask(part({"unet": other}), parts, PATCHES, NOTHING)
    for changes, words in (
        ({"drop_all": 1.5}, r"drop_all=1.5 must be in \[0, 1\]"),
        ({"drop_all": 0.6, "drop_caption": 0.6}, "add up"),
        ({"early": 0.5}, "early=0.5"),
    ):
        with pytest.raises(InputError, match=words):
            GroundingTrainingConfig(**changes)
