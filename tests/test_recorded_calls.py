"""Calls over all pipelines, solvers and controls compute what they did before the second edition.

`scripts/record_calls.py write tests/data/calls.npz` made the arrays. On the machine and the
versions that wrote them all have the same bits; elsewhere sums are added in another order.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

# Root mean square of the difference over that of the values. Measured with two threads, without
# oneDNN, and with the kernels of old processors: 4e-6 at most, where nothing below amplifies it.
ROUNDING = 4e-5
AMPLIFIED = {
    "half": 0.1,  # bfloat16 has 8 bits; measured 3e-2
    "diffedit.6": 1e-3,  # a random network, first backwards and then forwards; measured 3e-5
    "diffedit_upwards": 1e-3,  # the same, measured 1e-4
    "inversions": 1e-3,  # Adam's first steps divide a gradient by its size; measured 9e-5
}
LEVELS = 0.01  # share of 8-bit values that may be rounded to their neighbour; measured 4e-4
PLACES = 0.05  # share of a mask of 45 that may lie at the threshold; measured 0


def script():
    path = ROOT / "scripts" / "record_calls.py"
    spec = importlib.util.spec_from_file_location("record_calls", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = script()


@pytest.fixture(scope="module")
def recorded():
    with np.load(ROOT / "tests" / "data" / "calls.npz") as arrays:
        return dict(arrays)


def bound(name):
    return AMPLIFIED.get(name, AMPLIFIED.get(name.split(".")[0], ROUNDING))


def assert_same(name, found, known):
    assert (found.shape, found.dtype) == (known.shape, known.dtype), name
    apart = np.abs(found.astype(np.float64) - known)
    if known.dtype.kind in "iub":
        assert np.mean(apart > 0) <= PLACES, name
    elif known.max() == 255:  # 8-bit pictures
        assert apart.max() <= 1 and np.mean(apart > 0) <= LEVELS, name
    else:
        relative = np.sqrt(np.mean(apart**2) / np.mean(known.astype(np.float64) ** 2))
        assert relative <= bound(name), f"{name} is {relative:.1e} apart"


@pytest.mark.parametrize("name", SCRIPT.CALLS)
def test_a_call_computes_what_it_did(name, recorded):
    known = {key: value for key, value in recorded.items() if key.split(".")[0] == name}
    found = SCRIPT.arrays(name)
    assert found.keys() == known.keys()
    for key, array in found.items():
        assert_same(key, array, known[key])


def test_every_array_belongs_to_a_call(recorded):
    assert {key.split(".")[0] for key in recorded} == SCRIPT.CALLS.keys()


@pytest.mark.parametrize(
    "changes",
    [{"guidance_scale": 7.52}, {"guidance_rescale": 0.01}, {"seed": 4}, {"eta": 0.501}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_small_change_is_seen(changes, recorded):
    pipe = SCRIPT.pipeline(scheduler=SCRIPT.ud.DDIMScheduler(**SCRIPT.SCHEDULE, clip_sample=False))
    found = SCRIPT.run(pipe, num_inference_steps=6, **{"eta": 0.5, **changes})
    with pytest.raises(AssertionError, match="apart"):
        assert_same("solver_ddim.0", found.numpy(), recorded["solver_ddim.0"])


def test_changed_pixels_and_places_are_seen(recorded):
    shifted, mask = recorded["inpaint.1"].copy(), recorded["diffedit.0"].copy()
    assert_same("inpaint.1", shifted, recorded["inpaint.1"])
    shifted[:, 0] = np.abs(shifted[:, 0] - 1)  # one level in one row
    mask[:, 0, :3] ^= 1
    for name, array in (("inpaint.1", shifted), ("diffedit.0", mask)):
        with pytest.raises(AssertionError, match=name):
            assert_same(name, array, recorded[name])
