"""What goes to a device is small, of few shapes, and says what it said."""

import numpy as np
import torch
from pipelines import tiny

from underdraw.training import wire


def test_pixels_come_back_from_bytes() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(wire.in_bytes(wire.signed(every)), every)
    assert wire.in_bytes(torch.tensor([-1.2, -1, 1, 1.2])).tolist() == [0, 0, 255, 255]
    floats = torch.linspace(-1, 1, 7)
    assert wire.signed(floats) is floats


def test_what_is_kept_is_brought_to_a_device_once() -> None:
    kept = wire.Kept(torch.arange(3))
    there = kept.on(torch.device("meta"))
    assert there.device.type == "meta" and kept.on(torch.device("meta")) is there
    assert torch.equal(kept.on(torch.device("cpu")), torch.arange(3))


def test_windows_have_one_of_two_lengths() -> None:
    tokenizer = tiny.components()["tokenizer"]
    fit, long = "red " * 14, "red " * 15  # beside start and end
    short = wire.windows(tokenizer, 77, [fit, "a cube"], 16)
    whole = wire.windows(tokenizer, 77, [long, "a cube"], 16)
    assert short.shape == (2, 16) and whole.shape == (2, 77)
    np.testing.assert_array_equal(whole[1, :16], short[1])
    left = wire.without_padding(tokenizer, torch.from_numpy(whole))
    assert left.shape == (2, 17) and torch.equal(left, torch.from_numpy(whole[:, :17]))


def test_words_are_filled_up_and_emptied() -> None:
    ids, keep = np.array([[5, 6, 0], [5, 6, 7]]), np.array([[1, 1, 0], [1, 1, 1]], np.float32)
    filled, told = wire.padded((ids, keep), 5, 9)
    assert filled.tolist() == [[5, 6, 0, 9, 9], [5, 6, 7, 9, 9]]
    assert told.sum(1).tolist() == [2, 3]
    assert [x.shape for x in wire.unpadded(filled, told)] == [(2, 3)] * 2
    assert [x.shape for x in wire.padded((ids, keep), 2, 9)] == [(2, 3)] * 2
