"""The call of both GLIGEN pipelines."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.controls.boxes import Layout, Nothing, PerImage
from underdraw.controls.control import Control
from underdraw.controls.grounding import boxes_network
from underdraw.controls.region import Region
from underdraw.engines.engine import Question
from underdraw.errors import InputError
from underdraw.networks.gligen.config import INPAINTING_CHANNELS
from underdraw.pipelines.call.checking import check_run
from underdraw.pipelines.call.conditioning import condition
from underdraw.pipelines.call.denoise import begin, denoise
from underdraw.pipelines.call.latents import (
    LatentShape,
    check_size,
    draw_noise,
    first_noise,
    latent_shape,
)
from underdraw.pipelines.call.output import Made, decode, hand_out
from underdraw.pipelines.call.plan import Plan, make_plan
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.gligen.arguments import Arguments, read_layouts
from underdraw.pipelines.gligen.inpainting import (
    DiffusersRegion,
    Inpainting,
    KnownChannels,
    encode_known,
    read_inpainting,
)
from underdraw.sampling.steps import Step


def grounded_call(
    caller: Any, request: Request, arguments: Arguments
) -> Generator[Question | Step, Any, Made]:
    """Make images with boxes; `caller` is the pipeline."""
    parts: Components = caller.parts
    checks.flag("paste_back", arguments.paste_back)
    plan = make_plan(parts, request, caller)
    size = check_size(parts, arguments.height, arguments.width, arguments.latents)
    shape = latent_shape(parts, plan, *size, (0, INPAINTING_CHANNELS))
    layouts = read_layouts(arguments, plan)
    if parts.compat == "diffusers" and arguments.null_acts and arguments.boxes is not None:
        layouts = [one if one.boxes else Nothing((), one.strength) for one in layouts]
    network, inpainting = check_grounding(parts, layouts), None
    if arguments.inpaint_image is not None:
        inpainting = read_inpainting(
            parts,
            arguments.inpaint_image,
            arguments.inpaint_mask,
            layouts,
            plan.count,
            plan.count // request.num_images_per_prompt,
            size,
        )
    check_inpainting(parts, arguments, request.output_type)
    if arguments.latents is not None:
        checks.array("latents", arguments.latents, shape, parts.framework)
    acts = caller.fuser_enabled or parts.compat == "diffusers"
    boxes: list[Control] = []
    if acts and any(layout.acts for layout in layouts):
        boxes = [layouts[0] if len(layouts) == 1 else PerImage(*layouts)]
    planned = check_run(parts, plan, shape, boxes)

    run = begin(parts, plan, condition(parts, plan), planned)
    redraws = draws_again(parts, arguments.latents, inpainting)
    if redraws:  # drawn by diffusers, and not used
        draw_noise(parts, plan, (shape[0], parts.unet.config.in_channels, *shape[2:]))
    own = [] if inpainting is None else keeping(parts, inpainting, network)
    if redraws:
        noise = drawn_again(parts, plan, shape)
    else:
        noise = first_noise(parts, plan, arguments.latents, shape)
    made = yield from denoise(run, plan, noise * plan.solver.initial_sigma, [*own, *boxes])
    images, flags = decode(parts, made, request.output_type)
    if inpainting is not None and arguments.paste_back:
        images = inpainting.paste_back(images, parts.framework)

    def recorded(index: int) -> dict[str, Any]:
        mine = arguments.recorded(index, plan.count)
        return {"height": size[0], "width": size[1], "latents": arguments.latents, **mine}

    return hand_out(run, plan, images, flags, recorded)


def check_grounding(components: Components, layouts: Sequence[Layout]) -> Any:
    """The weights that the boxes need; None without boxes."""
    entries = [entry for layout in layouts for entry in layout.entries]
    if not entries:
        return None
    return boxes_network(components, any(entry.image is not None for entry in entries))


def check_inpainting(components: Components, arguments: Arguments, output_type: str) -> None:
    """Raise an InputError where arguments of inpainting do not go together."""
    if arguments.inpaint_image is None:
        for name, shown in (("inpaint_mask", "gligen_inpaint_mask"), ("paste_back",) * 2):
            value = getattr(arguments, name)
            if not (value is None or (name == "paste_back" and not value)):
                raise InputError(f"{shown} is given; it needs gligen_inpaint_image")
        if is_wide(components):
            raise InputError(
                f"unet: it takes {components.unet.config.in_channels} channels, so it paints into "
                "a picture; give gligen_inpaint_image"
            )
    if arguments.paste_back and output_type == "latent":
        raise InputError("paste_back=True; latents have no pixels, give another output_type")


def is_wide(components: Components) -> bool:
    """Whether the UNet takes more channels than latents have, so that it is one for inpainting."""
    return components.unet.config.in_channels != components.vae.config.latent_channels


def keeping(components: Components, inpainting: Inpainting, network: Any) -> list[Control]:
    """The controls that keep what lies outside the mask."""
    old = components.compat == "diffusers"
    known = encode_known(components, inpainting, sample=old)
    if old:
        region: Control = DiffusersRegion(inpainting.inside, latents=known, noise=known * 0)
    else:
        region = Region(inpainting.inside, latents=known)
    own = network is not None and network.config.extra_channels == INPAINTING_CHANNELS
    if is_wide(components):
        return [region, KnownChannels(known, 1 - inpainting.inside)]
    if own:
        return [region, KnownChannels(known, 1 - inpainting.inside, network)]
    return [region]


def draws_again(components: Components, latents: Any, inpainting: Inpainting | None) -> bool:
    """Whether diffusers would throw away the noise that it has drawn for all channels."""
    wide = is_wide(components) and latents is None and inpainting is not None
    return components.compat == "diffusers" and wide


def drawn_again(components: Components, plan: Plan, shape: LatentShape) -> Array:
    """Noise as diffusers draws it the second time: from the global stream and unscaled."""
    noise = components.framework.draw(shape, None, components.device, components.unet.dtype)
    return noise / plan.solver.initial_sigma
