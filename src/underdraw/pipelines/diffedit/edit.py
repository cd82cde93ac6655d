"""An edit in one call: mask, inversion and decoding, which may be interrupted and resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.errors import InputError, NonFiniteError, WeightError
from underdraw.formats.json_text import parse
from underdraw.pictures.pasting import originals, paste_all
from underdraw.pictures.reading import check_alike, read_mask
from underdraw.pipelines.call.checking import check_run
from underdraw.pipelines.call.conditioning import encode_texts
from underdraw.pipelines.call.plan import check_prompts, make_plan, make_solver
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.components.lora_mix import amounts
from underdraw.pipelines.diffedit.latents import encode_image, latent_sides, read_image
from underdraw.pipelines.diffedit.masking import Masking
from underdraw.pipelines.diffedit.outputs import DiffEditOutput
from underdraw.schedulers import DDIMScheduler, Scheduler
from underdraw.weights.files import open_checkpoint
from underdraw.weights.save import save_tensors

LOG = logging.getLogger(__name__)
METADATA = "underdraw_edit"
LEVELS, MASK = "latents", "mask"


@dataclass(frozen=True)
class EditSettings:
    """What an edit takes besides pictures and texts.

    Args:
        steps: of the way from picture to noise, were it gone whole.
        strength: the part of it that is gone: more changes more, and forgets more.
        guidance: how strongly to follow the target, above 1. Inversion takes none.
        maps, mask_strength, threshold: `num_maps_per_mask`, `mask_encode_strength` and
            `mask_thresholding_ratio` of `generate_mask`, where guidance cannot matter: both texts
            have one negative prompt. By default the threshold is the picture's own.
    """

    steps: int = 50
    strength: float = 0.8
    guidance: float | Sequence[float] = 7.5
    maps: int = 10
    mask_strength: float = 0.6
    threshold: float | None = None

    def checked(self) -> EditSettings:
        """The same as plain numbers; steps and guidance are checked with the decoding.

        Raises:
            InputError, InputTypeError: one of them cannot work.
        """
        how = Masking(self.maps, self.threshold, noise=self.mask_strength)
        return replace(
            self,
            strength=checks.number("inpaint_strength", self.strength, 0.0, 1.0),
            maps=how.maps,
            mask_strength=how.noise,
            threshold=how.ratio,
        )


class Kept:
    """The file of an edit: its mask, and the levels of the inversion made so far.

    `of` is what the edit depends on up to its inversion; the file of another edit is refused.
    """

    def __init__(self, path: str | os.PathLike[str] | None, of: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        # Settings may be numbers of numpy.
        self.of = json.dumps(of, sort_keys=True, default=lambda value: value.tolist())
        self.mask: np.ndarray | None = None
        self.levels: list[np.ndarray] = []
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def write(self) -> None:
        """Write what there is, whole or not at all."""
        if self.path is None or self.mask is None:
            return
        tensors = {MASK: self.mask}
        if self.levels:
            tensors[LEVELS] = np.stack(self.levels)
        save_tensors(self.path, tensors, {METADATA: self.of})

    def _read(self, path: Path) -> None:
        held = open_checkpoint(path)
        written = held.metadata.get(METADATA)
        if written is None or MASK not in held.tensors:
            raise WeightError(f"keep={str(path)!r} holds something else than an edit")
        if written != self.of:
            raise InputError(
                f"keep={str(path)!r} holds {_difference(written, self.of)}; name another file, or "
                "remove it"
            )
        self.mask = np.array(held.tensors[MASK].load())
        if LEVELS in held.tensors:
            self.levels = list(np.array(held.tensors[LEVELS].load()))


def check_file(keep: Any) -> None:
    """Raise an InputError or InputTypeError where no edit can be kept in this file."""
    if keep is None:
        return
    path = Path(checks.path("keep", keep))
    if path.suffix != ".safetensors":
        raise InputError(f"keep={checks.shown(keep)} must end with .safetensors")
    if path.is_dir():
        raise InputError(f"keep={checks.shown(keep)} is a folder")
    if not path.parent.is_dir():
        raise InputError(f"keep={checks.shown(keep)}: there is no folder {path.parent}")


def _difference(written: str, wanted: str) -> str:
    """In what two descriptions of edits differ, in words."""
    try:
        old, new = parse(written, LEVELS), json.loads(wanted)
        every = dict.fromkeys((*new, *old))
        names = [name for name in every if old.get(name) != new.get(name)]
    except (ValueError, AttributeError):
        names = []
    return f"an edit with another {', '.join(names)}" if names else "another edit"


def fingerprint(*arrays: Any) -> str:
    """A short name for the numbers of numpy arrays."""
    told = hashlib.sha256()
    for array in arrays:
        told.update(repr((array.shape, array.dtype.str)).encode())
        told.update(np.ascontiguousarray(array).tobytes())
    return told.hexdigest()[:16]


def reversible(pipe: Any) -> Any:
    """The pipeline itself if its scheduler can go the way of an inversion; else one on the same
    networks with DDIM instead (PNDM, which most checkpoints name, asks twice at one time; Heun
    twice a step; ancestral solvers add noise)."""
    scheduler = pipe.scheduler
    if pipe.inverse_scheduler is not None:
        return pipe
    if isinstance(scheduler, Scheduler):
        table = scheduler.make_table(10)
        single = len(set(table.steps.tolist())) == len(table)
        if single and not table.draws.any() and (np.diff(table.sigma / table.alpha) < 0).all():
            return pipe
    LOG.info("%s cannot be turned round; DDIM is used", type(scheduler).__name__)
    config = dict(scheduler.config)
    # Latents are not in [-1, 1].
    told: dict[str, Any] = {"clip_sample": bool(config.get("clip_sample", False))}
    if "steps_offset" in config:  # mended, it still counts as a default
        told["steps_offset"] = config["steps_offset"]
    made = copy(pipe)
    made.scheduler = DDIMScheduler.from_config(config, **told)
    return made


def edit(
    pipe: Any,
    image: Any,
    source: Request,
    target: Request,
    mask_image: Any,
    settings: EditSettings,
    paste: bool,
    keep: str | os.PathLike[str] | None,
) -> DiffEditOutput:
    """What `StableDiffusionDiffEditPipeline.edit` does; texts, seed and output as requests."""
    checks.flag("paste", paste)
    check_file(keep)
    settings = settings.checked()
    pipe = reversible(pipe)
    parts: Components = pipe.parts
    framework, seed = parts.framework, target.seed
    check_alike(image, mask_image)
    pictures = read_image(parts, image)
    source = replace(source, pictures=pictures.shape[0])
    target = replace(
        target,
        pictures=pictures.shape[0],
        guidance_scale=settings.guidance,
        num_inference_steps=settings.steps,
        strength=settings.strength,
    )
    before = check_prompts(parts, source, "source_")
    after = check_prompts(parts, target, "target_")
    count = max(before.count, after.count)
    if source.prompt is not None and before.prompts == after.prompts:
        raise InputError(f"source and target are both {source.prompt!r}; nothing would change")
    # What decoding would refuse, before the mask and the inversion are made.
    decoding = replace(target, pictures=count)
    plan = make_plan(parts, decoding, pipe, strength_name="inpaint_strength")
    guided, size, given = plan.guided, latent_sides(parts, pictures), None
    # Decoding is given the embeddings of the texts.
    shape = (count, parts.vae.config.latent_channels, *size)
    check_run(parts, replace(plan, prompts=None, negatives=None), shape)
    if mask_image is not None:
        given = read_mask(parts.nn, mask_image, count, size, pipe.vae.config.factor)
    making = replace(target, strength=settings.mask_strength, pictures=count)
    make_solver(parts, making, None, "mask_encode_strength")
    source_embeds = encode_texts(parts, source, before, False, count).context
    wanted = encode_texts(parts, target, after, guided, count)
    pixels = framework.to_numpy(pictures)
    clean = encode_image(parts, pictures, count)
    if not framework.is_finite(clean):
        raise NonFiniteError("vae: encoding gave NaN or infinity")
    scheme = pipe.scheduler if pipe.inverse_scheduler is None else pipe.inverse_scheduler
    kept = Kept(
        keep,
        {
            "picture": fingerprint(pixels),
            "source": fingerprint(framework.to_numpy(source_embeds)),
            "target": fingerprint(framework.to_numpy(wanted.context)),
            "model": pipe.source,
            "solver": {name: str(value) for name, value in sorted(scheme.config.items())},
            "settings": {
                field.name: getattr(settings, field.name)
                for field in fields(settings)
                if field.name != "guidance"  # of the decoding alone
            },
            "seed": list(seed) if isinstance(seed, Sequence) else seed,
            "mask": "found" if mask_image is None else "given",
            **({"loras": tuned} if (tuned := amounts(parts)) else {}),
        },
    )
    way: dict[str, Any] = {"num_inference_steps": settings.steps}
    if given is not None:
        kept.mask = framework.to_numpy(given)[:, 0].astype(np.int64)
    elif kept.mask is None:
        kept.mask = pipe.generate_mask(
            clean,
            target_prompt_embeds=wanted.context,
            source_prompt_embeds=source_embeds,
            num_maps_per_mask=settings.maps,
            mask_encode_strength=settings.mask_strength,
            mask_thresholding_ratio=settings.threshold,
            guidance_scale=1.0,
            seed=seed,
            **way,
        )
    found: Any = kept.mask
    way["inpaint_strength"] = settings.strength
    levels = [framework.array(level, device=pipe.device) for level in kept.levels]

    def note(_: int, __: Any, latents: Array) -> None:
        kept.levels.append(framework.to_numpy(latents))

    try:
        inverted = pipe.invert(
            image=clean,
            prompt_embeds=source_embeds,
            callback=note,
            done=levels,
            return_dict=True,
            **way,
        )
    finally:
        kept.write()  # also when it was interrupted
    made = pipe(
        mask_image=found,
        image_latents=inverted,
        guidance_scale=settings.guidance,
        prompt_embeds=wanted.context,
        negative_prompt_embeds=wanted.negative,
        output_type=target.output_type,
        seed=seed,
        callback=target.callback,
        controls=target.controls,
        return_dict=True,
        **way,
    )
    images = made.images
    if paste and target.output_type != "latent":
        own = originals(image, pixels, target.output_type)
        images = paste_all(images, own, found, framework)
    flags = made.nsfw_content_detected
    return DiffEditOutput(images, found, inverted.latents, flags, inverted.clean)
