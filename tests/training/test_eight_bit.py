"""AdamW in 8 bits is bitsandbytes', where it is installed."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from training.line import CONFIG, Line, weights

from underdraw.errors import InputError
from underdraw.training.loop import Stopped, train


class Eight(torch.optim.Optimizer):
    """As bitsandbytes': without the switches of PyTorch's own, and with state of whole bytes."""

    def __init__(self, parameters, lr, betas, weight_decay):
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("state1", torch.zeros_like(p, dtype=torch.uint8)).add_(3)
                p -= group["lr"] * p.grad.sign() * (1 + state["state1"].float())


def test_it_is_asked_for_and_resumed(tmp_path, monkeypatch):
    package = ModuleType("bitsandbytes")
    package.optim = ModuleType("bitsandbytes.optim")
    package.optim.AdamW8bit = Eight
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package.optim)
    config = replace(CONFIG, optimizer="adamw8bit")
    whole, first, again = Line(), Line(), Line()
    train(whole, config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(first, config, tmp_path / "run", stop_after=3)
    with pytest.raises(InputError, match="optimizer='adamw', but the checkpoint"):
        train(Line(), CONFIG, tmp_path / "run")
    train(again, config, tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))


def test_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"pip install 'underdraw\[adam8bit\]'"):
        replace(CONFIG, optimizer="adamw8bit")
    with pytest.raises(InputError, match="optimizer='adam'; allowed: 'adamw', 'muon', 'adamw8bit'"):
        replace(CONFIG, optimizer="adam")
