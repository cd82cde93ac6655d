"""The exceptions underdraw raises. Each is also the builtin exception users already catch."""


class UnderdrawError(Exception):
    """Base of everything underdraw raises on purpose."""


class InputError(UnderdrawError, ValueError):
    """An argument has a value that cannot work; the message names it and what is allowed."""


class InputTypeError(UnderdrawError, TypeError):
    """An argument has a type that cannot work; the message names it and what is allowed."""


class WeightError(UnderdrawError, ValueError):
    """A checkpoint is damaged, or does not fit the network it was meant for."""


class ControlError(UnderdrawError, ValueError):
    """A control broke its contract, for example by changing the shape at a site."""


class NotFoundError(UnderdrawError, FileNotFoundError):
    """A folder, file or Hub repository is not there."""


class OutOfMemoryError(UnderdrawError, MemoryError):
    """Memory did not suffice; the message says what a call needs, and which settings need less."""


class NonFiniteError(UnderdrawError, ArithmeticError):
    """NaN or infinity came out of a network; a black picture is never returned instead."""


class NotExpressibleError(InputError):
    """A program asks for numbers where there are none yet, so no graph can be made of it."""
