"""Networks in half precision, on every backend that is installed."""

import pytest
from backends.harness import INSTALLED, dtype_name, give, relative, run, take, tree, values
from networks.configs import UNETS
from networks.programs import run_unet, unet_config, unet_inputs, unet_program

from underdraw.networks import unet

HALF = {"torch": "bfloat16", "jax": "bfloat16", "mindspore": "float16"}


@pytest.mark.parametrize("backend", INSTALLED)
def test_unet_in_half_precision(backend):
    """The result is half as wide and near the float32 one; nothing inside overflows."""
    case = UNETS["one-level"]
    config = unet_config(case)
    tensors = values(unet.layout(config))
    inputs = unet_inputs(case)
    whole = run_unet("torch", case, tensors, inputs)
    p = tree(backend, unet.layout(config), tensors, HALF[backend])
    given = {key: give(backend, value, HALF[backend]) for key, value in inputs.items()}
    out = run(backend, lambda nn, p, x: unet_program(nn, p, config, x), p, [given], compiled=True)
    assert dtype_name(out) == HALF[backend]
    assert relative(take(backend, out), whole) <= (0.05 if HALF[backend] == "bfloat16" else 0.01)
