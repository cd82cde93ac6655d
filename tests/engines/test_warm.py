"""What PyTorch compiled is found by the next process, within the limit of the folder."""

from copy import deepcopy

import pytest
import torch
from engines.runs import apart, ended, unet
from engines.test_openvino import asked, equal, x
from pipelines import tiny
from pipelines.tiny import ONE_LEVEL

from underdraw import engines
from underdraw.backends import torch as backend, torch_packages
from underdraw.engines.compiled import Compiled, Regional
from underdraw.engines.kept import Kept
from underdraw.errors import InputError, InputTypeError


@pytest.fixture
def seen(monkeypatch):
    """PyTorch's compiler stops behind its tracer; what it made is a few bytes, and what was handed
    to it is noted."""
    torch.compiler.reset()
    taken, graphs = [], []

    def traced(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compiled(function, dynamic=None):
        return torch.compile(function, backend=traced, fullgraph=True, dynamic=dynamic)

    monkeypatch.setattr(backend, "compiled", compiled)
    monkeypatch.setattr(backend, "made_artifacts", lambda: b"kernels" * 10)
    monkeypatch.setattr(
        backend, "take_artifacts", lambda found: taken.append(found) or found == b"kernels" * 10
    )
    return taken, graphs


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kept").mkdir(mode=0o700)
    return Kept(tmp_path / "kept", 1000)


@pytest.fixture
def tower():
    return tiny.components()["text_encoder"].requires_grad_(False)


@pytest.mark.parametrize("kind", [Compiled, Regional])
def test_the_next_process_finds_it(kind, seen, folder):
    model, (taken, _) = unet(**ONE_LEVEL).requires_grad_(False), seen
    first = kind(kept=folder)
    assert apart(ended(model, 1, first, steps=2), ended(model, 1, steps=2)) <= 1e-6
    count = len(folder.entries())
    assert count and not taken and "unet" in {entry.program for entry in folder.entries()}
    second = kind(kept=folder)
    ended(model, 2, second, steps=2)
    assert taken == [b"kernels" * 10] * count and second._warm.loaded == count
    assert len(folder.entries()) == count  # what was found is not written again


def test_it_is_found_for_other_numbers_alone(seen, folder, tower):
    taken, _ = seen
    assert equal(Compiled(kept=folder), asked(tower, x()))
    other = tiny.components()["text_encoder"].requires_grad_(False)
    other.text_model.encoder.layers[0].mlp.fc1.weight.data.mul_(2)
    assert equal(Compiled(kept=folder), asked(other, x(seed=1)))
    assert len(taken) == 1
    half = asked(deepcopy(tower).to(torch.bfloat16), x().bfloat16())
    for question in (asked(tower, x(3)), asked(tower, x(), 0.5), half):
        engine = Compiled(kept=folder)
        engine.run(question)
        assert engine._warm.loaded == 0
    assert len(folder.entries()) == 4


def test_what_cannot_be_read_goes(seen, folder, tower):
    (_, engine) = seen, Compiled(kept=folder)
    assert equal(engine, asked(tower, x()))
    (entry,) = folder.entries()
    entry.path.write_bytes(b"y" * entry.size)
    again = Compiled(kept=folder)
    assert equal(again, asked(tower, x())) and again._warm.loaded == 0
    (made,) = folder.entries()
    assert made.path.read_bytes() == b"kernels" * 10


def test_a_folder_that_others_write_into_is_not_read(seen, folder, tower):
    taken, _ = seen
    assert equal(Compiled(kept=folder), asked(tower, x()))
    folder.folder.chmod(0o777)
    assert equal(Compiled(kept=folder), asked(tower, x()))
    assert not taken
    small = Kept(folder.folder, 10)  # and nothing that does not fit is kept
    folder.folder.chmod(0o700)
    small.clear()
    assert equal(Compiled(kept=small), asked(tower, x())) and small.entries() == []


def test_a_compiler_of_somebody_else_keeps_nothing(seen, folder, tower):
    assert equal(Compiled(lambda function: function, kept=folder), asked(tower, x()))
    assert equal(Compiled(kept=None), asked(tower, x()))
    assert folder.entries() == []


def test_blocks_for_all_sizes_serve_others(seen):
    """Once more at most, where numbers that were equal by chance at first were taken to be one."""
    model, (_, graphs) = unet(**ONE_LEVEL), seen
    engine = Regional(dynamic=True, kept=None)
    counts = []
    for images, size in ((2, (6, 10)), (3, (5, 9))):
        how = {"images": images, "size": size, "steps": 1}
        assert apart(ended(model, 1, engine, **how), ended(model, 1, **how)) <= 1e-6
        counts.append(len(graphs))
    assert 0 < counts[0] <= counts[1] <= counts[0] + 1
    assert engines.name_of(engine) is None and engines.name_of(Regional()) == "compiled"


def test_libraries_go_along(tmp_path, monkeypatch):
    """PyTorch's record of kernels for CPUs has their source alone."""
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "ab").mkdir(parents=True)
    (there / "ab" / "cabc2345.so").write_bytes(b"a library")
    took = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"a record", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda some: took.append(some) or 1)
    monkeypatch.setattr(torch_packages, "_loaded", lambda folder: ["ab/cabc2345.so"])
    monkeypatch.setattr(torch_packages, "_kernels", lambda: there)
    made = torch_packages.made_artifacts()
    monkeypatch.setattr(torch_packages, "_kernels", lambda: here)
    assert torch_packages.take_artifacts(made) and took == [b"a record"]
    assert [path.name for path in here.rglob("*.*")] == ["cabc2345.so"]
    assert (here / "ab" / "cabc2345.so").read_bytes() == b"a library"
    (here / "ab" / "cabc2345.so").write_bytes(b"newer")
    assert torch_packages.take_artifacts(made)
    assert (here / "ab" / "cabc2345.so").read_bytes() == b"newer"
    outside = torch_packages.HEAD.pack(10, 1) + b"../evil.so" + b"x"
    assert not torch_packages.take_artifacts(outside) and not (tmp_path / "evil.so").exists()
    for damaged in (b"", made[:5], made[:-4] + b"\0" * 9):
        torch_packages.take_artifacts(damaged)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    assert torch_packages.made_artifacts() is None


def test_settings_that_cannot_be():
    with pytest.raises(InputTypeError, match="dynamic=3"):
        Regional(dynamic=3)
    with pytest.raises(InputError, match="dynamic=True is for"):
        Regional(abs, dynamic=True)
