"""Strict matching: each kind of misfit in words, nothing guessed."""

import numpy as np
import pytest

from underdraw.errors import WeightError
from underdraw.formats.stored import stored
from underdraw.weights.match import match, match_network

A = stored(np.zeros((3, 4), "f4"))


@pytest.mark.parametrize(
    ("expected", "found", "says"),
    [
        ({"a": (3, 4), "b": (2,)}, {"a": A}, r"1 missing: b$"),
        ({"a": (3, 4)}, {"a": A, "x": A, "y": A}, r"2 left over: x, y$"),
        ({"a": (4, 3)}, {"a": A}, r"1 of another kind: a is \[3, 4\], wanted \[4, 3\]"),
        ({"a": (12,)}, {"a": A}, r"wanted \[12\]"),
        ({"a": (3, 4, 3, 3)}, {"a": A}, "of another kind"),
        ({"a": (3, 4, 1)}, {"a": A}, None),
        ({"a": (1, 3, 4)}, {"a": A}, "of another kind"),
        ({str(i): (3, 4) for i in range(9)}, {}, r"9 missing: 0, 1, 2, 3, 4, \.\.\.$"),
        ({"a": (3, 4), "b": (1,)}, {"a": A, "c": A}, r"1 missing: b; 1 left over: c"),
        ({"a": (3,)}, {"a": stored(np.zeros(3, "i8"))}, "1 of another kind: a holds int64"),
        ({}, {}, None),
    ],
)
def test_misfits_are_told_in_one_line(expected, found, says):
    if says is None:
        assert match(expected, found).keys() == expected.keys()
        return
    with pytest.raises(WeightError, match=says) as caught:
        match(expected, found, source="folder/unet")
    assert str(caught.value).startswith("folder/unet: the weights do not fit the network")
    assert f"({len(expected)} tensors wanted)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_names_for_one_tensor_are_not_guessed_between():
    expected = {"text_model.a": (3, 4)}
    with pytest.raises(WeightError, match="1 left over"):
        match_network("text_encoder", expected, {"text_model.a": A, "a": A})


def test_expected_names_are_never_ignored():
    expected = {"text_model.embeddings.position_ids": (3, 4)}
    found = {"text_model.embeddings.position_ids": A}
    assert match_network("text_encoder", expected, found).keys() == expected.keys()
    with pytest.raises(WeightError, match="missing"):
        match_network("text_encoder", expected, {})


def test_unknown_names_are_left_over_in_every_network():
    for network in ("unet", "vae", "text_encoder", "image_encoder", "safety_checker", "other"):
        with pytest.raises(WeightError, match="surprise"):
            match_network(network, {}, {"surprise.weight": A})
