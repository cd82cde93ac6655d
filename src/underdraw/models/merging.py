"""Differences merged into the weights of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from underdraw.backends.deltas import Delta, check_paths, naming
from underdraw.backends.node import at, grow
from underdraw.errors import ControlError


def merged_into(network: Any, deltas: Mapping[str, Delta], finite: bool = False) -> Any:
    """A network like another with differences added to its weights, computed in float32; all other
    layers are shared.

    Raises:
        ControlError: a difference cannot be merged, or with `finite` gives NaN or infinity.
    """
    nn, framework = network.nn, network._framework
    layout = type(network).layout(network.config)
    check_paths(layout, deltas)
    made = {}
    with framework.no_grad():
        for path, delta in deltas.items():
            layer = at(network, path)
            with naming(path):
                weight, bias = delta.difference(nn, layout.leaves[path], layer.weight)

            def plus(before: Any, more: Any) -> Any:
                return nn.cast(nn.float32(before) + more, before)

            new = layer.weight if weight is None else plus(layer.weight, weight)
            other = None if bias is None else plus(layer.bias, bias)
            for values in (new, other):
                if finite and values is not None and not framework.is_finite(values):
                    raise ControlError(f"merging at '{path}' gives NaN or infinity")
            made[path] = framework.with_values(layer, new, other)
    model = type(network).sharing(network.config, grow(made), network)
    model.diffusers_version = network.diffusers_version
    return model
