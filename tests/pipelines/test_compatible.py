"""What code written for the peer finds in a pipeline."""

import inspect

import pytest
import torch
from pipelines.tiny import run

from underdraw import StableDiffusionPipeline
from underdraw.errors import InputError


def test_arguments_stand_in_the_places_of_the_peer():
    peer = pytest.importorskip("diffusers").StableDiffusionPipeline
    theirs = [
        p.name
        for p in inspect.signature(peer.__call__).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    ours = list(inspect.signature(StableDiffusionPipeline.__call__).parameters)
    assert ours[: len(theirs)] == theirs
    assert ours[len(theirs) : len(theirs) + 2] == ["callback", "callback_steps"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ip_adapter_image", torch.ones(2)),
        ("ip_adapter_image_embeds", [torch.ones(2)]),
        ("cross_attention_kwargs", {"scale": 0.5}),
    ],
)
def test_what_controls_do_here_is_refused(pipe, name, value):
    plain = run(pipe)
    assert torch.equal(run(pipe, **{name: None}), plain)
    with pytest.raises(InputError, match=rf"{name}=.* allowed: None.*controls="):
        run(pipe, **{name: value})


def test_no_callback_steps_and_no_attention_arguments(pipe):
    seen = []
    made = run(
        pipe,
        callback=lambda i, *_: seen.append(i),
        callback_steps=None,
        cross_attention_kwargs={},
    )
    assert seen == [0, 1, 2]
    assert torch.equal(made, run(pipe, callback_steps=None))
