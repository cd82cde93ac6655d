"""PyTorch: leaves are its own layers, nodes are modules, so its ecosystem keeps working."""

from underdraw.backends.torch_operations import (
    Node as Root,
    Torch as Torch,
    array as array,
    device_of as device_of,
    draw as draw,
    draw_like as draw_like,
    float32 as float32,
    is_array as is_array,
    is_finite as is_finite,
    is_floating as is_floating,
    leaf as leaf,
    no_grad as no_grad,
    operations as operations,
    to_numpy as to_numpy,
    with_settings as with_settings,
)
from underdraw.backends.torch_weights import (
    build_root as build_root,
    dtype_of as dtype_of,
    load_root as load_root,
    move as move,
    named_tensors as named_tensors,
    resolve_dtype as resolve_dtype,
    tensor as tensor,
    to_bits as to_bits,
)

__all__ = ["Root"]
