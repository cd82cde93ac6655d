"""Captions as windows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def tokenize(tokenizer: Any, length: int, texts: Sequence[str]) -> np.ndarray:
    """int64 `(n, length)`, with start, end and padding."""
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    return np.array(tokenizer(list(texts), **options)["input_ids"], np.int64)
