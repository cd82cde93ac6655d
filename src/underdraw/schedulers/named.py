"""Schedulers by the names people use (`solvers.named`)."""

from __future__ import annotations

from typing import Any

from underdraw.errors import InputError
from underdraw.schedulers import classes
from underdraw.schedulers.base import Scheduler
from underdraw.solvers.named import GRIDS, SOLVERS, describe, read_name


def named_scheduler(name: Any, config: Any, before: str = "solver=") -> Scheduler:
    """The scheduler of a name, with the noise schedule of a checkpoint.

    Args:
        config: of any scheduler, or one itself; where that one was made by a name, what it was
            made from, so that nothing of the former name is left.
        before: what errors put before the name.

    Raises:
        InputError: the name is not known, or its solver has no such grid or spacing.
    """
    meant = read_name(name, before)
    origin = getattr(config, "named_from", None)
    origin = getattr(config, "config", config) if origin is None else origin
    cls: Any = getattr(classes, meant.kind)
    # Of several grids only one can be on, whatever the checkpoint says.
    known = cls.Config.__dataclass_fields__
    wanted = meant.switch if meant.switch is not None else "timestep_spacing"
    if meant.words and wanted not in known:
        raise InputError(
            f"{before}{name:.100}: {meant.short} has no {meant.words} grid; {describe()}"
        )
    switches = {one: one == meant.switch for one in GRIDS.values() if one in known}
    made = cls.from_config(origin, **{**meant.changes, **(switches if meant.switch else {})})
    made.named_from = dict(origin)
    return made


def name_of(scheduler: Any) -> str:
    """The shortest name of a scheduler, with its noise grid; of one that has none its class."""
    kind, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    fitting = [
        (len(changes), name)
        for name, (cls, changes) in SOLVERS.items()
        if cls == kind and all(config.get(field) == value for field, value in changes.items())
    ]
    if not fitting:
        return kind
    grid = next((word for word, switch in GRIDS.items() if config.get(switch)), None)
    name = max(fitting, key=lambda one: one[0])[1]
    return f"{name}_{grid}" if grid else name
