"""A pickle interpreter over a closed world: plain values, torch's tensor records, and stubs.

Python's own unpickler calls whatever a file names. This one calls nothing: a name becomes a
`Stub` that remembers what was done with it, except for the few names in `MEANINGS`, which build
plain records. Values a file can make are only those below, so nothing of this process can be
reached or changed, whatever the opcodes say.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from underdraw.formats.stored import MAX_NAME, NUMPY_DTYPES, Window, are_indices, possible

MAX_STEPS = 1_000_000
"""Opcodes of one program: a tensor takes 25, and a checkpoint of training has 5,000 of them."""
MAX_COPIES = 4_000_000
"""Values that calls may copy together: `torch.Size(list)` of one long list many times."""
MAX_PROGRAM = 1 << 25
"""Bytes of a program (names and shapes only): 32 MB. Those of Stable Diffusion have 0.3."""


class PickleError(Exception):
    """The file is damaged or refused; the message is a sentence that follows the file's name."""


# Nobody writes these into a checkpoint but to run code on the reader's machine. Anything else
# unknown (training callbacks, configs, numpy scalars) becomes a stub and is forgotten.
_MODULES = """
os posix nt subprocess sys shutil socket runpy pty importlib ctypes webbrowser pip pdb bdb timeit
cProfile pickle _pickle cPickle marshal shelve imp zipimport pkgutil commands http urllib urllib2
requests ftplib smtplib
"""
_BUILTINS = """
eval exec compile open __import__ execfile input breakpoint globals locals vars delattr setattr exit
quit help apply reload file
"""
REFUSED_MODULES = frozenset(_MODULES.split())
REFUSED_NAMES = frozenset(
    f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS.split()
) | frozenset(
    "io.open io.open_code io.FileIO _io.open _io.open_code _io.FileIO codecs.open "
    "operator.attrgetter operator.methodcaller torch.load torch.hub.load".split()
)

DTYPES = {  # names in module torch -> ours
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "cfloat": "complex64",
    "cdouble": "complex128",
    **{name: name for name in NUMPY_DTYPES},
}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


@dataclass(eq=False, slots=True)
class Stub:
    """Stands for something that was not made: the name, and what it was given."""

    name: str
    args: Any = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    def parts(self) -> Iterator[Any]:
        """What may hold tensors: items set, elements added, attributes restored."""
        yield from (self.items, self.elements)
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:  # (dict, slots)
            yield from (half for half in state if isinstance(half, dict))
        elif isinstance(state, dict):
            yield state


@dataclass(frozen=True)
class Global:
    """A name the file mentions, not looked up anywhere."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A run of `count` numbers that tensors share, under a key of the container."""

    dtype: str
    key: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * NUMPY_DTYPES[self.dtype].itemsize

    @staticmethod
    def named(kind: Any, key: Any, count: Any) -> "Storage":
        if not isinstance(kind, Global) or not (
            kind.name.startswith("torch.") and kind.name.split(".")[-1] in STORAGES
        ):
            raise PickleError(f"stores numbers of an unknown type: {_short(kind)}")
        if type(key) not in (str, int) or not _is_key(key) or not are_indices((count,)):
            raise PickleError("damaged: a storage without key or size")
        return Storage(STORAGES[kind.name.split(".")[-1]], str(key), count)


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """What torch needs to rebuild a tensor: a window (in numbers of `dtype`) on a storage."""

    storage: Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None = None) -> Any:
    if not isinstance(storage, Storage):
        raise PickleError(f"a tensor without numbers of its own: {_short(storage)}")
    numbers = are_indices((offset,)) and are_indices(size) and are_indices(stride)
    if not numbers or len(size) != len(stride) or not possible(size):
        raise PickleError("damaged: a tensor with an impossible shape")
    return LazyTensor(storage, dtype or storage.dtype, offset, tuple(size), tuple(stride))


def _tensor_v2(storage, offset, size, stride, *rest) -> Any:
    if len(rest) > 2 and rest[2]:  # conjugate or negative views, only of complex numbers
        raise PickleError("complex views are not read")
    return _tensor(storage, offset, size, stride)


def _tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, *rest) -> Any:
    name = dtype.name if isinstance(dtype, Global) else ""
    if not name.startswith("torch.") or name[6:] not in DTYPES:
        raise PickleError(f"numbers of type {_short(dtype)} are not read")
    return _tensor(storage, offset, size, stride, DTYPES[name[6:]])


def _mapping(*args: Any) -> Any:
    pairs = args[-1] if args else ()
    if isinstance(pairs, (dict, Global)):
        return dict(pairs) if isinstance(pairs, dict) else {}
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and _is_key(pair[0])}


# The closed list of names that mean something; all are plain constructors of this file.
MEANINGS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,
}


SUBCLASS = "torch._tensor._rebuild_from_type_v2"
"""Its arguments are another call, and the class that the outcome would get."""


def copied(args: tuple[Any, ...]) -> int:
    """How many values a call may copy: those in its arguments."""
    containers = (value for value in args if isinstance(value, tuple | list | dict | str | bytes))
    return sum(map(len, containers))


def call(function: Any, args: tuple[Any, ...]) -> Any:
    """What `function(*args)` means here; a stub for everything not in `MEANINGS`."""
    if not isinstance(function, Global):
        return Stub(f"the result of {_short(function)}", args)
    if function.name not in MEANINGS:
        return Stub(function.name, args)
    try:
        return MEANINGS[function.name](*args)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise PickleError(f"damaged: {function.name} with wrong arguments") from error


def name_of(module: Any, name: Any) -> Global:
    """A mention of `module.name`; refused where it can only be there to run code."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleError("damaged: a name that is not text")
    if len(module) + len(name) > MAX_NAME:
        raise PickleError(f"damaged: it names something of {len(module) + len(name):,} characters")
    full = f"{module}.{name}"
    if module.split(".")[0] in REFUSED_MODULES or full in REFUSED_NAMES:
        raise PickleError(
            f"refused: it names {full[:80]!r}, which a checkpoint has no use for: reading it the "
            "usual way would run code. Nothing was run; do not trust this file"
        )
    return Global(full)


def _is_key(key: Any) -> bool:
    if isinstance(key, (str, bytes)):
        return len(key) <= MAX_NAME
    return isinstance(key, (int, float, type(None)))


def _short(value: Any) -> str:
    name = value.name if isinstance(value, (Stub, Global)) else type(value).__name__
    return name[:80]


MARK = object()
PASSIVE = {"PROTO", "FRAME"}
CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list, "EMPTY_TUPLE": tuple}
_VALUES = """
INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE
BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
"""
VALUES = frozenset(_VALUES.split())  # opcodes whose argument is the value


class Machine:
    """Carries out one pickle program. `storage` turns a persistent id into a Storage."""

    def __init__(self, storage: Callable[[Any], Any]):
        self.storage = storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copies = 0

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        while isinstance(function, Global) and function.name == SUBCLASS and len(args) > 2:
            self.spend(1)
            if not isinstance(args[2], tuple):
                return Stub(_short(args[1]))
            function, args = args[0], args[2]
        self.spend(copied(args))
        return call(function, args)

    def spend(self, copies: int) -> None:
        self.copies += copies
        if self.copies > MAX_COPIES:
            raise PickleError(f"no checkpoint's: its calls copy more than {MAX_COPIES:,} values")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise PickleError("damaged: a value is missing")
        return value

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise PickleError("damaged: a mark is missing")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def fill(self, target: Any, pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise PickleError("damaged: a key without a value")
        items = target.items if isinstance(target, Stub) else target
        if not isinstance(items, dict):
            raise PickleError("damaged: items for something that takes none")
        # Keys of other kinds (classes, tuples) never name a tensor.
        items.update((k, v) for k, v in zip(pairs[::2], pairs[1::2], strict=True) if _is_key(k))

    def extend(self, target: Any, values: list[Any]) -> None:
        elements = target.elements if isinstance(target, Stub) else target
        if not isinstance(elements, list):
            raise PickleError("damaged: elements for something that takes none")
        elements.extend(values)

    def step(self, op: str, arg: Any) -> None:
        """One opcode; the names are those of `pickletools`."""
        stack = self.stack
        if op in VALUES:
            if type(arg) is int and arg.bit_length() > 256:
                raise PickleError(f"damaged: a whole number of {arg.bit_length():,} bits")
            stack.append(arg)
        elif op in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[arg])
        elif op in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif op == "MARK":
            stack.append(MARK)
        elif op in CONSTANTS:
            stack.append(CONSTANTS[op])
        elif op in EMPTY:
            stack.append(EMPTY[op]())
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            values = [self.pop() for _ in range(int(op[-1]))]
            stack.append(tuple(reversed(values)))
        elif op in ("TUPLE", "LIST", "FROZENSET"):
            values = self.pop_to_mark()
            stack.append(tuple(values) if op == "TUPLE" else values)
        elif op == "DICT":
            pairs = self.pop_to_mark()
            stack.append({})
            self.fill(stack[-1], pairs)
        elif op in ("SETITEM", "SETITEMS"):
            value = [self.pop()] if op == "SETITEM" else []
            pairs = [self.pop(), *value] if value else self.pop_to_mark()
            self.fill(stack[-1], pairs)
        elif op in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [self.pop()] if op == "APPEND" else self.pop_to_mark()
            self.extend(stack[-1], values)
        elif op == "POP":
            stack.pop()
        elif op == "POP_MARK":
            self.pop_to_mark()
        elif op == "DUP":
            stack.append(stack[-1])
        elif op in ("BINPERSID", "PERSID"):
            stack.append(self.storage(self.pop() if op == "BINPERSID" else arg))
        elif op not in PASSIVE:
            self.construct(op, arg)

    def construct(self, op: str, arg: Any) -> None:
        """The opcodes by which a pickle names and calls things."""
        stack = self.stack
        if op == "GLOBAL":
            stack.append(name_of(*arg.split(" ", 1)))
        elif op == "STACK_GLOBAL":
            name, module = self.pop(), self.pop()
            stack.append(name_of(module, name))
        elif op in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            _ = self.pop() if op == "NEWOBJ_EX" else None  # keyword arguments
            args, function = self.pop(), self.pop()
            if not isinstance(args, tuple):
                raise PickleError("damaged: a call without a tuple of arguments")
            stack.append(self.call(function, args))
        elif op == "BUILD":
            state = self.pop()
            if isinstance(stack[-1], Stub):  # attributes of dictionaries and tensors do not matter
                stack[-1].state = state
        elif op == "INST":
            args = tuple(self.pop_to_mark())
            stack.append(self.call(name_of(*arg.split(" ", 1)), args))
        elif op == "OBJ":
            function, *args = self.pop_to_mark()
            stack.append(self.call(function, tuple(args)))
        else:  # extension registry, out-of-band buffers
            raise PickleError(f"uses pickle opcode {op}, which torch.save never writes")


def run(program: Any, start: int, storage: Callable[[Any], Any]) -> tuple[Any, int]:
    """Carry out the pickle at byte `start` of `program`; its value, and where the next byte is."""
    file: Any = Window(program, start, MAX_PROGRAM)
    machine = Machine(storage)
    try:
        for steps, (opcode, arg, _) in enumerate(pickletools.genops(file)):
            if steps >= MAX_STEPS or file.tell() - start > MAX_PROGRAM:
                most = f"{MAX_STEPS:,} steps or {MAX_PROGRAM:,} bytes"
                raise PickleError(f"no checkpoint's: a pickle of over {most}")
            if opcode.name == "STOP":
                return machine.pop(), file.tell()
            machine.step(opcode.name, arg)
    except PickleError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, MemoryError) as error:
        raise PickleError(f"truncated or damaged pickle ({error!s:.200})") from error
    raise PickleError("truncated: the pickle has no end")
