"""What only JAX offers: trees as pytrees, whole networks compiled and differentiated."""

import jax
import numpy as np
from backends.harness import give, relative, run, take, tree, values
from backends.test_trees import LAYOUT, new
from networks.configs import UNETS
from networks.programs import unet_config, unet_inputs, unet_program

from underdraw import backends
from underdraw.backends.node import walk
from underdraw.networks import unet


def test_trees_are_pytrees():
    node = backends.get("jax").build(LAYOUT, seed=1)
    leaves, structure = jax.tree_util.tree_flatten(node)
    assert len(leaves) == len(LAYOUT.shapes)
    again = jax.tree_util.tree_unflatten(structure, leaves)
    assert list(dict(walk(again))) == list(dict(walk(node)))
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(node)}
    assert ".blocks.0.copy.weight" in {path.replace("['", ".").replace("']", "") for path in paths}

    root = new("jax")
    doubled = jax.jit(lambda model: jax.tree_util.tree_map(lambda x: 2 * x, model))(root)
    assert doubled.config == "toy"
    assert np.array_equal(doubled.gate, 2 * np.asarray(root.gate))
    gradient = jax.grad(lambda model: (model.conv.weight**2).sum())(root)
    assert np.allclose(gradient.conv.weight, 2 * np.asarray(root.conv.weight))


def test_a_whole_unet_compiles_to_the_same_numbers():
    """Eagerly and as one program, which is traced once and serves other weights and inputs."""
    case = UNETS["one-level"]
    config = unet_config(case)
    layout = unet.layout(config)
    nn, traces = backends.get("jax").operations, []

    def program(nn, p, inputs):
        traces.append(1)
        return unet_program(nn, p, config, inputs)

    compiled = jax.jit(program, static_argnums=0)
    for seed in (1, 2):
        p = tree("jax", layout, values(layout, seed))
        inputs = {k: give("jax", v) * seed for k, v in unet_inputs(case).items()}
        eager = take("jax", unet_program(nn, p, config, inputs))
        assert relative(take("jax", compiled(nn, p, inputs)), eager) <= 2e-6
    assert len(traces) == 1


def test_products_of_float32_are_float32():
    """On devices that round factors unless told otherwise; on CPU only the request can be seen."""
    case = UNETS["one-level"]
    config = unet_config(case)
    p = tree("jax", unet.layout(config), values(unet.layout(config)))
    inputs = {k: give("jax", v) for k, v in unet_inputs(case).items()}

    def program(p, inputs):
        return run("jax", lambda nn, p, x: unet_program(nn, p, config, x), p, [inputs])

    equations = list(_equations(jax.make_jaxpr(program)(p, inputs).jaxpr))
    products = [e for e in equations if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert len(products) > 20
    highest = jax.lax.Precision.HIGHEST
    assert {e.params["precision"] for e in products} <= {(highest, highest), highest}


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from _equations(value.jaxpr)


def shareable():
    """Numbers at a multiple of 64 bytes, where JAX likes to share memory."""
    room = np.zeros(128, np.float32)
    return room[-room.ctypes.data % 64 // 4 :][:77].reshape(7, 11)


def test_arrays_are_copied_without_a_program(caplog):
    """One would be compiled for each shape of a network that is loaded."""
    held = shareable()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        made = [backends.get("jax").array(held, dtype) for dtype in (None, "bfloat16")]
        assert not caplog.records
        jax.jit(lambda x: x * 5)(made[0])
        assert caplog.records
    held += 1
    assert all(one[0, 0] == 0 for one in made)


def test_what_lies_on_several_devices_is_a_copy_too():
    held, framework = shareable(), backends.get("jax")
    mesh = framework.devices_in_line()
    made = framework.replicate([held]) + framework.spread([held], mesh, lambda path, x: ())
    held += 1
    assert len(made) == 2 and not any(np.asarray(one).any() for one in made)


def test_what_is_returned_is_told_to_jax_once():
    """Networks and Flax's schedulers both tell it of what both return, in any order."""
    from underdraw.flax.schedulers import FlaxSchedulerOutput

    for _ in range(2):
        backends.get("jax").register_output(FlaxSchedulerOutput)
