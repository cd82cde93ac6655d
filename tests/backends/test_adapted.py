"""A node laid over a parameter tree: the numbers of merged weights, and nothing touched below."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from backends.harness import INSTALLED, give, relative, run, take, tree, values
from backends.reference import Reference
from networks.configs import TEXTS, UNETS, VAES, smaller
from networks.programs import run_unet, token_ids, unet_config, unet_inputs, unet_program

from underdraw import backends
from underdraw.backends import tree as trees
from underdraw.backends.adapted import Adapted, AdaptedLeaf
from underdraw.backends.deltas import (
    Delta,
    Full,
    LowRank,
    Sum,
    check_paths,
    on_rows,
    together,
)
from underdraw.backends.layout import Layout, Leaf
from underdraw.backends.node import at, grow
from underdraw.backends.shapes import Shape, trace
from underdraw.errors import ControlError
from underdraw.networks import clip, unet, vae
from underdraw.networks.config import read

EVERY = pytest.mark.parametrize("name", INSTALLED)
BOUND = 1e-5
"""Of the largest number: some hundred float32 roundings in another order."""


def normal(random, *shape, spread=0.3):
    return (random.standard_normal(shape) * spread).astype(np.float32)


def low_rank(leaf: Leaf, seed=0, rank=2, mid=False, rows=()):
    """numpy fields of a `LowRank` for a leaf."""
    random = np.random.default_rng(seed)
    out, *rest = leaf.shape
    if leaf.kind == "linear":
        return {"down": normal(random, *rows, rank, *rest), "up": normal(random, *rows, out, rank)}
    fields = {
        "down": normal(random, *rows, rank, *rest),
        "up": normal(random, *rows, out, rank, 1, 1),
    }
    if mid:
        fields["down"] = normal(random, *rows, rank, rest[0], 1, 1)
        fields["mid"] = normal(random, *rows, rank, rank, *rest[1:])
    return fields


def product(fields):
    """The weight that a LoRA adds: what its authors merge into the layer's."""
    down, up, mid = (
        None if a is None else a.astype(np.float64)
        for a in (fields["down"], fields["up"], fields.get("mid"))
    )
    up = up.reshape(up.shape[:2])
    if mid is None:
        return np.tensordot(up, down, 1)
    return np.einsum("oi,ijkl,jc->ockl", up, mid, down[:, :, 0, 0])


def on(name, fields, scale=1.0):
    arrays = {key: give(name, value) for key, value in fields.items()}
    return LowRank(**arrays, scale=scale if isinstance(scale, float) else give(name, scale))


def adapted_everywhere(name, layout: Layout, tensors, scale=0.7, seed=0):
    """Deltas at every leaf of a network, and its tensors with these merged into them."""
    deltas, merged, random = {}, dict(tensors), np.random.default_rng(seed)
    for i, (path, leaf) in enumerate(layout.leaves.items()):
        if leaf.kind in ("linear", "conv2d") and i % 4:
            spatial = leaf.kind == "conv2d" and leaf.shape[2] > 1
            fields = low_rank(leaf, seed + i, mid=spatial and i % 3 == 0)
            deltas[path] = on(name, fields, scale)
            change = {f"{path}.weight": product(fields)}
        else:
            change = {
                key: normal(random, *shape, spread=0.1) for key, shape in leaf.tensors(path).items()
            }
            deltas[path] = Full(*(give(name, value) for value in change.values()), scale=scale)
        for key, value in change.items():
            merged[key] = (tensors[key] + scale * value).astype(np.float32)
    return deltas, merged


# -- single layers --------------------------------------------------------------------------------
@dataclass(frozen=True)
class Layer:
    call: object
    shape: tuple[int, ...]
    ids: bool = False
    mid: bool = False


def conv(kernel, stride=1, padding=None, groups=1, bias=True, mid=False):
    return Layer(
        lambda nn, p, x: nn.conv2d(p.block.leaf, x, 6, kernel, stride, padding, bias, groups),
        (3, 4, 9, 12),
        mid=mid,
    )


LAYERS = {
    "linear": Layer(lambda nn, p, x: nn.linear(p.block.leaf, x, 6), (3, 7, 4)),
    "linear, rows, no bias": Layer(lambda nn, p, x: nn.linear(p.block.leaf, x, 6, False), (3, 4)),
    "linear, four axes": Layer(lambda nn, p, x: nn.linear(p.block.leaf, x, 6), (3, 2, 5, 4)),
    "conv 1": conv(1),
    "conv 3": conv(3),
    "conv 3 stride 2": conv(3, 2, 1, bias=False),
    "conv 3 unpadded": conv(3, 2, 0),
    "conv 4": conv(4, 2, 1),
    "conv 3 groups": conv(3, groups=2),
    "conv 7 a group per channel": Layer(
        lambda nn, p, x: nn.conv2d(p.block.leaf, x, 4, 7, groups=4), (3, 4, 9, 12)
    ),
    "conv 3 with mid": conv(3, 2, 1, mid=True),
    "conv 4 groups with mid": conv(4, 1, 1, groups=2, mid=True),
    "group_norm": Layer(lambda nn, p, x: nn.group_norm(p.block.leaf, x, 2), (3, 4, 5, 7)),
    "layer_norm": Layer(lambda nn, p, x: nn.layer_norm(p.block.leaf, x, 0.1), (3, 5, 7)),
    "embedding": Layer(lambda nn, p, x: nn.embedding(p.block.leaf, x, 11, 4), (3, 7), ids=True),
    "parameter": Layer(lambda nn, p, x: x * nn.parameter(p.block, "leaf", (7,)), (3, 5, 7)),
    "scalar": Layer(lambda nn, p, x: x * nn.parameter(p.block, "leaf", ()), (3, 5, 7)),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_shapes_are_those_without_deltas(layer):
    def traced(over):
        return trace(lambda nn, p: seen.append(layer.call(nn, over(p), Shape(*layer.shape))))

    seen = []
    plain, laid = traced(lambda p: p), traced(lambda p: Adapted(p, {"block.leaf": Sum(())}))
    assert laid == plain and [*laid.leaves] == ["block.leaf"]
    assert seen[0].shape == seen[1].shape


PRODUCTS = [key for key in LAYERS if key.startswith(("linear", "conv"))]


def single(key):
    layer = LAYERS[key]
    layout = trace(lambda nn, p: layer.call(nn, p, Shape(*layer.shape)))
    ((path, leaf),) = layout.leaves.items()
    random = np.random.default_rng(9)
    x = random.integers(0, 11, layer.shape) if layer.ids else normal(random, *layer.shape, spread=1)
    return layer, layout, path, leaf, x


def answer(name, layer, p, x, compiled=False):
    return take(name, run(name, layer.call, p, [give(name, x)], compiled=compiled))


def reference(layer, p, x):
    """On PyTorch, which compiles nothing, whatever backend is under test."""
    return answer("torch", layer, p, x)


@EVERY
@pytest.mark.parametrize("key", PRODUCTS)
def test_low_rank_is_a_product_in_the_weight(name, key):
    layer, layout, path, leaf, x = single(key)
    tensors, fields = values(layout), low_rank(leaf, mid=layer.mid)
    p = tree(name, layout, tensors)
    tensors[f"{path}.weight"] = tensors[f"{path}.weight"] + 0.5 * product(fields)
    wanted = reference(layer, tree("torch", layout, tensors), x)
    for scale in (0.5, np.full(3, 0.5, np.float32), np.full(1, 0.5, np.float32)):
        p_adapted = Adapted(p, {path: on(name, fields, scale)})
        assert relative(answer(name, layer, p_adapted, x, compiled=True), wanted) <= BOUND
    assert relative(reference(layer, tree("torch", layout, values(layout)), x), wanted) > 0.01


@EVERY
@pytest.mark.parametrize("key", LAYERS)
def test_full_is_a_difference_in_the_parameters(name, key):
    layer, layout, path, leaf, x = single(key)
    tensors, random = values(layout), np.random.default_rng(1)
    p = tree(name, layout, tensors)
    change = {k: normal(random, *shape) for k, shape in leaf.tensors(path).items()}
    merged = {k: tensors[k] + 0.5 * value for k, value in change.items()}
    wanted = reference(layer, tree("torch", layout, merged), x)
    delta = Full(*(give(name, value) for value in change.values()), scale=0.5)
    assert relative(answer(name, layer, Adapted(p, {path: delta}), x, True), wanted) <= BOUND
    one = replace(delta, scale=give(name, np.full(1, 0.5, np.float32)))
    assert relative(answer(name, layer, Adapted(p, {path: one}), x), wanted) <= BOUND
    if delta.bias is not None:  # either of them alone
        for kept in ("weight", "bias"):
            only = {k: v if k.endswith(kept) else tensors[k] for k, v in merged.items()}
            wanted = reference(layer, tree("torch", layout, only), x)
            part = replace(delta, **{"bias" if kept == "weight" else "weight": None})
            assert relative(answer(name, layer, Adapted(p, {path: part}), x), wanted) <= BOUND


@EVERY
@pytest.mark.parametrize("key", PRODUCTS)
def test_each_row_has_its_own_product(name, key):
    layer, layout, path, leaf, x = single(key)
    p, base = (tree(where, layout, values(layout)) for where in (name, "torch"))
    stacked = low_rank(leaf, mid=layer.mid, rows=(3,))
    scales = np.array([0.5, -1, 2], np.float32)
    for scale in (0.5, scales):
        whole = answer(name, layer, Adapted(p, {path: on(name, stacked, scale)}), x, True)
        for i in range(3):
            fields = {k: value[i] for k, value in stacked.items()}
            factor = float(np.broadcast_to(scale, 3)[i])
            over = Adapted(base, {path: on("torch", fields, factor)})
            assert relative(whole[i : i + 1], reference(layer, over, x[i : i + 1])) <= BOUND


@EVERY
@pytest.mark.parametrize("key", [key for key in LAYERS if key not in ("parameter", "scalar")])
def test_each_row_has_its_own_factor(name, key):
    layer, layout, path, leaf, x = single(key)
    p, base = (tree(where, layout, values(layout)) for where in (name, "torch"))
    random = np.random.default_rng(1)
    change = [normal(random, *shape) for shape in leaf.tensors(path).values()]

    def deltas(where):
        full = Full(*(give(where, value) for value in change))
        return [full] + ([on(where, low_rank(leaf))] if key in PRODUCTS else [])

    scales = np.array([0.5, 0, -2], np.float32)
    for delta, other in zip(deltas(name), deltas("torch"), strict=True):
        mixed = replace(delta, scale=give(name, scales))
        assert mixed.by_row and not delta.by_row
        whole = answer(name, layer, Adapted(p, {path: mixed}), x, compiled=True)
        for i in range(3):
            alone = Adapted(base, {path: replace(other, scale=float(scales[i]))})
            assert relative(whole[i], reference(layer, alone, x[i : i + 1])[0]) <= BOUND


@EVERY
@pytest.mark.parametrize("key", ["linear", "conv 3", "conv 3 groups"])
@pytest.mark.parametrize("kind", ["number", "factors", "stacked", "stacked factors", "full"])
def test_some_rows_alone(name, key, kind):
    """A call of five rows of which rows 1 to 3 belong to a run that brings a delta."""
    layer, layout, path, leaf, x = single(key)
    nn = backends.get(name).operations
    p, base = (tree(where, layout, values(layout)) for where in (name, "torch"))
    x = np.concatenate((x, x[:2] * 2))
    stacked = kind.startswith("stacked")
    scale = np.array([0.5, -2], np.float32) if kind.endswith("factors") else 0.5

    def brought(where):
        delta = on(where, low_rank(leaf, rows=(2,) if stacked else ()), scale)
        if kind == "full":
            delta = Full(give(where, normal(np.random.default_rng(1), *leaf.shape)))
        return {path: Sum((delta, delta))}

    deltas = brought(name)
    plain = reference(layer, base, x)
    alone = reference(layer, Adapted(base, brought("torch")), x[1:3])
    limited = on_rows(nn, deltas, 1, 3, 5)
    joined = answer(name, layer, Adapted(p, limited), x, True)
    assert relative(joined[1:3], alone) <= BOUND
    assert relative(joined[[0, 3, 4]], plain[[0, 3, 4]]) <= BOUND
    assert limited[path].by_row
    assert on_rows(nn, deltas, 0, 5, 5) == deltas


@EVERY
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(name, dtype):
    """The result has the dtype of the input, whatever that of the delta."""
    if name == "mindspore" and dtype == "bfloat16":
        dtype = "float16"
    for key in ("linear", "conv 3", "layer_norm"):
        layer, layout, path, leaf, x = single(key)
        p = tree(name, layout, values(layout), dtype)
        random = np.random.default_rng(1)
        delta = Full(*(give(name, normal(random, *s)) for s in leaf.tensors(path).values()))
        if key in PRODUCTS:
            delta = Sum((delta, on(name, low_rank(leaf), np.array([1, 2, 3], np.float32))))
        exact = answer(name, layer, Adapted(tree(name, layout, values(layout)), {path: delta}), x)
        given = give(name, x, dtype)
        out = run(name, layer.call, Adapted(p, {path: delta}), [given], compiled=True)
        assert out.dtype == given.dtype
        assert relative(take(name, out), exact) <= 0.03


# -- whole networks -------------------------------------------------------------------------------
SHALLOW = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": (1, 2),
}
DEEP = ("sd1-inpainting", "sd2", "x4-upscaler")
WHOLE = [(name, UNETS[case]) for name in INSTALLED if name != "jax" for case in DEEP]
"""JAX's is compiled as one program: `test_a_compiled_unet_takes_other_deltas`."""


@pytest.mark.parametrize("name, case", WHOLE)
def test_a_unet_with_hoisted_constants(name, case):
    config = unet_config(case)
    layout, inputs = unet.layout(config), unet_inputs(case)
    tensors = values(layout)
    deltas, merged = adapted_everywhere(name, layout, tensors)
    check_paths(layout, deltas)
    given = {key: give(name, value) for key, value in inputs.items()}
    p = tree(name, layout, tensors)
    wanted = run_unet("torch", case, merged, inputs)
    for hoisted in (True, False):

        def call(nn, p, inputs, hoisted=hoisted):
            return unet_program(nn, p, config, inputs, hoisted=hoisted)

        ours = run(name, call, Adapted(p, deltas), [given])
        assert relative(take(name, ours), wanted) <= BOUND
    assert_same(name, p, layout, tensors)


def assert_same(name, p, layout, tensors):
    for path in layout.shapes:
        assert np.array_equal(take(name, at(p, path)), tensors[path]), "the base was changed"


@EVERY
def test_the_text_tower(name):
    fields = TEXTS["vit-l"]
    config = read(clip.CLIPTextConfig, fields)
    layout = clip.text_layout(config, projection=True)
    tensors, ids = values(layout), give(name, token_ids(fields, batch=3))
    deltas, merged = adapted_everywhere(name, layout, tensors)
    assert "text_model.embeddings.position_embedding.weight" in deltas
    p = tree(name, layout, tensors)

    def call(nn, p, ids):
        out = clip.text(nn, p, config, ids)
        return out.last, clip.text_projection(nn, p, config, out.pooled)

    def both(p):
        return [take(name, one) for one in run(name, call, p, [ids], compiled=True)]

    for ours, wanted in zip(
        both(Adapted(p, deltas)), both(tree(name, layout, merged)), strict=True
    ):
        assert relative(ours, wanted) <= BOUND
    assert_same(name, p, layout, tensors)


@EVERY
def test_the_autoencoder(name):
    fields = VAES["one-layer"]
    if name == "jax":  # which compiles both ways
        fields = {key: v[:2] if isinstance(v, tuple) else v for key, v in fields.items()}
    config = read(vae.VAEConfig, fields)
    layout = vae.layout(config)
    tensors, random = values(layout), np.random.default_rng(2)
    deltas, merged = adapted_everywhere(name, layout, tensors)
    p, other = tree(name, layout, tensors), tree("torch", layout, merged)
    image = normal(random, 3, config.in_channels, 24, 16, spread=1)
    latents = normal(random, 3, config.latent_channels, 5, 3, spread=1)
    for program, x in ((vae.encode, image), (vae.decode, latents)):

        def call(nn, p, x, program=program):
            return program(nn, p, config, x)

        ours = take(name, run(name, call, Adapted(p, deltas), [give(name, x)], compiled=True))
        wanted = call(backends.get("torch").operations, other, give("torch", x))
        assert relative(ours, take("torch", wanted)) <= BOUND


@EVERY
def test_a_mix_per_image_equals_single_calls(name):
    """Two adapters in another mix for each image, keys and values computed before the call."""
    case = smaller(UNETS["one-level"], mid_block_type=None)
    config = unet_config(case)
    layout, inputs = unet.layout(config), unet_inputs(case)
    mixes = np.array([[0.5, 0.0], [0.0, 0.8], [0.3, -0.4]], np.float32)

    def mixed(name, one, other):
        first, second = (
            {path: replace(delta, scale=scale) for path, delta in deltas.items()}
            for deltas, scale in (
                (adapted_everywhere(name, layout, values(layout), 1.0, 0)[0], one),
                (adapted_everywhere(name, layout, values(layout), 1.0, 50)[0], other),
            )
        )
        return together(first, second)

    def program(nn, p, inputs):
        return unet_program(nn, p, config, inputs, hoisted=True)

    def call(name, deltas, rows):
        given = {key: give(name, value[rows]) for key, value in inputs.items()}
        p = Adapted(tree(name, layout, values(layout)), deltas)
        return take(name, run(name, program, p, [given], compiled=True))

    whole = call(name, mixed(name, *(give(name, mix) for mix in mixes.T)), slice(None))
    for i, (one, other) in enumerate(mixes.tolist()):
        alone = call("torch", mixed("torch", one, other), slice(i, i + 1))
        assert relative(whole[i : i + 1], alone) <= BOUND


@EVERY
def test_times_of_all_rows_are_rows(name):
    """One embedded time for the whole batch becomes one per image where the mixes differ."""
    case = UNETS["sd1"]
    config = unet_config(case)
    layout, inputs = unet.layout(config), unet_inputs(case)
    mixes = np.array([0.5, 0.0, -1.0], np.float32)

    def program(nn, p, x, time):
        return unet.time_shifts(nn, p, config, unet.embed_time(nn, p, config, time, x))

    def shifts(name, scale):
        deltas, _ = adapted_everywhere(name, layout, values(layout))
        scaled = {k: replace(d, scale=scale) for k, d in deltas.items() if "time_emb" in k}
        over = Adapted(tree(name, layout, values(layout)), scaled)
        given = [give(name, inputs["sample"]), give(name, inputs["timesteps"][:1])]
        made = run(name, program, over, given, compiled=True)
        return {place: take(name, shift) for place, shift in made.items()}

    whole = shifts(name, give(name, mixes))
    for i, mix in enumerate(mixes.tolist()):
        for place, shift in shifts("torch", mix).items():
            assert relative(whole[place][i : i + 1], shift) <= BOUND


# -- the base -------------------------------------------------------------------------------------
@EVERY
def test_without_deltas_the_tree_is_itself(name):
    case = UNETS["sd1"]
    config = unet_config(case)
    layout = unet.layout(config)
    nn, p = backends.get(name).operations, tree(name, layout, values(layout))
    x, time = (give(name, unet_inputs(case)[key]) for key in ("sample", "timesteps"))
    plain = take(name, unet.embed_time(nn, p, config, time, x))
    assert np.array_equal(take(name, unet.embed_time(nn, Adapted(p, {}), config, time, x)), plain)
    assert all(at(Adapted(p, {}), path) is at(p, path) for path in layout.leaves)
    over = Adapted(p, {"down_blocks.1.attentions.0.proj_in": Full(p.conv_in.weight)})
    assert over.mid_block is p.mid_block and over.conv_in is p.conv_in
    assert over.down_blocks[0] is p.down_blocks[0]
    assert over.down_blocks[1].attentions[0].norm is p.down_blocks[1].attentions[0].norm
    assert len(over.down_blocks) == len(p.down_blocks) == 3
    assert [type(block) is Adapted for block in over.down_blocks] == [False, True, False]
    leaf = at(over, "down_blocks.1.attentions.0.proj_in")
    assert isinstance(leaf, AdaptedLeaf)
    assert backends.get(name).leaf(leaf) is p.down_blocks[1].attentions[0].proj_in.weight
    assert "down_blocks" in repr(over)
    with pytest.raises(AttributeError, match="convolution"):
        _ = over.convolution


@EVERY
def test_parameters_may_have_any_name(name):
    layout = Layout({path: Leaf("linear", (4, 4)) for path in ("items", "keys.copy", "get.0")})
    p = tree(name, layout, values(layout))
    deltas = {path: on(name, low_rank(leaf)) for path, leaf in layout.leaves.items()}
    over = Adapted(p, deltas)
    for path in layout.leaves:
        assert isinstance(at(over, path), AdaptedLeaf)


@EVERY
def test_a_scale_of_zero_gives_the_plain_bits(name):
    layer, layout, path, leaf, x = single("linear")
    p = tree(name, layout, values(layout))
    over = Adapted(p, {path: on(name, low_rank(leaf), 0.0)})
    assert np.array_equal(answer(name, layer, over, x), answer(name, layer, p, x))


# -- kinds from elsewhere -------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Channels(Delta):
    """A factor for each output channel, as IA3 has (Liu et al. 2022)."""

    factors: object
    replaces = True

    def check(self, leaf):
        if tuple(self.factors.shape) != leaf.shape[:1]:
            raise ControlError(f"{tuple(self.factors.shape)} factors; {leaf.shape}")

    def replaced(self, nn, leaf, weight):
        return weight * nn.cast(self.factors, weight).reshape(-1, *(1 for _ in leaf.shape[1:]))


@EVERY
@pytest.mark.parametrize("key", ["linear", "conv 3 groups", "layer_norm", "embedding", "parameter"])
def test_a_kind_may_replace_the_weight(name, key):
    layer, layout, path, leaf, x = single(key)
    tensors, random = values(layout), np.random.default_rng(1)
    p = tree(name, layout, tensors)
    weight = path if leaf.kind == "parameter" else f"{path}.weight"
    factors = normal(random, leaf.shape[0], spread=1)
    change = normal(random, *leaf.shape)
    tensors[weight] = np.einsum("o...,o->o...", tensors[weight], factors**2) + change
    wanted = answer(name, layer, tree(name, layout, tensors), x)
    channels = Channels(give(name, factors))
    both = Sum((channels, Full(give(name, change)), channels))
    assert relative(answer(name, layer, Adapted(p, {path: both}), x, True), wanted) <= BOUND
    with pytest.raises(ControlError, match=rf"'{path}': Channels changes all rows"):
        on_rows(backends.get(name).operations, {path: both}, 0, 2, 3)


# -- mistakes -------------------------------------------------------------------------------------
@EVERY
@pytest.mark.parametrize(
    "key, fields, shapes",
    [
        ("linear", {"down": (2, 5), "up": (6, 2)}, r"down \(2, 5\), up \(6, 2\); .* \(6, 4\)"),
        ("linear", {"down": (2, 4), "up": (6, 3)}, r"\(2, 4\), up \(6, 3\); .* \(6, 4\)"),
        ("linear", {"down": (2, 4, 1, 1), "up": (6, 2, 1, 1)}, r"\(6, 4\)"),
        ("linear", {"down": (), "up": ()}, r"\(6, 4\)"),
        ("linear", {"down": (3, 2, 4), "up": (6, 2)}, r"\(6, 4\)"),
        ("linear", {"down": (2, 4), "up": (6, 2), "mid": (2, 2)}, r"mid \(2, 2\); .* \(6, 4\)"),
        ("conv 3", {"down": (2, 4), "up": (6, 2)}, r"\(6, 4, 3, 3\)"),
        ("conv 3", {"down": (2, 4, 1, 1), "up": (6, 2, 1, 1)}, r"\(6, 4, 3, 3\)"),
        ("conv 3 groups", {"down": (2, 4, 3, 3), "up": (6, 2, 1, 1)}, r"\(6, 2, 3, 3\)"),
        (
            "conv 3",
            {"down": (2, 4, 1, 1), "up": (6, 2, 1, 1), "mid": (2, 2, 1, 1)},
            r"mid \(2, 2, 1, 1\); .* \(6, 4, 3, 3\)",
        ),
        ("layer_norm", {"down": (2, 7), "up": (7, 2)}, r"not layer_norm \(7,\)"),
    ],
)
def test_a_low_rank_that_does_not_fit_is_named(name, key, fields, shapes):
    layer, layout, path, _, x = single(key)
    delta = LowRank(**{k: give(name, np.ones(s, np.float32)) for k, s in fields.items()})
    p = tree(name, layout, values(layout))
    with pytest.raises(ControlError, match=rf"delta at 'block.leaf': LowRank .*{shapes}"):
        check_paths(layout, {path: delta})
    with pytest.raises(ControlError, match=rf"delta at 'block.leaf': LowRank .*{shapes}"):
        layer.call(backends.get(name).operations, Adapted(p, {path: delta}), give(name, x))


@EVERY
@pytest.mark.parametrize(
    "key, shapes, message",
    [
        ("linear", [(4, 6)], r"weight \(4, 6\); the linear has weight \(6, 4\)"),
        ("linear", [(6, 4), (4,)], r"bias \(4,\); the linear has bias \(6,\)"),
        ("linear, rows, no bias", [(6, 4), (6,)], r"bias \(6,\); the linear \(6, 4\) has no bias"),
        ("embedding", [(11, 4), (4,)], r"bias \(4,\); the embedding \(11, 4\) has no bias"),
        ("scalar", [(1,)], r"weight \(1,\); the parameter has weight \(\)"),
    ],
)
def test_a_full_delta_that_does_not_fit_is_named(name, key, shapes, message):
    layer, layout, path, _, x = single(key)
    delta = Full(*(give(name, np.ones(shape, np.float32)) for shape in shapes))
    p = tree(name, layout, values(layout))
    with pytest.raises(ControlError, match=rf"delta at 'block.leaf': Full has {message}"):
        layer.call(backends.get(name).operations, Adapted(p, {path: delta}), give(name, x))


@EVERY
def test_factors_that_do_not_fit_the_batch_are_named(name):
    layer, layout, path, leaf, x = single("linear")
    nn, p = backends.get(name).operations, tree(name, layout, values(layout))

    def call(delta, x=x):
        return layer.call(nn, Adapted(p, {path: delta}), give(name, x))

    with pytest.raises(ControlError, match=r"'block.leaf': scale is for 2 rows; the call has 3"):
        call(on(name, low_rank(leaf), np.ones(2, np.float32)))
    with pytest.raises(ControlError, match=r"'block.leaf': LowRank is for 2 rows; the call has 3"):
        call(on(name, low_rank(leaf, rows=(2,))))
    with pytest.raises(ControlError, match=r"scale has shape \(3, 2\); allowed: a number, or"):
        call(on(name, low_rank(leaf), np.ones((3, 2), np.float32)))
    with pytest.raises(ControlError, match="scale='half' is neither a number nor an array"):
        call(replace(on(name, low_rank(leaf)), scale="half"))
    factors = on(name, low_rank(leaf), np.ones(2, np.float32))
    with pytest.raises(ControlError, match=r"'block.leaf': scale is for 2 rows, not for 3"):
        on_rows(nn, {path: factors}, 0, 3, 4)
    with pytest.raises(ControlError, match=r"'block.leaf': LowRank is for 2 rows, not 3"):
        on_rows(nn, {path: on(name, low_rank(leaf, rows=(2,)))}, 0, 3, 4)
    with pytest.raises(ControlError, match="rows 3 to 3 are not in a call of 4 rows"):
        on_rows(nn, {path: factors}, 3, 3, 4)
    with pytest.raises(ControlError, match="neither weight nor bias"):
        Full(None)


@EVERY
def test_a_raw_parameter_is_the_same_for_all_rows(name):
    layer, layout, path, _, x = single("parameter")
    delta = Full(give(name, np.ones(7, np.float32)), scale=give(name, np.ones(3, np.float32)))
    p = tree(name, layout, values(layout))
    with pytest.raises(ControlError, match=r"'block.leaf': .*scale \(3,\); a parameter \(7,\)"):
        layer.call(backends.get(name).operations, Adapted(p, {path: delta}), give(name, x))


def test_paths_that_are_no_leaves_are_named():
    config = unet_config(UNETS["sd1"])
    layout = unet.layout(config)
    delta = Full(np.ones((1, 1), np.float32))
    wrong = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_kk"
    with pytest.raises(ControlError, match=rf"'{wrong}': .*near it are .*attn2.to_k'"):
        check_paths(layout, {wrong: delta})
    with pytest.raises(ControlError, match=r"'conv_in.weight': the network has no such layer"):
        check_paths(layout, {"conv_in.weight": delta})
    check_paths(layout, {})
    for paths in (("a", "a.b"), ("a.b.c", "a.b"), ("a.b", "a.b.c")):
        with pytest.raises(ControlError, match="there is another one above or below it"):
            Adapted(None, dict.fromkeys(paths, delta))


# -- as values ------------------------------------------------------------------------------------
@EVERY
def test_deltas_are_trees_of_arrays(name):
    layer, layout, path, leaf, x = single("conv 3 with mid")
    p = tree(name, layout, values(layout))
    first = on(name, low_rank(leaf, mid=True), np.array([1, 2, 3], np.float32))
    second = on(name, low_rank(leaf, seed=1, mid=True), 0.5)
    third = Full(give(name, normal(np.random.default_rng(0), 6, 4, 3, 3)), None, 2)
    whole, other = (
        {path: Sum((first, delta, third))} for delta in (second, replace(second, scale=3.0))
    )
    leaves, structure = trees.flatten(whole)
    assert len(leaves) == 4 + 4 + 2, "arrays and numbers, nothing else"
    assert trees.flatten(other)[1] == structure, "a number is no part of the structure"
    again = trees.unflatten(structure, leaves)
    wanted = answer(name, layer, Adapted(p, whole), x)
    assert np.array_equal(answer(name, layer, Adapted(p, again), x), wanted)
    over = Adapted(p, whole)
    leaves, structure = trees.flatten(over)
    assert np.array_equal(answer(name, layer, trees.unflatten(structure, leaves), x), wanted)


@pytest.mark.parametrize("name", [name for name in INSTALLED if name in ("torch", "jax")])
@pytest.mark.parametrize("key", ["linear", "conv 3 with mid"])
def test_gradients_of_deltas(name, key):
    """What a LoRA is trained by, against differences of the loss in float64."""
    layer, layout, path, leaf, x = single(key)
    fields, nn = low_rank(leaf, mid=layer.mid), backends.get(name).operations
    p, array = tree(name, layout, values(layout)), give(name, x)

    def loss(down, others):
        y = layer.call(nn, Adapted(p, {path: LowRank(down, **others, scale=0.5)}), array)
        return (y * y).sum()

    others = {k: give(name, value) for k, value in fields.items() if k != "down"}
    if name == "torch":
        import torch

        down = give(name, fields["down"]).requires_grad_()
        (ours,) = torch.autograd.grad(loss(down, others), down)
    else:
        import jax

        ours = jax.jit(jax.grad(loss))(give(name, fields["down"]), others)
    tensors = values(layout)

    def exact(down):
        merged = tensors[f"{path}.weight"] + 0.5 * product({**fields, "down": down})
        y = layer.call(Reference(), grow({**tensors, f"{path}.weight": merged}), x.astype(float))
        return (y**2).sum()

    direction = np.random.default_rng(4).standard_normal(fields["down"].shape)
    step = 1e-5 * direction
    slope = (exact(fields["down"] + step) - exact(fields["down"] - step)) / 2e-5
    assert abs((take(name, ours) * direction).sum() - slope) <= 1e-4 * abs(slope)


@pytest.mark.parametrize("name", [name for name in INSTALLED if name == "jax"])
def test_a_compiled_unet_takes_other_deltas(name):
    """The node is an argument: traced once, it serves other arrays and numbers."""
    import jax

    case = smaller(UNETS["sd2"], **SHALLOW)  # how many levels decides how long compiling takes
    config = unet_config(case)
    layout, tensors, traces = unet.layout(config), values(unet.layout(config)), []
    nn, p = backends.get("jax").operations, tree("jax", layout, values(layout))
    given = {key: give("jax", value) for key, value in unet_inputs(case).items()}

    @jax.jit
    def program(p, inputs):
        traces.append(1)
        return unet_program(nn, p, config, inputs, hoisted=True)

    for scale, seed in ((0.7, 0), (0.3, 80)):
        deltas, merged = adapted_everywhere("jax", layout, tensors, scale, seed)
        check_paths(layout, deltas)
        ours = take("jax", program(Adapted(p, deltas), given))
        assert relative(ours, run_unet("torch", case, merged, unet_inputs(case))) <= BOUND
    assert len(traces) == 1
    assert_same("jax", p, layout, tensors)


# -- PyTorch's own layers -------------------------------------------------------------------------
def test_layers_are_still_called_as_they_are():
    import torch

    layer, layout, path, leaf, x = single("conv 3")
    p, seen = tree("torch", layout, values(layout)), []
    over = Adapted(p, {path: on("torch", low_rank(leaf), 0.0)})
    handle = p.block.leaf.register_forward_hook(lambda *_: seen.append(1))
    plain = answer("torch", layer, over, x)
    handle.remove()
    assert seen == [1], "hooks of the base run"
    p.block.leaf.padding_mode = "circular"
    wrapped = answer("torch", layer, over, x)
    assert not np.allclose(wrapped, plain)
    assert np.array_equal(wrapped, take("torch", p.block.leaf(torch.from_numpy(x))))
    fields = low_rank(leaf)
    ours = answer("torch", layer, Adapted(p, {path: on("torch", fields)}), x)
    with torch.no_grad():
        p.block.leaf.weight += torch.from_numpy(product(fields).astype(np.float32))
        assert relative(ours, take("torch", p.block.leaf(torch.from_numpy(x)))) <= BOUND
