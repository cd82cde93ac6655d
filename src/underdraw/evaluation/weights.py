"""Weights of the evaluation's own networks: a safetensors file with the widths in its header."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from underdraw.backends.torch_weights import tensor
from underdraw.errors import NotFoundError, WeightError
from underdraw.formats.json_text import parse
from underdraw.weights.files import open_checkpoint
from underdraw.weights.save import save_tensors

if TYPE_CHECKING:
    from .network import Network

Kind = TypeVar("Kind", bound="Network")
FOLDER = Path(__file__).parent.parent / "assets" / "evaluator"


def read_network(path: Path, kind: type[Kind], what: str) -> Kind:
    """The network of a file, its batch norms folded.

    Raises:
        NotFoundError: there is no such file.
        WeightError: it holds something else than weights of `what`, or values that are not finite.
    """
    import torch

    if not os.path.isfile(path):
        raise NotFoundError(f"{path}: there are no {what} weights")
    try:
        held = open_checkpoint(path)
        widths = parse(held.metadata["widths"], "widths")
        state = {name: tensor(stored).float().clone() for name, stored in held.tensors.items()}
        with torch.device("meta"):  # so that widths cost nothing that no weights have
            network = kind(tuple(widths), norm=False)
        network.load_state_dict(state, assign=True)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise WeightError(f"{path} does not hold {what} weights: {error}") from error
    if not all(np.isfinite(value.numpy()).all() for value in state.values()):
        raise WeightError(f"{path} holds values that are not finite")
    return network.eval()


def write_network(network: Any, path: Path, config: Any) -> None:
    """In half precision, with the settings that made it in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().half().contiguous().numpy() for k, v in network.state_dict().items()}
    made = {"widths": json.dumps(network.widths), "made": json.dumps(asdict(config))}
    save_tensors(path, state, made)
