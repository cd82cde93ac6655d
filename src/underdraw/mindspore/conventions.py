"""What calls are like in mindone: they give tuples unless an object is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from typing import Any, Literal, Protocol, TypeVar, overload

from underdraw import checks
from underdraw.arguments import dtype
from underdraw.errors import InputError

Out = TypeVar("Out", covariant=True)
Bare = TypeVar("Bare", covariant=True)

BACKEND = "mindspore"


class Tupling(Protocol[Out, Bare]):
    """A method that gives a tuple (`Bare`) unless it is told otherwise, as type checkers see it."""

    @overload
    def __call__(self, *args: Any, return_dict: Literal[True], **kwargs: Any) -> Out: ...
    @overload
    def __call__(self, *args: Any, return_dict: Literal[False] = False, **kwargs: Any) -> Bare: ...


def plain_type(output_type: Any) -> Any:
    """mindone's name of an output type as it is called elsewhere."""
    return "pt" if isinstance(output_type, str) and output_type == "ms" else output_type


def tupled(method: Callable[..., Any]) -> Any:
    """The method with `return_dict=False` by default, and with `output_type="ms"` for arrays
    ("pt" elsewhere). What `pipe.stream` runs follows it."""
    told = signature(method)
    names = list(told.parameters)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        listed, named = list(args), dict(kwargs)
        if len(listed) <= names.index("return_dict"):
            named.setdefault("return_dict", False)
        if "output_type" in named:
            named["output_type"] = plain_type(named["output_type"])
        place = names.index("output_type") if "output_type" in names else len(listed)
        if place < len(listed):
            listed[place] = plain_type(listed[place])
        return listed, named

    def following(function: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            listed, named = read(args, kwargs)
            return function(*listed, **named)

        return call

    made: Any = following(method)
    if hasattr(method, "steps"):
        made.steps = following(getattr(method, "steps"))  # noqa: B009
    changed = [
        one.replace(default=False, annotation="bool") if name == "return_dict" else one
        for name, one in told.parameters.items()
    ]
    made.__signature__ = told.replace(parameters=changed, return_annotation="tuple[Any, ...]")
    made.__annotations__ = {
        one.name: one.annotation for one in changed if one.annotation is not Parameter.empty
    } | {"return": "tuple[Any, ...]"}
    return made


def without_device(method: Callable[..., Any]) -> Any:
    """The method without the argument `device` among those by position: MindSpore has one device
    for the process."""
    told = signature(method)
    place = list(told.parameters).index("device")

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        between = [None] if len(args) > place else []
        return method(*args[:place], *between, *args[place:], **kwargs)

    kept = [one for name, one in told.parameters.items() if name != "device"]
    call.__signature__ = told.replace(parameters=kept)  # type: ignore[attr-defined]
    return call


def here(mindspore_dtype: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a loading method, with mindone's name for the dtype, and on MindSpore.

    Raises:
        InputError: another backend is wanted, or two dtypes.
        InputTypeError: `mindspore_dtype` is no dtype.
    """
    backend = on_mindspore(options.get("backend", BACKEND))
    if mindspore_dtype is None:
        return {**options, "backend": backend}
    dtype("mindspore_dtype", mindspore_dtype)
    for name in ("dtype", "torch_dtype"):
        if options.get(name) is not None:
            raise InputError(f"mindspore_dtype and {name} are both given; only one of them can be")
    return {**options, "backend": backend, "dtype": mindspore_dtype}


def on_mindspore(backend: Any) -> str:
    """The backend of this room.

    Raises:
        InputError: it is another.
    """
    if not isinstance(backend, str) or backend != BACKEND:
        raise InputError(
            f"backend={checks.shown(backend)}: what underdraw.mindspore has is on MindSpore; the "
            "same names of underdraw are on every backend"
        )
    return BACKEND
