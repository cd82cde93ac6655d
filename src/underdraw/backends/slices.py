"""How many heads attend at once, where not all do (`enable_attention_slicing`)."""

from __future__ import annotations

Slice = int | str | None
"""A number of heads, "auto" for half of them, "max" for one, None for all."""


def heads_at_once(setting: Slice, heads: int) -> int:
    """Of so many heads, how many attend at once."""
    if setting is None:
        return heads
    if isinstance(setting, int):
        return setting
    return 1 if setting == "max" else -(-heads // 2)
