"""What models return passes through the frameworks' own transformations."""

import jax
import numpy as np
import torch
from models.test_objects import MAKE
from pipelines import tiny
from torch.utils import _pytree as pytree

from underdraw import StableDiffusionPipeline
from underdraw.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from underdraw.models.outputs import CLIPTextOutput, DiagonalGaussian, UNet2DConditionOutput


def on_torch(model):
    """The same network on PyTorch, which needs no compiling for a number to compare with."""
    cls = vars(type(model))["_written"]
    tensors = {name: t.derive(t.shape, np.array) for name, t in model.stored_tensors().items()}
    return cls.from_tensors(model.config.to_dict(), tensors)


def test_torch_exports_a_unet(tmp_path):
    unet = UNet2DConditionModel(**{**tiny.UNET, **tiny.SHORT}).eval()
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
    unet = UNet2DConditionModel(**{**tiny.UNET, **tiny.SHORT}, backend="jax")
    draw = np.random.default_rng(0).standard_normal
    x, context = draw((3, 4, 8, 16), np.float32), draw((3, 5, tiny.WIDTH), np.float32)
    found = jax.jit(lambda model, *given: model(*given))(unet, x, 7, context)
    assert type(found) is UNet2DConditionOutput
    with torch.no_grad():
        wanted = on_torch(unet)(torch.from_numpy(x), 7, torch.from_numpy(context)).sample
    np.testing.assert_allclose(found.sample, wanted, atol=2e-5)

    text = CLIPTextModel(**tiny.text_config(600), backend="jax")
    ids = np.array([[3, 599], [599, 4], [8, 599]])
    states = jax.jit(lambda model, ids: model(ids, output_hidden_states=True))(text, ids)
    assert len(states.hidden_states) == 4
    gradient = jax.jit(jax.grad(lambda model: model(ids).last_hidden_state.sum()))(text)
    assert isinstance(gradient, CLIPTextModel)


def test_jax_compiles_encoders():
    vae = AutoencoderKL(**tiny.VAE, backend="jax")
    x = np.random.default_rng(0).standard_normal((3, 3, 40, 24), np.float32)
    found = jax.jit(lambda model, x: model.encode(x))(vae, x).latent_dist
    assert type(found) is DiagonalGaussian
    with torch.no_grad():
        wanted = on_torch(vae).encode(torch.from_numpy(x)).latent_dist
    np.testing.assert_allclose(found.parameters, wanted.parameters, atol=2e-5)
    # It goes into a compiled function, too, and gradients flow through it.
    far = jax.jit(lambda found: found.kl())(found)
    np.testing.assert_allclose(far, wanted.kl(), rtol=2e-5)
    drawn = jax.jit(lambda found, noise: found.mean + found.std * noise)(found, found.mean)
    np.testing.assert_allclose(drawn, wanted.mean + wanted.std * wanted.mean, atol=2e-5)
    gradient = jax.jit(jax.grad(lambda found: found.kl().sum()))(found)
    assert type(gradient) is DiagonalGaussian
    np.testing.assert_allclose(gradient.mean, found.mean, atol=2e-5)  # d kl / d mean = mean


def test_torch_exports_an_encoder():
    vae = MAKE["vae"]().eval()

    class Encode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = vae

        def forward(self, x):
            return self.vae.encode(x)

    x = torch.randn(3, 3, 40, 24)
    with torch.no_grad():
        found = torch.export.export(Encode(), (x,)).module()(x).latent_dist
        expected = vae.encode(x).latent_dist
    assert type(found) is DiagonalGaussian
    for name in ("mean", "logvar", "std", "var"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_a_compiled_unet_in_a_pipeline(tmp_path):
    """`torch.compile` wraps a module: the pipeline moves and saves what is inside."""
    pipe = tiny.pipeline(unet=tiny.SHORT)
    expected = tiny.run(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert hasattr(pipe.unet, "_orig_mod")
    torch.testing.assert_close(tiny.run(pipe), expected, rtol=0, atol=1e-5)
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(tiny.run(again), expected)
    assert pipe.to(dtype=torch.bfloat16) is pipe
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.bfloat16}
    assert pipe.dtype == torch.bfloat16
    with torch.compiler.set_stance("force_eager"):  # through the wrapper, not traced once more
        assert tiny.run(pipe).dtype == torch.bfloat16
