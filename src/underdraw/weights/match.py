"""Strict matching of the tensors of a checkpoint with the names and shapes a network asks for."""

import re
from collections.abc import Iterable, Mapping, Sequence

from underdraw.errors import WeightError
from underdraw.formats.stored import StoredTensor, check_sizes
from underdraw.weights.known_keys import FOLDERS, Known, Rename, Rules, reason

SHOWN = 5  # names per kind of fault in an error message


def match_network(
    network: str,
    expected: Mapping[str, Sequence[int]],
    found: Mapping[str, StoredTensor],
    source: str = "",
) -> dict[str, StoredTensor]:
    """`match` with what is known about a network: a key of `known_keys.FOLDERS` ("unet", ...)."""
    rules = FOLDERS.get(network, Rules())
    return match(expected, found, rules.ignored, rules.renames, source)


def match(
    expected: Mapping[str, Sequence[int]],
    found: Mapping[str, StoredTensor],
    ignored: Iterable[Known] = (),
    renames: Iterable[Rename] = (),
    source: str = "",
) -> dict[str, StoredTensor]:
    """The tensors under exactly the expected names, in their order, each of the expected shape.

    A found name that is not expected is renamed where a rule of `renames` leads to an expected name
    that is still free, and dropped where `ignored` lists it. Weights that differ only in trailing
    ones (1x1 convolution or linear layer) are reshaped.

    Raises WeightError, naming `source`, with all that is missing, left over, of another shape or
    not of floating-point numbers; also where a small file shows large tensors.
    """
    ignored, renames = tuple(ignored), tuple(renames)
    matched = {name: tensor for name, tensor in found.items() if name in expected}
    left = []
    for name, tensor in found.items():
        if name in expected:
            continue
        wanted = _renamed(name, renames, expected, matched)
        if wanted is not None:
            matched[wanted] = tensor
        elif reason(ignored, name) is None:
            left.append(name)
    missing = [name for name in expected if name not in matched]
    wrong = []
    result = {}
    for name, shape in expected.items():
        if name not in matched:
            continue
        shape, tensor = tuple(shape), matched[name]
        if "float" not in tensor.dtype:  # a cast would make numbers of what are none
            wrong.append(f"{name} holds {tensor.dtype}")
            continue
        if tensor.shape != shape:
            if not _same_but_ones(tensor.shape, shape):
                wrong.append(f"{name} is {list(tensor.shape)}, wanted {list(shape)}")
                continue
            tensor = tensor.reshape(shape)
        result[name] = tensor
    if missing or left or wrong:
        raise WeightError(_message(source, len(expected), missing, left, wrong))
    check_sizes(result.values())
    return result


def _renamed(name: str, renames: Sequence[Rename], expected: Mapping, taken: Mapping) -> str | None:
    for rule in renames:
        candidate, hits = re.subn(rf"\A(?:{rule.pattern})\Z", rule.by, name)
        if hits and candidate in expected and candidate not in taken:
            return candidate
    return None


def _same_but_ones(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """A linear weight (out, in) against a 1x1 convolution (out, in, 1, 1), either way round."""
    rank = min(len(shape), len(wanted))
    same = rank == 2 and shape[:2] == wanted[:2]
    return same and all(n == 1 for n in shape[2:] + wanted[2:])


def _message(source: str, count: int, missing: list[str], left: list[str], wrong: list[str]) -> str:
    parts = [
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}" + (", ..." if names[SHOWN:] else "")
        for names, what in ((missing, "missing"), (left, "left over"), (wrong, "of another kind"))
        if names
    ]
    where = f"{source}: " if source else ""
    return f"{where}the weights do not fit the network ({count} tensors wanted): " + "; ".join(
        parts
    )
