"""The names that users of mindone's diffusers know, on MindSpore and with its conventions: calls
give tuples (`pipe(prompt)[0][0]` is a picture), `mindspore_dtype`, generators of numpy, tensors of
MindSpore in and out.

`from mindone.diffusers import X` and `from mindone.transformers import X` become
`from underdraw.mindspore import X`. Importing this imports no framework.
"""

from typing import TYPE_CHECKING, Any

from underdraw import absent
from underdraw.mindspore.networks import (
    AutoencoderKL as AutoencoderKL,
    AutoencoderTiny as AutoencoderTiny,
    Blip2QFormerModel as Blip2QFormerModel,
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
from underdraw.mindspore.pipelines import (
    AutoPipelineForImage2Image as AutoPipelineForImage2Image,
    AutoPipelineForInpainting as AutoPipelineForInpainting,
    AutoPipelineForText2Image as AutoPipelineForText2Image,
    BlipDiffusionControlNetPipeline as BlipDiffusionControlNetPipeline,
    BlipDiffusionPipeline as BlipDiffusionPipeline,
    DiffusionPipeline as DiffusionPipeline,
    StableDiffusionAdapterPipeline as StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline as StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline as StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline as StableDiffusionControlNetPipeline,
    StableDiffusionDiffEditPipeline as StableDiffusionDiffEditPipeline,
    StableDiffusionGLIGENPipeline as StableDiffusionGLIGENPipeline,
    StableDiffusionGLIGENTextImagePipeline as StableDiffusionGLIGENTextImagePipeline,
    StableDiffusionImg2ImgPipeline as StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline as StableDiffusionInpaintPipeline,
    StableDiffusionPipeline as StableDiffusionPipeline,
)
from underdraw.mindspore.processors import (
    IPAdapterMaskProcessor as IPAdapterMaskProcessor,
    VaeImageProcessor as VaeImageProcessor,
)
from underdraw.models import (
    BlipImageProcessor as BlipImageProcessor,
    CLIPImageProcessor as CLIPImageProcessor,
)
from underdraw.pipelines.call.output import (
    StableDiffusionPipelineOutput as StableDiffusionPipelineOutput,
)
from underdraw.pipelines.components.processor import CLIPProcessor as CLIPProcessor
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
from underdraw.text.tokenizer import CLIPTokenizer as CLIPTokenizer

NAMES = sorted(
    name
    for name, value in globals().items()
    # From Python 3.11 on `Any` is a class, too.
    if isinstance(value, type) and value.__module__.startswith("underdraw.")
)
"""What there is here."""

if not TYPE_CHECKING:  # a type checker shall see wrong names

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):  # questions of tools, which no answer helps
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        raise absent.name(__name__, name, NAMES)
