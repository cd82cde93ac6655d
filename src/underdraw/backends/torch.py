"""PyTorch: leaves are its own layers, nodes are modules, so its ecosystem keeps working."""

from underdraw.backends.torch_operations import (
    Node as Root,
    Torch as Torch,
    array as array,
    device_of as device_of,
    draw as draw,
    float32 as float32,
    is_finite as is_finite,
    leaf as leaf,
    no_grad as no_grad,
    operations as operations,
    with_settings as with_settings,
)
from underdraw.backends.torch_weights import (
    build_root as build_root,
    compiled as compiled,
    compiler_of as compiler_of,
    draw_like as draw_like,
    dtype_of as dtype_of,
    gradient as gradient,
    graft as graft,
    is_array as is_array,
    is_floating as is_floating,
    load_root as load_root,
    move as move,
    named_tensors as named_tensors,
    recomputed as recomputed,
    register_output as register_output,
    replace_rows as replace_rows,
    resolve_dtype as resolve_dtype,
    tensor as tensor,
    to_bits as to_bits,
    to_numpy as to_numpy,
)

__all__ = ["Root"]
