"""What a control may ask of the pipeline that it acts in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from underdraw import checks
from underdraw.backends.contract import Array, Operations
from underdraw.errors import InputError
from underdraw.models.outputs import Posterior
from underdraw.networks.program import Program


class Components(Protocol):
    """What a pipeline is made of, as controls see it; pipelines hold one
    (`pipelines.components.components`).

    Pictures are `(n, 3, height, width)` in [-1, 1]. Latents are as the UNet sees them, but for
    those of the distribution that `encode` gives: `scaled` multiplies what was drawn from it.
    """

    @property
    def framework(self) -> Any:
        """The backend of the UNet: arrays, devices, randomness."""
        ...

    @property
    def nn(self) -> Operations:
        """Its operations, with the settings of the pipeline."""
        ...

    @property
    def device(self) -> Any:
        """Where calls compute."""
        ...

    @property
    def settings(self) -> Any:
        """Slices and tiles (`pipelines.components.settings`); `ask`, `encode` and `decode` obey
        them."""
        ...

    @property
    def compat(self) -> str | None:
        """ "diffusers" where its behaviour is brought back, else None."""
        ...

    @property
    def words(self) -> Sequence[str]:
        """All words that the networks were trained on; empty where that is not said."""
        ...

    @property
    def unet(self) -> Any:
        """`UNet2DConditionModel`"""
        ...

    @property
    def vae(self) -> Any:
        """`AutoencoderKL`"""
        ...

    @property
    def text_encoder(self) -> Any:
        """`CLIPTextModel`, or None"""
        ...

    @property
    def tokenizer(self) -> Any:
        """`CLIPTokenizer`, or None"""
        ...

    def adapters(self, kind: str) -> Mapping[str, Any]:
        """What `pipe.load_adapter(kind, ...)` has attached, by name."""
        ...

    def only_adapter(self, kind: str) -> str | None:
        """The name of the only one of these, those of the pipeline's own folder aside where there
        are others; None where there is none, or several."""
        ...

    @property
    def groundings(self) -> Mapping[str, Any]:
        """Grounding weights by kind: those attached, and those which the UNet has in itself."""
        ...

    @property
    def sight(self) -> Any:
        """`image_encoder`, `image_project` and `processor`, each or None: what makes features of
        images in boxes."""
        ...

    @property
    def subjects(self) -> Mapping[str, Any]:
        """Subject weights (`Blip2QFormerModel`) by name: those attached, or else the pipeline's."""
        ...

    @property
    def subject_processor(self) -> Any:
        """What prepares pictures of subjects where the weights bring nothing, or None."""
        ...

    @property
    def feature_extractor(self) -> Any:
        """What prepares pictures for CLIP (`CLIPImageProcessor`), or None."""
        ...

    @property
    def towers(self) -> Sequence[Any]:
        """Image towers (`CLIPVisionModelWithProjection`): what the weights of image prompts have
        brought along, and the pipeline's own."""
        ...

    def borrow(self, *networks: Any) -> AbstractContextManager[None]:
        """While it lasts these networks are on `device`; also those a control brings itself."""
        ...

    def ask(self, program: Program, model: Any, *inputs: Any) -> Any:
        """What a program of a network gives for `inputs`, arrays on `device`; it is borrowed for
        that, and the pipeline's engine runs it."""
        ...

    def encode(self, pixels: Array) -> Posterior:
        """The distribution of the latents of pictures, in the autoencoder's dtype."""
        ...

    def scaled(self, latents: Array) -> Array:
        """Latents drawn from that distribution, as the UNet sees them."""
        ...

    def decode(self, latents: Array) -> Array:
        """Pictures near [-1, 1] of latents as the UNet sees them."""
        ...


def attached(components: Components | None, kind: str, name: Any, told: str, method: str) -> Any:
    """The adapter of a kind under this name; for None the only one there is.

    Args:
        told: how an error tells of the name, such as "Structure(net='edges')".
        method: of the pipeline, which attaches such adapters.

    Raises:
        InputError: it is not attached, or none is named and there are several.
    """
    there: Mapping[Any, Any] = {} if components is None else components.adapters(kind)
    if name is None and components is not None:
        name = components.only_adapter(kind)
    if not checks.is_one_of(name, tuple(there)):
        listed = ", ".join(map(repr, there)) or "none"
        raise InputError(
            f"{told} is not attached; attached: {listed}. Attach one with pipe.{method}(path)"
        )
    return there[name]
