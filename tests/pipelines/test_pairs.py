"""What changes a picture, two by two, on the shipped family: the table of `docs/combining.md`.

For each pair: both act beside each other, each image of a batch gets what it gets alone, also where
single runs share calls, and without both the bits are those from before. Other engines compile for
each pair, which takes too long for every run of the suite: `pairs_on_engines.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from controls.test_grounding import EVER
from controls.test_structure import close
from pipelines import ip_adapters, tiny
from pipelines.loras import loha, lora
from pipelines.test_beginnings import picture

import underdraw
from underdraw import (
    AttentionEdit,
    Box,
    ImagePrompt,
    Layout,
    Lora,
    PerImage,
    Region,
    Structure,
    Subject,
)

PAGE = Path(__file__).parents[2] / "docs" / "combining.md"
SIZE = {"height": 32, "width": 40, "num_inference_steps": 1}
PROMPTS = ["a red sphere and a blue cube", "a red sphere and a green cube"]


@dataclass(frozen=True)
class Element:
    """One row of the table: the control that makes it act, for images of the batch."""

    control: Callable[[list[int]], Any] = lambda images: None
    word: str = ""
    """Behind each prompt."""
    alone: bool = True
    """Whether an image of a batch has to be what it is alone."""


def of(values: list[Any], images: list[int]) -> list[Any]:
    return [values[i] for i in images]


def boxes(images: list[int]) -> Any:
    one = Layout([Box("a red sphere", (0.1, 0.2, 0.5, 0.9))], EVER)
    two = Layout(
        [Box("a red sphere", (0.5, 0.1, 0.9, 0.6)), Box("a cone", (0.0, 0.4, 0.4, 1.0))], EVER
    )
    return PerImage(*of([one, two], images))


def mask(images: list[int]) -> Any:
    inside = np.zeros((2, 32, 40), np.float32)
    inside[0, 8:24, 8:32], inside[1, 16:, 24:] = 1, 1
    kept = np.stack([np.full((32, 40, 3), 40 + 90 * i, np.uint8) for i in images])
    return Region(inside[images], kept)


def edges(images: list[int]) -> Any:
    lines = np.zeros((2, 32, 40, 3), np.float32)
    lines[0, 10:12], lines[1, :, 20:22] = 1, 1
    return Structure("edges", lines[images], of([0.7, 1.3], images))


def subject(images: list[int]) -> Any:
    # Pictures belong to prompts, which are counted in their call.
    return [Subject(picture(48, 48, seed=i), "cube", prompts=(at,)) for at, i in enumerate(images)]


def shown(images: list[int]) -> Any:
    random = torch.Generator().manual_seed(4)
    features = torch.randn(2, 1, ip_adapters.EMBEDDING, generator=random)
    return ImagePrompt(scale=of([1.0, -0.7], images), embedding=features[images])


ELEMENTS = {
    "LoRA": Element(lambda images: Lora("clay", of([0.6, -0.9], images))),
    "LyCORIS (LoHa)": Element(lambda images: Lora("haze", of([1.0, -0.5], images))),
    "learned word": Element(word=" <toy>"),
    "ControlNet": Element(edges),
    "boxes": Element(boxes),
    "subject": Element(subject),
    "mask": Element(mask),
    "IP-Adapter": Element(shown),
    "attention edit": Element(lambda images: AttentionEdit(), alone=False),
}


def attach(pipe: Any, shaped: Any = None) -> None:
    """What controls find by name; weights as random as `shaped` tells their shapes."""
    shaped = shaped or pipe
    pipe.load_lora_weights(lora(shaped, 1, texts=("fc2",), size=0.05), "clay")
    pipe.load_lora_weights(loha(shaped, 2), "haze")
    pipe.set_adapters([])
    width = pipe.text_encoder.config.hidden_size
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(3))
    pipe.load_textual_inversion({"<toy>": vectors})
    pipe.load_ip_adapter(ip_adapters.adapter(shaped.unet))


def load(**where: Any) -> Any:
    made = underdraw.StableDiffusionPipeline.from_pretrained(
        "underdraw/scenes", dtype="float32", **where
    )
    made.set_progress_bar_config(disable=True)
    return made


@cache
def pipeline() -> Any:
    made = load()
    attach(made)
    return made


def arguments(names: tuple[str, ...], images: list[int]) -> dict[str, Any]:
    found = [ELEMENTS[name] for name in names]
    controls: list[Any] = []
    for element in found:
        made = element.control(images)
        controls += made if isinstance(made, list) else [] if made is None else [made]
    words = "".join(element.word for element in found)
    return {
        "prompt": [PROMPTS[i] + words for i in images],
        "controls": controls,
        "seed": [3 + i for i in images],
        **SIZE,
    }


@cache
def called(*names: str) -> torch.Tensor:
    """Latents of both images under some elements."""
    return tiny.run(pipeline(), **arguments(names, [0, 1]))


def cells() -> list[tuple[str, str]]:
    """The pairs that the page says were tried."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    head, _, *rows = ([part.strip() for part in line.split("|")[1:-1]] for line in lines)
    return [
        (row[0], column)
        for row in rows
        for column, said in zip(head[1:], row[1:], strict=True)
        if said == "yes"
    ]


def test_the_page_has_every_pair():
    assert {frozenset(cell) for cell in cells()} == {*map(frozenset, combinations(ELEMENTS, 2))}


PAIRS = [*combinations(ELEMENTS, 2)]


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_two_by_two(pair):
    pipe, both = pipeline(), called(*pair)
    for name in pair:
        assert not close(called(name), both, 1e-3), f"without {name}"
    if all(ELEMENTS[name].alone for name in pair):
        streams = [pipe.stream(**arguments(pair, [i]), output_type="latent") for i in (0, 1)]
        for i, made in enumerate(finished(streams)):
            assert close(made[0], both[i], 1e-4)


def finished(streams: list[Any]) -> list[torch.Tensor]:
    """What runs give that share calls."""
    runs = underdraw.batched(streams)
    for _ in runs:
        pass
    return [stream.output.images for stream in runs.streams]


def test_without_them_the_bits_are_those_from_before():
    """A call with everything leaves nothing behind; and all that was attached can be taken off."""
    pipe = pipeline()
    before = called()
    assert not close(called(*ELEMENTS), before, 1e-2)
    assert torch.equal(tiny.run(pipe, **arguments((), [0, 1])), before)
    fresh = load()
    assert torch.equal(tiny.run(fresh, **arguments((), [0, 1])), before)
    attach(fresh)
    fresh.unload_lora_weights()
    fresh.unload_textual_inversion()
    fresh.unload_ip_adapter()
    assert torch.equal(tiny.run(fresh, **arguments((), [0, 1])), before)
