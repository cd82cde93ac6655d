"""Masks: found in predictions, read in every form, pasted back; the gradients of regularisation."""

import numpy as np
import pytest
import torch
from PIL import Image

from underdraw import backends
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures import pasting, reading
from underdraw.pipelines.diffedit import masks, regularise

TORCH = backends.get("torch")
NN = TORCH.operations
SIZE = (3, 5)  # of latents; pictures are 8 times as large


def found(source, target, ratio=3.0, **options):
    return masks.by_mean(NN, masks.difference(NN, source, target, 2), ratio, **options)


def predictions(images, strength=1.0):
    """Two predictions which differ by `strength` in the left columns, a little elsewhere."""
    draw = torch.Generator().manual_seed(1)
    source = torch.randn((images * 2, 4, *SIZE), generator=draw)
    apart = torch.full(SIZE, 0.01)
    apart[:, :1] = strength
    return source, source + apart


def test_the_mask_is_where_predictions_differ():
    mask = found(*predictions(3))
    assert mask.shape == (3, *SIZE)
    assert (mask[:, :, :1] == 1).all()
    assert (mask[:, :, 1:] == 0).all()


def test_only_the_difference_counts_and_not_its_size():
    source, target = predictions(2)
    draw = torch.Generator().manual_seed(3)
    target = target + torch.randn(target.shape, generator=draw)
    mask = found(source, target)
    assert 0 < mask.sum() < mask.numel()
    assert (found(7 * source, 7 * target) == mask).all()
    assert (found(target, source) == mask).all()


def test_a_higher_ratio_gives_a_smaller_mask():
    draw = torch.Generator().manual_seed(3)
    source, target = (torch.randn((2, 4, 9, 7), generator=draw) for _ in range(2))
    sizes = [float(found(source, target, ratio=r).sum()) for r in (0.5, 2.0, 2.4, 4.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 63
    assert sizes[-1] == 0
    assert 0 < sizes[1] < 63


def test_equal_predictions_give_an_empty_mask():
    source, _ = predictions(2)
    assert found(source, source).sum() == 0


def test_an_image_does_not_depend_on_its_neighbours():
    one, many = (
        predictions(1),
        [torch.cat(pair) for pair in zip(predictions(1), predictions(1, 40.0), strict=True)],
    )
    assert (found(*many)[:1] == found(*one)).all()
    assert found(*one).sum() > 0
    assert found(*many, together=True)[0].sum() == 0  # beside a stronger one nothing is left


def spread_of(changed, size=(9, 7), seed=0):
    """A difference that is larger by 0.5 in `changed` cells, and what these are."""
    rng = np.random.default_rng(seed)
    there = np.zeros(size, bool)
    there.reshape(-1)[rng.permutation(there.size)[:changed]] = True
    return (0.2 * rng.random(size) + 0.5 * there).astype(np.float32)[None], there[None]


@pytest.mark.parametrize("changed", [3, 12, 40, 60])
def test_two_classes_are_told_apart_whatever_their_shares(changed):
    spread, there = spread_of(changed)
    np.testing.assert_array_equal(masks.by_classes(spread), there)
    np.testing.assert_array_equal(masks.by_classes(40 * spread), there)


def test_one_ratio_to_the_mean_does_not_fit_small_and_large_changes():
    for ratio in (1.5, 2.0, 2.5, 3.0, 4.0):
        right = []
        for changed in (3, 40):
            spread, there = spread_of(changed)
            mask = masks.by_mean(NN, torch.from_numpy(spread), ratio).numpy()
            right.append((mask == there).all())
        assert not all(right)


@pytest.mark.parametrize("seed", range(4))
def test_the_classes_have_the_least_variance_within_them(seed):
    values = np.random.default_rng(seed).gamma(0.7, size=(1, 5, 9))
    within = []
    for threshold in np.unique(values)[:-1]:
        parts = values[values > threshold], values[values <= threshold]
        within.append((sum(part.size * part.var() for part in parts), threshold))
    np.testing.assert_array_equal(masks.by_classes(values), values > min(within)[1])


def test_without_classes_no_mask_and_each_image_has_its_own():
    spread, there = spread_of(12)
    flat = np.full_like(spread, 0.1)
    many = masks.by_classes(np.concatenate([flat, 1e6 * spread, 0 * spread, spread]))
    assert many.dtype == np.float32
    for row, wanted in zip(many, (0, there[0], 0, there[0]), strict=True):
        np.testing.assert_array_equal(row, np.broadcast_to(wanted, row.shape))
    assert masks.by_classes(np.ones((2, 1, 1))).sum() == 0


def test_holes_are_filled_and_bays_are_not():
    rows = ("..####...", "..#..#.##", ".#..##.#.", ".###.#.##", ".....#...", "##.......")
    mask = np.array([[cell == "#" for cell in row] for row in rows])
    wanted = mask.copy()
    wanted[1, 3:5] = wanted[2, 2:4] = True  # (3, 4) is open below, (2, 8) to the picture's edge
    both = masks.filled(np.stack([mask, mask[::-1, ::-1]]).astype(np.float32))
    assert both.dtype == np.float32
    np.testing.assert_array_equal(both, np.stack([wanted, wanted[::-1, ::-1]]))
    for plain in (np.zeros((1, 3, 5)), np.ones((2, 1, 1))):
        np.testing.assert_array_equal(masks.filled(plain), plain)
    around = np.ones((1, 5, 6))
    around[0, 1:4, 1:5] = 0
    assert masks.filled(around).all()


def test_parts_that_say_little_are_left_out():
    rows = ("22....11", ".22...11", "........", "333.....", "3.3...44", "333...44")
    strength = {".": 0.0, "1": 2.0, "2": 5.0, "3": 3.0, "4": 3.4}
    spread = np.array([[strength[cell] for cell in row] for row in rows])
    spread[0, 7] = 1.0  # the least in the mask; above it: 3 * 1, 4 * 4, 8 * 2 and 4 * 2.4
    mask = (spread > 0).astype(np.float32)
    wanted = (spread == 5.0) | (spread == 3.0) | (spread == 3.4)
    many = (
        np.stack([mask, mask[::-1], 0 * mask, mask]),
        np.stack([spread, spread[::-1], spread, spread]),
    )
    found = masks.without_asides(*many)
    assert found.dtype == np.float32
    for image, whole in zip(found, (wanted, wanted[::-1], 0 * wanted, wanted), strict=True):
        np.testing.assert_array_equal(image, whole)
    spread[spread == 3.4] = 2.9  # 4 * 1.9, less than half of 16
    left = masks.without_asides(mask[None], spread[None])
    np.testing.assert_array_equal(left[0], (spread == 5.0) | (spread == 3.0))
    level = np.ones((1, 3, 5))
    np.testing.assert_array_equal(masks.without_asides(level, level), level)  # nothing exceeds


def test_parts_hang_together_by_sides():
    """Whatever way leads from one place to the other."""
    rows = (
        "#########",
        "........#",
        "#######.#",
        "#.....#.#",
        "#.###.#.#",
        "#...#.#.#",
        "#####.#.#",
    )
    mask = np.array([[cell == "#" for cell in row] for row in rows])
    spread = np.where(mask, 2.0, 0.0)
    spread[0, 0] = 1.0
    spiral = mask.copy()
    spiral[2:, :7] = False
    left = masks.without_asides(np.stack([mask]), spread[None])
    assert (left[0] == mask).all()  # both parts are long
    spread[2:, :7] *= 0.6
    left = masks.without_asides(np.stack([mask]), spread[None])
    np.testing.assert_array_equal(left[0], spiral)


def large(mask):
    return np.kron(mask, np.ones((8, 8), np.float32))


FORMS = {
    "numpy": lambda m: m,
    "booleans": lambda m: m.astype(bool),
    "integers": lambda m: m.astype(np.int64),
    "tensor": torch.from_numpy,
    "half": lambda m: torch.from_numpy(m).half(),
    "one channel": lambda m: m[None, None],
    "list": lambda m: [m],
    "pil": lambda m: Image.fromarray(np.uint8(m * 255)),
    "colour": lambda m: [Image.fromarray(np.uint8(m * 255)).convert("RGB")],
    "as large as the picture": lambda m: np.kron(m, np.ones((8, 8), np.float32)),
    "a large picture": lambda m: Image.fromarray(
        np.kron(np.uint8(m * 255), np.ones((8, 8), np.uint8))
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_read_in_every_form(form):
    plain = np.zeros(SIZE, np.float32)
    plain[1, 2:4] = 1
    read = reading.read_mask(NN, FORMS[form](plain), 3, SIZE, 8)
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read, np.broadcast_to(plain, (3, 1, *SIZE)))


def test_masks_of_another_size_are_fitted_to_the_picture():
    drawn = np.zeros((30, 55), np.float32)  # of a photo that was cut to 24 x 40
    drawn[:, 22:] = 1
    wanted = np.zeros(SIZE, np.float32)
    wanted[:, 2:] = 1
    for given in (drawn, Image.fromarray(np.uint8(drawn * 255))):
        np.testing.assert_array_equal(reading.read_mask(NN, given, 1, SIZE, 8)[0, 0], wanted)


def test_a_mask_for_each_image_and_grey_values():
    grey = np.random.default_rng(0).random((3, *SIZE), np.float32)
    kept = grey.copy()
    for given in (grey, grey[:, None], list(grey), torch.from_numpy(grey), list(grey[:, None])):
        read = reading.read_mask(NN, given, 3, SIZE, 8)
        np.testing.assert_array_equal(read[:, 0], grey >= 0.5)
    np.testing.assert_array_equal(grey, kept)  # the caller's array is not binarised


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (np.zeros((2, *SIZE)), InputError, "holds 2 masks; allowed: 1 or 3"),
        (np.zeros((3, 4, *SIZE)), InputError, "allowed"),
        (np.full(SIZE, 1.5), InputError, "allowed: 0 to 1"),
        (np.full(SIZE, np.nan), InputError, "allowed: 0 to 1"),
        ([np.zeros(SIZE), np.zeros((24, 40))], InputError, "shapes"),
        ([], InputError, "empty"),
        ("mask.png", InputTypeError, "str"),
        (np.zeros(5), InputError, r"\(5,\)"),
    ],
)
def test_wrong_masks(mask, error, words):
    with pytest.raises(error, match=words):
        reading.read_mask(NN, mask, 3, SIZE, 8)


def test_masks_as_the_caller_wants_them():
    mask = np.zeros((2, *SIZE), np.float32)
    mask[0, 1, 3] = 1
    pictures = masks.mask_to_output(mask, "pil", TORCH)
    assert [picture.mode for picture in pictures] == ["L", "L"]
    assert pictures[0].size == (5, 3)
    assert pictures[0].getpixel((3, 1)) == 255
    plain = masks.mask_to_output(mask, "np", TORCH)
    assert plain.dtype == np.int64
    for given in (pictures, plain, masks.mask_to_output(mask, "pt", TORCH)):
        np.testing.assert_array_equal(reading.read_mask(NN, given, 2, SIZE, 8)[:, 0], mask)


def test_pasting_back_leaves_the_rest_untouched():
    rng = np.random.default_rng(5)
    before, after = (rng.integers(0, 256, (51, 83, 3), np.uint8) for _ in range(2))
    mask = np.zeros((6, 10))
    mask[2:4, 3:5] = 1
    small = Image.fromarray(after[:48, :80])
    made = np.asarray(pasting.paste(Image.fromarray(before), small, mask))
    changed = (made != before).any(2)
    assert changed[20:30, 30:40].mean() > 0.9
    changed[16:35, 24:43] = False
    assert not changed.any()
    plain = pasting.paste(before[:48, :80] / 255, after[:48, :80] / 255, mask)
    inside = np.kron(mask, np.ones((8, 8))) == 1
    np.testing.assert_array_equal(plain[inside], after[:48, :80][inside] / 255)
    np.testing.assert_array_equal(plain[~inside], before[:48, :80][~inside] / 255)


@pytest.mark.parametrize("size", [(9, 12), (16, 5), (21, 34)])
def test_gradient_of_auto_correlation(size):
    draw = torch.Generator().manual_seed(2)
    plane = torch.randn((1, 1, *size), generator=draw, dtype=torch.float64, requires_grad=True)
    shifts, x, loss = [3, 1, 2][: {9: 2, 16: 2, 21: 3}[size[0]]], plane, torch.zeros(())
    for k, shift in enumerate(shifts):
        x = torch.nn.functional.avg_pool2d(x, 2) if k else x
        for axis in (2, 3):
            loss = loss + (x * torch.roll(x, shift, axis)).mean() ** 2
    (wanted,) = torch.autograd.grad(loss, plane)
    told = regularise.auto_corr_gradient(NN, plane.detach(), shifts)
    assert wanted.abs().max() > 1e-5
    torch.testing.assert_close(told, wanted)


def test_gradient_of_the_divergence():
    draw = torch.Generator().manual_seed(2)
    noise = 3 + 2 * torch.randn((3, 4, 5, 6), generator=draw, dtype=torch.float64)
    noise.requires_grad_(True)
    variance = noise.flatten(1).var(1)
    loss = variance + noise.flatten(1).mean(1) ** 2 - 1 - torch.log(variance + 1e-7)
    (wanted,) = torch.autograd.grad(loss.sum(), noise)
    torch.testing.assert_close(regularise.kl_gradient(NN, noise.detach()), wanted)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_regularised_noise_is_nearer_to_white(factor):
    picks = np.random.default_rng(0)
    noise = torch.linspace(-1, 4, 12 * 20).reshape(1, 1, 12, 20).expand(2, 4, 12, 20)

    def changed(auto_corr, kl):
        options = (auto_corr, kl, 5, 5, lambda i, most: int(picks.integers(most)))
        return noise + factor * regularise.Regularisation(*options)(NN, noise, factor)

    made = changed(0.0, 20.0)
    assert abs(made.mean()) < 0.97 * abs(noise.mean())
    assert abs(made[0].std() - 1) < 0.97 * abs(noise[0].std() - 1)
    made = changed(20.0, 0.0)
    assert abs((made * made.roll(3, 2)).mean()) < 0.97 * abs((noise * noise.roll(3, 2)).mean())
    assert (changed(0.0, 0.0) == noise).all()
