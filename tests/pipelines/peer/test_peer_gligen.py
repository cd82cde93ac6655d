"""GLIGEN pipelines against diffusers' on the same random weights."""

import pytest
from pipelines.peer import gligen, oracle

LIMIT = 1e-4
RED, BLUE = "a red sphere", "blue cube on the table"
BOXES = [[0.1, 0.2, 0.5, 0.6], [0.5, 0.45, 1.0, 1.0]]
PHRASES = ["red sphere", "a blue cube on the table"]


def deviation(kind, **arguments):
    """The largest difference between the images of both."""
    return oracle.apart(gligen.pair(kind), **arguments)


CALLS = {
    "plain": {},
    "unguided": {"guidance_scale": 1.0},
    "one box": {"gligen_boxes": BOXES[:1], "gligen_phrases": PHRASES[:1]},
    "always": {"gligen_scheduled_sampling_beta": 1.0},
    "always, unguided": {"gligen_scheduled_sampling_beta": 1.0, "guidance_scale": 1.0},
    "never": {"gligen_scheduled_sampling_beta": 0.0},
    "half": {"gligen_scheduled_sampling_beta": 0.55, "num_inference_steps": 7},
    "batch": {"prompt": [RED, BLUE, ""], "seeds": (1, 2, 3), "gligen_scheduled_sampling_beta": 0.7},
    "per prompt": {"num_images_per_prompt": 2, "negative_prompt": "green"},
    "wide": {"height": 40, "width": 72, "gligen_scheduled_sampling_beta": 0.8},
    "height alone": {"height": 40, "gligen_scheduled_sampling_beta": 0.8},
    "full": {"gligen_boxes": BOXES * 15, "gligen_phrases": PHRASES * 15},
    "empty phrase": {"gligen_phrases": ["", "a"]},
}


@pytest.mark.parametrize(
    ("kind", "call"),
    [(k, c) for k in ("text", "linear") for c in CALLS if k == "text" or c in ("always", "wide")],
)
def test_phrases(kind, call):
    arguments = {"prompt": RED, "gligen_boxes": BOXES, "gligen_phrases": PHRASES, **CALLS[call]}
    assert deviation(kind, **arguments) <= LIMIT


IMAGES = [gligen.picture((40, 30), 1), gligen.picture((31, 64), 2)]
IMAGE_CALLS = {
    "plain": {},
    "unguided": {"guidance_scale": 1.0},
    "phrases alone": {"gligen_images": None},
    "images alone": {"gligen_phrases": None},
    "gaps": {"gligen_phrases": ["a", None], "gligen_images": [None, IMAGES[1]]},
    "style": {
        "gligen_boxes": [BOXES[0], [0.0, 1.0, 0.0, 1.0]],
        "input_phrases_mask": [1, 0],
        "input_images_mask": [0, 1],
    },
    "masked": {"input_phrases_mask": 0, "input_images_mask": [0]},
    "constant": {"gligen_normalize_constant": 3.0},
    "batch": {"prompt": [RED, BLUE, ""], "seeds": (1, 2, 3), "height": 40, "width": 72},
    "full": {
        "gligen_boxes": BOXES * 15,
        "gligen_phrases": PHRASES * 15,
        "gligen_images": IMAGES * 15,
        "num_inference_steps": 2,
    },
}


@pytest.mark.parametrize("call", IMAGE_CALLS)
def test_images(call):
    arguments = {"gligen_phrases": PHRASES, "gligen_images": IMAGES, **IMAGE_CALLS[call]}
    arguments = {"prompt": RED, "gligen_boxes": BOXES, **arguments}
    assert deviation("image", **arguments) <= LIMIT
