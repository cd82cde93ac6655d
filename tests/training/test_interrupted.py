"""Training killed, stopped or out of space at any file operation goes on, or says why not."""

import errno
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training.line import CONFIG, Line, weights
from weights.kills import FAULTS, Disk, files_in

from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.training import autoencoder, checkpoints, recipes
from underdraw.training.curve import Curve
from underdraw.training.loop import train
from underdraw.training.recipes import FACTS, LATENTS, ScenesRecipe, Workshop

SHORT = replace(CONFIG, steps=4, batch=2, log_steps=1, checkpoint_steps=2)


def table(path):
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize("fault", FAULTS)
def test_training_goes_on_with_the_same_bits(fault, tmp_path, monkeypatch):
    whole = Line()
    train(whole, SHORT, tmp_path / "whole")
    expected, known = weights(whole), set(files_in(tmp_path / "whole"))
    disk, at, resumed = Disk(monkeypatch), -1, 0
    while True:
        at += 2 if fault == "killed" else 5
        folder, first = tmp_path / "run", Line()
        error = disk.run(fault, at, lambda: train(first, SHORT, folder))  # noqa: B023
        if error is None:
            break
        if fault == "full":
            assert isinstance(error, OSError) and error.errno == errno.ENOSPC
        again = Line()
        train(again, SHORT, folder)
        assert all(torch.equal(a, b) for a, b in zip(weights(again), expected, strict=True))
        resumed += len(again.firsts) < 4
        assert set(files_in(folder)) == known  # nothing is left over
        steps = [row["step"] for row in table(folder / "curve.csv")]
        assert steps == ["1", "2", "3", "4"]
        assert [row["step"] for row in table(folder / "measured.csv")] == ["4"]
        shutil.rmtree(folder)
    assert at > 40
    assert resumed > 5


TABLE = b"step,seconds,images,rate,loss\r\n1,0.1,2,0.01,5\r\n2,0.2,4,0.01,4\r\n"


@pytest.mark.parametrize(
    ("content", "steps"),
    [
        (TABLE, [1, 2]),
        (TABLE[:-1], [1, 2]),
        (TABLE[:-2], [1]),  # of a torn number nobody can tell
        (TABLE[:-8], [1]),
        (TABLE + b"3,0.3,6,0.0", [1, 2]),
        (TABLE + b"3,0.3\r\n", [1, 2, 3]),
        (TABLE + b"3,x,6,0.01,3\r\n", [1, 2]),
        (TABLE + b"3,0.3,6,0.01,3,9,9\r\n", [1, 2]),
        (TABLE + b"inf,0.3,6,0.01,3\r\n", [1, 2]),
        (TABLE + b"nan,0.3,6,0.01,3\r\n", [1, 2]),
        (TABLE + b"3,0.3,6,0.01,inf\r\n", [1, 2, 3]),
        (TABLE + b"3,0.3,0,0.01,3\r\n", [1, 2, 3]),
        (TABLE + b"9,0.3,6,0.01,3\r\n", [1, 2]),  # after the checkpoint
        (TABLE + b"\x00\xff\xfe\r\n", [1, 2]),
        (TABLE + b'"3,0.3,6,0.01,3\r\n', [1, 2]),
        (TABLE + b"1" * 200_000 + b"\r\n", [1, 2]),
        (b"step,seco", []),
        (b"", []),
        (b"\x00" * 50, []),
    ],
)
def test_a_torn_curve_stops_no_training(content, steps, tmp_path):
    for name in ("curve.csv", "measured.csv"):
        (tmp_path / name).write_bytes(content)
    curve = Curve(tmp_path, 1)
    curve.rewind(4)
    assert [row["step"] for row in curve.rows] == [row["step"] for row in curve.measured] == steps
    curve.add(5, 1.0, 10, 0.01, {"loss": 1.0})
    curve.flush()
    curve.note(5, {"psnr": 3.0})
    for name in ("curve.csv", "measured.csv"):
        assert [row["step"] for row in table(tmp_path / name)] == [str(s) for s in (*steps, 5)]


@pytest.mark.parametrize(
    "change",
    [
        {"modules": {"net": {"0.weight": torch.zeros(3)}}},
        {"average": {}},
        {"optimizer": {}},
        {"optimizer": None},
        {"config": {}},
        *({"drop": name} for name in ("config", "elapsed", "optimizer", "scaler")),
    ],
)
def test_a_state_of_something_else_is_named(change, tmp_path):
    train(Line(), SHORT, tmp_path)
    state = {**checkpoints.load(tmp_path / checkpoints.NAME), **change}
    state.pop(state.pop("drop", ""), None)
    checkpoints.save(tmp_path / checkpoints.NAME, state)
    with pytest.raises(InputError, match=r"state\.pt does not fit .*or resume=False"):
        train(Line(), SHORT, tmp_path)
    train(Line(), SHORT, tmp_path, resume=False)


class Numbers:
    """Examples that are their numbers."""

    def __len__(self):
        return 5

    def images(self, indices):
        return torch.as_tensor(indices, dtype=torch.float32).reshape(-1, 1, 1, 1)


def encoder():
    vae = SimpleNamespace(device=torch.device("cpu"), eval=lambda: vae, to=lambda _: vae)
    vae.encode = lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x + 1))
    return vae


@pytest.mark.parametrize("fault", FAULTS)
def test_latents_and_their_scale_belong_together(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(Workshop, "vae", lambda self: encoder())
    monkeypatch.setattr(Workshop, "examples", Numbers())
    monkeypatch.setattr(autoencoder, "_KEEP", -1.0)  # after every batch
    original = recipes.encode_all
    few = lambda vae, examples, path, _, **rest: original(vae, examples, path, 2, **rest)  # noqa: E731
    monkeypatch.setattr(recipes, "encode_all", few)

    def run(folder):
        shop = Workshop(ScenesRecipe(), folder)
        recipes._latents(shop, None, {"device": "cpu", "progress": False})
        return shop

    for part in ("whole", "run"):
        (tmp_path / part).mkdir()
    shop = run(tmp_path / "whole")
    expected, scale = files_in(tmp_path / "whole"), shop.scaling_factor()
    assert set(expected) == {LATENTS, FACTS}
    assert scale == pytest.approx(1 / np.arange(5).std(), abs=1e-5)
    disk, at = Disk(monkeypatch), 0
    while True:
        at += 1
        error = disk.run(fault, at, lambda: run(tmp_path / "run"))
        if error is None:
            break
        shop = Workshop(ScenesRecipe(), tmp_path / "run")
        try:
            assert shop.scaling_factor() == scale
        except NotFoundError as error:
            assert "run the stage 'latents' first" in str(error)
        run(tmp_path / "run")
        assert files_in(tmp_path / "run") == expected
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()
    assert at > 20


@pytest.mark.parametrize("torn", [b"", b"\x93NUMPY", b"half", b"text"])
def test_torn_latents_are_computed_again(torn, tmp_path):
    path = tmp_path / LATENTS
    expected = np.array(autoencoder.encode_all(encoder(), Numbers(), path))
    whole = path.read_bytes()
    for place in (path, tmp_path / f".{LATENTS}.partial.npy"):
        place.write_bytes(whole[:-3] if torn == b"half" else torn)
        assert np.array_equal(autoencoder.encode_all(encoder(), Numbers(), path), expected)
        assert [p.name for p in tmp_path.iterdir()] == [LATENTS]


@pytest.mark.parametrize(
    "content", ["", '{"scaling_', "[1.5]", "{}", *(json.dumps({"scaling_factor": v}) for v in
    ("1", None, 0.0, -1.5, True))],
)  # fmt: skip
def test_a_torn_scale_is_named_and_written_anew(content, tmp_path, monkeypatch):
    (tmp_path / FACTS).write_text(content)
    shop = Workshop(ScenesRecipe(), tmp_path)
    for use in (shop.scaling_factor, shop.vae, shop.family):
        with pytest.raises(WeightError, match=r"latents\.json"):
            use()
    monkeypatch.setattr(Workshop, "vae", lambda self: encoder())
    monkeypatch.setattr(Workshop, "examples", Numbers())
    recipes._latents(shop, None, {"device": "cpu", "progress": False})
    assert shop.scaling_factor() > 0


@pytest.mark.parametrize(
    "recipe", [ScenesRecipe(), ScenesRecipe(start="underdraw/scenes", anew=("vae",))]
)
def test_a_new_autoencoder_has_a_scale_of_its_own(recipe, tmp_path, monkeypatch):
    shop = Workshop(recipe, tmp_path)
    with pytest.raises(NotFoundError, match=r"latents\.json is not there; run the stage 'latents'"):
        shop.family()
    monkeypatch.setattr(Workshop, "vae", lambda self: encoder())
    monkeypatch.setattr(Workshop, "examples", Numbers())
    recipes._latents(shop, None, {"device": "cpu", "progress": False})
    assert shop.scaling_factor() == pytest.approx(1 / np.arange(5).std(), abs=1e-5)
