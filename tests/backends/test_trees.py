"""Parameter trees: creating, loading and reading them, and what else a backend's module offers."""

from inspect import isfunction, signature

import numpy as np
import pytest
from backends.harness import (
    HALVES,
    INSTALLED,
    PRECISIONS,
    dtype_name,
    give,
    rounded,
    take,
    tree,
    values,
)

from underdraw import backends
from underdraw.backends.layout import Layout, Leaf
from underdraw.backends.node import Node, at, grow, walk
from underdraw.backends.slices import heads_at_once
from underdraw.errors import InputError
from underdraw.formats.stored import StoredTensor, stored

LAYOUT = Layout(
    {
        "conv": Leaf("conv2d", (5, 3, 3, 3)),
        "blocks.0.copy": Leaf("linear", (4, 7), bias=False),
        "blocks.1.norm": Leaf("group_norm", (6,), groups=3),
        "blocks.1.items": Leaf("parameter", (2, 3)),
        "keys": Leaf("embedding", (11, 4)),
        "gate": Leaf("parameter", ()),
        "values": Leaf("layer_norm", (9,)),
    }
)
TREES = [name for name in INSTALLED if name != "torch"]
EVERY = pytest.mark.parametrize("name", INSTALLED)


def toy(name):
    """What `models.base` makes of a backend's `Root`, in small."""
    root = type("Toy", (backends.get(name).Root,), {})()
    root.config = "toy"
    return root


def new(name):
    root = toy(name)
    backends.get(name).build_root(root, LAYOUT)
    return root


def test_node_names_may_be_anything():
    names = ("items", "copy", "keys", "values", "get", "0", "weight")
    node = Node({name: i for i, name in enumerate(names)})
    assert [getattr(node, name) for name in names] == list(range(7))
    assert node[0] == 5
    assert len(node) == 7
    with pytest.raises(AttributeError, match=r"no parameter 'wieght' here; there are .*'weight'"):
        _ = node.wieght


def test_grow_and_walk_are_inverse():
    tensors = {"a.0.weight": 1, "a.0.bias": 2, "a.10.weight": 3, "copy": 4, "b.items.keys": 5}
    root = grow(tensors)
    assert dict(walk(root)) == tensors
    assert at(root, "a.10").weight == 3
    assert root.a[10].weight == 3


@EVERY
def test_unknown_names_are_listed(name):
    with pytest.raises(AttributeError, match="conv"):
        _ = tree(name, LAYOUT, values(LAYOUT)).convolution


def functions(module):
    """Public functions by name: those of the module itself, and aliases of the framework's."""
    return {
        name: value
        for name, value in vars(module).items()
        if name[0] != "_" and isfunction(value) and value.__module__ == module.__name__
    }


def test_modules_offer_the_same():
    """What `models` and `pipelines` call, they can call on every backend."""
    first, *others = (backends.get(name) for name in INSTALLED)
    for module in others:
        for name in ("operations", "Root", "no_grad"):
            assert hasattr(module, name)
        for name, function in functions(first).items():
            ours = functions(module)[name]
            if name != "move":  # torch's takes whatever `nn.Module.to` takes
                assert list(signature(ours).parameters) == list(signature(function).parameters), (
                    name
                )


@EVERY
def test_a_new_model_has_the_layout(name):
    framework, root = backends.get(name), toy(name)
    framework.build_root(root, LAYOUT)
    named = dict(framework.named_tensors(root))
    assert {key: tuple(value.shape) for key, value in named.items()} == LAYOUT.shapes
    assert len(root.blocks) == 2
    numbers = {key: take(name, value) for key, value in named.items()}
    assert (numbers["values.weight"] == 1).all()
    assert (numbers["values.bias"] == 0).all()
    bound = 27**-0.5
    assert 0.5 * bound < np.abs(numbers["conv.weight"]).max() <= bound
    assert 0 < np.abs(numbers["conv.bias"]).max() <= bound
    assert 0.5 < numbers["keys.weight"].std() < 1.5
    assert dtype_name(named["conv.weight"]) == "float32"


@pytest.mark.parametrize("name", TREES)
def test_initial_values_come_from_the_seed(name):
    framework = backends.get(name)
    drawn = [dict(walk(framework.build(LAYOUT, seed))) for seed in (3, 3, 4)]
    first, same, other = (take(name, tensors["conv.weight"]) for tensors in drawn)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name, dtype", PRECISIONS)
@pytest.mark.parametrize("held", ["float32", "float16", "bfloat16", "float64"])
def test_loading(name, dtype, held):
    framework, root = backends.get(name), toy(name)
    tensors, kept = {}, {}
    for key, value in values(LAYOUT).items():
        exact = rounded(value, "float32" if held == "float64" else held)
        tensors[key] = rounded(exact, dtype)
        if held == "bfloat16":
            bits = exact.astype(np.float32).reshape(-1).view(np.uint32) >> 16
            kept[key] = stored(bits.astype(np.uint16).reshape(value.shape), "bfloat16")
        else:
            kept[key] = stored(np.array(exact, held))
    framework.load_root(root, LAYOUT, kept, dtype)
    named = dict(framework.named_tensors(root))
    assert set(named) == set(tensors)
    for key, value in named.items():
        assert tuple(value.shape) == LAYOUT.shapes[key]
        assert dtype_name(value) == dtype
        assert np.array_equal(take(name, value), tensors[key]), key
    assert framework.dtype_of(root) == framework.resolve_dtype(dtype)
    for value in framework.named_tensors(root):
        kind, bits = framework.to_bits(value[1])
        again = framework.tensor(stored(bits, kind))
        assert kind == dtype
        assert np.array_equal(take(name, again), take(name, value[1]))


@EVERY
def test_files_are_neither_changed_nor_needed_afterwards(name):
    """What was loaded does not follow the memory it came from once it has another dtype."""
    framework = backends.get(name)
    source = np.arange(6, dtype=np.float32)
    loaded = framework.tensor(stored(source), framework.resolve_dtype("float16"))
    source[:] = -1
    assert np.array_equal(take(name, loaded), np.arange(6))


@EVERY
def test_integers_stay_integers(name):
    framework = backends.get(name)
    ids = StoredTensor("int64", (3,), lambda: np.array([0, 49407, 5]))
    loaded = framework.tensor(ids, framework.resolve_dtype("float16"))
    assert dtype_name(loaded).startswith("int")
    assert take(name, loaded).tolist() == [0, 49407, 5]
    assert framework.is_floating(give(name, [0.5]))
    assert not framework.is_floating(loaded)


@EVERY
def test_arrays(name):
    framework = backends.get(name)
    half = framework.resolve_dtype("float16")
    for values_ in (
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]]),
        framework.array([[1, 2], [3, 4]]),
    ):
        made = framework.array(values_, half)
        assert framework.is_array(made)
        assert dtype_name(made) == "float16"
        assert take(name, made).tolist() == [[1, 2], [3, 4]]
    assert not framework.is_array(np.zeros(3))
    assert tuple(framework.array(981).shape) == ()
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert np.array_equal(take(name, framework.array(turned)), turned)
    here = take(name, framework.array(turned))
    here[:] = 0  # what was read belongs to the reader
    host = framework.to_numpy(framework.array(np.float32([1.5]), half))
    assert host.dtype == np.float32


@EVERY
def test_finiteness(name):
    framework = backends.get(name)
    for dtype in ("float32", *HALVES[name]):
        good = np.full((3, 5), 3e4)
        assert framework.is_finite(give(name, good, dtype))
        for bad in (np.nan, np.inf, -np.inf):
            good[2, 4] = bad
            assert not framework.is_finite(give(name, good, dtype))
        good[1] = np.inf  # beside minus infinity
        assert not framework.is_finite(give(name, good, dtype))


@EVERY
def test_dtypes_by_any_name(name):
    framework = backends.get(name)
    assert framework.resolve_dtype(None) is None
    spellings = {"float32": ("fp32",), "float16": ("fp16", "torch.float16")}
    for full, others in spellings.items():
        wanted = framework.resolve_dtype(full)
        assert dtype_name(give(name, [1.0], full)) == full
        for spelling in (*others, wanted):
            assert framework.resolve_dtype(spelling) == wanted
    for wrong in ("float8", "int8", 16, "half-ish"):
        with pytest.raises(InputError, match=r"dtype=.*allowed: float32, float16"):
            framework.resolve_dtype(wrong)


@EVERY
def test_half_precisions_are_offered_or_refused(name):
    framework = backends.get(name)
    if "bfloat16" in HALVES[name]:
        assert dtype_name(give(name, [1.0], "bfloat16")) == "bfloat16"
    else:
        with pytest.raises(InputError, match="bfloat16"):
            framework.resolve_dtype("bfloat16")


@EVERY
def test_moving_to_a_dtype(name):
    framework, root = backends.get(name), toy(name)
    framework.build_root(root, LAYOUT)
    framework.move(root, framework.resolve_dtype("float16"))
    assert framework.dtype_of(root) == framework.resolve_dtype("float16")
    framework.move(root, dtype=framework.resolve_dtype("float32"))
    assert framework.dtype_of(root) == framework.resolve_dtype("float32")
    framework.move(root, framework.device_of(root))
    assert dict(framework.named_tensors(root)).keys() == LAYOUT.shapes.keys()


@EVERY
def test_noise_is_the_same_everywhere(name):
    import torch

    framework = backends.get(name)
    like = give(name, np.zeros((2, 3, 5)), "float16")
    drawn = framework.draw_like(like, torch.Generator().manual_seed(5))
    assert dtype_name(drawn) == "float16"
    plain = framework.draw(
        (2, 3, 5),
        torch.Generator().manual_seed(5),
        framework.device_of(new(name)),
        framework.resolve_dtype("float32"),
    )
    wanted = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(5))
    assert np.array_equal(take(name, plain), wanted.numpy())
    each = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    rows = take(name, framework.draw((2, 3), each, None, None))
    assert np.array_equal(
        rows[1], torch.randn(3, generator=torch.Generator().manual_seed(6)).numpy()
    )


@EVERY
def test_with_settings(name):
    framework = backends.get(name)
    assert framework.with_settings(None) == framework.operations
    assert framework.with_settings("auto").attention_slice == "auto"


def test_heads_at_once():
    found = [heads_at_once(setting, 5) for setting in (None, 2, "max", "auto")]
    assert found == [5, 2, 1, 3] and heads_at_once("auto", 8) == 4


@EVERY
@pytest.mark.parametrize("masked", [(), (5, 11), (3, 1, 1, 11), (1, 5, 5, 11)], ids=str)
def test_attention_in_slices(name, masked):
    random = np.random.default_rng(0)
    q, k, v = (give(name, random.standard_normal((3, 5, n, 4))) for n in (5, 11, 11))
    mask = give(name, random.standard_normal(masked)) if masked else None
    framework = backends.get(name)
    whole = take(name, framework.operations.attention(q, k, v, mask))
    for step in (1, 2, 3, 5, 8):
        sliced = take(name, framework.with_settings(step).attention(q, k, v, mask))
        assert np.abs(sliced - whole).max() <= 1e-6
