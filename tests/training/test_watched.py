"""Positions are asked which box they belong to, and the answer is right at every level."""

import numpy as np
import pytest
import torch
from pipelines import tiny

from underdraw.networks.sites import Sites
from underdraw.training.grounding import new_part
from underdraw.training.watched import Watched

BOXES = torch.tensor([[[0.0, 0.25, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5]], [[0.1, 0.1, 0.3, 0.6]] * 2])
PRESENT = torch.tensor([[1.0, 1], [1, 0]])


def watched(rows: int, columns: int, boxes: torch.Tensor = BOXES) -> Watched:
    acting = Sites(after_self_attention=(lambda nn, place, x: x,))
    return Watched(None, acting, boxes, PRESENT[:, : boxes.shape[1]], (rows, columns))


@pytest.mark.parametrize("halved", [0, 1, 2])
def test_shares_are_what_boxes_cover(halved: int) -> None:
    rows, columns = 8 >> halved, 12 >> halved
    shares = watched(8, 12)._shares(rows * columns).reshape(2, rows, columns, 3)
    fine = np.zeros((2, 2, 240, 240))
    for i, image in enumerate(BOXES.numpy()):
        for k, (x0, y0, x1, y1) in enumerate(np.round(image * 240).astype(int)):
            fine[i, k, y0:y1, x0:x1] = PRESENT[i, k]
    cells = fine.reshape(2, 2, rows, 240 // rows, columns, 240 // columns).mean((3, 5))
    expected = np.concatenate([cells, 1 - cells.sum(1, keepdims=True)], 1)
    np.testing.assert_allclose(shares.permute(0, 3, 1, 2).numpy(), expected, atol=1e-5)


def test_odd_sizes_halve_as_the_unet_does() -> None:
    asked = watched(9, 13)
    for rows, columns in ((9, 13), (5, 7), (3, 4)):
        shares = asked._shares(rows * columns)
        assert shares.shape == (2, rows * columns, 3)
        torch.testing.assert_close(shares.sum(-1), torch.ones(2, rows * columns))


def test_boxes_that_overlap_share_and_none_is_all_null() -> None:
    same = torch.tensor([[[0.0, 0.0, 1.0, 1.0]] * 2] * 2)
    shares = watched(4, 6, same)._shares(24)
    torch.testing.assert_close(shares[0], torch.tensor([[0.5, 0.5, 0.0]]).expand(24, 3))
    torch.testing.assert_close(shares[1], torch.tensor([[1.0, 0.0, 0.0]]).expand(24, 3))
    nothing = watched(4, 6, torch.zeros(2, 0, 4))._shares(24)
    assert torch.equal(nothing, torch.ones(2, 24, 1))


@pytest.mark.parametrize(("kind", "limit"), [("text", 30), ("text-image", 30), ("text-image", 2)])
def test_every_fuser_is_asked_and_acts_as_before(kind: str, limit: int) -> None:
    unet = tiny.components()["unet"]
    torch.manual_seed(0)
    part = new_part(unet, kind, limit=limit)
    for value in part.parameters():
        value.data += 0.05 * torch.randn_like(value)
    tokens = part.boxes(BOXES, PRESENT, torch.randn(2, 2, tiny.WIDTH))
    acting = part(tokens)
    asked = Watched(part, acting, BOXES, PRESENT, (8, 12))
    latents, context = torch.randn(2, 4, 8, 12), torch.randn(2, 5, tiny.WIDTH)
    with torch.no_grad():
        plain = unet(latents, 500, context, sites=acting).sample
        same = unet(latents, 500, context, sites=asked.sites).sample
    assert torch.equal(plain, same)
    assert len(asked.losses) == len(part.config.fusers)
    assert all(0 < loss < 4 for loss in asked.losses)
