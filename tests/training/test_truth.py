"""Heads that tell cells apart: what stands there, and where in the picture they are."""

from pathlib import Path

import torch

from underdraw.training.truth import WAVES, TruthHeads, places_of, read_heads, save_heads


def heads(width: int) -> TruthHeads:
    torch.manual_seed(0)
    return TruthHeads({"up_blocks.1": width}, (3, 2), finest=1)


def truth(rows: int, columns: int) -> torch.Tensor:
    made = torch.zeros(2, 2, rows, columns, dtype=torch.int64)
    made[:, 0, : rows // 2] = 1
    made[:, 1, : rows // 2, ::2] = 1
    return made


def test_no_two_cells_share_a_place() -> None:
    places = places_of(6, 10)
    assert places.shape == (4 * len(WAVES), 6, 10)
    apart = torch.cdist(places.flatten(1).T, places.flatten(1).T) + torch.eye(60)
    assert apart.min() > 0.3
    torch.testing.assert_close(places.square().mean(), torch.tensor(0.5))


def test_features_without_places_are_lost_and_features_with_them_are_not() -> None:
    made, (rows, columns) = heads(4 * len(WAVES)), (6, 10)
    with torch.no_grad():
        layer = made.heads["up_blocks_1"]
        layer.weight.zero_()
        layer.bias.zero_()
    features = places_of(rows, columns).expand(2, -1, -1, -1)
    _, told = made({"up_blocks.1": features}, truth(rows, columns))
    assert abs(told["cells_lost"] - 1) < 1e-6

    with torch.no_grad():
        layer.weight[5:, :, 0, 0] = torch.eye(4 * len(WAVES))
    _, told = made({"up_blocks.1": features}, truth(rows, columns))
    assert told["cells_lost"] < 1e-12
    _, told = made({"up_blocks.1": features.flip(3)}, truth(rows, columns))
    assert told["cells_lost"] > 0.3  # left is not right


def test_places_are_learnt_with_the_rest() -> None:
    made = heads(8)
    torch.manual_seed(1)
    mixed = torch.randn(8, 4 * len(WAVES) + 2)
    seen = torch.cat([places_of(4, 6).expand(2, -1, -1, -1), truth(4, 6).float()], 1)
    features = torch.einsum("wk,bkrc->bwrc", mixed, seen)
    optimizer = torch.optim.Adam(made.parameters(), 0.03)
    losses = []
    for _ in range(200):
        loss, told = made({"up_blocks.1": features}, truth(4, 6))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert told["cells_lost"] < 0.7 and told["cells_right"] > 0.7


def test_heads_are_kept_beside_a_family(tmp_path: Path) -> None:
    assert read_heads(str(tmp_path)) is None
    made = heads(8)
    save_heads(made, tmp_path)
    found = read_heads(str(tmp_path))
    assert found is not None and found.keys() == made.state_dict().keys()
    for name, value in made.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=1e-3, rtol=1e-3)
