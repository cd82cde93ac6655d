"""Which class each component is of, and which class a folder names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from underdraw import models, schedulers
from underdraw.errors import InputError, InputTypeError
from underdraw.models import keywords as familiar
from underdraw.models.base import Model
from underdraw.models.several import Several
from underdraw.names import HOMES
from underdraw.pipelines.components.processor import CLIPProcessor
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.weights import folders

MODELS: Mapping[str, type[Model]] = {
    "unet": models.UNet2DConditionModel,
    "vae": models.AutoencoderKL,
    "text_encoder": models.CLIPTextModel,
    "image_encoder": models.CLIPVisionModelWithProjection,
    "image_project": models.CLIPImageProjection,
    "safety_checker": models.StableDiffusionSafetyChecker,
    "qformer": models.Blip2QFormerModel,
    "controlnet": models.ControlNetModel,
    "adapter": models.T2IAdapter,
}
"""The class of each component that is a network."""
FURTHER: Mapping[str, type[Model]] = {
    "AutoencoderTiny": models.AutoencoderTiny,
    "ContextCLIPTextModel": models.ContextCLIPTextModel,
}
"""Classes of networks that a folder may name instead."""
SEVERAL: Mapping[str, type[Several[Any]]] = {
    "controlnet": models.MultiControlNetModel,
    "adapter": models.MultiAdapter,
}
"""The class of several such networks that are one component."""

SCHEDULERS = ("scheduler", "inverse_scheduler")
LIBRARIES = dict.fromkeys(("unet", "vae", *SEVERAL, *SCHEDULERS), "diffusers")
# Where diffusers keeps these classes.
LIBRARIES |= dict.fromkeys(("safety_checker", "image_project"), "stable_diffusion")
LIBRARIES |= dict.fromkeys(("qformer", "image_processor"), "blip_diffusion")
HOMES_OF: Mapping[str, str] = {"ContextCLIPTextModel": "blip_diffusion"}
"""The library of classes that stand for others."""
PLACES: Mapping[str, tuple[str, ...]] = {
    "stable_diffusion": ("stable_diffusion", "diffusers"),
    # The module has moved, and old folders name it as it was.
    "blip_diffusion": ("blip_diffusion", "pipeline_blip_diffusion", "deprecated", "diffusers"),
}
"""By what names folders call a library of diffusers' pipelines."""
READERS: Mapping[str, Any] = {
    "tokenizer": CLIPTokenizer,
    "processor": CLIPProcessor,
    "feature_extractor": models.CLIPImageProcessor,
    "image_processor": models.BlipImageProcessor,
}
"""The class of each component that prepares texts or pictures."""
ALSO_READ: Mapping[str, tuple[str, ...]] = {
    "controlnet": ("MultiControlNetModel",),
    "adapter": ("MultiAdapter",),
    "vae": ("AutoencoderTiny",),
    "text_encoder": ("CLIPTextModelWithProjection", "ContextCLIPTextModel"),
    "tokenizer": ("CLIPTokenizerFast",),
    "feature_extractor": (
        "CLIPFeatureExtractor",
        "CLIPImageProcessorFast",
        "CLIPImageProcessorPil",
    ),
}
"""Names of further classes whose files are those of the component's own."""
NEUTRAL = {**familiar.LOADING, "provider": (None,), "sess_options": (None,)}


@dataclass(frozen=True)
class Names:
    """What a class of pipelines is made of, by name and in order."""

    kind: str
    """Name of the class."""
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    for_text: tuple[str, ...]
    """Of those needed the ones which may be None where prompts are given as embeddings."""
    switches: tuple[str, ...]
    """Arguments of the constructor that are no components."""
    stored: tuple[str, ...] = ()
    """Of the switches those which a folder's `model_index.json` holds."""

    @property
    def all(self) -> tuple[str, ...]:
        """Of all components."""
        return (*self.needed, *self.optional)

    def dtypes(self, wanted: Any) -> dict[str, Any]:
        """The dtype of each component, from one for all, or some by name, "default" for others.

        Raises:
            InputTypeError: a name is no component.
        """
        if not isinstance(wanted, Mapping):
            return dict.fromkeys(self.all, wanted)
        if unknown := sorted(set(map(str, wanted)) - {*self.all, "default"}):
            raise InputTypeError(
                f"dtype has no components {unknown}; {self.kind} has {', '.join(self.all)}, and "
                "'default' is for those not named"
            )
        return {name: wanted.get(name, wanted.get("default")) for name in self.all}

    def check(self, given: Iterable[str], switches: tuple[str, ...] = ()) -> None:
        """Raise an InputTypeError where others than components and these switches are given."""
        if unknown := sorted(set(given) - {*self.all, *switches}):
            there = (*self.all, *self.switches)
            raise InputTypeError(f"{self.kind} has no components {unknown}; there are {there}")

    def check_complete(self, found: Iterable[str], where: str, listed: Iterable[str]) -> None:
        """Raise an InputError where needed ones are lacking in a folder or pipeline, which lists
        others."""
        if missing := [name for name in self.needed if name not in found]:
            raise InputError(
                f"{where} has no {' and no '.join(missing)}, which {self.kind} needs; it lists "
                f"{', '.join(sorted(listed)) or 'nothing'}"
            )


def uncompiled(value: Any) -> Any:
    """What `torch.compile` wrapped, or the value itself."""
    return getattr(value, "_orig_mod", value)


def networks_among(values: Iterable[Any]) -> list[Model]:
    """The networks among some values, wrapped ones and each of several that are one."""
    found: list[Any] = []
    for value in map(uncompiled, values):
        found += value if isinstance(value, Several) else [value]
    return [one for one in found if isinstance(one, Model)]


def scheduler_class(name: str) -> Any:
    """The scheduler of a familiar class name."""
    found = getattr(schedulers, name, None)
    if not (isinstance(found, type) and issubclass(found, schedulers.Scheduler)):
        raise InputError(
            f"scheduler {name!r} is not known; allowed: {', '.join(sorted(schedulers.__all__))}"
        )
    return found


def check_listed(name: str, listed: Any, where: str) -> None:
    """Check what a `model_index.json` says of a component: `[library, class]` of one we read.

    Raises:
        InputError: it names another library or class, or something else stands there.
    """
    library = LIBRARIES.get(name, "transformers")
    own = MODELS.get(name) or READERS.get(name)
    known = tuple(sorted(schedulers.__all__)) if name in SCHEDULERS else ()
    if own is not None:
        known = (own.__name__, *ALSO_READ.get(name, ()))
    what = repr(listed)
    if isinstance(listed, list) and len(listed) == 2 and all(isinstance(x, str) for x in listed):
        place, kind = listed
        # A module of the library may be named, and what was written on Flax is as for PyTorch.
        library = HOMES_OF.get(kind, library)
        inside = PLACES.get(library, (library,))
        inside += ("controlnet", "t2i_adapter") if name in SEVERAL else ()  # where they once were
        ours = place.split(".")[0] in inside
        if ours and kind.removeprefix("Flax") in known:
            return
        what = repr(kind) if ours else f"{kind!r} of {place!r}"
    allowed = f"{', '.join(known)} of {library!r}" if known else "none that can be read"
    raise InputError(
        f"{where}: model_index.json: {name} {what} is not known; allowed: {allowed}. Else give "
        f"another: {name}=..."
    )


def model_class(name: str, kind: str) -> type[Model]:
    """The class of a network, by its component and the name of its class, as
    `model_index.json` says it."""
    return FURTHER[kind] if kind in (FURTHER.keys() & ALSO_READ.get(name, ())) else MODELS[name]


def listed_class(folder: Path) -> Any:
    """The pipeline class which the `model_index.json` of a folder names."""
    name = folders.read_model_index(folder).get("_class_name")
    known = [known for known in sorted(HOMES) if known.endswith("Pipeline")]
    known = [one for one in known if not one.startswith("Flax")]
    if isinstance(name, str):
        name = name.removeprefix("Flax")
    if not isinstance(name, str) or name not in known:
        raise InputError(
            f"{folder} is of a {name!r}, which is not known; there are {', '.join(known)}"
        )
    return getattr(import_module(HOMES[name]), name)
