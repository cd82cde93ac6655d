"""Everything for the first time, in eight threads at once: a process of its own runs it
(`test_first_use`), for a first time comes once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

THREADS = 8
BACKENDS = sys.argv[1:]


def together(task: Callable[[int], Any]) -> list[Any]:
    gate, results, errors = threading.Barrier(THREADS), [None] * THREADS, []

    def work(i: int) -> None:
        try:
            gate.wait(120)
            results[i] = task(i)
        except BaseException as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    if errors:
        raise SystemExit(f"{len(errors)} of {THREADS} threads failed: {errors[0]}")
    return results


def one(values: list[Any]) -> Any:
    """What all threads have got, which is the same object."""
    assert all(value is values[0] for value in values), values
    return values[0]


def imported(_: int) -> Any:
    import underdraw

    return underdraw.StableDiffusionPipeline


def network(backend: str) -> Any:
    from underdraw.models import AutoencoderKL

    small = {"block_out_channels": (4,), "norm_num_groups": 2, "layers_per_block": 1}
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return type(AutoencoderKL(**small, **kinds, backend=backend))


def main() -> None:
    sys.setswitchinterval(1e-5)
    one(together(imported))
    for backend in BACKENDS:
        one(together(lambda _, backend=backend: network(backend)))

    import torch
    from pipelines import tiny

    torch.set_num_threads(1)
    call = {"num_inference_steps": 2, "output_type": "np", "height": 40, "width": 72}
    expected = [tiny.run(tiny.pipeline(unet=tiny.ONE_LEVEL), **call, seed=i) for i in range(2)]
    for offload in (None, "cpu", "cpu:0"):
        pipe = tiny.pipeline(unet=tiny.ONE_LEVEL)
        if offload is not None:
            pipe.enable_model_cpu_offload(device=offload)
        made = together(lambda i, pipe=pipe: tiny.run(pipe, **call, seed=i % 2))
        for i, images in enumerate(made):
            assert (images == expected[i % 2]).all(), (offload, i)
    print("the same everywhere")


if __name__ == "__main__":
    main()
