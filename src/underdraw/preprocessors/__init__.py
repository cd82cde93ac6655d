"""Maps from pictures, as ControlNets and T2I-Adapters read them.

edges = preprocessors.canny(photo)             # thin lines, as OpenCV's
soft = preprocessors.soft_edges(photo)
near = preprocessors.depth(photo)              # by a network of the package transformers
"""

from .canny import canny
from .models import depth
from .soft_edges import soft_edges

__all__ = ["canny", "depth", "soft_edges"]
