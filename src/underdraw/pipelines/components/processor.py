"""`CLIPProcessor`: CLIP's tokenizer and image processor as one component."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from underdraw.arguments import checked
from underdraw.errors import InputError
from underdraw.models import CLIPImageProcessor
from underdraw.models.keywords import SAVING, drop_neutral
from underdraw.schema import within
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.weights import folders, hub as hubs, save

CONFIG = "processor_config.json"


@dataclass(frozen=True)
class CLIPProcessor:
    """Texts and pictures for CLIP's two towers."""

    image_processor: CLIPImageProcessor
    tokenizer: CLIPTokenizer

    @classmethod
    @checked
    def from_pretrained(
        cls, name_or_path: str | Path, subfolder: str | None = None, **hub: Any
    ) -> CLIPProcessor:
        """From a folder or Hub id, as transformers 4 or 5 writes it."""
        hub = drop_neutral("CLIPProcessor.from_pretrained", hub)
        path = hubs.resolve(name_or_path, subfolder=subfolder or "", **hub) / (subfolder or "")
        raw = folders.read_json(path / CONFIG) if (path / CONFIG).exists() else {}
        pictures = raw.get("image_processor")
        if pictures is None:
            pictures = folders.read_json(path / "preprocessor_config.json")
        with within(path):
            prepares = CLIPImageProcessor.from_config(pictures)
        return cls(prepares, CLIPTokenizer.from_pretrained(path))

    @checked
    def save_pretrained(self, folder: str | Path, **familiar: Any) -> None:
        """Write what transformers reads as a CLIPProcessor."""
        drop_neutral("CLIPProcessor.save_pretrained", familiar, SAVING, ())
        content = {
            "image_processor": self.image_processor.to_dict(),
            "processor_class": "CLIPProcessor",
        }
        with save.writing_folder(folder) as place:
            self.tokenizer.save_pretrained(place)
            self.image_processor.save_pretrained(place)
            save.write_json(place / CONFIG, content)

    def __call__(
        self,
        text: Any = None,
        images: Any = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """Token ids of texts, or pixels of pictures.

        Raises:
            InputError: both or none of them is given.
        """
        if (text is None) == (images is None):
            raise InputError("CLIPProcessor takes either text or images")
        if images is not None:
            return self.image_processor(images, return_tensors=return_tensors or "np")
        return self.tokenizer(text, return_tensors=return_tensors, **options)
