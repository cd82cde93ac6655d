"""Compiled graphs on disk: found by the next process, never for other weights, within a size."""

import errno
import os

import numpy as np
import openvino
import pytest
import torch
from engines.test_openvino import LAYERS, asked, equal, layers, off, writes, x
from pipelines import tiny

from underdraw import backends
from underdraw.backends import openvino_graph
from underdraw.backends.openvino_values import WEIGHT
from underdraw.backends.tree import flatten
from underdraw.engines import kept
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import answer
from underdraw.engines.graph import as_given, build
from underdraw.engines.kept import Kept
from underdraw.engines.openvino import OpenVino
from underdraw.errors import InputError
from underdraw.networks.program import Program


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a graph, and the tower it is of."""
    folder = Kept(tmp_path_factory.mktemp("cache") / "graphs", 1 << 30)
    tower = tiny.components()["text_encoder"].requires_grad_(False)
    engine = OpenVino(kept=folder)
    assert equal(engine, asked(tower, x())) and engine.loaded == 0
    return folder, tower


@pytest.fixture
def tower(made):
    return made[1]


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it."""
    copied = Kept(tmp_path / "graphs", 1 << 30)
    copied.folder.mkdir()
    for path in made[0].folder.iterdir():
        (copied.folder / path.name).write_bytes(path.read_bytes())
    return copied


def test_what_is_kept(made):
    folder, _ = made
    (entry,) = folder.entries()
    names = sorted(path.name for path in folder.folder.iterdir())
    assert names == [entry.path.with_suffix(end).name for end in (".blob", ".json")]
    assert entry.size == entry.path.stat().st_size > 4 * 32 * 32 * 4
    assert (entry.program, entry.network) == ("layers", "CLIPTextModel")
    assert entry.shapes == ((2, 5, 32),)
    assert entry.path.stat().st_mode & 0o077 == folder.folder.stat().st_mode & 0o077 == 0


def test_another_process_loads_it(folder, tower):
    engine = OpenVino(kept=folder)
    os.utime(folder.entries()[0].path, (1, 1))
    same = tiny.components()["text_encoder"].requires_grad_(False)
    for seed in (0, 1):
        given = asked(same, x(seed=seed))
        assert off(answer(engine, given)["sum"], answer(EAGER, given)["sum"]) <= 1e-5
    assert (engine.loaded, len(engine.compiled)) == (1, 1)
    assert folder.entries()[0].used > 1  # it counts as used
    folder.clear()
    assert equal(engine, asked(same, x(seed=2)))  # what is loaded is not lost with its file


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_become_float32_in_a_file(tmp_path, dtype):
    """OpenVINO would hold them in memory of its own, beside what it prepares of them."""
    tower = tiny.components()["text_encoder"].requires_grad_(False).to(dtype)
    leaves, structure = flatten((x().to(dtype),))
    question, ov = asked(tower, x().to(dtype)), backends.graphs()
    built = build(question, leaves, structure)
    how = ov.settings(False, 1)
    given = [as_given(tower._framework, leaf) for leaf in leaves]
    before = ov.compiled(built.graph, how, built.weights.holds)(given)
    mapped = ov.widened(built.graph, tmp_path)
    assert not [*tmp_path.iterdir()]  # it has no name, so it ends with who reads it
    memory = np.frombuffer(mapped, np.uint8)
    weights = [node for node in built.graph.get_ordered_ops() if named(node)]
    assert len(weights) == len(built.weights.holds) == 14
    for node in weights:
        assert node.get_element_type() == openvino.Type.f32
        assert np.shares_memory(node.data, memory) and node.data.ctypes.data % 64 == 0
        assert not any(taker.get_node().get_type_name() == "Convert" for taker in takers(node))
    after = ov.compiled(built.graph, how, (built.weights.holds, mapped))(given)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert ov.widened(built.graph, tmp_path) is None
    with pytest.raises(FileNotFoundError):
        ov.widened(build(question, leaves, structure).graph, tmp_path / "nowhere")


def named(node):
    return node.get_friendly_name().startswith(WEIGHT)


def takers(node):
    return node.output(0).get_target_inputs()


def test_large_weights_become_float32_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_graph, "PART", 100)
    test_weights_in_half_become_float32_in_a_file(tmp_path, torch.bfloat16)


def test_a_disk_that_is_full(tmp_path, monkeypatch, caplog):
    """Nothing is lost but what would have been kept, and nothing stays of what was begun."""
    written = openvino_graph._float32

    def full(constant):
        yield next(written(constant))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(openvino_graph, "_float32", full)
    tower = tiny.components()["text_encoder"].requires_grad_(False).half()
    engine = OpenVino(kept=Kept(tmp_path / "graphs", 1 << 30))
    given = asked(tower, x().half())
    assert off(answer(engine, given)["sum"], answer(EAGER, given)["sum"]) <= 1e-2
    assert "No space left" in caplog.text and len(engine.compiled) == 1
    assert not [*(tmp_path / "graphs").iterdir()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_compiled_and_cannot_be_kept(tmp_path, monkeypatch, caplog, dtype):
    """It is not compiled once more beside itself."""

    def full(self, key, made, about):
        raise OSError(errno.ENOSPC, "No space left on device")

    def again(*given):
        raise AssertionError("a graph was compiled twice")

    monkeypatch.setattr(Kept, "put", full)
    monkeypatch.setattr(backends.graphs(), "compiled", again)
    tower = tiny.components()["text_encoder"].requires_grad_(False).to(dtype)
    engine = OpenVino(kept=Kept(tmp_path / "graphs", 1 << 30))
    given = asked(tower, x().to(dtype))
    assert off(answer(engine, given)["sum"], answer(EAGER, given)["sum"]) <= 1e-2
    assert "No space left" in caplog.text and len(engine.compiled) == 1
    assert not [*(tmp_path / "graphs").iterdir()]


@pytest.mark.parametrize("damaged", [False, True])
def test_weights_in_half_are_not_held_twice(tmp_path, monkeypatch, damaged):
    """What was compiled of them is at once taken from its file, which holds them once."""
    graphs, calls = backends.graphs(), []
    plain = graphs.loaded

    def loaded(mapped, how):
        calls.append(len(mapped))
        if damaged:
            raise ValueError("cut")
        return plain(mapped, how)

    monkeypatch.setattr(graphs, "loaded", loaded)
    tower = tiny.components()["text_encoder"].requires_grad_(False)
    folder = Kept(tmp_path / "graphs", 1 << 30)
    engine = OpenVino(kept=folder)
    assert equal(engine, asked(tower, x())) and not calls
    half = tower.to(torch.float16)
    question = asked(half, x().half())
    made = answer(engine, question)["sum"]
    assert len(calls) == 1 and engine.loaded == 0 and len(engine.compiled) == 2
    assert len(folder.entries()) == (1 if damaged else 2)
    assert off(made, answer(EAGER, asked(half.float(), x()))["sum"]) <= 0.01


@pytest.mark.parametrize("what", ["weights", "size", "precision", "version", "program"])
def test_what_was_made_of_something_else_is_not(folder, what, monkeypatch):
    tower = tiny.components()["text_encoder"].requires_grad_(False)
    engine = OpenVino(kept=folder)
    if what == "weights":
        writes(tower)["one_number"]()
    if what == "precision":
        how = engine._settings(tower) | {"INFERENCE_NUM_THREADS": 2}
        monkeypatch.setattr(OpenVino, "_settings", lambda self, model: how)
    if what == "version":
        monkeypatch.setattr("underdraw.engines.openvino.__version__", "0.0.7")
    program = LAYERS
    if what == "program":  # the graph itself tells
        program = Program("layers", lambda *given: layers(*given, more=0.5))
    assert equal(engine, asked(tower, x(3 if what == "size" else 2), program=program))
    assert engine.loaded == 0 and len(folder.entries()) == 2


@pytest.mark.parametrize("damage", ["cut", "text", "header", "about", "alone", "pipe"])
def test_damaged_files_are_made_again(folder, tower, damage):
    (entry,) = folder.entries()
    about, blob = entry.path.with_suffix(".json"), entry.path.read_bytes()
    if damage == "cut":
        entry.path.write_bytes(blob[:-100])
    elif damage == "text":
        entry.path.write_bytes(b"x" * len(blob))
    elif damage == "header":
        entry.path.write_bytes(blob[:300] + b"\0" * 300 + blob[600:])
    elif damage == "about":
        about.write_text("{" * 1000)
    elif damage == "alone":
        about.unlink()
    else:
        entry.path.unlink()
        os.mkfifo(entry.path)
    engine = OpenVino(kept=folder)
    assert equal(engine, asked(tower, x())) and engine.loaded == 0
    assert len(folder.entries()) == 1


def test_the_longest_unused_goes(folder, tower):
    (first,) = folder.entries()
    os.utime(first.path, (1, 1))
    small = Kept(folder.folder, first.size * 5 // 2)
    engine = OpenVino(kept=small)
    for rows in (3, 4):
        assert equal(engine, asked(tower, x(rows)))
    assert len(small.entries()) == 2 and first.path not in {e.path for e in small.entries()}
    tiny_one = OpenVino(kept=Kept(folder.folder, 100))
    assert equal(tiny_one, asked(tower, x(5)))  # nothing that does not fit at all
    assert len(small.entries()) == 2


def test_a_folder_that_cannot_be_written(tmp_path, tower, caplog):
    file = tmp_path / "file"
    file.write_text("")
    engine = OpenVino(kept=Kept(file / "graphs", 1 << 30))
    assert equal(engine, asked(tower, x()))


def test_clearing(folder):
    size = folder.entries()[0].size
    (folder.folder / "stranger.txt").write_text("")
    assert folder.clear() == size and folder.entries() == []
    assert [path.name for path in folder.folder.iterdir()] == ["stranger.txt"]
    assert Kept(folder.folder / "nowhere", 1).clear() == 0


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv(kept.FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept.default() == Kept(tmp_path / "underdraw" / "graphs", 12_000_000_000)
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "mine"))
    monkeypatch.setenv(kept.SIZE, "0.5")
    assert kept.default() == Kept(tmp_path / "mine", 500_000_000)
    monkeypatch.setenv(kept.FOLDER, "")
    assert kept.default() is None
    with monkeypatch.context() as homeless:
        homeless.delenv("XDG_CACHE_HOME")
        homeless.setattr(os.path, "expanduser", lambda path: path)  # as where there is none
        homeless.delenv(kept.FOLDER)
        assert kept.default() is None
    for wrong in ("much", "nan", "-1", "1e9"):
        monkeypatch.setenv(kept.FOLDER, "x")
        monkeypatch.setenv(kept.SIZE, wrong)
        with pytest.raises(
            InputError, match=r"UNDERDRAW_CACHE_SIZE='.*' is no number of gigabytes"
        ):
            kept.default()


def test_killed_while_compiling(folder, tower):
    """What a killed process has left of a graph in the making goes."""
    left = folder.folder / ".abc.saving-01234567"
    (left / "new").mkdir(parents=True)
    (left / "new" / "1.blob").write_bytes(b"half")
    assert equal(OpenVino(kept=folder), asked(tower, x(6)))
    assert not left.exists()
