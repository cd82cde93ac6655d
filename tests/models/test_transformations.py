"""What models return passes through the frameworks' own transformations."""

import jax
import numpy as np
import torch
from models.test_objects import MAKE
from pipelines import tiny
from torch.utils import _pytree as pytree

from underdraw.models import CLIPTextModel, UNet2DConditionModel
from underdraw.models.outputs import CLIPTextOutput, UNet2DConditionOutput


def test_torch_exports_a_unet(tmp_path):
    unet = MAKE["unet"]().eval()
    given = torch.randn(3, 4, 8, 16), torch.tensor(7), torch.randn(3, 5, tiny.WIDTH)
    with torch.no_grad():
        program = torch.export.export(unet, given)
        found, expected = program.module()(*given), unet(*given)
    assert type(found) is UNet2DConditionOutput
    torch.testing.assert_close(found.sample, expected.sample)
    torch.export.save(program, tmp_path / "unet.pt2")
    again = torch.export.load(tmp_path / "unet.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(again(*given).sample, expected.sample)


def test_torch_maps_over_outputs():
    MAKE["text"]()
    x = torch.ones(3)
    doubled = pytree.tree_map(lambda v: 2 * v, CLIPTextOutput(x, 2 * x, (x, 3 * x)))
    assert type(doubled) is CLIPTextOutput and torch.equal(doubled.hidden_states[1], 6 * x)
    halved = pytree.tree_map(lambda v: v / 2, CLIPTextOutput(x, x))
    assert halved.hidden_states is None and torch.equal(halved.pooler_output, x / 2)


def test_jax_compiles_calls_that_return_outputs():
    unet = UNet2DConditionModel(**tiny.UNET, backend="jax")
    draw = np.random.default_rng(0).standard_normal
    x, context = draw((3, 4, 8, 16), np.float32), draw((3, 5, tiny.WIDTH), np.float32)
    found = jax.jit(lambda model, *given: model(*given))(unet, x, 7, context)
    assert type(found) is UNet2DConditionOutput
    np.testing.assert_allclose(found.sample, unet(x, 7, context).sample, atol=2e-5)

    text = CLIPTextModel(**tiny.text_config(600), backend="jax")
    ids = np.array([[3, 599], [599, 4], [8, 599]])
    states = jax.jit(lambda model, ids: model(ids, output_hidden_states=True))(text, ids)
    assert len(states.hidden_states) == 4
    gradient = jax.grad(lambda model: model(ids).last_hidden_state.sum())(text)
    assert isinstance(gradient, CLIPTextModel)
