"""What the weights of subjects lay over the networks of a run, in the rows of their prompts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from underdraw.backends.deltas import Deltas, together
from underdraw.controls.control import Call, Run
from underdraw.controls.subject_tokens import overlay_of, place
from underdraw.models.overlay import Overlay, scaled
from underdraw.text.words import Words

if TYPE_CHECKING:
    from underdraw.controls.subject import Subject


@dataclass(frozen=True, eq=False)
class _Layer:
    """One overlay: it acts in an image as much as that of its subjects there which acts most."""

    deltas: Deltas
    parts: tuple[Subject, ...]
    images: np.ndarray
    """Which images each part is in, bool `(parts, images)`."""

    def factors(self, call: Call) -> np.ndarray:
        """How much of it acts in each image, float32."""
        now = np.array([part.strength.at(call) for part in self.parts], np.float32)  # type: ignore
        return (self.images * now[:, None]).max(0)


@dataclass(frozen=True, eq=False)
class LaidOver:
    """What acts inside the UNet's calls of a run."""

    layers: tuple[_Layer, ...]
    framework: Any
    device: Any
    known: dict[Any, Deltas] = field(default_factory=dict)
    """By factors, so that calls alike have the same arrays, and keys and values can be kept."""

    def at(self, call: Call) -> Deltas:
        """The differences of a call; none where no subject acts."""
        each = [layer.factors(call) for layer in self.layers]
        key = (call.guided, *(factors.tobytes() for factors in each))
        if key not in self.known:
            self.known.clear()
            self.known[key] = together(
                *(
                    scaled(layer.deltas, self._scale(factors, call.guided))
                    for layer, factors in zip(self.layers, each, strict=True)
                    if factors.any()
                )
            )
        return self.known[key]

    def _scale(self, factors: np.ndarray, guided: bool) -> Any:
        """A number where all rows have the same one."""
        if (factors == factors[0]).all():
            return float(factors[0])
        rows = np.concatenate([factors, factors]) if guided else factors
        return self.framework.array(rows, device=self.device)


def laid_over(run: Run, parts: Sequence[Subject]) -> LaidOver | None:
    """What the weights of the subjects lay over the UNet; None where they lay nothing."""
    components, ids = run.components, run.conditioning.ids
    assert ids is not None  # was checked
    found: dict[int, tuple[Overlay, list[Subject]]] = {}
    for part in parts:
        overlay = overlay_of(components, part)
        if overlay.unet:
            found.setdefault(id(overlay), (overlay, []))[1].append(part)
    if not found:
        return None
    framework, each = run.framework, run.batch // len(ids)
    layers = []
    for overlay, those in found.values():
        there = [
            [_stands(components.tokenizer, p, n, row) for n, row in enumerate(ids)] for p in those
        ]
        images = np.repeat(np.array(there, bool), each, 1)
        deltas = overlay.ready(framework, "unet", components.unet.dtype, components.device)
        layers.append(_Layer(deltas, tuple(those), images))
    return LaidOver(tuple(layers), framework, components.device)


def _stands(tokenizer: Any, part: Subject, number: int, windows: np.ndarray) -> bool:
    """Whether a subject is in the prompt of this number."""
    if part.prompts is not None:
        return number in part.prompts
    return part.at is not None or any(place(tokenizer, part, ids) for ids in windows)


def text_leaves(
    words: Words,
    parts: Sequence[Subject],
    there: Collection[tuple[int, int]],
) -> Deltas:
    """The differences to the text encoder, with what was there before: in the windows of texts that
    have their subject. `there`: texts, and numbers of their subjects."""
    found: dict[int, tuple[Overlay, np.ndarray]] = {}
    texts, windows, _ = words.ids.shape
    for text, number in there:
        overlay = overlay_of(words.components, parts[number])
        if overlay.text_encoder:
            none = np.zeros((texts, windows), np.float32)
            found.setdefault(id(overlay), (overlay, none))[1][text] = 1.0
    encoder = words.text_encoder
    framework = encoder._framework
    device = framework.device_of(encoder)
    leaves = [words.leaves] if words.leaves else []
    for overlay, rows in found.values():
        deltas = overlay.ready(framework, "text_encoder", encoder.dtype, device)
        scale: Any = 1.0 if rows.all() else framework.array(rows.reshape(-1), device=device)
        leaves.append(scaled(deltas, scale))
    return together(*leaves) if leaves else {}
