"""A graph of values compiled for the CPU, called with arrays, kept in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import prod
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from underdraw.backends.once import once
from underdraw.backends.openvino_values import WEIGHT, Value

MAGIC = b"RR_UPCVO"
"""How a compiled graph begins; in files that OpenVINO writes a line of text stands before it."""
HEADER = 4096
"""Bytes in which that line ends."""
ALIGNED = 64
"""Bytes, of which a constant in a file begins at a multiple."""
PART = 1 << 20
"""Numbers that become float32 at a time."""
GROUP = 32
"""Inputs of a product that share a scale, where they are rounded to 8 bits."""

Settings = Mapping[str, Any]
"""Properties of the CPU plugin."""


@once
def core() -> Any:
    """What compiles; it holds threads, so there is one."""
    return ov.Core()


def version() -> str:
    """Of OpenVINO, the build included."""
    return str(ov.__version__)


def capabilities() -> list[str]:
    """What the processor computes in by itself, such as "FP32" and "BF16"."""
    return list(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def processor() -> str:
    """What is compiled for: its name and what it computes in."""
    return f"{core().get_property('CPU', 'FULL_DEVICE_NAME')} {capabilities()}"


def settings(bfloat16: bool, threads: int, eight_bits: bool = False) -> dict[str, Any]:
    """Properties for calls one after another: exact products in float32, or those of bfloat16; with
    matrices in 8 bits exact, too, or with inputs in 8 bits."""
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "EXECUTION_MODE_HINT": "PERFORMANCE" if bfloat16 or eight_bits else "ACCURACY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if eight_bits else 0,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # two graphs at work in two threads would share one core
    }


def model(inputs: Sequence[Value], outputs: Sequence[Value]) -> Any:
    """The graph between values."""
    build: Any = ov.Model  # whose types are wrong in its stubs
    return build([value.node for value in outputs], [value.node.get_node() for value in inputs])


def described(graph: Any) -> str:
    """A hash of operations, their attributes, connections and constants. Of weights, names and
    shapes; their numbers are the caller's to tell apart."""
    order = graph.get_ordered_ops()
    numbers = {node.get_name(): str(i) for i, node in enumerate(order)}
    seen = blake2b(digest_size=20)
    for node in order:
        sources = [
            f"{numbers[port.get_node().get_name()]}.{port.get_index()}"
            for port in node.input_values()
        ]
        kind, name = node.get_type_name(), node.get_friendly_name()
        seen.update(f"{kind} {sorted(node.get_attributes().items())} {sources}\n".encode())
        if kind == "Constant":
            weight = name.startswith(WEIGHT)
            seen.update(
                name.encode() if weight else np.ascontiguousarray(node.get_data()).tobytes()
            )
    for port in graph.inputs:
        seen.update(numbers[port.get_node().get_name()].encode())
    return seen.hexdigest()


class Compiled:
    """A compiled graph. Threads may call it at the same time."""

    def __init__(self, compiled: Any, holds: Any = None) -> None:
        self._compiled: Any = compiled
        self._holds = holds
        """What the graph computes with and must outlive it: weights, or a mapped file."""
        self._free: list[Any] = []

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, in memory of their own, for inputs in the order of the graph's."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        for i, array in enumerate(arrays):
            request.set_input_tensor(i, ov.Tensor(array, shared_memory=True))
        request.infer()
        made = [tensor.data.copy() for tensor in request.output_tensors]
        self._free.append(request)
        return made

    def release(self) -> None:
        """Let go of everything; it cannot be called again."""
        self._free, self._compiled, self._holds = [], None, None


def compiled(graph: Any, how: Settings, holds: Any) -> Compiled:
    """The graph compiled; `holds` is what its constants share memory with."""
    return Compiled(core().compile_model(graph, "CPU", dict(how)), holds)


def compiled_into(
    graph: Any, how: Settings, holds: Any, folder: Path
) -> tuple[Compiled, Path | None]:
    """The same, and the file in `folder`, where there was none before, that holds what was
    compiled."""
    made = compiled(graph, {**how, "CACHE_DIR": str(folder)}, holds)
    written = sorted(folder.glob("*.blob"))
    return made, written[0] if len(written) == 1 else None


def widened(graph: Any, folder: Path) -> Any:
    """Let a graph read its weights of 16 bits in float32, from a new file in `folder`; the mapping
    of that file (copy-on-write), which the graph must not outlive, or None where there are no such
    weights. The file has no name and is this user's alone; its room on the disk is free again when
    nothing holds the mapping, however the process ends.

    OpenVINO would make float32 of all of them at once in memory of its own, and keep it beside what
    it prepares: three times a network's bytes in bfloat16. Of a file the system can let go.

    Raises:
        OSError: the file cannot be written; the graph is as it was.
    """
    weights = [node for node in graph.get_ordered_ops() if _widens(node)]
    if not weights:
        return None
    begins = []
    with TemporaryFile(dir=folder) as file:
        for node in weights:
            begins.append(file.seek(-(-file.tell() // ALIGNED) * ALIGNED))
            for part in _float32(node.input_value(0).get_node()):
                file.write(part.data)
        file.flush()
        mapped = mmap(file.fileno(), 0, access=ACCESS_COPY)
    for node, begin in zip(weights, begins, strict=True):
        narrow = node.input_value(0).get_node()
        shape = tuple(narrow.get_output_shape(0))
        numbers = np.frombuffer(mapped, np.float32, prod(shape), begin).reshape(shape)
        wide = op.constant(numbers, shared_memory=True)
        wide.set_friendly_name(narrow.get_friendly_name())
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(wide.output(0))
    return mapped


def _widens(node: Any) -> bool:
    """Whether a node is a weight of 16 bits in float32."""
    if node.get_type_name() != "Convert":
        return False
    source = node.input_value(0).get_node()
    return (
        source.get_type_name() == "Constant"
        and source.get_friendly_name().startswith(WEIGHT)
        and source.get_element_type() in (ov.Type.f16, ov.Type.bf16)
    )


def _float32(constant: Any) -> Iterator[np.ndarray]:
    """The numbers of a constant of 16 bits, part after part, in memory that the next part takes."""
    half = constant.get_element_type() == ov.Type.f16
    numbers = constant.data.reshape(-1).view(np.float16 if half else np.uint16)
    memory = np.empty(min(PART, numbers.size), np.float32)
    for begin in range(0, numbers.size, PART):
        part = numbers[begin : begin + PART]
        made = memory[: part.size]
        if half:
            made[:] = part
        else:  # the bits of bfloat16 are the upper half of those of float32
            np.left_shift(part, 16, out=made.view(np.uint32), dtype=np.uint32)
        yield made


def loaded(mapped: Any, how: Settings) -> Compiled:
    """What was compiled into a file, from its mapping (copy-on-write); weights stay in it.

    Raises:
        ValueError: it is not such a file, or one of another processor or version.
    """
    start = mapped[:HEADER].find(MAGIC)
    if start < 0:
        raise ValueError("not a compiled graph")
    # Not a read-only view: OpenVINO takes writable memory alone. It does not write into it.
    view = np.frombuffer(mapped, np.uint8)[start:]
    try:
        made = core().import_model(ov.Tensor(view, shared_memory=True), "CPU", dict(how))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return Compiled(made, mapped)
