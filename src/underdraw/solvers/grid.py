"""Which of the training timesteps a run visits (Lin et al. 2023, table 2)."""

from __future__ import annotations

import numpy as np

from underdraw.errors import InputError, InputTypeError

SPACINGS = ("leading", "linspace", "trailing")


def check_steps(num_inference_steps: object, limit: int | None = None) -> int:
    """A number of steps as int.

    Raises:
        InputTypeError, InputError: not a whole number, below 1, or above `limit`.
    """
    is_whole = isinstance(num_inference_steps, (int, np.integer))
    if not is_whole or isinstance(num_inference_steps, bool):
        raise InputTypeError(f"num_inference_steps={num_inference_steps!r} must be a whole number")
    steps = int(num_inference_steps)
    if steps < 1 or (limit is not None and steps > limit):
        bound = "at least 1" if limit is None else f"between 1 and num_train_timesteps={limit}"
        raise InputError(f"num_inference_steps={steps} must be {bound}")
    return steps


def spaced(
    train: int,
    steps: int,
    spacing: str,
    offset: int = 0,
    *,
    rounded: bool = True,
    extra: int = 0,
    last: int | None = None,
) -> np.ndarray:
    """Falling timesteps `(steps,)`, float64.

    `extra=1` places one more point and leaves out the lowest, for solvers whose run ends below
    their last evaluation; `last` is the number of timesteps that may be used (`train` if None).
    Only "linspace" without `rounded` gives timesteps between two training timesteps.
    """
    last = train if last is None else last
    points = steps + extra
    if points > last and (rounded or spacing == "leading"):
        raise InputError(f"num_inference_steps={steps} must be at most {last - extra} here")
    if spacing == "linspace":
        ts = np.linspace(0, last - 1, points)
        ts = (ts.round() if rounded else ts.astype(np.float32).astype(np.float64))[::-1][:steps]
    elif spacing == "leading":
        ts = (np.arange(points) * (last // points))[::-1][:steps] + float(offset)
        if ts[0] >= train:
            raise InputError(
                f"num_inference_steps={steps} with steps_offset={offset} reaches timestep "
                f"{int(ts[0])}; allowed: below {train}"
            )
    elif spacing == "trailing":
        ts = np.arange(last, 0, -train / steps).round() - 1
    else:
        allowed = ", ".join(SPACINGS)
        raise InputError(f"timestep_spacing={spacing!r} is not known; allowed: {allowed}")
    return ts.astype(np.float64)
