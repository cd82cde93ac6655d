"""What is made when somebody first asks for it, and kept: by one thread, while others wait."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from threading import RLock
from typing import Any, TypeVar

Made = TypeVar("Made")


def once(make: Callable[..., Made]) -> Callable[..., Made]:
    """As `functools.cache`, for what must not be made twice: classes, whose instances would be of
    different ones, and what is registered with a framework. (`cache` lets threads that ask at the
    same time each make their own.) What raises is made again when it is asked for again."""
    made: dict[tuple[Hashable, ...], Made] = {}
    # Reentrant: what is made may ask for another.
    lock = RLock()

    @wraps(make)
    def get(*key: Any) -> Made:
        if key not in made:
            with lock:
                if key not in made:
                    made[key] = make(*key)
        return made[key]

    return get
