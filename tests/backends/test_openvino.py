"""The operations that build OpenVINO graphs keep the promises of the contract."""

import importlib
import sys

import numpy as np
import pytest
from backends.cases import CASES
from backends.harness import relative, rounded, values
from backends.test_operations import (
    EVERYWHERE,
    OPERATIONS,
    TOLERANCE,
    draw,
    expected,
    layout_of,
    wanted_dtype,
)

from underdraw import backends
from underdraw.backends.contract import Operations
from underdraw.backends.node import Node, grow
from underdraw.errors import NotExpressibleError

ov = backends.graphs()


def kind(array, dtype="float32"):
    return {"f": dtype, "b": "bool"}.get(array.dtype.kind, "int64")


class Layer:
    """A node of constants, whose layers may lack a bias."""

    def __init__(self, node):
        self.node = node

    def __getattr__(self, name):
        child = vars(self)["node"]._.get(name)
        return Layer(child) if isinstance(child, Node) else child


def called(case, dtype):
    """Inputs and the output of a case in a graph."""
    drawn = draw(case, dtype)
    given = [ov.parameter(x.shape, kind(x, dtype)) for x in drawn]
    numbers = values(layout_of(case, drawn)).items()
    p = grow(
        {
            name: ov.weight(rounded(value, dtype).astype(np.float32), dtype, name)
            for name, value in numbers
        }
    )
    return drawn, given, case.call(ov.operations, Layer(p), *given)


@pytest.fixture(scope="module")
def computed():
    """What all cases give: one graph is compiled in a tenth of the time of each."""
    inputs, parameters, outputs = [], [], []
    for case in CASES:
        drawn, given, made = called(case, "float32")
        inputs += [x.astype(np.float32) if x.dtype.kind == "f" else x for x in drawn]
        parameters += given
        outputs.append(made)
    how = ov.settings(False, 1)
    compiled = ov.compiled(ov.model(parameters, outputs), how, None)
    return dict(zip(CASES, compiled(inputs), strict=True))


@EVERYWHERE
def test_numbers(case, computed):
    error = relative(computed[case], expected(case, draw(case, "float32"), "float32"))
    assert error <= TOLERANCE["float32"] * case.scale


@EVERYWHERE
def test_shapes_and_dtypes(case, dtype="bfloat16"):
    """Numbers are computed in float32, and a value knows in which dtype its array would be."""
    drawn, _, made = called(case, dtype)
    wanted = wanted_dtype(case, dtype)
    assert made.dtype == ("int64" if wanted == "int" else wanted)
    assert made.shape == expected(case, drawn, dtype).shape


def test_it_is_the_contract():
    assert isinstance(ov.operations, Operations)
    assert {name for name in dir(type(ov.operations)) if name[0] != "_"} - {"name"} == OPERATIONS


def test_bfloat16_weights_are_read_from_their_bits():
    numbers = rounded(np.random.default_rng(0).standard_normal((3, 5)), "bfloat16")
    bits = (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    bits = bits[::-1].copy()
    out = ov.weight(bits, "bfloat16", "w") * 1.0
    bits[:] = bits[::-1].copy()  # a graph of a whole network has no room for copies
    (made,) = ov.compiled(ov.model([], [out]), ov.settings(False, 1), bits)([])
    assert np.array_equal(made, numbers)


@pytest.mark.parametrize(
    "use",
    [
        bool, float, int, list, len, np.asarray,
        lambda x: x[::-1], lambda x: x[[0, 1]], lambda x: x + np.ones(3), lambda x: x + "a",
    ],
)  # fmt: skip
def test_what_needs_numbers_cannot_be_expressed(use):
    with pytest.raises(NotExpressibleError):
        use(ov.parameter((3,), "float32"))


def test_an_index_out_of_range():
    with pytest.raises(IndexError, match="index 3 is out of range; axis 0 has 3"):
        ov.parameter((3, 2), "float32")[3]


def test_unknown_tokens_are_no_other_tokens():
    """As on JAX: NaN."""
    ids = ov.parameter((4,), "int64")
    rows = np.ones((5, 2), np.float32)
    leaf = Layer(Node({"weight": ov.weight(rows, "float32", "w"), "bias": None}))
    graph = ov.model([ids], [ov.operations.embedding(leaf, ids, 5, 2)])
    (made,) = ov.compiled(graph, ov.settings(False, 1), rows)([np.array([0, 4, 5, -1])])
    assert np.isnan(made[:, 0]).tolist() == [False, False, True, True]


def test_the_same_graph_has_the_same_hash_and_others_another():
    def graph(size=4, by=2.0, name="w", then="tanh"):
        x = ov.parameter((2, size), "float32")
        w = ov.weight(np.ones((3, size), np.float32), "float32", name)
        leaf = Layer(Node({"weight": w, "bias": None}))
        nn = ov.operations
        return ov.described(ov.model([x], [getattr(nn, then)(nn.linear(leaf, x, 3) * by)]))

    assert graph() == graph()
    others = [graph(size=5), graph(by=2.5), graph(name="v"), graph(then="exp")]
    assert len({graph(), *others}) == 5


def test_it_is_imported_in_silence(monkeypatch):
    """openvino tells Google of each import where it finds its package of telemetry."""
    found = []
    monkeypatch.delitem(sys.modules, backends.TELEMETRY, raising=False)
    monkeypatch.setattr(
        importlib, "import_module", lambda name: found.append(sys.modules[backends.TELEMETRY])
    )
    backends._import_in_silence()
    assert found == [None] and backends.TELEMETRY not in sys.modules
