"""Subject weights (BLIP-Diffusion) as a kind of adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from underdraw import checks
from underdraw.arguments import checked
from underdraw.controls.subject_tokens import check_fit
from underdraw.errors import InputError, InputTypeError
from underdraw.formats import opening
from underdraw.models import Blip2QFormerModel, BlipImageProcessor
from underdraw.models.blip import read_tokenizer
from underdraw.models.image_processor import FILE
from underdraw.models.overlay import TunedSubject, is_tuned
from underdraw.models.wordpiece import WordPiece
from underdraw.pipelines.components.adapters import (
    AdapterKind,
    Networks,
    own_folder,
    register_adapter,
)
from underdraw.schema import within
from underdraw.weights import folders, hub as hubs
from underdraw.weights.subject import read_subject

OWN = "own"
"""The name of a pipeline's own subject weights, its component `qformer`."""
FOLDER = "qformer"


def _read(
    components: Any,
    source: Any,
    *,
    name: str = "subject",
    tokenizer: Any = None,
    image_processor: Any = None,
    variant: str | None = None,
    subfolder: str = "",
    dtype: Any = None,
    **hub: Any,
) -> tuple[str, Blip2QFormerModel | TunedSubject]:
    """Subject weights with what reads categories and prepares pictures, or a tuned subject."""
    given = {
        "name": name,
        "subfolder": subfolder,
        **({} if variant is None else {"variant": variant}),
    }
    for argument, value in given.items():
        if not isinstance(value, str) or (argument == "name" and not value):
            raise InputTypeError(f"{argument}={checks.shown(value)} is not a text")
    checks.dtype("dtype", dtype)
    if image_processor is not None and not callable(image_processor):
        raise InputTypeError(f"image_processor={checks.shown(image_processor)} cannot be called")
    own, home = components.named.get(FOLDER), own_folder(components.source)
    if own is not None and home is not None and source == home / FOLDER:
        return OWN, own  # which was read as a component
    if isinstance(source, TunedSubject):
        return name, check_fit(components, source)
    file = None if isinstance(source, Blip2QFormerModel) else checks.path("source", source)
    file = file if file is not None and opening.is_regular(file) else None
    if file is not None and is_tuned(file):
        return name, check_fit(components, TunedSubject.from_file(file))
    unet = components.unet
    like = {"dtype": dtype or unet.dtype, "device": unet.device, "backend": unet.nn.name}
    if isinstance(source, Blip2QFormerModel):
        network = source
        if network.nn.name != unet.nn.name:
            raise InputError(
                f"subject weights are on the backend {network.nn.name!r}, the UNet on "
                f"{unet.nn.name!r}; allowed: the same"
            )
    elif file is not None:
        network = Blip2QFormerModel.from_tensors(*read_subject(source), **like)
    else:
        network = _from_folder(source, variant, subfolder, like, hub)
    network.tokenizer = read_tokenizer(tokenizer) or network.tokenizer
    if image_processor is not None:
        chosen: Any = image_processor
        network.image_processor = chosen
    return name, check_fit(components, network)


def _from_folder(
    source: Any, variant: str | None, subfolder: str, like: Mapping[str, Any], hub: Any
) -> Blip2QFormerModel:
    """From the folder of a pipeline, of a Q-Former alone, or of the original."""
    place = hubs.resolve(source, subfolder=subfolder, variant=variant, **hub) / subfolder
    if (place / "blip_model").is_dir():
        network = Blip2QFormerModel.from_tensors(*read_subject(place), **like)
        network.tokenizer = WordPiece.inside(place, place / "blip_model")
        return network
    inside = FOLDER if (place / FOLDER).is_dir() else ""
    network = Blip2QFormerModel.from_pretrained(place, subfolder=inside, variant=variant, **like)
    around = [place.parent] if place.name == FOLDER else []
    for folder in (place, *(one / "image_processor" for one in (place, *around))):
        if opening.is_regular(folder / FILE):
            network.image_processor = _told(around or [place], folder)
            break
    return network


def _told(pipelines: Sequence[Path], folder: Path) -> BlipImageProcessor:
    """The processor of a folder, with the numbers that the pipeline's `model_index.json` says."""
    found = BlipImageProcessor.from_pretrained(folder)
    for place in pipelines:
        if opening.is_regular(place / folders.MODEL_INDEX):
            index = folders.read_model_index(place)
            names = {"image_mean": "mean", "image_std": "std"}
            said = {ours: index[name] for ours, name in names.items() if index.get(name)}
            with within(place / folders.MODEL_INDEX):
                return replace(found, **said)
    return found


def _write(network: Any, target: Any) -> None:
    if isinstance(network, TunedSubject):
        network.to_file(Path(target))
        return
    network.save_pretrained(Path(target))
    if network.image_processor is not None:
        network.image_processor.save_pretrained(Path(target))


SUBJECT = register_adapter(AdapterKind("subject", FOLDER, _read, _write, beside=False))


def subjects(components: Any) -> Networks:
    """See `Components.subjects`."""
    own = components.named.get(FOLDER)
    attached = components.attached.of(components, SUBJECT.name)
    if own is None or any(isinstance(one, Blip2QFormerModel) for one in attached.values()):
        return attached
    return MappingProxyType({OWN: own, **attached})


def subject_processor(components: Any) -> Any:
    """See `Components.subject_processor`."""
    found = components.named.get("image_processor")
    told = {"image_mean": components.mean, "image_std": components.std}
    told = {name: value for name, value in told.items() if value is not None}
    return partial(found or BlipImageProcessor(), **told) if told else found


class Subjective:
    """The methods of pipelines about subject weights."""

    parts: Any
    """`Components`"""

    @property
    def subjects(self) -> Networks:
        """Subject weights by name: those attached, or else those of the pipeline itself."""
        return self.parts.subjects

    @checked
    def load_subject(
        self,
        source: Blip2QFormerModel | TunedSubject | str | Path,
        *,
        name: str = "subject",
        tokenizer: Any = None,
        image_processor: Any = None,
        variant: str | None = None,
        subfolder: str = "",
        dtype: Any = None,
        **hub: Any,
    ) -> None:
        """Attach subject weights, for the control `Subject`; others of the same name go.

        Args:
            source: a folder or Hub id (of a `Blip2QFormerModel`, or of a BLIP-Diffusion pipeline),
                a folder or file of the original, or a `Blip2QFormerModel`; or a tuned subject, its
                file or a `TunedSubject`.
            name: by which `Subject(encoder=...)` chooses, where several are attached.
            tokenizer: BERT's, which reads categories: a `WordPiece`, a `vocab.txt`, or where one
                is; None: that of the folder.
            image_processor: what prepares pictures; None: that of the folder, or CLIP's numbers.
            variant, subfolder: which files of a folder.
            dtype: of the weights, by default that of the UNet.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            InputError: the weights make tokens that the text encoder cannot read.
            NotFoundError, WeightError: there are none, or they are damaged.
        """
        beside = {"tokenizer": tokenizer, "image_processor": image_processor}
        where = {"variant": variant, "subfolder": subfolder, "dtype": dtype, **hub}
        options = {"name": name, **beside, **where}
        self.parts.attached.load(self.parts, SUBJECT.name, source, options)

    def unload_subject(self, name: str | None = None) -> None:
        """Detach the subject weights of a name, or all.

        Raises:
            InputError: none of this name is attached.
        """
        self.parts.attached.detach(self.parts, SUBJECT.name, name)
