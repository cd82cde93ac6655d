"""The control and the engine of `CONTRIBUTING.md` work as they stand there."""

import re
from pathlib import Path

import pytest
import torch
from pipelines import tiny
from pipelines.tiny import run

from underdraw.errors import InputError

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def snippet(heading):
    """The names that the first block of Python under a heading defines."""
    block = re.search(r"```python\n(.*?)```", TEXT[TEXT.index(heading) :], re.S)
    names = {"pipe": tiny.pipeline(), "__name__": "contributing"}
    exec(compile(block.group(1), "CONTRIBUTING.md", "exec"), names)
    return names


def test_the_control():
    pipe, louder = tiny.pipeline(), snippet("## Add a control")["Louder"]
    prompts = ["a red sphere", "blue cube"]
    plain = run(pipe, prompts)
    made = run(pipe, prompts, controls=[louder((0.0, 0.5))])
    assert torch.allclose(made[:1], plain[:1], rtol=1e-4, atol=1e-4)
    assert (made[1:] - plain[1:]).abs().max() > 1e-2 * plain.abs().max()
    alone = run(pipe, prompts[1], seed=4, controls=[louder((0.5,))])
    assert (alone - made[1:]).abs().max() <= 1e-5 * made.abs().max()
    assert torch.equal(run(pipe, prompts), plain)
    with pytest.raises(InputError, match="amounts has 1 entries; the call makes 2 images"):
        run(pipe, prompts, controls=[louder((0.5,))])


def test_the_engine():
    pipe = snippet("## Add an engine")["pipe"]
    expected = run(tiny.pipeline())
    assert torch.equal(run(pipe), expected)
    assert pipe.engine.calls == 3
