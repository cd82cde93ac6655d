"""What diffusers' pipelines gave in whole calls: two thirds of the time of a comparison is theirs.

`scripts/record_peers.py` writes `tests/data/peers.npz`: for each call some values of each image.
They count only for the versions of the packages and for the weights that they were made with;
otherwise, and for one call in five, chosen by the name of its test, diffusers runs. With
`UNDERDRAW_PEERS=live` it always does.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE = Path(__file__).parents[2] / "data" / "peers.npz"
PEERS = ("diffusers", "transformers")
HOW = os.environ.get("UNDERDRAW_PEERS", "recorded")
""" "recorded", "live" or "record"."""
ALWAYS_LIVE = 5
"""One call in so many."""
PLACES = 256
"""Values of an image that are kept."""
DRAWN = 1e-4
"""How far sums of weights may differ, of their size: not all processors draw the same bits."""

made: dict[str, tuple[float, np.ndarray]] = {}
"""What is being recorded: weights and images by the name of the call."""
_calls: Counter[str] = Counter()


def beside(peer: Callable[[], np.ndarray], pipe: Any, ours: np.ndarray) -> Any:
    """What diffusers gives, and `pipe` gave, `(images, ...)`: all of both, or the same values."""
    name = _name()
    if HOW == "record":
        theirs = peer()
        made[name] = _weights(pipe), theirs
        return theirs, ours
    entry = _known().get(name)
    if entry is None or abs(entry["weights"] / _weights(pipe) - 1) > DRAWN:
        return peer(), ours
    assert list(ours.shape) == entry["shape"]
    return entry["values"], _some(ours)


def write() -> None:
    """`made`, as the file."""
    index, values, start = {}, [], 0
    for name, (weights, images) in made.items():
        if not _live(name):
            kept = _some(images).astype(np.float32).ravel()
            index[name] = {"shape": images.shape, "weights": weights, "start": start}
            values.append(kept)
            start += len(kept)
    told = json.dumps({"versions": {name: version(name) for name in PEERS}, "calls": index})
    np.savez_compressed(FILE, index=np.array(told), values=np.concatenate(values))


def _name() -> str:
    """Test and number of the call in it."""
    file, _, test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0].partition("::")
    name = f"{file.rpartition('/')[2]}::{test}"
    _calls[name] += 1
    return f"{name} {_calls[name]}"


def _live(name: str) -> bool:
    return zlib.crc32(name.encode()) % ALWAYS_LIVE == 0


@cache
def _known() -> dict[str, dict[str, Any]]:
    """The calls of the file, if it is of the packages that are installed."""
    if HOW != "recorded" or not FILE.exists():
        return {}
    with np.load(FILE) as held:
        told, values = json.loads(str(held["index"])), held["values"]
    if told["versions"] != {name: version(name) for name in PEERS}:
        return {}
    for entry in told["calls"].values():
        count, *size = entry["shape"]
        kept = min(PLACES, int(np.prod(size)))
        entry["values"] = values[entry["start"] :][: count * kept].reshape(count, kept)
    return {name: entry for name, entry in told["calls"].items() if not _live(name)}


def _some(images: np.ndarray) -> np.ndarray:
    """Some values of each image, `(images, PLACES)`: always the same places."""
    flat = images.reshape(len(images), -1)
    if flat.shape[1] <= PLACES:
        return flat
    places = np.random.default_rng(0).choice(flat.shape[1], PLACES, replace=False)
    return flat[:, np.sort(places)]


_SUMS: dict[int, float] = {}


def _weights(pipe: Any) -> float:
    """A number for all weights of a pipeline; pipelines that are compared live as long as tests."""
    if id(pipe) not in _SUMS:
        parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        sizes = [p.detach().double().abs().sum() for part in parts for p in part.parameters()]
        _SUMS[id(pipe)] = float(sum(sizes))
    return _SUMS[id(pipe)]
