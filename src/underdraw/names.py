"""Where each public name lives, and the version."""

__version__ = "0.1.0"

MODULES = {
    "underdraw.controls.acceleration.attention": ("AttentionCache",),
    "underdraw.controls.acceleration.features": ("DeepCache", "EncoderPropagation"),
    "underdraw.controls.acceleration.guidance": (
        "AdaptiveGuidance",
        "GuidanceInterval",
        "SparseGuidance",
    ),
    "underdraw.controls.acceleration.tokens": ("TokenDownsampling",),
    "underdraw.controls.attention_edit": ("AttentionEdit",),
    "underdraw.controls.boxes": ("Box", "Layout", "PerImage", "Style"),
    "underdraw.controls.maps": (
        "CannyMap",
        "DepthMap",
        "HEDMap",
        "Keypoints",
        "NormalMap",
        "SemanticMap",
    ),
    "underdraw.controls.image_prompt": ("ImagePrompt",),
    "underdraw.controls.lora": ("Lora",),
    "underdraw.controls.null_text": ("NullText",),
    "underdraw.controls.region": ("Region",),
    "underdraw.controls.subject": ("Subject",),
    "underdraw.controls.structure": ("Structure",),
    "underdraw.errors": (
        "ControlError",
        "InputError",
        "InputTypeError",
        "NonFiniteError",
        "NotFoundError",
        "OutOfMemoryError",
        "UnderdrawError",
        "WeightError",
    ),
    "underdraw.flax.models": (
        "FlaxAutoencoderKL",
        "FlaxCLIPTextModel",
        "FlaxControlNetModel",
        "FlaxStableDiffusionSafetyChecker",
        "FlaxUNet2DConditionModel",
    ),
    "underdraw.flax.outputs": ("FlaxStableDiffusionPipelineOutput",),
    "underdraw.flax.pipelines.base": ("FlaxDiffusionPipeline",),
    "underdraw.flax.pipelines.image_to_image": ("FlaxStableDiffusionImg2ImgPipeline",),
    "underdraw.flax.pipelines.inpainting": ("FlaxStableDiffusionInpaintPipeline",),
    "underdraw.flax.pipelines.structure": ("FlaxStableDiffusionControlNetPipeline",),
    "underdraw.flax.pipelines.text_to_image": ("FlaxStableDiffusionPipeline",),
    "underdraw.flax.schedulers": (
        "FlaxDDIMScheduler",
        "FlaxDDPMScheduler",
        "FlaxDPMSolverMultistepScheduler",
        "FlaxEulerDiscreteScheduler",
        "FlaxLMSDiscreteScheduler",
        "FlaxPNDMScheduler",
    ),
    "underdraw.models": (
        "AutoencoderKL",
        "AutoencoderTiny",
        "Blip2QFormerModel",
        "BlipImageProcessor",
        "CLIPImageProcessor",
        "CLIPImageProjection",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "CLIPVisionModelWithProjection",
        "ContextCLIPTextModel",
        "ControlNetModel",
        "MultiAdapter",
        "MultiControlNetModel",
        "StableDiffusionSafetyChecker",
        "T2IAdapter",
        "UNet2DConditionModel",
    ),
    "underdraw.pipelines.auto": (
        "AutoPipelineForImage2Image",
        "AutoPipelineForInpainting",
        "AutoPipelineForText2Image",
    ),
    "underdraw.pipelines.base": ("DiffusionPipeline",),
    "underdraw.pipelines.blip_diffusion": ("BlipDiffusionPipeline",),
    "underdraw.pipelines.blip_diffusion_controlnet": ("BlipDiffusionControlNetPipeline",),
    "underdraw.pipelines.call.batched": ("batched",),
    "underdraw.pipelines.call.output": ("StableDiffusionPipelineOutput",),
    "underdraw.pipelines.diffusers.image_processor": (
        "IPAdapterMaskProcessor",
        "VaeImageProcessor",
    ),
    "underdraw.pipelines.stable_diffusion_adapter": ("StableDiffusionAdapterPipeline",),
    "underdraw.pipelines.stable_diffusion_controlnet": ("StableDiffusionControlNetPipeline",),
    "underdraw.pipelines.stable_diffusion_controlnet_img2img": (
        "StableDiffusionControlNetImg2ImgPipeline",
    ),
    "underdraw.pipelines.stable_diffusion_controlnet_inpaint": (
        "StableDiffusionControlNetInpaintPipeline",
    ),
    "underdraw.pipelines.stable_diffusion_diffedit": (
        "DiffEditInversionPipelineOutput",
        "DiffEditOutput",
        "StableDiffusionDiffEditPipeline",
    ),
    "underdraw.pipelines.stable_diffusion_gligen": ("StableDiffusionGLIGENPipeline",),
    "underdraw.pipelines.stable_diffusion_gligen_text_image": (
        "StableDiffusionGLIGENTextImagePipeline",
    ),
    "underdraw.pipelines.stable_diffusion_img2img": ("StableDiffusionImg2ImgPipeline",),
    "underdraw.pipelines.stable_diffusion_inpaint": ("StableDiffusionInpaintPipeline",),
    "underdraw.pipelines.components.processor": ("CLIPProcessor",),
    "underdraw.pipelines.stable_diffusion": ("StableDiffusionPipeline",),
    "underdraw.schedulers": (
        "DDIMInverseScheduler",
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    ),
    "underdraw.text.tokenizer": ("CLIPTokenizer",),
}
SUBMODULES = tuple(
    """
    absent arguments backends benchmark checkpoints checks cli controls engines errors evaluation
    flax formats limits mindspore models names networks pictures pipelines preprocessors sampling
    scenes schedulers schema shown solvers text training utils weights
    """.split()
)
"""What `import underdraw` makes reachable as `underdraw.schedulers`, imported when it is used."""
HOMES = {name: module for module, names in MODULES.items() for name in names}
