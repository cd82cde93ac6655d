"""OpenVINO: no backend of networks, but operations that build graphs of their programs."""

from underdraw.backends.openvino_graph import (
    Compiled,
    capabilities,
    compiled,
    compiled_into,
    described,
    loaded,
    model,
    processor,
    settings,
    version,
    widened,
)
from underdraw.backends.openvino_operations import compressed, operations, parameter, weight
from underdraw.backends.openvino_values import FLOATS, WEIGHT, Value

__all__ = [
    "FLOATS",
    "WEIGHT",
    "Compiled",
    "Value",
    "capabilities",
    "compiled",
    "compiled_into",
    "compressed",
    "described",
    "loaded",
    "model",
    "operations",
    "parameter",
    "processor",
    "settings",
    "version",
    "weight",
    "widened",
]
