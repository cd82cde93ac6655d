"""Controls: values that are passed to one sampling loop, so that all of them combine."""

from underdraw.controls.control import Call, Control, Run

__all__ = ["Call", "Control", "Run"]
