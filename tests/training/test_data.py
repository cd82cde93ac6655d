"""Examples: rendered scenes on disk and folders of captioned images."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from underdraw.errors import InputError, NotFoundError
from underdraw.scenes import has_reserved_pair, render, sample_scene, scene_rng, vocabulary
from underdraw.training import data, maps
from underdraw.training.data import (
    ArrivingScenes,
    CaptionedFolder,
    FirstOf,
    RenderedScenes,
    render_cache,
    scenes_in,
    shuffled,
)
from underdraw.training.maps import KINDS, map_all
from underdraw.training.recipes import ScenesRecipe
from underdraw.training.workshop import Workshop


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("renders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SHARD", 8)
        render_cache(folder, 20, seed=5, size=64)
    return folder


def test_stream_is_one_permutation_after_another() -> None:
    stream = shuffled(7, 0, 21, seed=2)
    for epoch in range(3):
        assert sorted(stream[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert stream[:7].tolist() != stream[7:14].tolist()
    np.testing.assert_array_equal(shuffled(7, 5, 9, seed=2), stream[5:14])


def test_scenes_come_back_as_they_were_rendered(cache: Path) -> None:
    found = RenderedScenes(cache, held_back=3)
    assert sorted(p.name for p in cache.iterdir()) == ["000", "001", "002"]
    assert len(found) == 17
    for index in (0, 7, 16):
        number = index + 3
        scene = sample_scene(scene_rng(5, number), data.MIX[number % 20])
        assert found.scene(index) == scene
        made = render(scene, 64, 64)
        pixels = found.pixels(np.array([index]))[0]
        assert np.abs(pixels - made.image * 255).max() <= 0.51
        np.testing.assert_allclose(found.boxes(index), made.boxes, atol=1e-4)
        said = found.described(index, np.random.default_rng(0))
        assert all(m.matches(scene.objects[m.object]) for m in said.mentions)
    assert not any(has_reserved_pair(found.scene(i)) for i in range(-3, 17))
    np.testing.assert_array_equal(found.shown()[2], found.pixels(np.array([-1]))[0])
    images = found.images(np.array([4, 2]))
    assert images.shape == (2, 3, 64, 64)
    assert -1 <= images.min() < images.max() <= 1


def test_captions_vary_and_follow_the_stream(cache: Path) -> None:
    found = RenderedScenes(cache, held_back=3)
    indices = np.arange(17)
    first, again, other = (found.captions(indices, np.random.default_rng(s)) for s in (1, 1, 2))
    assert first == again != other


def test_cells_belong_to_what_fills_them() -> None:
    seen = np.zeros((16, 24), np.int32)
    seen[:8, :8] = 2  # all of the first cell
    seen[:4, 8:16] = 1  # half of the second, and an eighth of it something else
    seen[4:5, 8:16] = 3
    seen[8:9, :8] = 1  # an eighth is not enough
    assert data.owners(seen, 8).tolist() == [[2, 1, 0], [0, 0, 0]]
    assert not data.owners(np.zeros((16, 16), np.int32), 8).any()


def test_truth_is_that_of_the_scene(cache: Path) -> None:
    scenes = RenderedScenes(cache, 0)
    truth = scenes.truth(np.arange(3))
    assert truth.shape == (3, 3, 8, 8)
    for i, cells in enumerate(truth):
        objects = scenes.scene(i).objects
        kinds = {(0, 0, 0)} | {
            (
                vocabulary.SHAPES.index(o.shape) + 1,
                vocabulary.COLOURS.index(o.colour),
                vocabulary.MATERIALS.index(o.material),
            )
            for o in objects
        }
        found = set(map(tuple, cells.reshape(3, -1).T.tolist()))
        assert len(found) > 1
        assert found <= kinds


def test_things_are_cut_out_with_their_phrases(cache: Path) -> None:
    scenes = RenderedScenes(cache, 0)
    images, told = scenes.cut_things(np.arange(3), np.random.default_rng(0), 32)
    assert images.shape == (3, 3, 32, 32)
    assert all(phrase.startswith(("a ", "an ")) for phrase in told)
    # A square is moved inside the image, never stretched.
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 64:] = 255
    part = data.cut(picture, np.array([2 / 3, 0, 1, 1]), 8, 1.0)
    assert part.shape == (1, 3, 8, 8)
    assert float(part[..., 5:].min()) > 0.99
    assert float(part[..., :3].max()) < -0.99


def test_workers_render_the_same(tmp_path: Path, cache: Path) -> None:
    render_cache(tmp_path, 4, seed=5, size=64, workers=2)
    several, one = RenderedScenes(tmp_path, 0), RenderedScenes(cache, 0)
    np.testing.assert_array_equal(several.pixels(np.arange(4)), one.pixels(np.arange(4)))
    np.testing.assert_array_equal(several.truth(np.arange(4)), one.truth(np.arange(4)))


def test_finished_shards_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SHARD", 8)
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*.npy")}
    render_cache(cache, 20, seed=5, size=64)
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.npy")} == before


def test_missing_scenes_are_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(NotFoundError, match="render_cache"):
        RenderedScenes(tmp_path)
    with pytest.raises(InputError, match="holds 20 scenes; 20 are held back"):
        RenderedScenes(cache, held_back=20)


def test_scenes_are_trained_on_while_they_arrive(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RenderedScenes(cache, held_back=3)
    shutil.copytree(cache / "000", tmp_path / "000")
    (tmp_path / "000" / "scenes.json").write_text("not read")
    found = ArrivingScenes(tmp_path, 20, held_back=3)
    assert len(found) == len(whole) == 17
    five = whole.pixels(np.arange(5))
    np.testing.assert_array_equal(found.pixels(np.arange(16)), np.tile(five, (4, 1, 1, 1))[:16])
    np.testing.assert_array_equal(found.shown(), whole.shown())
    assert found.captions(np.arange(2), np.random.default_rng(0)) == ["", ""]
    shutil.copytree(cache / "001", tmp_path / "001")
    np.testing.assert_array_equal(found.pixels(np.array([5]))[0], five[0])  # not looked at yet
    monkeypatch.setattr(ArrivingScenes, "PAUSE", -1.0)
    np.testing.assert_array_equal(found.pixels(np.arange(13)), whole.pixels(np.arange(13)))
    shutil.copytree(cache / "002", tmp_path / "002")
    assert found.images(np.arange(17)).equal(whole.images(np.arange(17)))


def test_a_missing_shard_arrives_after_later_ones(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArrivingScenes, "PAUSE", -1.0)
    for name in ("000", "002"):
        shutil.copytree(cache / name, tmp_path / name)
    found = ArrivingScenes(tmp_path, 20, held_back=3)
    found.pixels(np.arange(1))
    shutil.copytree(cache / "001", tmp_path / "001")
    whole = RenderedScenes(cache, held_back=3).pixels(np.arange(17))
    different = {picture.tobytes() for picture in whole}
    assert {picture.tobytes() for picture in found.pixels(np.arange(17))} == different


def test_scenes_that_do_not_arrive_are_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none came in 0 s; see whether render_cache"):
        ArrivingScenes(tmp_path, 100, patience=0.0)
    with pytest.raises(InputError, match="count=64; 64 are held back"):
        ArrivingScenes(cache, 64)
    with pytest.raises(InputError, match="holds 20 scenes; 20 are held back"):
        ArrivingScenes(cache, 21, held_back=20)


def test_no_shard_is_begun_that_would_be_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SHARD", 2)
    clock = iter(range(1000))  # a second between looks: a shard is looked at before and after
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    render_cache(tmp_path, 8, seed=5, size=64, seconds=4.5)
    assert scenes_in(tmp_path) == 6
    render_cache(tmp_path, 8, seed=5, size=64)
    assert scenes_in(tmp_path) == 8
    monkeypatch.setattr(data, "SHARD", 6)
    render_cache(tmp_path, 30, seed=5, size=64, seconds=4.5)  # nobody knows yet what it takes
    assert scenes_in(tmp_path) == 8 + 6


def test_the_first_of_others(cache: Path) -> None:
    whole = RenderedScenes(cache, held_back=3)
    found, two = FirstOf(whole, 5), np.array([4, 1])
    assert len(found) == 5
    assert found.images(two).equal(whole.images(two))
    said = [one.captions(two, np.random.default_rng(0)) for one in (found, whole)]
    assert said[0] == said[1]
    with pytest.raises(InputError, match=r"count=18 must be in 1 \.\. 17"):
        FirstOf(whole, 18)


def test_maps_of_the_first(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RenderedScenes(cache, held_back=3)
    alone = map_all(whole, "depth", tmp_path / "alone.npy")
    asked: list[int] = []

    def elsewhere(make: Any, pairs: Any, workers: int) -> Any:
        asked.append(workers)
        for pair in pairs:
            there, told = pickle.loads(pickle.dumps((make, pair)))
            yield there(told)

    monkeypatch.setattr(maps, "in_order", elsewhere)
    several = map_all(whole, "depth", tmp_path / "several.npy", count=9, workers=2)
    assert asked == [2]
    np.testing.assert_array_equal(several, alone[:9])
    (pixels,) = whole.pixels(np.array([8]))
    np.testing.assert_array_equal(several[8], KINDS["depth"](pixels, whole.scene(8)))
    with pytest.raises(InputError, match=r"count=18 must be in 1 \.\. 17"):
        map_all(whole, "depth", tmp_path / "other.npy", count=18)


def test_what_lies_there_is_read_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RenderedScenes.__init__, "__defaults__", (3,))
    shutil.copytree(cache, tmp_path / "renders")
    shutil.rmtree(tmp_path / "renders" / "002")
    shop = Workshop(ScenesRecipe(), tmp_path)
    first = shop.examples
    assert len(first) == 13
    assert Workshop(ScenesRecipe(), tmp_path).examples is first
    shutil.copytree(cache / "002", tmp_path / "renders" / "002")
    assert len(shop.examples) == 17


def photos(folder: Path, lines: list[str]) -> Path:
    for name, size, colour in (("wide.png", (90, 40), "red"), ("tall.jpg", (30, 64), "blue")):
        Image.new("RGB", size, colour).save(folder / name)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder


def line(name: str, text: object) -> str:
    return json.dumps({"file_name": name, "text": text})


def test_captioned_folder(tmp_path: Path) -> None:
    lines = [line("wide.png", "a red thing"), line("tall.jpg", ["blue", "a blue thing"])]
    found = CaptionedFolder(photos(tmp_path, lines), 32)
    assert len(found) == 2
    images = found.images(np.array([1, 0]))
    assert images.shape == (2, 3, 32, 32)
    np.testing.assert_allclose(images[1, :, 3, 3], [1, -1, -1], atol=0.02)
    np.testing.assert_allclose(images[0, :, 3, 3], [-1, -1, 1], atol=0.05)
    texts = {found.captions(np.array([1]), np.random.default_rng(s))[0] for s in range(20)}
    assert texts == {"blue", "a blue thing"}


@pytest.mark.parametrize(
    ("lines", "error", "words"),
    [
        ([line("wide.png", "a"), line("gone.png", "a")], NotFoundError, r":2: .*gone\.png"),
        (["{"], InputError, r"jsonl:1 is not JSON"),
        (['["wide.png", "a"]'], InputError, "lacks a file_name"),
        ([line("wide.png", 3)], InputError, "lacks a file_name or a text"),
        ([line("wide.png", [])], InputError, "lacks a file_name or a text"),
        ([], InputError, "names no image"),
    ],
)
def test_bad_metadata_is_named(
    tmp_path: Path, lines: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        CaptionedFolder(photos(tmp_path, lines), 32)


def test_bad_folders_and_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"metadata\.jsonl is not there.*file_name"):
        CaptionedFolder(tmp_path, 32)
    with pytest.raises(InputError, match="size=30"):
        CaptionedFolder(tmp_path, 30)
    photos(tmp_path, [line("torn.png", "a")] if (tmp_path / "torn.png").write_bytes(b"x") else [])
    with pytest.raises(InputError, match=r"torn\.png' is not a picture"):
        CaptionedFolder(tmp_path, 32).images(np.array([0]))
