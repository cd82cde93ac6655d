# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Mistakes that a type checker has to see: each line is one, and an error where it is none."""

from typing import Any

from typing_extensions import assert_type

import underdraw
from underdraw import (
    AutoencoderKL,
    AutoPipelineForInpainting,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionDiffEditPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionPipelineOutput,
    Structure,
    UNet2DConditionModel,
)
from underdraw.models.outputs import ControlNetOutput, DecoderOutput
from underdraw.schedulers import Scheduler


def calls(pipe: StableDiffusionPipeline, flag: bool) -> None:
    pipe(promt="a cat")  # type: ignore
    pipe(7)  # type: ignore
    pipe("a cat", height="512")  # type: ignore
    pipe("a cat", callback_steps="1")  # type: ignore
    pipe.stream("a cat", hight=512)  # type: ignore
    print(pipe("a cat").pictures)  # type: ignore
    print(pipe("a cat", return_dict=False).images)  # type: ignore
    print(pipe.unett)  # type: ignore
    pipe.load_ip_adaptor("file")  # type: ignore
    assert_type(pipe("a cat"), StableDiffusionPipelineOutput)
    assert_type(pipe("a cat", return_dict=True), StableDiffusionPipelineOutput)
    made = pipe("a cat", return_dict=flag)
    print(made.images)  # type: ignore


def components(pipe: StableDiffusionPipeline) -> None:
    print(pipe.vae.config.scaling_facter)  # type: ignore
    pipe.scheduler.steps(3)  # type: ignore
    DDIMScheduler(beta_begin=0.1)  # type: ignore
    DDIMScheduler(clip_sample="no")  # type: ignore
    assert_type(pipe.unet, UNet2DConditionModel)
    assert_type(pipe.vae, AutoencoderKL)
    assert_type(pipe.scheduler, Scheduler)
    assert_type(DDIMScheduler.from_config(pipe.scheduler.config), DDIMScheduler)
    x = pipe.vae.encode(pipe.unet(1, 1, 1).sample).latent_dist.sample()
    assert_type(pipe.vae.decode(x), DecoderOutput)
    assert_type(pipe.unet(x, 1, x, return_dict=False), tuple[Any, ...])
    print(pipe.text_encoder(x).last_hidden_states)  # type: ignore
    print(pipe.vae.decode(x, generater=None))  # type: ignore
    print(underdraw.StableDiffusionPipelin)  # type: ignore
    print(underdraw.FlaxKarrasVeScheduler)  # type: ignore


def along_maps(pipe: StableDiffusionControlNetPipeline, net: ControlNetModel, x: Any) -> None:
    assert_type(pipe("a cat", x), StableDiffusionPipelineOutput)
    pipe("a cat", x, controlnet_conditioning_scale="1")  # type: ignore
    pipe("a cat", x, guess_mod=True)  # type: ignore
    assert_type(pipe.controlnet, ControlNetModel | MultiControlNetModel)
    assert_type(net(x, 1, x, x), ControlNetOutput)
    Structure(net, x, scal=1.0)  # type: ignore
    Structure(3, x)  # type: ignore


def classes(pipe: StableDiffusionPipeline) -> None:
    assert_type(StableDiffusionPipeline.from_pretrained("a").to("cpu"), StableDiffusionPipeline)
    assert_type(StableDiffusionPipeline.from_single_file("a"), StableDiffusionPipeline)
    assert_type(StableDiffusionDiffEditPipeline.from_pipe(pipe), StableDiffusionDiffEditPipeline)
    assert_type(AutoPipelineForInpainting.from_pipe(pipe), StableDiffusionInpaintPipeline)
    assert_type(UNet2DConditionModel.from_pretrained("a"), UNet2DConditionModel)
    assert_type(AutoencoderKL.from_single_file("a"), AutoencoderKL)
    assert_type(DiffusionPipeline.from_pretrained("a"), DiffusionPipeline)
    assert_type(ControlNetModel.from_unet(pipe.unet), ControlNetModel)
    assert_type(ControlNetModel.from_single_file("a"), ControlNetModel)
    DiffusionPipeline.from_pretrained("a")("a cat").images[0].save("a.png")
