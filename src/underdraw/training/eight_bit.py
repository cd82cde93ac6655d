"""AdamW with its state in 8 bits (Dettmers et al. 2022), which bitsandbytes has."""

from __future__ import annotations

from typing import Any

from underdraw.errors import InputError

EIGHT_BIT = "adamw8bit"
"""`TrainingConfig.optimizer` that asks for it."""


def eight_bit() -> Any:
    """bitsandbytes' class.

    Raises:
        InputError: it is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"optimizer={EIGHT_BIT!r} needs bitsandbytes: pip install 'underdraw[adam8bit]'; or "
            "take optimizer='adamw'"
        ) from error
    return AdamW8bit
