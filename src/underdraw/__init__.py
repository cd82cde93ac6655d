"""Latent diffusion with controls that are values: networks once, on PyTorch, JAX and MindSpore.

Importing this package imports nothing else: each public name is fetched from its module when it
is first used, so `import underdraw` costs milliseconds and loads no framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from underdraw.names import HOMES, __version__ as __version__

if TYPE_CHECKING:  # what editors and type checkers read; a test holds it to the table below
    from underdraw.controls.attention_edit import (
        AttentionEdit as AttentionEdit,
    )
    from underdraw.controls.boxes import (
        Box as Box,
        Layout as Layout,
        PerImage as PerImage,
        Style as Style,
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
    from underdraw.errors import (
        ControlError as ControlError,
        InputError as InputError,
        InputTypeError as InputTypeError,
        NonFiniteError as NonFiniteError,
        NotFoundError as NotFoundError,
        UnderdrawError as UnderdrawError,
        WeightError as WeightError,
    )
    from underdraw.models import (
        AutoencoderKL as AutoencoderKL,
        CLIPImageProcessor as CLIPImageProcessor,
        CLIPImageProjection as CLIPImageProjection,
        CLIPTextModel as CLIPTextModel,
        CLIPTextModelWithProjection as CLIPTextModelWithProjection,
        CLIPVisionModelWithProjection as CLIPVisionModelWithProjection,
        StableDiffusionSafetyChecker as StableDiffusionSafetyChecker,
        UNet2DConditionModel as UNet2DConditionModel,
    )
    from underdraw.pipelines.base import (
        DiffusionPipeline as DiffusionPipeline,
    )
    from underdraw.pipelines.call.batched import (
        batched as batched,
    )
    from underdraw.pipelines.components.processor import (
        CLIPProcessor as CLIPProcessor,
    )
    from underdraw.pipelines.stable_diffusion import (
        StableDiffusionPipeline as StableDiffusionPipeline,
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


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
