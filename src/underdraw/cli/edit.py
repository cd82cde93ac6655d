"""`underdraw edit`: change a picture from what one text says to what another says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from underdraw.cli import (
    early,
    embedded,
    loras,
    options,
    outputs,
    pictures,
    progress,
    sizes,
    solvers,
    structure,
)
from underdraw.cli.failures import Interrupted, note, tell
from underdraw.cli.files import read
from underdraw.cli.memory import read_ways
from underdraw.errors import InputError

VIEWS = ("mask", "before-after")


def edit(
    picture: Annotated[Path, typer.Argument(help="What to edit: PNG, JPEG, ...")],
    source: Annotated[str, typer.Option("--from", help="What the picture shows, in quotes.")],
    target: Annotated[str, typer.Option("--to", help="What it shall show instead, in quotes.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A .png, .jpg or .webp file, or a folder (here, if not given)."
        ),
    ] = None,
    format: options.Format = None,
    force: options.Force = False,
    negative: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A picture, white where to edit; found if not given.")
    ] = None,
    show_mask: Annotated[
        bool, typer.Option("--show-mask", help="Also write the mask, and before beside after.")
    ] = False,
    paste: Annotated[
        bool,
        typer.Option("--paste/--no-paste", help="Keep every pixel outside the mask, and the size."),
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
        float | None,
        typer.Option(
            help="Of the mask, in halves of the mean difference, above 0: larger gives smaller "
            "masks; if not given, the picture's own (Otsu)."
        ),
    ] = None,
    maps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Noises averaged for the mask.")
    ] = None,
    mask_strength: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="How much noise the mask is looked for in."),
    ] = None,
    structures: options.Structures = None,
    edges: options.Edges = None,
    depth: options.Depth = None,
    lora: options.Loras = None,
    embedding: options.Embeddings = None,
    size: options.Size = None,
    height: options.Height = None,
    width: options.Width = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    model: options.Model = None,
    solver: options.Solver = None,
    backend: options.Framework = None,
    engine: options.Engine = None,
    dtype: options.Precision = None,
    device: options.Device = None,
    memory: options.Memory = None,
    variant: options.Variant = None,
    tokenizer: options.Vocabulary = None,
    prediction_type: options.PredictionType = None,
) -> None:
    """Edit a picture where two texts differ (DiffEdit), and nowhere else.

    The place is found by itself. Interrupted with --keep-latents, the same command goes on from
    the inversion. Paths of the pictures go to standard output, everything else to standard error.
    """
    if solver == "help":
        solvers.show_help()
        return
    whole = pictures.photo("PICTURE", picture)
    wanted = sizes.wanted_size(size, height, width)
    given = None if mask is None else read(mask)
    lines = structure.read_maps(structures, edges, depth) or []
    tuned = loras.read_loras(lora, embedding)
    spared = read_ways(memory)
    target_file = outputs.Target(
        out,
        [target],
        [seed or 0],
        inputs={
            "the picture to edit": picture,
            "--mask": mask,
            **structure.inputs_of(lines),
            **{f"the weights {path}": path for path in tuned.every},
        },
        force=force,
        suffix=format and f".{format.value}",
        beside=VIEWS if show_mask else (),
    )
    check_texts(source, target, negative)
    check_keep(keep_latents)
    check_threshold(threshold)
    if solver is not None:
        solvers.make_solver(solver, {})
    from underdraw.cli.loading import check_engine, load_pipeline, summary

    check_engine(engine or "eager", backend.value if backend else "torch")
    structure.check_nets(lines, model or options.SCENES)
    known = early.facts(model or options.SCENES)
    early.check_call(
        known,
        steps=steps or DEFAULT_STEPS,
        guidance=guidance,
        sides=wanted.sides(picture=True),
        strength=min(
            DEFAULT_STRENGTH if strength is None else strength,
            1.0 if mask else MASK_STRENGTH if mask_strength is None else mask_strength,
        ),
    )
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
    structure.attach(pipe, lines)
    tuned.attach(pipe)
    if solver is not None:
        pipe.scheduler = solvers.make_solver(solver, pipe.scheduler.config)
    pipe.set_progress_bar_config(**progress.bar_options())
    spared.set(pipe)
    pipe = turned(pipe)
    factor = pipe.vae.config.factor
    fit = sizes.fitted_size(whole.size, wanted, sizes.trained_size(pipe), factor)
    sizes.tell_fit(str(picture), whole.size, fit, wanted)
    image = sizes.fitted(whole, fit)
    structure.draw_lines(lines, fit[1], fit[0])
    asked = {
        "num_inference_steps": steps,
        "inpaint_strength": strength,
        "guidance_scale": pipe.advice.guidance_scale if guidance is None else guidance,
        "num_maps_per_mask": maps,
        "mask_encode_strength": mask_strength,
        "mask_thresholding_ratio": threshold,
        "negative_prompt": negative,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    used = settings(asked)
    tell(
        f"{summary(pipe, engine)}, {type(pipe.scheduler).__name__}, {used.steps} steps, strength "
        f"{used.strength:g}, guidance {used.guidance:g}, {of_mask(used)}, seed {seed or 0}"
    )
    if given is None:
        tell("finding what has to change ...")
    try:
        made = pipe.edit(
            *(image, source, target),
            seed=seed or 0,
            mask_image=given,
            keep=keep_latents,
            paste=paste,
            controls=structure.controls_of(lines),
            **asked,
        )
    except KeyboardInterrupt:
        kept = keep_latents is not None and keep_latents.exists()
        words = f"{keep_latents} holds what was done; the same command goes on" if kept else ""
        raise Interrupted(words) from None
    share = float(made.mask_image[0].mean())
    tell(f"mask: {100 * share:.0f} % of the picture")
    if share == 0:
        note("no difference was found, so nothing was edited; a low --threshold finds more")
    if paste and image is not whole:
        made.images = [pasted(whole, made)]
    told = {
        "model": model,
        "negative": negative,
        "mask": mask and str(mask),
        "strength": strength,
        "threshold": threshold,
        "maps": maps,
        "mask-strength": mask_strength,
        **structure.options_of(lines),
        **tuned.options_of(),
        **spared.options_of(),
        "size": f"{fit[1]}x{fit[0]}" if wanted.given else None,
        "steps": steps,
        "guidance": guidance,
        "seed": seed or 0,
        "solver": solver,
        "prediction-type": prediction_type and prediction_type.value,
        "paste": paste or None,
    }
    record = {
        "pipeline": type(pipe).__name__,
        "model": pipe.source,
        "edit": {
            "from": source,
            "to": target,
            "picture": picture.name,
            "sha256": embedded.fingerprint(whole),
            "seed": seed or 0,
            "options": {name: value for name, value in told.items() if value is not None},
        },
    }
    path = target_file.write(0, made.images[0], record)
    typer.echo(path)
    if made.nsfw_content_detected and made.nsfw_content_detected[0]:
        note("the safety checker withheld this picture")
    if show_mask:
        for view, shown in pictures_of_mask(whole, made).items():
            typer.echo(target_file.write_beside(path, view, shown))


edit.examples = """Examples:

\b
  underdraw edit photo.png --from "a red cube" --to "a blue cube" -o out.png --show-mask
  underdraw edit scene.png --from "a red cube" --to "a red sphere" --paste --threshold 2.5
  underdraw edit photo.png --from "a cube" --to "a cone" --keep-latents cube.safetensors
  underdraw edit cat.jpg --from "a cat" --to "a dog" --model ./stable-diffusion --size 512
  underdraw edit photo.png --from "a red cube" --to "a blue cube" --edges photo.png"""  # type: ignore[attr-defined]
DEFAULT_STEPS, DEFAULT_STRENGTH, MASK_STRENGTH = 50, 0.8, 0.6
"""Of an edit, as `EditSettings` has them, which would import numpy."""


def check_texts(source: str, target: str, negative: str | None) -> None:
    """Raises InputError: the texts cannot be read, or are one to the text encoder."""
    early.check_texts([source, target, negative or ""])
    if " ".join(source.lower().split()) == " ".join(target.lower().split()):
        raise InputError(f"--from and --to both say {target!r}; nothing would change")


def check_keep(path: Path | None) -> None:
    """Raises InputError: latents cannot be kept there."""
    if path is None:
        return
    if path.suffix != ".safetensors":
        raise InputError(f"--keep-latents {path} must end with .safetensors")
    if path.exists() and not path.is_file():
        raise InputError(f"--keep-latents {path} is no file")
    if not path.parent.is_dir():
        raise InputError(f"--keep-latents {path}: there is no folder {path.parent}")
    outputs.check_folder(path.parent, [path.name])


def check_threshold(threshold: float | None) -> None:
    """Raises InputError: it is no positive number."""
    if threshold is not None and not 0 < threshold < float("inf"):
        raise InputError(f"--threshold {threshold} is out of range; allowed: finite, above 0")


def turned(pipe: Any) -> Any:
    """The pipeline whose solver can go the way of an inversion, and a note if that is another."""
    from underdraw.pipelines.diffedit.edit import reversible

    found = reversible(pipe)
    if found is not pipe:
        note(
            f"{type(pipe.scheduler).__name__} cannot be turned round; "
            f"{type(found.scheduler).__name__} is used"
        )
    return found


def settings(asked: dict[str, Any]) -> Any:
    """What an edit takes, by default too."""
    from underdraw.pipelines.diffedit.edit import EditSettings

    usual = EditSettings()
    return EditSettings(
        asked.get("num_inference_steps", usual.steps),
        asked.get("inpaint_strength", usual.strength),
        asked.get("guidance_scale", usual.guidance),
        asked.get("num_maps_per_mask", usual.maps),
        asked.get("mask_encode_strength", usual.mask_strength),
        asked.get("mask_thresholding_ratio", usual.threshold),
    )


def of_mask(used: Any) -> str:
    """How the mask is found, in words."""
    threshold = "Otsu's threshold" if used.threshold is None else f"threshold {used.threshold:g}"
    return f"{threshold}, {used.maps} maps at {used.mask_strength:g}"


def pasted(whole: Any, made: Any) -> Any:
    """The edit inside its mask in the picture as it was, at its own size."""
    from underdraw.pictures.pasting import paste

    return paste(whole, made.images[0], made.mask_image[0])


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
    return dict(zip(VIEWS, (mask, grid([before, place, after], 3)), strict=True))
