"""Saving: what was there stays whole until the new is whole, whenever it is interrupted."""

import json
import os
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
import safetensors.torch
from weights.cases import TENSORS, assert_same

from underdraw.errors import InputError
from underdraw.formats.stored import StoredTensor
from underdraw.weights import save
from underdraw.weights.files import open_checkpoint, open_tensors


def all_kinds(tmp_path):
    path = tmp_path / "source.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    return open_tensors(path)


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_peer_reads_every_dtype_back(tmp_path):
    path = tmp_path / "x.safetensors"
    save.save_tensors(path, all_kinds(tmp_path), {"note": "ü"})
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == TENSORS.keys()
    ours = open_checkpoint(path)
    assert ours.metadata == {"note": "ü"}
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert_same(ours.tensors[name], loaded[name])
        assert_same(ours.tensors[name], tensor)
        assert np.asarray(ours.tensors[name].load()).flags.aligned


def test_arrays_of_any_layout_are_saved(tmp_path):
    base = np.arange(24, dtype="f4").reshape(4, 6)
    arrays = {
        "t": base.T,
        "s": base[::2, 1:],
        "big endian": base.astype(">f4"),
        "scalar": np.float64(2.5),
        "empty": np.zeros((0, 3), "f2"),
    }
    save.save_tensors(tmp_path / "x.safetensors", arrays)
    loaded = open_tensors(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        assert np.array_equal(loaded[name].load(), array)
        assert loaded[name].shape == np.shape(array)


def test_a_file_can_be_saved_over_itself(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    save.save_tensors(path, open_tensors(path))
    for name, tensor in open_tensors(path).items():
        assert_same(tensor, TENSORS[name])


def test_files_get_the_usual_permissions(tmp_path):
    save.save_tensors(tmp_path / "x.safetensors", {"a": np.zeros(1)})
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_other_forms_of_the_same_weights_go(tmp_path):
    tensors = {f"w{i}": np.full(10, i, "f4") for i in range(4)}
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"old")
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"other variant")
    (tmp_path / "notes.txt").write_text("mine")
    save.save_weights(tmp_path, tensors, max_shard_size=40)
    assert len(list(tmp_path.iterdir())) == 4 + 1 + 2
    save.save_weights(tmp_path, tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors",
        "notes.txt",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"max_shard_size": "5 elephants"}, "max_shard_size='5 elephants'"),
        ({"max_shard_size": 0}, "max_shard_size=0"),
        ({"max_shard_size": "-1GB"}, "max_shard_size"),
        ({"variant": "../x"}, r"variant='\.\./x'"),
        ({"variant": ""}, "variant=''"),
    ],
)
def test_bad_arguments(tmp_path, arguments, says):
    with pytest.raises(InputError, match=says):
        save.save_weights(tmp_path / "new", {"a": np.zeros(1)}, **arguments)


def test_bad_tensors_leave_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    wrong = StoredTensor("float32", (2, 2), lambda: np.zeros((2, 3), "f4"))
    for tensors, says in (
        ({"": np.zeros(1)}, "cannot be the name"),
        ({"__metadata__": np.zeros(1)}, "cannot be the name"),
        ({"a": wrong}, "announced was float32"),
        ({"a": np.zeros(1, "c16")}, "complex128"),
    ):
        with pytest.raises(InputError, match=says):
            save.save_tensors(path, tensors)
    with pytest.raises(InputError, match="metadata"):
        save.save_tensors(path, {"a": np.zeros(1)}, {"n": 1})
    assert not list(tmp_path.iterdir())


class Stop(BaseException):
    """As KeyboardInterrupt: no Exception."""


def stopping(count, fail_at):
    """Tensors of which one stops when it is read."""

    def load(i):
        if i == fail_at:
            raise Stop
        return np.full(5, i, "f4")

    return {f"w{i}": StoredTensor("float32", (5,), lambda i=i: load(i)) for i in range(count)}


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "x.safetensors"
    for before in ({}, {"x.safetensors": None}):
        if before:
            save.save_tensors(path, {"old": np.ones(3)})
        state = files_in(tmp_path)
        for fail_at in range(3):
            with pytest.raises(Stop):
                save.save_tensors(path, stopping(3, fail_at))
            assert files_in(tmp_path) == state


CALLS = ("os.replace", "os.link", "os.rename", "os.fsync", "pathlib.Path.unlink")


def fill(folder, value, sharded):
    size = 40 if sharded else "1GB"
    for part in ("unet", "vae"):
        tensors = {f"w{i}": np.full(10, value, "f4") for i in range(3)}
        save.save_weights(folder / part, tensors, max_shard_size=size)
        save.write_json(folder / part / "config.json", {"value": value})
    save.write_json(folder / "model_index.json", {"value": value})


@pytest.mark.parametrize("sharded", [(False, True), (True, False)])
def test_a_folder_save_stopped_at_any_system_call_leaves_the_old_or_the_new(
    tmp_path, monkeypatch, sharded
):
    target = tmp_path / "pipe"
    with save.writing_folder(target) as new:
        fill(new, 1, sharded[0])
    (target / "unet" / "mine.txt").write_text("kept")
    old = files_in(target)
    calls = {"left": 0}

    def guard(original):
        def call(*args, **kwargs):
            calls["left"] -= 1
            if calls["left"] == 0:
                raise Stop
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and not what is tested
    for name in CALLS:
        owner, _, attribute = name.rpartition(".")
        owner = os if owner == "os" else __import__("pathlib").Path
        monkeypatch.setattr(owner, attribute, guard(getattr(owner, attribute)))
    for stop_at in range(1, 200):
        calls["left"] = stop_at
        try:
            with save.writing_folder(target) as new:
                fill(new, 2, sharded[1])
        except Stop:
            calls["left"] = 0
        else:
            break
        state = files_in(target)
        if state != old:  # stopped after the last move
            assert json.loads(state["model_index.json"])["value"] == 2
            break
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe"]
    calls["left"] = 0
    assert stop_at > 20
    monkeypatch.undo()
    with save.writing_folder(target) as new:
        fill(new, 2, sharded[1])
    state = files_in(target)
    assert state.pop("unet/mine.txt") == b"kept"
    fresh = tmp_path / "fresh"
    with save.writing_folder(fresh) as new:
        fill(new, 2, sharded[1])
    assert state == files_in(fresh)


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "pipe"
    with pytest.raises(Stop), save.writing_folder(target) as new:
        fill(new, 1, False)
        assert not target.exists()
        raise Stop
    assert not target.exists()
    assert not list((tmp_path / "deep").iterdir())
    with save.writing_folder(target) as new:
        fill(new, 1, False)
    assert sorted(path.name for path in target.iterdir()) == ["model_index.json", "unet", "vae"]
    (tmp_path / "plain").mkdir()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with (
        pytest.raises(InputError, match="is a file"),
        save.writing_folder(target / "model_index.json"),
    ):
        pass


KILLED = """
import sys, time
import numpy as np
from underdraw.weights.files import StoredTensor
from underdraw.weights.save import save_tensors
def slow():
    print("writing", flush=True)
    time.sleep(600)
tensors = {"a": np.zeros(1_000_000, "f4"), "z": StoredTensor("float32", (3,), slow)}
save_tensors(sys.argv[1], tensors)
"""


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save.save_tensors(path, {"old": np.ones(3)})
    before = path.read_bytes()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait(300)
    process.stdout.close()
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save.save_tensors(path, {"old": np.ones(3)})
    state = files_in(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        save.save_tensors(path, {"new": np.ones(3)})
    assert files_in(tmp_path) == state


def test_saving_streams(tmp_path):
    """One tensor in memory at a time: each is dropped before the next is read."""
    alive = []

    class Counted(np.ndarray):
        """Plain arrays take no weak references in old numpy."""

    def load():
        assert sum(reference() is not None for reference in alive) <= 1
        array = np.zeros((1 << 18,), "f4").view(Counted)
        alive.append(weakref.ref(array))
        return array

    tensors = {f"w{i}": StoredTensor("float32", (1 << 18,), load) for i in range(8)}
    save.save_tensors(tmp_path / "x.safetensors", tensors)
    assert len(alive) == 8
