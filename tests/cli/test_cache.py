"""`underdraw cache`."""

import json
import os
import time

from underdraw.engines.kept import FOLDER, SIZE


def test_what_is_kept_is_shown_and_removed(run, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "graphs"))
    monkeypatch.setenv(SIZE, "2")
    nothing = run("cache").stdout
    beside = f"{tmp_path / 'graphs' / 'jax'}"
    assert nothing.splitlines() == [
        f"{tmp_path / 'graphs'}: 0 graphs, 0.0 MB of 2.0 GB",
        f"{beside}: 0 programs, 0.0 MB of 2.0 GB",
    ]
    (tmp_path / "graphs" / "jax").mkdir(parents=True)
    for name, count in ((".lockfile", 0), ("jit_call-1-cache", 1_250_000), ("jit_call-1-atime", 8)):
        (tmp_path / "graphs" / "jax" / name).write_bytes(b"x" * count)
    about = {"network": "UNet2DConditionModel", "program": "unet", "inputs": [[2, 4, 5, 9]]}
    for i, more in enumerate(({}, {"inputs": "?", "network": 3})):
        blob = tmp_path / "graphs" / f"{i}.blob"
        blob.write_bytes(b"x" * 1_250_000)
        blob.with_suffix(".json").write_text(json.dumps({**about, **more, "size": 1_250_000}))
        then = time.mktime((2026, 5, 7 - i, 8, 9, 0, 0, 0, -1))
        os.utime(blob, (then, then))
    assert run("cache").stdout.splitlines() == [
        f"{tmp_path / 'graphs'}: 2 graphs, 2.5 MB of 2.0 GB",
        "  2026-05-07 08:09    1.2 MB  UNet2DConditionModel unet 2x4x5x9",
        "  2026-05-06 08:09    1.2 MB  ? unet ",
        f"{beside}: 1 programs, 1.2 MB of 2.0 GB",
    ]
    assert run("cache", "--clear").stdout.splitlines() == [
        f"{tmp_path / 'graphs'}: 2.5 MB removed",
        f"{beside}: 1.2 MB removed",
    ]
    assert [path.name for path in (tmp_path / "graphs").rglob("*")] == ["jax", ".lockfile"]


def test_nothing_is_kept(run, monkeypatch):
    monkeypatch.setenv(FOLDER, "")
    assert run("cache").stdout == "UNDERDRAW_CACHE is empty: nothing is kept\n"


def test_a_wrong_size(run, monkeypatch):
    monkeypatch.setenv(FOLDER, "x")
    monkeypatch.setenv(SIZE, "much")
    assert "UNDERDRAW_CACHE_SIZE='much' is no number" in run("cache", code=2).stderr
