"""Muon: matrices move orthogonally, everything else as AdamW moves it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from training.line import CONFIG

from underdraw.training.optimizers import Muon, Optimizers, inside, orthogonalised


@pytest.mark.parametrize("shape", [(3, 6, 20), (2, 20, 6), (1, 7, 7)])
def test_orthogonalised_matrices_keep_their_directions(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonalised(matrices)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.3 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    inner = u.mT @ made.double() @ v.mT  # diagonal where directions are the same
    torch.testing.assert_close(
        inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0
    )
    # What it iterates, in its published form.
    x = matrices.double() / matrices.double().norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    torch.testing.assert_close(made.double(), x, atol=1e-4, rtol=0)


def test_a_matrix_moves_as_pytorch_moves_it() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 48).view(4, 12).clone()) for _ in range(2))
    mine = Muon([ours], 0.1, momentum=0.9, weight_decay=0.2)
    peer = torch.optim.Muon([theirs], 0.1, momentum=0.9, weight_decay=0.2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        ours.grad = torch.randn(4, 12, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        peer.step()
    # PyTorch iterates in bfloat16.
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_who_moves_what() -> None:
    named = {
        "unet.conv_in.weight": nn.Parameter(torch.ones(4, 2, 3, 3)),
        "unet.time_embedding.linear_1.weight": nn.Parameter(torch.ones(4, 2)),
        "unet.mid_block.attn.to_q.weight": nn.Parameter(torch.ones(4, 4)),
        "unet.mid_block.resnets.0.conv1.weight": nn.Parameter(torch.ones(4, 4, 3, 3)),
        "unet.mid_block.norm.weight": nn.Parameter(torch.ones(4)),
        "heads.heads.up_blocks_1.weight": nn.Parameter(torch.ones(4, 4, 1, 1)),
        "text_encoder.embeddings.token_embedding.weight": nn.Parameter(torch.ones(9, 4)),
    }
    assert [name.split(".")[2] for name, p in named.items() if inside(name, p)] == [
        "attn",
        "resnets",
    ]
    config = replace(CONFIG, optimizer="muon", learning_rate=0.5, muon_rate=0.25)
    made = Optimizers(named, config, torch.device("cpu"), map)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for p in named.values():
        p.grad = torch.ones_like(p)
    before = {name: p.detach().clone() for name, p in named.items()}
    made.step(0.1, scaler)
    rates = {name: o.param_groups[0]["lr"] for name, (o, _) in made.all.items()}
    assert rates == {"optimizer": pytest.approx(0.05), "muon": pytest.approx(0.025)}
    for name, p in named.items():
        moved = (p.detach() - before[name]).norm()
        # Adam's first step is the rate in each number; Muon's has the rate's spectral norm.
        wanted = 0.025 if inside(name, p) else 0.05 * p.numel() ** 0.5
        assert moved == pytest.approx(wanted, rel=0.35), name
