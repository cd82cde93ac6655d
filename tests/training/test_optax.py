"""Networks are trained on JAX by somebody else's optimizer: a LoRA and grounding layers beside a
frozen UNet, as on PyTorch, gradient by gradient."""

import jax
import numpy as np
import optax
import torch
from controls.test_grounding import opened
from pipelines import tiny

import underdraw
from underdraw.backends import get
from underdraw.backends.deltas import LowRank
from underdraw.networks.sites import Sites

UNET = {**tiny.ONE_LEVEL, "mid_block_type": None}
"""Derivatives take long to compile, each for itself."""
LAID_OVER = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.resnets.0.conv1",
    "up_blocks.0.resnets.0.time_emb_proj",
    "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
)
BOXES = [[[0.1, 0.2, 0.5, 0.6]], [[0.4, 0.1, 0.9, 0.8]], [[0.0, 0.0, 1.0, 1.0]]]
STEPS, RATE, DAMPED = 3, 0.02, 1e-3
"""Steps of Adam; where gradients are far below `DAMPED` it follows their size, not their sign
alone, which rounding would decide."""
BOUND = 1e-4
"""Of the largest gradient of a tensor: float32 in another order of sums, through three steps."""


def parts():
    """A UNet, new grounding layers, and a LoRA's numbers by path."""
    unet = tiny.components(unet=UNET)["unet"]
    random = np.random.default_rng(0)
    pairs = {}
    for path, leaf in type(unet).layout(unet.config).leaves.items():
        if leaf.kind in ("linear", "conv2d") and path in LAID_OVER:
            out, *rest = leaf.shape
            down, up = (2, *rest), (out, 2, *(1 for _ in rest[1:]))
            pairs[path] = [random.standard_normal(shape, np.float32) * 0.1 for shape in (down, up)]
    return unet, opened(unet), pairs


def batches():
    random = np.random.default_rng(1)
    for t in (999, 400, 20)[:STEPS]:
        yield {
            "noisy": random.standard_normal((3, 4, 5, 9), np.float32),
            "noise": random.standard_normal((3, 4, 5, 9), np.float32),
            "times": np.array([t, t // 2, t // 3], np.int64),
            "context": random.standard_normal((3, 7, tiny.WIDTH), np.float32),
            "boxes": np.array(BOXES, np.float32),
            "present": np.array([[1], [1], [0]], np.float32),
            "phrases": random.standard_normal((3, 1, tiny.WIDTH), np.float32),
        }


def error(unet, part, pairs, batch):
    """Of the noise that the UNet finds, with both laid over it."""
    leaves = {path: LowRank(down, up, 0.5) for path, (down, up) in pairs.items()}
    tokens = part.boxes(batch["boxes"], batch["present"], batch["phrases"])
    sites = part.sites(part.constants(tokens), 1.0) + Sites(leaves=leaves)
    found = unet(batch["noisy"], batch["times"], batch["context"], sites=sites).sample
    return ((found - batch["noise"]) ** 2).mean()


def on_torch():
    """Losses, gradients of each step and numbers at the end, by name."""
    unet, part, given = parts()
    unet.requires_grad_(False)
    pairs = {
        path: [torch.tensor(one, requires_grad=True) for one in two] for path, two in given.items()
    }
    learning = {f"{path}.{i}": one for path, pair in pairs.items() for i, one in enumerate(pair)}
    learning |= dict(part.named_parameters())
    adam = torch.optim.Adam(learning.values(), RATE, eps=DAMPED)
    losses, gradients = [], []
    for batch in batches():
        adam.zero_grad()
        loss = error(unet, part, pairs, {name: torch.tensor(x) for name, x in batch.items()})
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: one.grad.numpy().copy() for name, one in learning.items()})
        adam.step()
    return losses, gradients, {name: one.detach().numpy() for name, one in learning.items()}


def on_jax():
    """The same."""
    unet, part, pairs = parts()
    unet, part = (tiny.moved(one, "jax") for one in (unet, part))
    pairs = jax.tree_util.tree_map(get("jax").array, pairs)
    adam = optax.adam(RATE, eps=DAMPED)
    learning = pairs, part
    state = adam.init(learning)

    @jax.jit
    def step(learning, state, unet, batch):
        loss, found = jax.value_and_grad(lambda two: error(unet, two[1], two[0], batch))(learning)
        changes, state = adam.update(found, state, learning)
        return optax.apply_updates(learning, changes), state, loss, found

    def named(both):
        """By the names of PyTorch's."""
        pairs, part = both
        flat = {f"{path}.{i}": one for path, pair in pairs.items() for i, one in enumerate(pair)}
        flat |= dict(get("jax").named_tensors(part))
        return {name: np.asarray(one) for name, one in flat.items()}

    losses, gradients = [], []
    for batch in batches():
        learning, state, loss, found = step(learning, state, unet, batch)
        losses.append(float(loss))
        gradients.append(named(found))
    assert isinstance(learning[1], underdraw.models.Grounding)
    return losses, gradients, named(learning)


def test_a_lora_and_grounding_layers_learn_as_on_torch():
    expected, found = on_torch(), on_jax()
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for mine, theirs in zip((*found[1], found[2]), (*expected[1], expected[2]), strict=True):
        assert set(mine) == set(theirs) and len(mine) > 20
        for name, value in theirs.items():
            assert np.abs(mine[name] - value).max() <= BOUND * np.abs(value).max() + 1e-7, name
    moved = sum(np.abs(one).max() > 1e-6 for one in expected[1][0].values())
    assert moved > 0.9 * len(expected[1][0])
