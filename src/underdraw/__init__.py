"""Latent diffusion with controls that are values: networks once, on PyTorch, JAX and MindSpore.

Importing this package imports nothing else: each public name is fetched from its module when it
is first used, so `import underdraw` costs milliseconds and loads no framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from underdraw.names import HOMES, SUBMODULES, __version__ as __version__

if TYPE_CHECKING:  # what editors and type checkers read; a test holds it to the table below
    from underdraw import (
        absent as absent,
        arguments as arguments,
        backends as backends,
        benchmark as benchmark,
        checkpoints as checkpoints,
        checks as checks,
        cli as cli,
        controls as controls,
        engines as engines,
        errors as errors,
        evaluation as evaluation,
        flax as flax,
        formats as formats,
        limits as limits,
        mindspore as mindspore,
        models as models,
        names as names,
        networks as networks,
        pictures as pictures,
        pipelines as pipelines,
        preprocessors as preprocessors,
        sampling as sampling,
        scenes as scenes,
        schedulers as schedulers,
        schema as schema,
        shown as shown,
        solvers as solvers,
        text as text,
        training as training,
        utils as utils,
        weights as weights,
    )
    from underdraw.controls.acceleration.attention import (
        AttentionCache as AttentionCache,
    )
    from underdraw.controls.acceleration.features import (
        DeepCache as DeepCache,
        EncoderPropagation as EncoderPropagation,
    )
    from underdraw.controls.acceleration.guidance import (
        AdaptiveGuidance as AdaptiveGuidance,
        GuidanceInterval as GuidanceInterval,
        SparseGuidance as SparseGuidance,
    )
    from underdraw.controls.acceleration.tokens import (
        TokenDownsampling as TokenDownsampling,
    )
    from underdraw.controls.attention_edit import (
        AttentionEdit as AttentionEdit,
    )
    from underdraw.controls.boxes import (
        Box as Box,
        Layout as Layout,
        PerImage as PerImage,
        Style as Style,
    )
    from underdraw.controls.image_prompt import (
        ImagePrompt as ImagePrompt,
    )
    from underdraw.controls.lora import (
        Lora as Lora,
    )
    from underdraw.controls.maps import (
        CannyMap as CannyMap,
        DepthMap as DepthMap,
        HEDMap as HEDMap,
        Keypoints as Keypoints,
        NormalMap as NormalMap,
        SemanticMap as SemanticMap,
    )
    from underdraw.controls.null_text import (
        NullText as NullText,
    )
    from underdraw.controls.region import (
        Region as Region,
    )
    from underdraw.controls.structure import (
        Structure as Structure,
    )
    from underdraw.controls.subject import (
        Subject as Subject,
    )
    from underdraw.errors import (
        ControlError as ControlError,
        InputError as InputError,
        InputTypeError as InputTypeError,
        NonFiniteError as NonFiniteError,
        NotFoundError as NotFoundError,
        OutOfMemoryError as OutOfMemoryError,
        UnderdrawError as UnderdrawError,
        WeightError as WeightError,
    )
    from underdraw.flax.models import (
        FlaxAutoencoderKL as FlaxAutoencoderKL,
        FlaxCLIPTextModel as FlaxCLIPTextModel,
        FlaxControlNetModel as FlaxControlNetModel,
        FlaxStableDiffusionSafetyChecker as FlaxStableDiffusionSafetyChecker,
        FlaxUNet2DConditionModel as FlaxUNet2DConditionModel,
    )
    from underdraw.flax.outputs import (
        FlaxStableDiffusionPipelineOutput as FlaxStableDiffusionPipelineOutput,
    )
    from underdraw.flax.pipelines.base import (
        FlaxDiffusionPipeline as FlaxDiffusionPipeline,
    )
    from underdraw.flax.pipelines.image_to_image import (
        FlaxStableDiffusionImg2ImgPipeline as FlaxStableDiffusionImg2ImgPipeline,
    )
    from underdraw.flax.pipelines.inpainting import (
        FlaxStableDiffusionInpaintPipeline as FlaxStableDiffusionInpaintPipeline,
    )
    from underdraw.flax.pipelines.structure import (
        FlaxStableDiffusionControlNetPipeline as FlaxStableDiffusionControlNetPipeline,
    )
    from underdraw.flax.pipelines.text_to_image import (
        FlaxStableDiffusionPipeline as FlaxStableDiffusionPipeline,
    )
    from underdraw.flax.schedulers import (
        FlaxDDIMScheduler as FlaxDDIMScheduler,
        FlaxDDPMScheduler as FlaxDDPMScheduler,
        FlaxDPMSolverMultistepScheduler as FlaxDPMSolverMultistepScheduler,
        FlaxEulerDiscreteScheduler as FlaxEulerDiscreteScheduler,
        FlaxLMSDiscreteScheduler as FlaxLMSDiscreteScheduler,
        FlaxPNDMScheduler as FlaxPNDMScheduler,
    )
    from underdraw.models import (
        AutoencoderKL as AutoencoderKL,
        AutoencoderTiny as AutoencoderTiny,
        Blip2QFormerModel as Blip2QFormerModel,
        BlipImageProcessor as BlipImageProcessor,
        CLIPImageProcessor as CLIPImageProcessor,
        CLIPImageProjection as CLIPImageProjection,
        CLIPTextModel as CLIPTextModel,
        CLIPTextModelWithProjection as CLIPTextModelWithProjection,
        CLIPVisionModelWithProjection as CLIPVisionModelWithProjection,
        ContextCLIPTextModel as ContextCLIPTextModel,
        ControlNetModel as ControlNetModel,
        MultiAdapter as MultiAdapter,
        MultiControlNetModel as MultiControlNetModel,
        StableDiffusionSafetyChecker as StableDiffusionSafetyChecker,
        T2IAdapter as T2IAdapter,
        UNet2DConditionModel as UNet2DConditionModel,
    )
    from underdraw.pipelines.auto import (
        AutoPipelineForImage2Image as AutoPipelineForImage2Image,
        AutoPipelineForInpainting as AutoPipelineForInpainting,
        AutoPipelineForText2Image as AutoPipelineForText2Image,
    )
    from underdraw.pipelines.base import (
        DiffusionPipeline as DiffusionPipeline,
    )
    from underdraw.pipelines.blip_diffusion import (
        BlipDiffusionPipeline as BlipDiffusionPipeline,
    )
    from underdraw.pipelines.blip_diffusion_controlnet import (
        BlipDiffusionControlNetPipeline as BlipDiffusionControlNetPipeline,
    )
    from underdraw.pipelines.call.batched import (
        batched as batched,
    )
    from underdraw.pipelines.call.output import (
        StableDiffusionPipelineOutput as StableDiffusionPipelineOutput,
    )
    from underdraw.pipelines.components.processor import (
        CLIPProcessor as CLIPProcessor,
    )
    from underdraw.pipelines.diffusers.image_processor import (
        IPAdapterMaskProcessor as IPAdapterMaskProcessor,
        VaeImageProcessor as VaeImageProcessor,
    )
    from underdraw.pipelines.stable_diffusion import (
        StableDiffusionPipeline as StableDiffusionPipeline,
    )
    from underdraw.pipelines.stable_diffusion_adapter import (
        StableDiffusionAdapterPipeline as StableDiffusionAdapterPipeline,
    )
    from underdraw.pipelines.stable_diffusion_controlnet import (
        StableDiffusionControlNetPipeline as StableDiffusionControlNetPipeline,
    )
    from underdraw.pipelines.stable_diffusion_controlnet_img2img import (
        StableDiffusionControlNetImg2ImgPipeline as StableDiffusionControlNetImg2ImgPipeline,
    )
    from underdraw.pipelines.stable_diffusion_controlnet_inpaint import (
        StableDiffusionControlNetInpaintPipeline as StableDiffusionControlNetInpaintPipeline,
    )
    from underdraw.pipelines.stable_diffusion_diffedit import (
        DiffEditInversionPipelineOutput as DiffEditInversionPipelineOutput,
        DiffEditOutput as DiffEditOutput,
        StableDiffusionDiffEditPipeline as StableDiffusionDiffEditPipeline,
    )
    from underdraw.pipelines.stable_diffusion_gligen import (
        StableDiffusionGLIGENPipeline as StableDiffusionGLIGENPipeline,
    )
    from underdraw.pipelines.stable_diffusion_gligen_text_image import (
        StableDiffusionGLIGENTextImagePipeline as StableDiffusionGLIGENTextImagePipeline,
    )
    from underdraw.pipelines.stable_diffusion_img2img import (
        StableDiffusionImg2ImgPipeline as StableDiffusionImg2ImgPipeline,
    )
    from underdraw.pipelines.stable_diffusion_inpaint import (
        StableDiffusionInpaintPipeline as StableDiffusionInpaintPipeline,
    )
    from underdraw.schedulers import (
        DDIMInverseScheduler as DDIMInverseScheduler,
        DDIMScheduler as DDIMScheduler,
        DDPMScheduler as DDPMScheduler,
        DEISMultistepScheduler as DEISMultistepScheduler,
        DPMSolverMultistepInverseScheduler as DPMSolverMultistepInverseScheduler,
        DPMSolverMultistepScheduler as DPMSolverMultistepScheduler,
        DPMSolverSinglestepScheduler as DPMSolverSinglestepScheduler,
        EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler as EulerDiscreteScheduler,
        HeunDiscreteScheduler as HeunDiscreteScheduler,
        KDPM2AncestralDiscreteScheduler as KDPM2AncestralDiscreteScheduler,
        KDPM2DiscreteScheduler as KDPM2DiscreteScheduler,
        LCMScheduler as LCMScheduler,
        LMSDiscreteScheduler as LMSDiscreteScheduler,
        PNDMScheduler as PNDMScheduler,
        TCDScheduler as TCDScheduler,
        UniPCMultistepScheduler as UniPCMultistepScheduler,
    )
    from underdraw.text.tokenizer import (
        CLIPTokenizer as CLIPTokenizer,
    )

__all__ = sorted(HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def _fetch(name: str) -> Any:
    if name in SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name in HOMES:
        value = getattr(import_module(HOMES[name]), name)
        globals()[name] = value
        return value
    if name.startswith("__"):  # questions of tools, which no answer helps
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise import_module(f"{__name__}.absent").name(__name__, name, [*HOMES, *SUBMODULES], 3)


if not TYPE_CHECKING:  # a type checker shall see wrong names

    def __getattr__(name: str) -> Any:
        return _fetch(name)


def __dir__() -> list[str]:
    return [*__all__, *SUBMODULES, "__version__"]
