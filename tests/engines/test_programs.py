"""What JAX compiled is kept on disk, in a folder of ours, unless JAX was told of another."""

import numpy as np
import pytest
from engines.runs import unet
from pipelines.tiny import ONE_LEVEL

from underdraw import backends
from underdraw.engines.compiled import Compiled
from underdraw.engines.engine import Question
from underdraw.engines.kept import FOLDER, SIZE, Kept
from underdraw.engines.programs import Programs
from underdraw.networks.program import Program

JAX = pytest.mark.skipif("jax" not in backends.installed(), reason="needs JAX")
TRIPLED = Program("test.tripled", lambda nn, p, config, x: x * 3 + nn.exp(x))


@pytest.fixture
def told(monkeypatch):
    """JAX's settings of a fresh process, in which everything is worth keeping."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from underdraw.backends import jax_programs

    names = (
        *("jax_compilation_cache_dir", "jax_compilation_cache_max_size"),
        *(
            "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes",
        ),
    )
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setattr(jax_programs, "_folder", None)
    for name, value in zip(names, (None, -1, 0.0, -1), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    hits = []

    def listener(event, **_):
        hits.append(event.rsplit("/", 1)[-1])

    jax.monitoring.register_event_listener(listener)
    yield lambda: hits.count("cache_hits")
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    hits.clear()


@pytest.fixture(scope="module")
def model():
    return unet("jax", **ONE_LEVEL)


def asked(engine, model, size=3):
    x = model._framework.array(np.ones(size, np.float32))
    return engine.run(Question(TRIPLED, model, (x,), model.nn))


@JAX
def test_the_next_engine_compiles_nothing_anew(told, model, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    monkeypatch.setenv(SIZE, "2")
    there = Programs.within(Compiled().kept)
    assert there == Programs(tmp_path / "kept" / "jax", 2 * 10**9)
    first = asked(Compiled(), model)
    assert told() == 0 and len(there.sizes()) > 0
    assert there.folder.stat().st_mode & 0o077 == 0
    assert np.array_equal(asked(Compiled(), model), first) and told() == 1
    other = Compiled(kept=Kept(tmp_path / "other", 10**6))
    asked(other, model, 4)
    there = Programs.within(other.kept)
    assert len(there.sizes()) > 0
    assert there.clear() > 0 and there.sizes() == []
    assert np.array_equal(asked(other, model, 4)[:3], first)


@JAX
def test_a_folder_that_jax_was_told_of_stays(told, model, tmp_path, monkeypatch):
    import jax

    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    asked(Compiled(), model, 5)
    assert any((tmp_path / "theirs").iterdir()) and not list((tmp_path / "kept" / "jax").iterdir())


@JAX
@pytest.mark.parametrize("nothing", ["environment", "argument", "no place", "somebody else's"])
def test_nothing_is_kept(told, model, tmp_path, monkeypatch, nothing):
    monkeypatch.setenv(FOLDER, "" if nothing == "environment" else str(tmp_path / "kept"))
    if nothing == "no place":
        (tmp_path / "kept").write_text("a file")
    if nothing == "somebody else's":
        (tmp_path / "kept" / "jax").mkdir(parents=True)
        (tmp_path / "kept" / "jax").chmod(0o777)
    engine = Compiled(kept=None) if nothing == "argument" else Compiled()
    asked(engine, model, 6)
    assert told() == 0 and not list(tmp_path.rglob("*-cache"))
