"""Values that no field is meant for, and what comes of trying them."""

import copy
import dataclasses
import math
import random

import numpy as np

from underdraw.errors import UnderdrawError


class Strange:
    """An object that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    __hash__ = None


NUMBERS = (0, 1, -1, 2, 3, 7, 0.5, -0.5, 1.5, 1e-12, 1e30, -1e30, 2**31, 2**70, 10**10, 10**400)
BEYOND = (math.nan, math.inf, -math.inf)
TEXTS = ("", "x", "1", "nan", "true", "../..", "\ud800", "x" * 200_000)
LISTS = ([], [1], [0.1, 0.2], [None], ["x"], [[1]], [-1] * 4, [math.nan] * 4, (1, 2), {}, {"a": 1})
JSON = (None, True, False, *NUMBERS, *BEYOND, *TEXTS, *LISTS)
"""What a file may hold in the place of anything."""
PYTHON = (
    *JSON,
    *(b"x", 1j, set(), Strange(), np.float32(0.5), np.int64(3), np.array([0.5, 2]), np.nan),
    *(np.array(4), np.bool_(True), np.array([]), np.zeros((2, 2)), range(3), object),
)
"""What a caller may give besides."""


def outcome(call, *names):
    """None where a call works, or refuses with an error of ours of a decent length that holds one
    of `names`; else what is wrong with it."""
    try:
        call()
    except UnderdrawError as error:
        told = str(error)
        if len(told) > 2000:
            return f"{len(told)} signs: {told[:80]}"
        if names and not any(name in told for name in names):
            return f"names none of {names}: {told[:160]}"
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.120}"
    return None


def exactly(value):
    """A value as what can be compared: objects by their fields, arrays by their bytes. Their text
    would take longer than most calls."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: exactly(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [exactly(one) for one in value]
    if dataclasses.is_dataclass(value):
        return type(value), {
            each.name: exactly(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
    return repr(value)


def paths(content, most=8, seed=0):
    """Places of values in parsed JSON; of long lists and objects a few."""
    yield ()
    if isinstance(content, dict | list):
        inside = list(content.items() if isinstance(content, dict) else enumerate(content))
        if len(inside) > most:
            inside = random.Random(seed).sample(inside, most)
        for name, value in inside:
            for path in paths(value, most, seed):
                yield (name, *path)


LEFT_OUT = object()
"""In place of a value: there is none."""


def put(content, path, value):
    """A copy of parsed JSON with another value in a place."""
    if not path:
        return value
    changed = copy.deepcopy(content)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    if value is LEFT_OUT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed
