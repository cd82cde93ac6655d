"""ControlNets learn to read maps, and nothing else is touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from training import recorded

from underdraw.errors import InputError, NotFoundError
from underdraw.models import UNet2DConditionModel
from underdraw.scenes.depth import depth_of
from underdraw.training.data import CaptionedFolder, RenderedScenes, render_cache
from underdraw.training.loop import Draw, Stopped, TrainingConfig, train
from underdraw.training.mapped import FolderMaps
from underdraw.training.maps import map_all
from underdraw.training.structure import StructureConfig, StructureTask, hint_of, louder, new_net

RUN = TrainingConfig(
    steps=16, batch=4, learning_rate=3e-3, warmup=2, ema=0.5, precision="float32", log_steps=4
)
SIDES = (64, 96)  # pixels: never square
COUNT = 12


class Halves:
    """Pictures of which one side is bright, as their map tells, too."""

    def __len__(self) -> int:
        return COUNT

    def bright(self) -> np.ndarray:
        made = np.zeros((COUNT, *SIDES), np.uint8)
        made[::2, :, : SIDES[1] // 2] = 255
        made[1::2, : SIDES[0] // 2] = 255
        return made

    def images(self, indices: np.ndarray) -> torch.Tensor:
        made = torch.from_numpy(self.bright()[indices] / 127.5 - 1).float()
        return made[:, None].repeat(1, 3, 1, 1)

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        return ["a red cube" if rng.random() < 0.5 else "the table" for _ in indices]

    def latents(self) -> np.ndarray:
        cells = torch.nn.functional.avg_pool2d(self.images(np.arange(COUNT)), 8)
        return torch.cat([cells, cells[:, :1]], 1).numpy()


HALVES = Halves()


def make(parts: dict[str, Any] | None = None, **changes: Any) -> StructureTask:
    parts = parts or tiny.components(unet=tiny.ONE_LEVEL)
    net = new_net(parts["unet"], hint=(4, 4, 8, 8), seed=3)
    maps = {"bright": HALVES.bright(), "dark": (255 - HALVES.bright())[..., None]}
    config = StructureConfig(**changes)
    return StructureTask(net, parts, HALVES, maps, config, HALVES.latents(), scale=1.0)


def draw(task: StructureTask, count: int = 6) -> dict[str, Any]:
    return dict(task.draw(Draw(0, count, np.random.default_rng(0))))


def state(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_net_learns_to_read_maps_and_the_rest_stays(tmp_path: Path) -> None:
    parts = tiny.components(unet=tiny.ONE_LEVEL)
    names = ("unet", "text_encoder", "vae")
    before = {name: state(parts[name]) for name in names}
    task = make(parts)
    task.maps = task.maps[:1]
    batch = draw(task, 12)

    def error() -> float:
        with torch.no_grad():
            return float(task.loss(batch)[1]["denoising"])

    first = error()
    with train(task, RUN, tmp_path).applied():
        right = error()
        batch["maps"] = 255 - batch["maps"]
        wrong = error()
    assert right < 0.8 * first and wrong > 1.1 * right
    for name, old in before.items():
        new = parts[name].state_dict()
        assert all(torch.equal(value, new[key]) for key, value in old.items()), name
        assert all(p.grad is None for p in parts[name].parameters()), name


def test_a_new_net_changes_nothing_and_all_of_it_learns() -> None:
    parts = tiny.components()
    task, batch = make(parts), draw(make(parts))
    optimizer = torch.optim.SGD(task.modules["controlnet"].parameters(), 1e-2)
    alone = StructureTask(
        new_net(parts["unet"], hint=(4, 4, 4, 4), middle=False),
        *(parts, HALVES, {"dark": HALVES.bright()}, StructureConfig(reading=0.0)),
        *(HALVES.latents(),),
        scale=1.0,
    )
    assert task.loss(batch)[1]["denoising"] == alone.loss(batch)[1]["denoising"]
    for _ in range(2):  # the first step opens the zero convolutions
        optimizer.zero_grad()
        task.loss(batch)[0].backward()
        optimizer.step()
    named = task.modules["controlnet"].named_parameters()
    assert [name for name, p in named if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("kind", ["bright", "dark"])
def test_what_arrives_of_a_map_is_about_as_large_as_it(kind: str) -> None:
    unet = tiny.components()["unet"]
    maps = torch.rand(4, 3, 64, 64) * (1.0 if kind == "bright" else 0.2)
    for seed in range(3):
        net = new_net(unet, seed=seed)
        assert 0.02 < float(net.embed(maps).detach().std()) < 5


def test_each_example_draws_one_kind_of_map_and_loses_its_caption_as_told() -> None:
    task = make(drop_caption=0.25)
    batch = draw(task, 600)
    assert batch["maps"].shape == (600, 3, *SIDES) and batch["maps"].dtype == torch.uint8
    bright = (batch["maps"].float().mean((1, 2, 3)) / 255).round(decimals=1)
    assert (bright == 0.5).all()
    inside = (batch["clean"][:, 0] > 0) == (batch["maps"][:, 0, 4::8, 4::8] > 0)
    assert 0.4 < inside.all((1, 2)).float().mean() < 0.6  # a map of the one kind or the other
    silent = (batch["ids"] == task._tokenize([""])).all(1)
    assert 0.2 < silent.float().mean() < 0.3
    assert float(batch["timesteps"].float().mean()) == pytest.approx(1000 * 2 / 3, abs=10)


def test_a_step_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.check(make(drop_caption=0.5), monkeypatch)


def test_pixels_are_encoded_where_there_are_no_latents() -> None:
    parts = tiny.components()
    net = new_net(parts["unet"], seed=3)
    batch = draw(task := StructureTask(net, parts, HALVES, {"bright": HALVES.bright()}), 3)
    assert batch["pixels"].shape == (3, 3, *SIDES)
    assert batch["maps"].shape == (3, 1, *SIDES)  # all gray
    assert torch.isfinite(task.loss(batch)[0])


def test_steps_resume_to_the_same_bits(tmp_path: Path) -> None:
    def run(folder: str, stop: int | None = None) -> StructureTask:
        task = make()
        train(task, replace(RUN, steps=4, accumulate=2), tmp_path / folder, stop_after=stop)
        return task

    whole = run("whole")
    with pytest.raises(Stopped):
        run("parts", stop=2)
    again = run("parts").modules["controlnet"].state_dict()
    for name, value in whole.modules["controlnet"].state_dict().items():
        assert torch.equal(value, again[name]), name


def test_wrong_tasks_are_named() -> None:
    parts = tiny.components()
    maps, net = {"bright": HALVES.bright()}, new_net(parts["unet"])
    other = UNet2DConditionModel(**{**tiny.UNET, "block_out_channels": (16, 64)})
    for given, says in (
        ((new_net(other), parts, HALVES, maps), "made for block_out_channels"),
        ((net, parts, HALVES, {}), "maps is empty"),
        ((net, parts, HALVES, {"bright": HALVES.bright()[:3]}), "3 maps of bright for 12 examples"),
        ((net, parts, HALVES, maps, None, HALVES.latents()[:3]), "3 latents for 12 examples"),
        ((net, {**parts, "vae": None}, HALVES, maps), "no 'vae'"),
        ((new_net(parts["unet"], hint=(4, 4)), parts, HALVES, maps), "maps to 1/2 of their size"),
    ):
        with pytest.raises(InputError, match=says):
            StructureTask(*given)
    for changes, says in (
        ({"drop_caption": 1.5}, "drop_caption=1.5"),
        ({"early": 0.5}, "early=0.5"),
        ({"reading": -1.0}, "reading=-1.0"),
    ):
        with pytest.raises(InputError, match=says):
            StructureConfig(**changes)


def test_a_louder_net_says_the_same_with_more_weight() -> None:
    net = tiny.controlnet()
    call = torch.randn(1, 4, 8, 8), 3, torch.randn(1, 7, tiny.WIDTH), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = net(*call, return_dict=False)
        after = louder(net, 1.5)(*call, return_dict=False)
    for a, b in zip((*before[0], before[1]), (*after[0], after[1]), strict=True):
        torch.testing.assert_close(b, 1.5 * a)


def test_layers_in_front_halve_a_map_as_often_as_the_autoencoder() -> None:
    assert [hint_of((8, 16, 32, 64), factor) for factor in (2, 4, 8, 16)] == [
        (32, 64),
        (16, 32, 64),
        (8, 16, 32, 64),
        (8, 8, 16, 32, 64),
    ]


def test_maps_of_scenes_are_made_once(tmp_path: Path) -> None:
    render_cache(tmp_path / "renders", 5, size=64)
    examples = RenderedScenes(tmp_path / "renders", held_back=2)
    depth = np.array(map_all(examples, "depth", tmp_path / "depth.npy"))  # in memory
    edges = map_all(examples, "edges", tmp_path / "edges.npy")
    assert depth.shape == edges.shape == (3, 64, 64)
    for i, (far, lines) in enumerate(zip(depth, edges, strict=True)):
        assert (far.min(), far.max()) == (0, 255) and set(np.unique(lines)) == {0, 255}
        near = 1 / depth_of(examples.scene(i), 64, 64)
        assert np.corrcoef(near.ravel(), far.ravel())[0, 1] > 0.999
    (tmp_path / "depth.npy").write_bytes(b"torn")
    again = map_all(examples, "depth", tmp_path / "depth.npy")
    np.testing.assert_array_equal(again, depth)
    with pytest.raises(InputError, match=r"maps=\['pose'\]; allowed: .*edges, depth"):
        map_all(examples, "pose", tmp_path / "pose.npy")


def folder(place: Path, **entries: Any) -> Path:
    """Two pictures, wider than high, of which the second has another size."""
    for i, size in enumerate([(60, 40), (90, 60)]):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[:, size[0] // 2 :] = 200
        Image.fromarray(pixels).save(place / f"{i}.png")
        Image.fromarray(pixels[..., 0]).resize((30, 20)).save(place / f"map-{i}.png")
    told = [{"file_name": f"{i}.png", "text": "a", "map": f"map-{i}.png"} for i in range(2)]
    lines = [json.dumps({**one, **entries}) for one in told]
    (place / "metadata.jsonl").write_text("\n\n".join(lines))
    return place


def test_maps_of_a_folder_are_cut_as_their_pictures(tmp_path: Path) -> None:
    examples = CaptionedFolder(folder(tmp_path), 32)
    for made in (None, "edges", "soft-edges"):
        maps = FolderMaps(examples, made)
        assert len(maps) == 2
        for i in range(2):
            assert maps[i].shape == (32, 32, 3) and maps[i].dtype == np.uint8
            bright = maps[i][16, :, 0] > 128
            assert bright[20:].all() if made is None else bright[14:18].any()
            assert not bright[:12].any()


@pytest.mark.parametrize(
    ("entries", "error", "says"),
    [
        ({"map": None}, InputError, "metadata.jsonl:1 names no map"),
        ({"map": 3}, InputError, "names no map"),
        ({"map": "nowhere.png"}, NotFoundError, "there is no map"),
        ({"map": "."}, NotFoundError, "there is no map"),
        ({"map": "high.png"}, InputError, "the map is 20 x 30 pixels, its picture 60 x 40"),
        ({"map": "metadata.jsonl"}, InputError, "metadata.jsonl"),
    ],
)
def test_maps_that_do_not_belong_are_told(
    tmp_path: Path, entries: dict[str, Any], error: type[Exception], says: str
) -> None:
    Image.new("L", (20, 30)).save(tmp_path / "high.png")
    with pytest.raises(error, match=says):
        FolderMaps(CaptionedFolder(folder(tmp_path, **entries), 32))


def test_an_unknown_kind_of_made_maps_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="maps='pose'; allowed: edges, soft-edges"):
        FolderMaps(CaptionedFolder(folder(tmp_path), 32), "pose")
