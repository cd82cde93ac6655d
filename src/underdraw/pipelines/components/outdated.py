"""Configurations of old checkpoints, mended as the constructors of diffusers' pipelines mend them.

They lack what was added to the classes later, and get defaults that do not suit Stable Diffusion:
a picture with latents clipped to [-1, 1], or drawn at timesteps the network was not trained for, is
wrong without a word.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from underdraw.pipelines.components.registry import uncompiled
from underdraw.schedulers import Scheduler

RIGHT: Mapping[str, int | bool] = {
    "steps_offset": 1,
    "clip_sample": False,
    "skip_prk_steps": True,
}
"""What a scheduler's configuration is to say, if it says anything, by the names that a class of
pipelines may list as `outdated`."""
TRAINED = 64
"""Sides of the latents of Stable Diffusion, which old UNet configurations have wrong."""
_LAST = (0, 9)  # the first version of diffusers that wrote them right


def mend(kind: str, outdated: tuple[str, ...], scheduler: Any, unet: Any) -> Any:
    """The scheduler with a mended configuration, or itself; the UNet gets its size in place, since
    whoever shares it is mistaken about it, too. A warning says what was changed.

    Args:
        kind: the class of the pipeline, for the warning.
        outdated: which values of the scheduler's configuration may be wrong; none leaves the UNet
            as it is, too.
    """
    if not outdated:
        return scheduler
    told = []
    wrong = _wrong(outdated, getattr(scheduler, "config", None))
    if wrong and (made := _with_config(scheduler, wrong)) is not None:
        config = scheduler.config
        told += [f"scheduler: {name}={config[name]!r} -> {wrong[name]!r}" for name in wrong]
        scheduler = made
    network = uncompiled(unet)
    side = network.config.sample_size
    if _is_old(network.diffusers_version) and isinstance(side, int) and side < TRAINED:
        told.append(
            f"unet: sample_size={side} -> {TRAINED} (diffusers {network.diffusers_version})"
        )
        network.config = replace(network.config, sample_size=TRAINED)
    if told:
        warnings.warn(
            f"{kind}: the configuration is outdated and was mended as diffusers does: "
            f"{'; '.join(told)}. A folder that is saved anew has the mended values. To use others, "
            "assign pipe.scheduler after the pipeline is made",
            stacklevel=4,
        )
    return scheduler


def _wrong(names: tuple[str, ...], config: Any) -> dict[str, int | bool]:
    if not isinstance(config, Mapping):
        return {}
    return {
        name: RIGHT[name]
        for name in names
        # A flag is wrong where it is the other flag; whatever else stands there is not known.
        if name in config
        and (config[name] is (not RIGHT[name]) if name != "steps_offset" else config[name] != 1)
    }


def _with_config(scheduler: Any, values: Mapping[str, Any]) -> Any:
    """The same scheduler with other values in its configuration; that of the caller stays as it is.
    None where another library's has no way to be told."""
    if isinstance(scheduler, Scheduler):
        return scheduler.with_config(values)
    if not hasattr(scheduler, "register_to_config"):
        return None
    made = copy(scheduler)
    made.register_to_config(**values)
    return made


def _is_old(version: str | None) -> bool:
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return found is not None and tuple(map(int, found.groups())) < _LAST
