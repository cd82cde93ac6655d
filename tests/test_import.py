"""The public surface is a list, and importing the package is free."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import underdraw

SURFACE = """
AdaptiveGuidance AttentionCache AttentionEdit AutoPipelineForImage2Image AutoPipelineForInpainting
AutoPipelineForText2Image AutoencoderKL AutoencoderTiny Blip2QFormerModel
BlipDiffusionControlNetPipeline BlipDiffusionPipeline BlipImageProcessor Box CLIPImageProcessor
CLIPImageProjection CLIPProcessor CLIPTextModel CLIPTextModelWithProjection CLIPTokenizer
CLIPVisionModelWithProjection CannyMap ContextCLIPTextModel ControlError ControlNetModel
DDIMInverseScheduler DDIMScheduler DDPMScheduler DEISMultistepScheduler
DPMSolverMultistepInverseScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler
DeepCache DepthMap DiffEditInversionPipelineOutput DiffEditOutput DiffusionPipeline
EncoderPropagation EulerAncestralDiscreteScheduler EulerDiscreteScheduler FlaxAutoencoderKL
FlaxCLIPTextModel FlaxControlNetModel FlaxDDIMScheduler FlaxDDPMScheduler
FlaxDPMSolverMultistepScheduler FlaxDiffusionPipeline FlaxEulerDiscreteScheduler
FlaxLMSDiscreteScheduler FlaxPNDMScheduler FlaxStableDiffusionControlNetPipeline
FlaxStableDiffusionImg2ImgPipeline FlaxStableDiffusionInpaintPipeline FlaxStableDiffusionPipeline
FlaxStableDiffusionPipelineOutput FlaxStableDiffusionSafetyChecker FlaxUNet2DConditionModel
GuidanceInterval HEDMap HeunDiscreteScheduler IPAdapterMaskProcessor ImagePrompt InputError
InputTypeError KDPM2AncestralDiscreteScheduler KDPM2DiscreteScheduler Keypoints LCMScheduler
LMSDiscreteScheduler Layout Lora MultiAdapter MultiControlNetModel NonFiniteError NormalMap
NotFoundError NullText OutOfMemoryError PNDMScheduler PerImage Region SemanticMap SparseGuidance
StableDiffusionAdapterPipeline StableDiffusionControlNetImg2ImgPipeline
StableDiffusionControlNetInpaintPipeline StableDiffusionControlNetPipeline
StableDiffusionDiffEditPipeline StableDiffusionGLIGENPipeline StableDiffusionGLIGENTextImagePipeline
StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline StableDiffusionPipeline
StableDiffusionPipelineOutput StableDiffusionSafetyChecker Structure Style Subject T2IAdapter
TCDScheduler TokenDownsampling UNet2DConditionModel UnderdrawError UniPCMultistepScheduler
VaeImageProcessor WeightError batched
""".split()
HEAVY = (
    "torch jax jaxlib mindspore numpy scipy PIL cv2 huggingface_hub tokenizers safetensors "
    "transformers diffusers typer tqdm"
).split()


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    code = f"import sys, underdraw; print(sorted(set({HEAVY}) & set(sys.modules)))"
    assert in_fresh_python(code) == "[]"


def test_first_use_loads_one_home_and_no_foreign_library():
    code = (
        "import sys, underdraw; underdraw.InputError; underdraw.CLIPTokenizer\n"
        "assert 'InputError' in vars(underdraw), 'fetched once, then a plain attribute'\n"
        "print(sorted({'torch', 'tokenizers', 'transformers', 'diffusers', 'underdraw.models'}"
        " & set(sys.modules)))"
    )
    assert in_fresh_python(code) == "[]"


def test_the_surface_is_this_list():
    assert underdraw.__all__ == SURFACE
    listed = {name for name in dir(underdraw) if not name.startswith("_")}
    assert listed == {*SURFACE, *underdraw.SUBMODULES}


def test_every_submodule_is_listed_and_reached_without_an_import_of_its_own():
    there = {module.name for module in pkgutil.iter_modules(underdraw.__path__)}
    assert set(underdraw.SUBMODULES) == {name for name in there if not name.startswith("_")}
    code = "import underdraw; print(underdraw.schedulers.DDIMScheduler.__name__, underdraw.utils)"
    assert in_fresh_python(code).startswith("DDIMScheduler <module 'underdraw.utils'")


def test_every_public_name_resolves_to_its_own_definition():
    for name in underdraw.__all__:
        value = getattr(underdraw, name)
        assert isinstance(value, type) or callable(value), f"{name} is a {type(value)}"
        assert value.__name__ == name


def test_editors_see_what_users_get():
    source = Path(underdraw.__file__).read_text()
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    submodules = {("underdraw", name) for name in underdraw.SUBMODULES}
    assert seen == {(module, name) for name, module in underdraw.HOMES.items()} | submodules


def test_names_for_users_of_mindone_are_classes_of_ours():
    from underdraw import mindspore

    assert "StableDiffusionPipeline" in mindspore.NAMES
    modules = {getattr(mindspore, name).__module__ for name in mindspore.NAMES}
    assert all(module.startswith("underdraw.") for module in modules)


def test_mindspore_is_imported_when_a_network_is_made():
    code = (
        "import sys\nfrom underdraw import UnderdrawError\n"
        "from underdraw.mindspore import StableDiffusionPipeline as Pipe, UNet2DConditionModel\n"
        "print(sorted({'torch', 'jax', 'mindspore'} & set(sys.modules)))\n"
        "sys.modules['mindspore'] = None\nimport importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'mindspore' else found(name, *a)\n"
        "for make in (lambda: Pipe.from_pretrained('underdraw/scenes'), UNet2DConditionModel):\n"
        "    try: make()\n"
        "    except UnderdrawError as error: print(error)\n"
    )
    loaded, *told = in_fresh_python(code).splitlines()
    assert loaded == "[]"
    needed = "backend='mindspore' needs the package mindspore: pip install 'underdraw[mindspore]'"
    assert told == [needed] * 2


def test_an_unknown_name_is_an_attribute_error():
    try:
        underdraw.StableDiffusion3Pipeline  # noqa: B018
    except AttributeError as error:
        assert "StableDiffusion3Pipeline" in str(error)
    else:
        raise AssertionError("an unknown name resolved")


def test_version_is_the_installed_one():
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("underdraw")
    except PackageNotFoundError:  # run from a checkout with PYTHONPATH=src
        installed = "0.1.0"
    assert underdraw.__version__ == installed
