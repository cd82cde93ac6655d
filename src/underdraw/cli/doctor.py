"""`underdraw doctor`: what this machine has, what fits on it, and which settings to take."""

from __future__ import annotations

from typing import Annotated

import typer

EXTRAS = (
    ("jax", "every pipeline on JAX"),
    ("mindspore", "every pipeline on MindSpore"),
    ("openvino", "engine='openvino', a compiler for CPUs"),
    ("transformers", "captions, judging"),
    ("cv2", "OpenCV; edges are found without it, too"),
    ("diffusers", "to compare with"),
)
"""Packages that some things need, and what for."""
NETWORKS = {"UNet": 860e6, "text encoder": 123e6, "autoencoder": 84e6}
"""Parameters of Stable Diffusion 1.5."""
SIDE, CHANNELS, WIDEST, FACTOR = 512, 320, 128, 8
WAYS = (
    ("float32", 4.0, 4, "dtype='float32'"),
    ("bfloat16, float16", 2.0, 2, "dtype='auto'"),
    ("int8 weights, float32", 1.05, 4, "pipe.quantize('int8')"),
)
"""How networks are held: name, bytes of a weight, bytes of a number, and how it is asked for."""


def doctor(
    size: Annotated[
        int, typer.Option(min=64, max=8192, help="Side of the pictures, in pixels.")
    ] = SIDE,
) -> None:
    """Tell what this machine has, what fits on it, and which settings to take."""
    for line in report(size):
        typer.echo(line)


def report(side: int) -> list[str]:
    """The lines of it."""
    import platform

    from underdraw import __version__
    from underdraw.backends import hardware, machine
    from underdraw.engines.auto import choice_for
    from underdraw.pipelines.call.memory import ROOM, size

    cpu, memory = machine.processor(), machine.host_memory()
    lines = [
        f"underdraw {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"processor: {cpu.name}, {cpu.cores} cores for this process; {', '.join(cpu.flags) or '-'}",
    ]
    if memory is not None:
        lines.append(f"memory: {size(memory[0])}, {size(memory[1])} free")
    version, found = machine.accelerators()
    listed = [f"{device} ({name}, {size(held)})" for device, name, held in found]
    lines.append(f"PyTorch {version}: {', '.join(['cpu', *listed])}")
    for name, purpose in EXTRAS:
        lines.append(f"{name}: {_version(name) or 'not installed'} ({purpose})")
    device = hardware.resolve_device(None)
    room = machine.free_memory(device)
    best, why = hardware.dtype_choice(device)
    engine, because = choice_for("torch", device)
    lines += [
        f"dtype='auto' takes {best} on {device}: {why}",
        f"engine='auto' takes {engine} on {device}: {because}",
    ]
    if _version("jax") is not None:
        engine, because = choice_for("jax", device)
        lines.append(f"engine='auto' with backend='jax' takes {engine}: {because}")
    lines += ["", f"Stable Diffusion 1.5, a picture of {side} x {side}, on {device}:"]
    fitting = []
    for name, weight, number, how in WAYS:
        for cut, words, more in ((False, "", ""), (True, ", in bands", SEAMLESS)):
            needed = _needs(side, weight, number, cut)
            fits = room is None or needed <= ROOM * room
            fitting += [(name, how, more)] if fits else []
            lines.append(f"  {name}{words}: about {size(needed)}{'' if fits else ', too much'}")
    lines += ["", "settings:", *(f"  {one}" for one in _advice(device, best, fitting, bool(found)))]
    return lines


SEAMLESS = "pipe.enable_vae_tiling(seamless=True)"


def _needs(side: int, weight: float, number: int, in_bands: bool) -> float:
    from underdraw.pipelines.call.memory import DECODING, IN_BANDS, STEP

    rest = NETWORKS["text encoder"] + NETWORKS["autoencoder"]
    held = NETWORKS["UNet"] * weight + rest * number
    step = 2 * (side // FACTOR) ** 2 * CHANNELS * number * STEP
    decoding = side**2 * WIDEST * number * (IN_BANDS if in_bands else DECODING)
    return held + max(step, decoding)


def _advice(
    device: str, best: str, fitting: list[tuple[str, str, str]], accelerated: bool
) -> list[str]:
    """What to write, the best first."""
    if not fitting:
        if accelerated:
            return ["pipe.enable_sequential_cpu_offload(), the least there is"]
        return ["smaller pictures, or a smaller model (docs/few_steps.md)"]
    plain = [one for one in fitting if not one[2]]
    name, how, more = (plain or fitting)[0]
    wanted = next((one for one in (plain or fitting) if best in one[0]), (name, how, more))
    told = [f"{wanted[1]} fits" + (f" with {wanted[2]}" if wanted[2] else "")]
    if device == "cpu":
        told.append("`underdraw bench` times the engines (docs/engines.md)")
        told.append("few steps: an LCM-LoRA with pipe.solver = 'lcm' (docs/few_steps.md)")
    else:
        told.append("engine='compiled' pays from some calls on (docs/engines.md)")
    return told


def _version(package: str) -> str | None:
    from importlib import util
    from importlib.metadata import PackageNotFoundError, version

    if util.find_spec(package) is None:
        return None
    try:
        return version({"cv2": "opencv-python-headless"}.get(package, package))
    except PackageNotFoundError:
        return "installed"
