"""Alternating measurements: two ways of doing the same, turn by turn in one run.

On a shared machine the load changes from minute to minute. Alternating gives both sides the same
share of it, the median ignores the odd slow turn, and the order swaps every turn, so that neither
side always runs on what the other left in the caches.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from underdraw.backends.hardware import fastest_dtype
from underdraw.controls.run import Conditioning, Run
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Engine
from underdraw.sampling.denoiser import Denoiser

SD15_UNET: dict[str, Any] = {"cross_attention_dim": 768, "sample_size": 64}
SD15_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
SD15_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
"""What Stable Diffusion 1.5 sets beside the defaults of its classes."""


@dataclass(frozen=True)
class Comparison:
    """Seconds of ours and of diffusers, medians and minima; `ratio` is ours by theirs."""

    name: str
    ours: float
    peer: float
    ratio: float
    ours_best: float
    peer_best: float
    runs: int
    bar: float | None = None

    def __str__(self) -> str:
        verdict = "" if self.bar is None else f"  bar {self.bar:.2f}"
        if self.bar is not None and self.ratio > self.bar:
            verdict += "  MISSED"
        return (
            f"{self.name:44} ours {self.ours:10.4f}  peer {self.peer:10.4f}  "
            f"ratio {self.ratio:5.2f} (of the best runs {self.ours_best / self.peer_best:5.2f})"
            f"{verdict}"
        )


def compare(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    runs: int = 5,
    bar: float | None = 1.05,
    divide: float = 1,
    clock: Callable[[], float] | None = None,
) -> Comparison:
    """Time two functions in turns, after one call of each. `divide` is how many units of work one
    call does. On one thread processor time is taken: it does not see what others run beside."""
    if clock is None:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    sides = (("ours", ours), ("peer", peer))
    for _, call in sides:
        call()
    taken: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(runs):
        for side, call in sides if turn % 2 == 0 else sides[::-1]:
            start = clock()
            call()
            taken[side].append((clock() - start) / divide)
    return judge(name, taken["ours"], taken["peer"], bar)


def judge(
    name: str, ours: Sequence[float], peer: Sequence[float], bar: float | None = 1.05
) -> Comparison:
    """A comparison of figures taken elsewhere, printed."""
    a, b = statistics.median(ours), statistics.median(peer)
    made = Comparison(name, a, b, a / b, min(ours), min(peer), len(ours), bar)
    print(made, flush=True)
    return made


def report(results: Sequence[Comparison], path: str | None = None) -> None:
    """Print machine, versions and figures as JSON, and write them to `path` if given."""
    text = json.dumps({**machine(), "results": [asdict(each) for each in results]}, indent=1)
    print(text)
    if path:
        Path(path).write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures depend on, the load of other processes included."""
    from importlib.metadata import version

    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": _processor("model name"),
        "flags": " ".join(sorted({*FLAGS} & {*_processor("flags", "Features").split()})),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def _processor(*names: str) -> str:
    """What Linux says of the first processor under one of these names."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(names):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""Of processors: what decides how fast products of float32 and of half precision are."""
TIME, GUIDANCE = 500.0, 7.5
"""Of the step that is measured."""


class OneCall:
    """What the UNet of a run needs of a solver: the times of its calls, here of one."""

    def __len__(self) -> int:
        return 1

    def timestep(self, index: int) -> float:
        return TIME


def run_of(model: Any, context: Any, latents: Any = None, engine: Engine = EAGER) -> Run:
    """A guided run on a context `(2, tokens, width)`, whose unconditional row comes first."""
    halves = Conditioning(context[1:], context[:1])
    return Run(model.nn, model, OneCall(), halves, GUIDANCE, engine=engine, latents=latents)


def stepper(model: Any, context: Any, engine: Engine = EAGER) -> Denoiser:
    """A guided step as the loop makes it: `stepper(latents (1, 4, h, w), 0)`. Keys and values of
    the context and what the blocks make of the time are computed by the first call of it."""
    return Denoiser(run_of(model, context, engine=engine))


def fast_dtypes() -> tuple[torch.dtype, ...]:
    """float32, and bfloat16 where the processor computes in it. Emulated, one convolution took 100
    times as long as in float32 (an EPYC without AVX-512): it says nothing about either side."""
    fast = fastest_dtype("cpu") == "bfloat16"
    return (torch.float32, torch.bfloat16) if fast else (torch.float32,)


def share(ours: torch.nn.Module, peer: torch.nn.Module) -> None:
    """Give diffusers our parameters, the same memory: full-size networks fit twice that way."""
    mine = dict(ours.named_parameters())
    for name, _ in list(peer.named_parameters()):
        path, _, last = name.rpartition(".")
        setattr(peer.get_submodule(path), last, mine[name])


@contextmanager
def quick_initial_values() -> Iterator[None]:
    """Make new layers quickly: PyTorch's own random values take longer than a benchmark."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)
    before = [kind.reset_parameters for kind in kinds]
    for kind in kinds:
        kind.reset_parameters = _small_values  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, method in zip(kinds, before, strict=True):
            kind.reset_parameters = method  # type: ignore[method-assign]


def _small_values(layer: torch.nn.Module) -> None:
    for value in layer.parameters():
        torch.nn.init.uniform_(value, -0.02, 0.02)


def arguments(*flags: str) -> tuple[set[str], str | None]:
    """Flags given on the command line, and the file after `--json`."""
    given, path = sys.argv[1:], None
    if "--json" in given:
        at = given.index("--json")
        path = given[at + 1]
        del given[at : at + 2]
    if unknown := set(given) - set(flags):
        sys.exit(f"unknown {sorted(unknown)}; allowed: {', '.join((*flags, '--json FILE'))}")
    return set(given), path
