"""Opening safetensors files: exact numbers, no memory, and each kind of damage in words."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from weights.cases import TENSORS, assert_same

from underdraw.errors import NotFoundError, WeightError
from underdraw.weights import files
from underdraw.weights.files import open_checkpoint, open_tensors


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"format": "pt", "who": "me"})
    return path


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_every_dtype_comes_bit_by_bit(path):
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata == {"format": "pt", "who": "me"}
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert_same(checkpoint.tensors[name], tensor)


def test_writing_to_a_loaded_array_leaves_the_file_alone(path):
    before = path.read_bytes()
    array = open_tensors(path)["a.weight"].load()
    array[:] = 0
    del array
    assert path.read_bytes() == before
    assert open_tensors(path)["a.weight"].load().any()


def test_numbers_stay_readable_after_the_file_is_replaced(path):
    tensors = open_tensors(path)
    other = path.with_name("other.safetensors")
    safetensors.torch.save_file({"x": torch.zeros(1)}, other)
    other.replace(path)
    assert_same(tensors["a.weight"], TENSORS["a.weight"])


def test_unaligned_numbers_are_given_aligned(tmp_path):
    header = b'{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    assert (8 + len(header)) % 4
    data = np.array([1, 2, 3], "<f4").tobytes()
    array = open_tensors(write(tmp_path / "x.safetensors", header, data))["x"].load()
    assert array.flags.aligned
    assert array.tolist() == [1, 2, 3]


@pytest.mark.parametrize("length", [0x0280, 0x0580, 0x8B1F, 0x0A0A])
def test_header_lengths_that_look_like_other_formats(tmp_path, length):
    text = b"{}".ljust(length)
    assert open_tensors(write(tmp_path / "x.safetensors", text)) == {}


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"{not json", b"", "damaged header"),
        (b"[]" + b" " * 8, b"", "not a safetensors"),
        ({"x": ENTRY}, b"1234567", "truncated: the header promises 8 bytes.*holds 7"),
        ({"x": ENTRY}, b"123456789", "1 bytes after the last tensor"),
        ({"x": ENTRY | {"shape": [3]}}, b"12345678", "needs 12 bytes and is given 8"),
        ({"x": ENTRY | {"shape": [-2]}}, b"12345678", "has shape"),
        ({"x": ENTRY | {"shape": [1 << 61, 1 << 61]}}, b"12345678", "needs"),
        ({"x": ENTRY | {"shape": [2.0]}}, b"12345678", "has shape"),
        ({"x": ENTRY | {"shape": [True, 2]}}, b"12345678", "has shape"),
        ({"x": ENTRY | {"data_offsets": [8, 0]}}, b"12345678", "at bytes 8 to 0"),
        ({"x": ENTRY | {"data_offsets": [0]}}, b"12345678", "lacks"),
        ({"x": ENTRY | {"data_offsets": [4, 12]}}, b"123456789012", "leaves a gap"),
        ({"x": ENTRY, "y": ENTRY}, b"12345678", "overlaps"),
        ({"x": ENTRY | {"dtype": "F4"}}, b"12345678", "of type 'F4'"),
        ({"x": ENTRY | {"dtype": ["F32"]}}, b"12345678", "of type"),
        ({"x": 3}, b"", "lacks"),
        ({"x": {}}, b"", "lacks"),
        ({"__metadata__": [], "x": ENTRY}, b"12345678", "__metadata__"),
        (b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":1}', b"", "there twice"),
        (b"[" * 100_000, b"", "not a safetensors"),
        (b'{"a":' * 50_000 + b"}" * 50_000, b"", "damaged header"),
    ],
)
def test_damaged_headers_are_told_in_words(tmp_path, header, data, says):
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(WeightError, match=says) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3438167540\n"


@pytest.mark.parametrize("suffix", files.SUFFIXES)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (LFS, "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body>", "web page"),
        (b"\n  <HTML>", "web page"),
        (b'{"error": "Entry not found"}', "JSON"),
        (b"\x00" * 4096, "zero bytes"),
        (b"\x1f\x8b\x08\x00abcdefgh", "gzip"),
        (b"abc", "not a"),
        (b"some text that is no checkpoint at all", "not a"),
    ],
)
def test_files_that_are_something_else(tmp_path, suffix, content, says):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightError, match=says) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_swapped_extensions_are_named(path, tmp_path, legacy):
    renamed = tmp_path / "model.bin"
    renamed.write_bytes(path.read_bytes())
    with pytest.raises(WeightError, match="not a PyTorch checkpoint but a safetensors file"):
        open_tensors(renamed)
    pickle = tmp_path / "pickle.safetensors"
    torch.save(TENSORS, pickle, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightError, match=r"not a safetensors file but a (zip|pickle)"):
        open_tensors(pickle)


def test_every_truncation_is_an_error(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(WeightError):
            open_tensors(cut)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_changed_bytes_give_tensors_or_one_error(path, tmp_path, data):
    whole = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(whole)
    try:
        tensors = open_tensors(changed)
    except WeightError:
        return
    for tensor in tensors.values():
        assert tensor.load().shape == tensor.shape


def test_missing_files_folders_and_unknown_kinds(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        open_tensors(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        open_tensors(tmp_path / "none.bin")
    with pytest.raises(WeightError, match="is a folder"):
        open_tensors(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"\x89HDF")
    with pytest.raises(WeightError, match=r"unknown kind of weight file '\.h5'"):
        open_tensors(tmp_path / "x.h5")


OPENED = """
import mmap, sys
from underdraw.formats import stored
from underdraw.weights.files import open_tensors
def private():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
read, views = [], []
class Counted(mmap.mmap):
    def __getitem__(self, key):
        part = super().__getitem__(key)
        read.append(1 if isinstance(part, int) else len(part))
        return part
mmap.mmap, frombuffer = Counted, stored.np.frombuffer
stored.np.frombuffer = lambda *given: (views.append(1), frombuffer(*given))[1]
before = private()
tensors = open_tensors(sys.argv[1])
opened = sum(read), len(views)
total = sum(float(t.load().astype("f4", copy=False).reshape(-1)[0]) for t in tensors.values())
arrays = [t.load() for t in tensors.values()]
checks = sum(int(a.view("u1").reshape(-1)[::4096].sum()) for a in arrays)
print(*opened, len(views), sum(read), private() - before, len(tensors))
"""


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_opening_reads_the_header_and_costs_no_private_memory(tmp_path, suffix):
    path = tmp_path / f"big.{suffix}"
    tensors = {f"block.{i}.weight": torch.ones(300, 512).half() for i in range(1000)}
    if suffix == "ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        safetensors.torch.save_file(tensors, path)
    assert path.stat().st_size > 300e6
    command = [sys.executable, "-c", OPENED, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    opened, early, views, read, private, count = map(float, result.stdout.split())
    assert count == 1000
    assert 0 < opened < 1e6  # bytes: 90 a tensor (safetensors), 300 (a pickle and the zip's lists)
    assert early == 0 and views >= 2 * count  # numbers are looked at when somebody asks, in place
    assert read < 1e6
    assert private < 8  # MB, where the file holds 307
