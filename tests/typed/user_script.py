# pyright: strict
"""What a user writes in a first week: it has to pass pyright's strict mode, and to run."""

from contextlib import closing
from pathlib import Path

from underdraw import (
    AutoPipelineForText2Image,
    BlipDiffusionPipeline,
    Box,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionDiffEditPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionPipelineOutput,
    Subject,
)
from underdraw.utils import load_image, make_image_grid


def save(made: StableDiffusionPipelineOutput, folder: Path, name: str) -> Path:
    made.images[0].save(folder / name)
    return folder / name


def main(model: str, folder: Path, steps: int = 20) -> list[Path]:
    pipe = StableDiffusionPipeline.from_pretrained(model, dtype="float32").to("cpu")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size
    print(pipe.vae.config.scaling_factor, pipe.unet.num_parameters(), side, pipe.dtype)

    first = pipe("a red sphere", num_inference_steps=steps, guidance_scale=5.0, seed=7)
    found = [save(first, folder, "first.png")]
    images, flags = pipe("a red sphere", num_inference_steps=steps, seed=7, return_dict=False)
    print(len(images), flags, first.nsfw_content_detected)

    with closing(pipe.stream("a blue cube", num_inference_steps=steps, seed=1)) as run:
        for step in run:
            print(step.index, step.timestep, step.preview()[0].size)
    found.append(save(run.output, folder, "streamed.png"))

    again = StableDiffusionImg2ImgPipeline.from_pipe(pipe).to(dtype="float32")
    picture = load_image(str(found[0])).resize((64, 64))
    changed = again("a red cube", image=picture, strength=0.6, num_inference_steps=steps)
    found.append(save(changed, folder, "changed.png"))

    boxes = [Box("red sphere", (0.1, 0.2, 0.5, 0.8))]
    plain = AutoPipelineForText2Image.from_pipe(pipe)
    grounded = StableDiffusionGLIGENPipeline.from_pipe(pipe)
    print(len(boxes), boxes[0].box, type(plain), grounded.components.keys())

    subject = Subject(picture, "sphere", word="cube", strength=(0.5, 0.0, 0.5))
    print(subject.name, [*plain.subjects], BlipDiffusionPipeline.__name__)

    edit = StableDiffusionDiffEditPipeline.from_pipe(
        pipe,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
    )
    inverted = edit.invert("a red sphere", image=picture, num_inference_steps=steps)
    mask = edit.generate_mask(picture, "a red cube", source_prompt="a red sphere")
    print(inverted.latents.shape, mask.shape)

    make_image_grid([load_image(str(path)) for path in found], 1, len(found)).save(
        folder / "grid.png"
    )
    return [*found, folder / "grid.png"]


if __name__ == "__main__":
    main("underdraw/scenes", Path("."))
