"""Things alone: pictures of them, found by what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from underdraw.errors import NotFoundError
from underdraw.scenes import SceneObject, parse
from underdraw.training.views import Views, render_views


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("things") / "views"
    render_views(folder, 40, seed=5, size=64)
    return folder


def test_views_are_the_same_whoever_renders_them(folder: Path, tmp_path: Path) -> None:
    render_views(tmp_path / "some", 6, seed=5, size=64, workers=2)
    first, again = (np.load(place / "images.npy") for place in (folder, tmp_path / "some"))
    np.testing.assert_array_equal(first[:6], again)
    kept = (folder / "images.npy").stat().st_mtime_ns
    render_views(folder, 3, seed=6, size=64)  # there already: kept
    assert (folder / "images.npy").stat().st_mtime_ns == kept


def test_a_thing_is_shown_by_another_of_its_kind(folder: Path) -> None:
    views, rng = Views(folder), np.random.default_rng(0)
    images = np.load(folder / "images.npy")
    wanted = views.things[7]
    alike = [
        i
        for i, one in enumerate(views.things)
        if (one.shape, one.colour, one.material) == (wanted.shape, wanted.colour, wanted.material)
    ]
    shown = views.of(wanted, rng, 64)
    assert shown is not None and shown.shape == (1, 3, 64, 64)
    levels = ((shown[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()
    assert any(np.array_equal(levels, images[i]) for i in alike)
    known = {(o.shape, o.colour, o.material) for o in views.things}
    missing = next(
        SceneObject("cube", colour, "rubber", "small", (0, 0))
        for colour in ("red", "green", "blue", "gray", "cyan", "purple", "orange", "yellow")
        if ("cube", colour, "rubber") not in known
    )
    assert views.of(missing, rng, 64) is None


def test_phrases_fit_what_is_shown(folder: Path) -> None:
    views = Views(folder)
    pixels, said = views.told(30, np.random.default_rng(1), 24)
    assert pixels.shape == (30, 3, 24, 24) and len(said) == 30
    numbers = np.random.default_rng(1).integers(len(views), size=30)
    for number, phrase in zip(numbers, said, strict=True):
        (mention,) = parse(phrase).mentions
        assert mention.matches(views.things[int(number)])
    assert torch.equal(pixels, views.told(30, np.random.default_rng(1), 24)[0])


def test_a_folder_without_views_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="make them with render_views"):
        Views(tmp_path)
