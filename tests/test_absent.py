"""Names that are not here: an AttributeError that says where they are, or that they come later."""

import re
import subprocess
import sys

import pytest

import underdraw
from underdraw import utils

LATER = {
    "ControlNetUnionModel StableDiffusionControlNetPAGPipeline": "Structure",
    "ConsistencyDecoderVAE": "AutoencoderKL and AutoencoderTiny",
    "FlaxKarrasVeScheduler FlaxScoreSdeVeScheduler FlaxModelMixin": "underdraw.flax",
    "StableDiffusionLoraLoaderMixin LoraConfig": "load_lora_weights",
    "IPAdapterMixin IPAdapterAttnProcessor": "load_ip_adapter",
    "TextualInversionLoaderMixin": "load_textual_inversion",
    "BitsAndBytesConfig TorchAoConfig PipelineQuantizationConfig": "8 bits",
    "OnnxStableDiffusionPipeline": "engines",
    "StableDiffusionXLPipeline StableDiffusion3Pipeline FluxPipeline StableVideoDiffusionPipeline "
    "SD3Transformer2DModel UNet3DConditionModel FluxControlNetModel WanPipeline": "out of scope",
    "StableDiffusionUpscalePipeline CycleDiffusionPipeline": "there are Blip",
    "EDMEulerScheduler IPNDMScheduler DDIMParallelScheduler": "there are DDIMInverseScheduler",
    "AttnProcessor2_0 XFormersAttnProcessor": "controls",
    "ModelMixin ConfigMixin SchedulerMixin": "no mixins",
    "logging": "logging.getLogger",
    "FasterCacheConfig DeepCacheSDHelper": "EncoderPropagation, AttentionCache",
    "DiffusersQuantizer": "no counterpart",
    "MiniMaxMusic3RVQDepthDecoder": "out of scope",
}
TYPOS = {
    "StableDiffusonPipeline": "StableDiffusionPipeline",
    "DDIMSchedulr": "DDIMScheduler",
    "AutoencoderKl": "AutoencoderKL",
    "Bx": None,
    "schedulres": "schedulers",
}
METHODS = {
    "load_lora_adapter load_attn_procs hotswap_lora": "load_lora_weights",
    "load_ip_adapters fuse_ip_adapter": "load_ip_adapter",
    "enable_layerwise_casting dequantize": "quantize",
    "enable_cache disable_cache tgate": "pipe.enable_acceleration",
    "enable_vae_tilling": "did you mean 'enable_vae_tiling'",
}


def spread(table):
    return [(name, words) for names, words in table.items() for name in names.split()]


@pytest.mark.parametrize(("name", "words"), spread(LATER))
def test_names_of_other_releases_and_other_scopes(name, words):
    assert not hasattr(underdraw, name)
    message = rf"module 'underdraw' has no attribute '{name}'.*{re.escape(words)}"
    with pytest.raises(AttributeError, match=message):
        getattr(underdraw, name)
    with pytest.raises(ImportError, match=message):
        exec(f"from underdraw import {name}", {})


@pytest.mark.parametrize(("name", "meant"), TYPOS.items())
def test_typos(name, meant):
    with pytest.raises(AttributeError) as error:
        getattr(underdraw, name)
    assert str(error.value).endswith(f"; did you mean {meant!r}?") is (meant is not None) or (
        f"; did you mean {meant!r}?: there are" in str(error.value)
    )


@pytest.mark.parametrize(("name", "words"), spread(METHODS))
def test_methods_of_other_releases(name, words):
    pipe = object.__new__(underdraw.StableDiffusionPipeline)
    assert not hasattr(pipe, name)
    with pytest.raises(AttributeError, match=f"'StableDiffusionPipeline' object .*{name}.*{words}"):
        getattr(pipe, name)


def test_what_a_property_says_is_not_replaced():
    pipe = object.__new__(underdraw.StableDiffusionPipeline)
    with pytest.raises(AttributeError, match="'parts'"):
        pipe.unet  # noqa: B018


def test_names_of_diffusers_utils():
    with pytest.raises(ImportError, match=r"underdraw\.utils.*no videos"):
        exec("from underdraw.utils import export_to_video", {})
    assert not hasattr(utils, "nonsense")


def test_a_missing_name_imports_nothing_heavy():
    code = (
        "import sys, underdraw; assert not hasattr(underdraw, 'AsymmetricAutoencoderKL')\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
