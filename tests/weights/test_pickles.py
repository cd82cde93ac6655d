"""Pickles are read bit by bit, and none of them runs anything."""

import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from weights.cases import TENSORS, assert_same

from underdraw.errors import WeightError
from underdraw.formats import pickle_machine
from underdraw.weights.files import open_checkpoint, open_tensors

BOTH = pytest.mark.parametrize("legacy", [False, True])


def save(content, path, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def zipped(path, program, records=(), compression=zipfile.ZIP_STORED):
    """A torch zip file around a hand-made pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        for key, raw in dict(records).items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


@BOTH
def test_every_dtype_and_layout_comes_bit_by_bit(tmp_path, legacy):
    base = torch.arange(63.0).reshape(7, 9)
    tensors = TENSORS | {
        "transposed": base.t(),
        "window": base[1:6:2, 3:],
        "column": base[:, 4],
        "expanded": torch.randn(3, 1).expand(3, 6),
        "flipped": base[:, [2, 0]],
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "int8": torch.tensor([-3, 4], dtype=torch.int8),
        "int16": torch.tensor([-3, 4], dtype=torch.int16),
        "int32": torch.tensor([[-3, 4]], dtype=torch.int32),
        "uint16": torch.tensor([65535], dtype=torch.uint16),
        "uint64": torch.tensor([2**63 + 1], dtype=torch.uint64),
        "complex": torch.tensor([1 + 2j]),
        "half scalar": torch.tensor(0.1).half(),
        "float8_e5m2": torch.randn(3).to(torch.float8_e5m2),
    }
    found = open_tensors(save(tensors, tmp_path / "x.bin", legacy))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_same(found[name], tensor)


@BOTH
def test_a_module_s_state_dict_and_shared_storage(tmp_path, legacy):
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    net.register_parameter("tied", net[0].weight)
    found = open_tensors(save(net.state_dict(), tmp_path / "x.pth", legacy))
    for name, tensor in net.state_dict().items():
        assert_same(found[name], tensor)
    first, second = found["tied"].load(), found["0.weight"].load()
    first[0, 0] = 42
    if not legacy:  # unaligned numbers of the older form are copies
        assert second[0, 0] == 42


class Callback:
    """A class the reader does not have."""

    def __init__(self):
        self.best = torch.ones(2)
        self.path = os.path.join("a", "b")


@BOTH
def test_lightning_checkpoints_with_unknown_classes(tmp_path, legacy, monkeypatch):
    state = collections.OrderedDict((name, t) for name, t in TENSORS.items())
    state["model_ema.decay"] = torch.tensor(0.9999)
    checkpoint = {
        "epoch": 7,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "callbacks": {Callback: {"best": np.float64(0.1), "model": Callback()}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "lr": np.ones(3),
        "counter": collections.Counter("abca"),
        "frozen": frozenset([1, 2]),
        "when": np.dtype("f8"),
    }
    path = save(checkpoint, tmp_path / "x.ckpt", legacy)
    monkeypatch.setattr(Callback, "__setstate__", pytest.fail, raising=False)
    found = open_checkpoint(path)
    assert found.tensors.keys() == state.keys()
    assert found.metadata["global_step"] == 470000
    assert found.metadata["epoch"] == 7


def test_nested_dictionaries_give_dotted_names(tmp_path):
    content = {"model": {"a": TENSORS["b"]}, "list": [{"x": TENSORS["c"]}], "n": 1}
    found = open_tensors(save(content, tmp_path / "x.pth"))
    assert found.keys() == {"model.a", "list.0.x"}
    embedding = {"string_to_param": torch.nn.ParameterDict({"*": torch.ones(2, 3)}), "name": "t"}
    found = open_tensors(save(embedding, tmp_path / "y.pt"))
    assert [t.shape for t in found.values()] == [(2, 3)]


def test_a_whole_module_is_refused_with_its_class(tmp_path):
    path = save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(WeightError, match=r"an object of 'torch\.nn\.modules\.linear\.Linear'"):
        open_tensors(path)


def test_compressed_archives_are_read(tmp_path):
    path = save(TENSORS, tmp_path / "x.bin")
    again = tmp_path / "y.bin"
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    for name, stored in open_tensors(again).items():
        assert_same(stored, TENSORS[name])
    with zipfile.ZipFile(again) as archive:
        info = archive.getinfo(next(n for n in archive.namelist() if n.endswith("/data/0")))
    raw = bytearray(again.read_bytes())
    raw[info.header_offset + 30 + len(info.filename) + 3] ^= 0xFF
    again.write_bytes(raw)
    with pytest.raises(WeightError, match=r"y\.bin: damaged: entry .*/data/0"):
        [stored.load() for stored in open_tensors(again).values()]
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(again, "w", zipfile.ZIP_BZIP2) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(WeightError, match="compressed in a way"):
        open_tensors(again)


# ---- malice -----------------------------------------------------------------------------------


class Runs:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A file that would exist if anything had run."""
    mark = tmp_path / "ran"
    monkeypatch.chdir(tmp_path)
    yield mark
    assert not mark.exists()


GOOD = {"weight": torch.ones(2, 3)}
COMMAND = "touch ran"


@BOTH
@pytest.mark.parametrize("place", ["top", "beside", "inside", "key"])
@pytest.mark.parametrize(
    ("function", "args"),
    [
        (os.system, (COMMAND,)),
        (eval, ("open('ran', 'w')",)),
        (exec, ("open('ran', 'w')",)),
        (open, ("ran", "w")),
        (__import__, ("os",)),
        (os.open, ("ran", os.O_CREAT)),
        (__import__("subprocess").Popen, (COMMAND,)),
        (__import__("shutil").rmtree, ("x",)),
        (__import__("importlib").import_module, ("os",)),
        (__import__("runpy").run_path, ("x",)),
        (pickle.loads, (b"",)),
    ],
)
def test_code_is_refused_and_not_run(tmp_path, trap, legacy, place, function, args):
    evil = Runs(function, *args)
    content = {
        "top": evil,
        "beside": GOOD | {"x": evil},
        "inside": {"state_dict": GOOD | {"y": [({"z": evil},)]}},
        "key": {"state_dict": GOOD, "callbacks": {evil: 1}},
    }[place]
    path = save(content, tmp_path / "x.ckpt", legacy)
    with pytest.raises(WeightError, match=r"refused: it names .*Nothing was run"):
        open_tensors(path)


def test_unknown_calls_become_stubs_that_do_nothing(tmp_path, trap):
    def content(module, name):
        return (
            b"\x80\x02}(X\x01\x00\x00\x00ac" + f"{module}\n{name}\n".encode() + b"U\x03abc\x85Ru."
        )

    for module, name in (
        ("antigravity", "geohash"),
        ("webmodule.evil", "run"),
        ("torch.utils.cpp_extension", "load_inline"),
        ("numpy.testing._private.utils", "runstring"),
        ("functools", "partial"),
        ("builtins", "getattr"),
        ("torch", "set_num_threads"),
    ):
        root, _ = pickle_machine.run(content(module, name), 0, pytest.fail)
        assert isinstance(root["a"], pickle_machine.Stub)
        assert root["a"].name == f"{module}.{name}"
        with pytest.raises(WeightError, match="no named tensors"):
            open_tensors(zipped(tmp_path / "x.bin", content(module, name)))


def test_attributes_set_by_a_pickle_reach_no_object_of_ours(tmp_path):
    programs = [
        # BUILD on a class, with slots: setattr(OrderedDict, "update", ...)
        b"\x80\x02ccollections\nOrderedDict\nN}U\x06updateNs\x86b.",
        # BUILD on an allowed function: its defaults, its globals
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__)s\x86b.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x0b__globals__}sb.",
        # BUILD on an instance with __setstate__, on a dictionary, on a list
        b"\x80\x02cx\nY\n)R}U\x0c__setstate__cx\nY\nsb.",
        b"\x80\x02}}U\x05itemsNsb.",
        b"\x80\x02]}U\x05itemsNsb.",
    ]
    before = dict(vars(pickle_machine)), dict(vars(collections.OrderedDict))
    defaults = pickle_machine._tensor_v2.__defaults__
    for program in programs:
        pickle_machine.run(program, 0, pytest.fail)
    assert (dict(vars(pickle_machine)), dict(vars(collections.OrderedDict))) == before
    assert pickle_machine._tensor_v2.__defaults__ == defaults


def test_loops_and_towers_end(tmp_path):
    loop = b"\x80\x02}q\x00U\x01ah\x00sU\x01b]q\x01h\x01as."
    tower = b"\x80\x02)" + b"2\x86" * 100 + b"."  # a tuple of itself twice, 2 ** 100 leaves
    as_key = b"\x80\x02})" + b"2\x86" * 100 + b"Ns."
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    for program in (loop, tower, as_key, deep):
        with pytest.raises(WeightError, match="no named tensors"):
            open_tensors(zipped(tmp_path / "x.bin", program))


def tensor_program(size, stride, count=6, offset=0, key="0", kind="FloatStorage"):
    """A pickle of {'w': tensor} with any numbers in it."""

    class Named:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            storage = getattr(torch, kind)
            return ("storage", storage, key, "cpu", count) if isinstance(value, Named) else None

    rebuild = torch._utils._rebuild_tensor_v2
    value = Runs(rebuild, Named(), offset, size, stride, False, collections.OrderedDict())
    file = io.BytesIO()
    Writer(file, 2).dump({"w": value})
    return file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"size": (2, 3), "stride": (3, 1)}, None),
        ({"size": (2, 4), "stride": (3, 1)}, "reaches number 6"),
        ({"size": (1 << 50,), "stride": (1,)}, "reaches"),
        ({"size": (1 << 62,), "stride": (1 << 62,)}, "impossible shape"),
        ({"size": (2, -3), "stride": (3, 1)}, "impossible shape"),
        ({"size": (2, 3), "stride": (-3, 1)}, "impossible shape"),
        ({"size": (2, 3), "stride": (3,)}, "impossible shape"),
        ({"size": (2.0, 3), "stride": (3, 1)}, "impossible shape"),
        ({"size": (1,) * 40, "stride": (1,) * 40}, "impossible shape"),
        ({"size": 3, "stride": (1,)}, "wrong arguments"),
        ({"size": (2, 3), "stride": (3, 1), "offset": 1}, "reaches number 6"),
        ({"size": (2, 3), "stride": (3, 1), "offset": -1}, "impossible shape"),
        ({"size": (2, 3), "stride": (3, 1), "count": 7}, "24 bytes, its tensors need 28"),
        ({"size": (2, 3), "stride": (3, 1), "count": 1 << 59}, "24 bytes"),
        ({"size": (2, 3), "stride": (3, 1), "count": -6}, "without key or size"),
        ({"size": (2, 3), "stride": (3, 1), "key": "../0"}, "has no entry"),
        ({"size": (2, 3), "stride": (3, 1), "key": "1"}, "has no entry"),
        ({"size": (2, 3), "stride": (3, 1), "kind": "QInt8Storage"}, "unknown type"),
    ],
)
def test_impossible_tensors_are_told_in_words(tmp_path, arguments, says):
    numbers = np.arange(6, dtype="<f4")
    path = zipped(tmp_path / "x.bin", tensor_program(**arguments), {"0": numbers.tobytes()})
    if says is None:
        assert np.array_equal(open_tensors(path)["w"].load(), numbers.reshape(2, 3))
        return
    with pytest.raises(WeightError, match=says):
        open_tensors(path)


def test_an_expanded_giant_costs_nothing_until_read(tmp_path):
    program = tensor_program(size=(1 << 40, 1 << 15), stride=(0, 0), count=1)
    tensor = open_tensors(zipped(tmp_path / "x.bin", program, {"0": b"\0" * 4}))["w"]
    assert tensor.load().strides == (0, 0)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80",
        b"\x80\x02",
        b".",
        b"\x80\x02(.",
        b"\x80\x02}a.",
        b"\x80\x02]s.",
        b"\x80\x02NNR.",
        b"\x80\x02h\x05.",
        b"\x80\x02t.",
        b"\x80\x02u.",
        b"\x80\x02}(Nu.",
        b"\x80\x02U\xffabc.",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
        b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
        b"\x80\x02I" + b"9" * 10_000 + b"\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02Pabc\n.",
        b"\x80\x02NQ.",
        b"\x80\x02)Q.",
        b"\x80\x02cno newline.",
        b"\xff\xfe.",
    ],
)
def test_broken_programs_are_one_error(tmp_path, program):
    with pytest.raises(WeightError):
        open_tensors(zipped(tmp_path / "x.bin", program))
    (tmp_path / "y.bin").write_bytes(program)
    with pytest.raises(WeightError):
        open_tensors(tmp_path / "y.bin")


def test_an_inflating_program_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("underdraw.formats.pickles.MAX_PROGRAM", 1 << 16)
    program = b"\x80\x02" + b"N0" * (1 << 16) + b"}."
    path = zipped(tmp_path / "x.bin", program, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightError, match="is no checkpoint's"):
        open_tensors(path)


def test_other_archives_and_machines(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("hello.txt", "hi")
    with pytest.raises(WeightError, match=r"not one of torch\.save"):
        open_tensors(tmp_path / "a.bin")
    with zipfile.ZipFile(tmp_path / "b.bin", "w") as archive:
        archive.writestr("x/data.pkl", "")
        archive.writestr("x/constants.pkl", "")
    with pytest.raises(WeightError, match="TorchScript"):
        open_tensors(tmp_path / "b.bin")
    with zipfile.ZipFile(tmp_path / "c.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/byteorder", b"big")
    with pytest.raises(WeightError, match="big-endian"):
        open_tensors(tmp_path / "c.bin")
    (tmp_path / "d.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightError, match=r"not one of torch\.save"):
        open_tensors(tmp_path / "d.pt")
    torch.save([1, 2], tmp_path / "e.pt")
    with pytest.raises(WeightError, match="no named tensors"):
        open_tensors(tmp_path / "e.pt")


@BOTH
def test_every_truncation_is_an_error(tmp_path, legacy):
    whole = save(TENSORS, tmp_path / "x.bin", legacy).read_bytes()
    cut = tmp_path / "cut.bin"
    for length in range(0, len(whole) - 1, 13):
        cut.write_bytes(whole[:length])
        with pytest.raises(WeightError):
            open_tensors(cut)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # Python's, of broken text
@BOTH
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_give_tensors_or_one_error(tmp_path, legacy, data):
    path = tmp_path / "x.bin"
    whole = bytearray(save(TENSORS, path, legacy).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        tensors = open_tensors(path)
    except WeightError:
        return
    for tensor in tensors.values():
        if tensor.size < 1 << 20:
            try:
                assert tensor.load().shape == tensor.shape
            except WeightError as error:
                assert "entry" in str(error)  # an entry now marked as compressed
