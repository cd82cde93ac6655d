"""Types of methods with `return_dict`: an output object, or a tuple where it is False.

Such a method is written with `return_dict: Literal[True] = True`, for its arguments are told once,
and this says the rest: `returning` here, `streamed` for the calls of pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Signature, signature
from typing import Any, Concatenate, Literal, Protocol, TypeVar, cast, overload

from typing_extensions import ParamSpec

Given = ParamSpec("Given")
Out = TypeVar("Out", covariant=True)
Bare = TypeVar("Bare", covariant=True)


class Returning(Protocol[Given, Out, Bare]):
    """A method as type checkers see it; what runs is a plain function.

    With `return_dict=False` the other arguments are not checked: no checker can add one keyword to
    a list of arguments.
    """

    @overload
    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Out: ...
    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **kwargs: Any) -> Bare: ...
    @overload
    def __call__(self, *args: Any, return_dict: bool, **kwargs: Any) -> Out | Bare: ...

    @overload
    def __get__(self, owner: None, kind: Any) -> Callable[..., Any]: ...
    @overload
    def __get__(self, owner: object, kind: Any) -> Returning[Given, Out, Bare]: ...


def returning(
    method: Callable[Concatenate[Any, Given], Out | tuple[Any, ...]],
) -> Returning[Given, Out, tuple[Any, ...]]:
    """The method itself, for type checkers one that returns what `return_dict` says."""
    show(method, method.__annotations__.get("return", Signature.empty))
    return cast(Any, method)


def show(function: Any, returns: Any, like: Callable[..., Any] | None = None) -> None:
    """Let `inspect` and notebooks see what a function takes (as `like`) and returns."""
    told = signature(like or function)
    parameters = [
        one.replace(annotation=str(one.annotation).replace("Literal[True]", "bool"))
        if name == "return_dict"
        else one
        for name, one in told.parameters.items()
    ]
    function.__signature__ = told.replace(parameters=parameters, return_annotation=returns)
    named = {one.name: one.annotation for one in parameters if one.annotation is not one.empty}
    function.__annotations__ = {**named, "return": returns}
