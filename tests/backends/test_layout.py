"""Layouts: what tracing a program on shapes alone writes down."""

import pytest

from underdraw.backends.layout import Layout, Leaf
from underdraw.backends.shapes import Path, Shape, Shapes, trace


def program(nn, p, x):
    """Every kind of leaf, and one leaf used twice."""
    x = nn.conv2d(p.down[0].conv, x, 6, 3, stride=2)
    x = nn.conv2d(p.down[0].conv2, x, 6, 1, bias=False)
    x = nn.group_norm(p.norm, x, 3, 1e-6)
    tokens = nn.permute(x.reshape(x.shape[0], 6, -1), (0, 2, 1))
    for _ in range(2):
        tokens = tokens + nn.linear(p.shared, nn.layer_norm(p.ln, tokens, 0.1), 6)
    table = nn.embedding(p.table, nn.argmax(tokens, 2), 9, 6)
    return tokens + nn.parameter(p, "gate", (6,)) * table


def test_leaves_and_shapes():
    layout = trace(lambda nn, p: program(nn, p, Shape(2, 4, 9, 7)))
    assert dict(layout.leaves) == {
        "down.0.conv": Leaf("conv2d", (6, 4, 3, 3), stride=2, padding=1),
        "down.0.conv2": Leaf("conv2d", (6, 6, 1, 1), bias=False),
        "norm": Leaf("group_norm", (6,), groups=3, eps=1e-6),
        "ln": Leaf("layer_norm", (6,), eps=0.1),
        "shared": Leaf("linear", (6, 6)),
        "table": Leaf("embedding", (9, 6)),
        "gate": Leaf("parameter", (6,)),
    }
    assert layout.shapes == {
        "down.0.conv.weight": (6, 4, 3, 3),
        "down.0.conv.bias": (6,),
        "down.0.conv2.weight": (6, 6, 1, 1),
        "norm.weight": (6,),
        "norm.bias": (6,),
        "ln.weight": (6,),
        "ln.bias": (6,),
        "shared.weight": (6, 6),
        "shared.bias": (6,),
        "table.weight": (9, 6),
        "gate": (6,),
    }
    assert layout.paths_ending("conv") == ("down.0.conv",)


def test_the_size_of_the_input_does_not_matter():
    sizes = [(2, 4, 9, 7), (1, 4, 32, 16), (5, 4, 3, 3)]
    first, *others = (trace(lambda nn, p, s=s: program(nn, p, Shape(*s))) for s in sizes)
    assert all(other == first for other in others)


def test_union_of_entries():
    one = trace(lambda nn, p: nn.linear(p.a, nn.linear(p.both, Shape(1, 3), 4), 5))
    two = trace(lambda nn, p: nn.linear(p.b, nn.linear(p.both, Shape(1, 3), 4), 5))
    assert set((one | two).leaves) == {"a", "b", "both"}
    assert (one | two).leaves["both"] == one.leaves["both"]
    assert dict(one.leaves).keys() == {"both", "a"}, "a union changes neither part"


def test_one_leaf_used_in_two_ways_is_a_mistake():
    def wrong(nn, p):
        nn.linear(p.a, Shape(1, 3), 4)
        nn.linear(p.a, Shape(1, 3), 5)

    with pytest.raises(ValueError, match="'a' is used as"):
        trace(wrong)


def test_layouts_do_not_change():
    layout = trace(lambda nn, p: nn.linear(p.a, Shape(1, 3), 4))
    with pytest.raises(TypeError):
        layout.leaves["b"] = Leaf("linear", (1, 1))
    with pytest.raises(AttributeError):
        layout.leaves = {}
    assert isinstance(layout, Layout)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda nn, p: Shape(2, 3) + Shape(2, 4), "broadcast"),
        (lambda nn, p: Shape(2, 3).reshape(4, 2), "reshape"),
        (lambda nn, p: nn.group_norm(p.n, Shape(1, 6, 2, 2), 4), "6 channels .* 4 groups"),
    ],
)
def test_shapes_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(Shapes({}), Path())
