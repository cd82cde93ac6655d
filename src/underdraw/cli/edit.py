"""`underdraw edit`: change a picture from what one text says to what another says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from underdraw.cli import options, outputs, pictures
from underdraw.cli.failures import Interrupted, tell
from underdraw.errors import InputError


def edit(
    picture: Annotated[Path, typer.Argument(help="What to edit: PNG, JPEG, ...")],
    source: Annotated[str, typer.Option("--from", help="What the picture shows, in quotes.")],
    target: Annotated[str, typer.Option("--to", help="What it shall show instead, in quotes.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .png file, or a folder (here, if not given)."),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A picture, white where to edit; found if not given.")
    ] = None,
    show_mask: Annotated[
        bool, typer.Option("--show-mask", help="Also write the mask, and before beside after.")
    ] = False,
    paste: Annotated[
        bool, typer.Option("--paste/--no-paste", help="Keep every pixel outside the mask.")
    ] = False,
    keep_latents: Annotated[
        Path | None,
        typer.Option(help="A .safetensors file that an interrupted or later edit goes on from."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="How far to go towards noise; more changes more."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Of the mask, above 0: larger gives smaller masks.")
    ] = None,
    maps: Annotated[int | None, typer.Option(min=1, help="Noises averaged for the mask.")] = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    model: options.Model = None,
    solver: options.Solver = None,
    backend: options.Framework = None,
    engine: options.Engine = None,
    dtype: options.Precision = None,
    device: options.Device = None,
    variant: options.Variant = None,
    tokenizer: options.Vocabulary = None,
    prediction_type: options.PredictionType = None,
) -> None:
    """Edit a picture where two texts differ (DiffEdit), and nowhere else.

    The place is found by itself. Interrupted with --keep-latents, the same command goes on from
    the inversion. Paths of the pictures go to standard output, everything else to standard error.
    """
    from underdraw.cli import solvers

    if solver == "help":
        tell(solvers.describe())
        return
    image = read(picture)
    given = None if mask is None else pictures.read(mask)
    target_file = outputs.Target(out, [target], [seed or 0])
    if keep_latents is not None and keep_latents.suffix != ".safetensors":
        raise InputError(f"--keep-latents {keep_latents} must end with .safetensors")
    if solver is not None:
        solvers.make_solver(solver, {})
    from underdraw.cli.loading import load_pipeline, summary

    pipe = load_pipeline(
        model or options.SCENES,
        kind="StableDiffusionDiffEditPipeline",
        backend=backend and backend.value,
        engine=engine,
        dtype=dtype.value if dtype else "auto",
        device=device,
        variant=variant,
        tokenizer=tokenizer,
        prediction_type=prediction_type and prediction_type.value,
    )
    if solver is not None:
        pipe.scheduler = solvers.make_solver(solver, pipe.scheduler.config)
    pipe.set_progress_bar_config(leave=False, disable=None)
    tell(summary(pipe, engine))
    asked = {
        "num_inference_steps": steps,
        "inpaint_strength": strength,
        "guidance_scale": pipe.advice.guidance_scale if guidance is None else guidance,
        "num_maps_per_mask": maps,
        "mask_thresholding_ratio": threshold,
        "negative_prompt": negative,
        "mask_image": given,
        "keep": keep_latents,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    try:
        made = pipe.edit(image, source, target, seed=seed or 0, paste=paste, **asked)
    except KeyboardInterrupt:
        kept = keep_latents is not None and keep_latents.exists()
        words = f"{keep_latents} holds what was done; the same command goes on" if kept else ""
        raise Interrupted(words) from None
    share = float(made.mask_image[0].mean())
    tell(f"mask: {100 * share:.0f} % of the picture")
    if share == 0:
        tell("note: no difference was found, so nothing was edited; a lower --threshold finds more")
    record = {
        "pipeline": type(pipe).__name__,
        "model": pipe.source,
        "edit": {"from": source, "to": target, "picture": picture.name, "seed": seed or 0},
    }
    path = target_file.write(0, made.images[0], record)
    typer.echo(path)
    if made.nsfw_content_detected and made.nsfw_content_detected[0]:
        tell("note: the safety checker withheld this picture")
    if show_mask:
        from underdraw.pictures.writing import save_png

        for name, shown in pictures_of_mask(image, made).items():
            beside = path.with_stem(f"{path.stem}-{name}")
            save_png(shown, beside, record)
            typer.echo(beside)


edit.examples = """Examples:

\b
  underdraw edit photo.png --from "a cat" --to "a dog" -o out.png --show-mask
  underdraw edit scene.png --from "a red cube" --to "a blue cube" --paste --threshold 2.5
  underdraw edit photo.png --from "a cat" --to "a dog" --keep-latents cat.safetensors"""  # type: ignore[attr-defined]


def pictures_of_mask(image: Any, made: Any) -> dict[str, Any]:
    """The mask in the size of the result; before, place and after in a row."""
    import numpy as np
    from PIL import Image

    from underdraw.pictures.writing import grid

    after = made.images[0]
    cells = Image.fromarray(np.uint8(255) * made.mask_image[0].astype(np.uint8))
    mask = cells.resize(after.size, Image.Resampling.NEAREST)
    before = image.convert("RGB").resize(after.size, Image.Resampling.LANCZOS)
    dark = Image.blend(before, Image.new("RGB", before.size), 0.65)
    place = Image.composite(before, dark, mask)
    return {"mask": mask, "before-after": grid([before, place, after], 3)}


def read(path: Path) -> Any:
    """A picture in RGB, upright."""
    from underdraw.pictures.files import read_file
    from underdraw.pictures.modes import plain

    return plain(repr(str(path)), read_file(path))
