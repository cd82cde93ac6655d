"""Controls: values that are passed to one sampling loop, so that all of them combine."""

from underdraw.controls.attention_edit import AttentionEdit
from underdraw.controls.control import Call, Control, Part, Run
from underdraw.controls.null_text import NullText
from underdraw.controls.strength import Strength

__all__ = ["AttentionEdit", "Call", "Control", "NullText", "Part", "Run", "Strength"]
