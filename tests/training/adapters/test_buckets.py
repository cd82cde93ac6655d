import numpy as np
import pytest

from underdraw.training.adapters.buckets import MOST_UNLIKE, nearest, ordered, sizes_around


@pytest.mark.parametrize(("side", "multiple"), [(512, 64), (128, 32), (96, 32), (64, 64)])
def test_sizes_have_the_area_and_are_multiples(side, multiple):
    sizes = sizes_around(side, multiple)
    assert sizes[0] == (side, side)
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes[1:]:
        assert height % multiple == width % multiple == 0
        assert side * side - height * width < multiple * width
        assert 0 < height * width <= side * side
        assert max(height, width) <= MOST_UNLIKE * min(height, width)
    assert {(w, h) for h, w in sizes if h * w == side * side} <= set(sizes)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((700, 700), (512, 512)), ((1024, 768), (576, 448)), ((90, 2000), (320, 704))],
)
def test_the_nearest_proportions(size, wanted):
    found = nearest(size, sizes_around(512, 64))
    assert found == wanted
    assert nearest(size[::-1], [(h, w) for w, h in sizes_around(512, 64)]) == wanted[::-1]


@pytest.mark.parametrize("batch", [1, 3, 4, 16])
@pytest.mark.parametrize("groups", [[0] * 7, [0, 1] * 5, [2, 0, 0, 1, 0, 2, 0, 0, 0, 1, 0]])
def test_each_picture_once_an_epoch_and_batches_of_one_group(groups, batch):
    count, epochs = len(groups), 6
    stream = np.concatenate(
        [ordered(groups, first, batch, batch, 3) for first in range(0, count * epochs, batch)]
    )
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))
    # Read at once or in pieces it is the same stream, so a run can be resumed anywhere.
    again = ordered(groups, 5, 13, batch, 3)
    assert np.array_equal(again, np.concatenate([stream, stream])[5:18]) or len(stream) < 18
    batches = [
        {groups[i] for i in stream[start : start + batch]}
        for start in range(0, len(stream) // batch * batch, batch)
    ]
    mixed = sum(len(found) > 1 for found in batches)
    # In each epoch what is left of each group, and what reaches over its ends.
    assert mixed <= epochs * (len(set(groups)) + 1)
    shuffled = np.random.default_rng(0).permutation(stream)
    by_chance = sum(
        len({groups[i] for i in shuffled[start : start + batch]}) > 1
        for start in range(0, len(stream) // batch * batch, batch)
    )
    assert mixed <= by_chance
