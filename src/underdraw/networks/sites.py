"""The typed places inside a UNet call where a control may act.

What acts there is data: a frozen dataclass with arrays as fields and a method, so that an engine
can see its arrays (`backends.tree`). A plain function works, too; an engine that compiles then
compiles for each new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple

from underdraw.backends.contract import Array, Operations
from underdraw.backends.deltas import Deltas, together
from underdraw.errors import ControlError

Hook = Callable[[Operations, str, Array], Any]
"""`(nn, place, value) -> value` of the same shape; `place` is a path of the parameter tree:
`down_blocks.0` of a block, `down_blocks.0.attentions.1.transformer_blocks.0` of the tokens in it,
the same with `.attn1` or `.attn2` of one attention. Where a level attends to the context only
(`only_cross_attention`), `attn1` is cross-attention, too. A hook that wants to know something after
the call returns `Observed(value, extra)`."""
Join = Callable[[Operations, str, Array, Array], tuple[Array, Array]]
"""`(nn, place, hidden, skip) -> (hidden, skip)`."""


class Observed(NamedTuple):
    """What a hook returns that tells something: the value that goes on, and an extra output."""

    value: Array
    extra: Any
    """A tree of arrays."""


class Extra(NamedTuple):
    """An extra output of a call."""

    owner: Any
    """The field `owner` of the hook that gave it; the loop sets it to the control's number."""
    place: str
    value: Any


Extras = list[Extra]
"""Collected while a program runs: a list of its own for each run of it."""


@dataclass(frozen=True)
class UpTo:
    """A hook on attention that wants at most so many queries. Attention over more positions keeps
    its fused kernel: probabilities of 64 x 64 positions alone take half a gigabyte per image."""

    queries: int
    hook: Hook

    def __call__(self, nn: Operations, place: str, x: Array) -> Any:
        return self.hook(nn, place, x)

    @property
    def owner(self) -> Any:
        """That of the hook."""
        return getattr(self.hook, "owner", None)


@dataclass(frozen=True)
class Telling:
    """A hook that changes nothing, and tells what it sees at some places."""

    places: tuple[str, ...]
    owner: Any = field(default=None, metadata={"static": True})

    def __call__(self, nn: Operations, place: str, x: Array) -> Any:
        return Observed(x, x) if place in self.places else x


@dataclass(frozen=True)
class OnRows:
    """A hook that acts on rows `start` to `stop` of a call alone; the others stay as they are."""

    start: int
    stop: int
    hook: Any

    @property
    def owner(self) -> Any:
        """That of the hook."""
        return getattr(self.hook, "owner", None)

    @property
    def queries(self) -> int | None:
        """As many as the hook wants at most; None: any number."""
        return getattr(self.hook, "queries", None)

    def of(self, x: Array) -> Array:
        """The rows."""
        return x[self.start : self.stop]

    def put(self, nn: Operations, x: Array, rows: Array) -> Array:
        """`x` with these rows in place of its own."""
        parts = (x[: self.start], rows, x[self.stop :])
        return nn.concat([part for part in parts if part.shape[0]], 0)

    def __call__(self, nn: Operations, place: str, x: Array) -> Any:
        rows = self.of(x)
        told = self.hook(nn, place, rows)
        value = told.value if isinstance(told, Observed) else told
        check(self.hook, place, value, rows.shape)
        value = x if value is rows else self.put(nn, x, value)
        return told._replace(value=value) if isinstance(told, Observed) else value


@dataclass(frozen=True)
class BesideOnRows(OnRows):
    """The same for `beside_cross_attention`: nothing is added to the other rows."""

    def __call__(self, nn: Operations, place: str, x: Array) -> Array | None:
        told = self.hook(nn, place, self.of(x))
        return None if told is None else self.put(nn, x * 0, told)


@dataclass(frozen=True)
class JoinOnRows(OnRows):
    """The same for `join`."""

    def __call__(self, nn: Operations, place: str, x: Array, skip: Array) -> Any:  # type: ignore[override]
        hidden, skipped = join(nn, (self.hook,), place, self.of(x), self.of(skip))
        return self.put(nn, x, hidden), self.put(nn, skip, skipped)


@dataclass(frozen=True)
class ConvOnRows(OnRows):
    """The same for `conv_in`: the other rows meet the UNet's own first convolution, or what
    replaces it for them."""

    width: int
    kernel: int
    other: Any = None

    def __call__(self, nn: Operations, p: Any, x: Array) -> Array:  # type: ignore[override]
        if self.other is None:
            plain = nn.conv2d(p, x, self.width, self.kernel)
        else:
            plain = self.other(nn, p, x)
        return self.put(nn, plain, self.hook(nn, p, self.of(x)))


@dataclass(frozen=True)
class Sites:
    """What acts inside one UNet call. Nothing is set on the model; what is empty costs nothing."""

    context: tuple[Callable[[Operations, Array], Array], ...] = ()
    """Text context `(batch, tokens, width)` of this call, unconditional rows first (null-text)."""
    model_input: tuple[Callable[[Operations, Array], Array], ...] = ()
    """Latents before the first convolution, to which channels may be added (inpainting)."""
    after_self_attention: tuple[Hook, ...] = ()
    """Tokens `(batch, tokens, width)` after self-attention and its residual (GLIGEN)."""
    self_attention: tuple[Hook, ...] = ()
    """Probabilities `(batch, heads, queries, keys)` of self-attention; `UpTo` bounds queries."""
    cross_attention: tuple[Hook, ...] = ()
    """Probabilities `(batch, heads, queries, keys)` of cross-attention."""
    beside_cross_attention: tuple[Hook, ...] = ()
    """From queries `(batch, heads, tokens, d)` to what is added to the values (IP-Adapter), or None
    where nothing is."""
    down: tuple[Hook, ...] = ()
    """Hidden `(batch, channels, height, width)` after each down block's layers (T2I-Adapter)."""
    join: tuple[Join, ...] = ()
    """Hidden and skip of an up block before they are joined (FreeU)."""
    cross_attention_output: tuple[Hook, ...] = ()
    """What cross-attention adds to the tokens `(batch, tokens, width)`."""
    skip: tuple[Hook, ...] = ()
    """What a skip connection holds, residuals included, at the place that gave it
    (`encoder.skip_places`)."""
    up: tuple[Hook, ...] = ()
    """Hidden before each residual block of the way up, at the block's place."""
    down_residuals: Sequence[Array] | None = None
    """One array per skip connection, added to it (ControlNet)."""
    mid_residual: Array | None = None
    """Added after the middle block (ControlNet)."""
    conv_in: Callable[[Operations, Any, Array], Array] | None = None
    """Replaces the first convolution: `(nn, p.conv_in, x) -> hidden` (GLIGEN's spatial maps)."""
    keys: Hook | None = None
    """From the tokens of self-attention those that they attend to, perhaps fewer (token
    downsampling); where hooks look at probabilities all attend to all."""
    leaves: Deltas = field(default_factory=dict)
    """Differences to layers, by their path (LoRA); keys, values and times that are computed ahead
    have them, too."""
    features: Mapping[str, Array] = field(default_factory=dict)
    """Values by the places of `up` and `skip` that are known, as hooks there leave them: neither
    they nor what nothing else needs is computed, and no hook acts on them again."""
    attended: Mapping[str, Array] = field(default_factory=dict)
    """Values by the places of `cross_attention_output` that are known, likewise."""

    def __add__(self, other: Sites) -> Sites:
        """Both act: hooks run one after another, residuals add up.

        Raises:
            ControlError: both replace the first convolution, choose keys, or know the same value.
        """
        if self.conv_in is not None and other.conv_in is not None:
            raise ControlError("two controls replace the first convolution; only one can")
        if self.keys is not None and other.keys is not None:
            raise ControlError("two controls choose what self-attention attends to; only one can")
        return Sites(
            **{name: getattr(self, name) + getattr(other, name) for name in HOOKS},
            down_residuals=_sum(self.down_residuals, other.down_residuals, _sum_each),
            mid_residual=_sum(self.mid_residual, other.mid_residual, lambda a, b: a + b),
            conv_in=self.conv_in or other.conv_in,
            keys=self.keys or other.keys,
            leaves=_sum(self.leaves or None, other.leaves or None, together) or {},
            features=_either(self.features, other.features),
            attended=_either(self.attended, other.attended),
        )

    @property
    def in_blocks(self) -> bool:
        """Whether anything acts inside transformer blocks."""
        return bool(
            self.after_self_attention
            or self.self_attention
            or self.cross_attention
            or self.beside_cross_attention
            or self.cross_attention_output
            or self.keys
        )

    def owned(self, name: Callable[[Any], Any]) -> Sites:
        """The same, with hooks that know whose they are: extra outputs then tell it. `name` gives
        the owner from the one that a hook has so far, None at first."""
        changes = {
            site: tuple(_owned(hook, name) for hook in getattr(self, site))
            for site in HOOKS
            if getattr(self, site)
        }
        return replace(self, **changes) if changes else self


HOOKS = tuple(f.name for f in fields(Sites) if f.default == ())
"""The sites that hold several hooks."""
NO_SITES = Sites()


def _owned(hook: Any, name: Callable[[Any], Any]) -> Any:
    if isinstance(hook, UpTo | OnRows):
        return replace(hook, hook=_owned(hook.hook, name))
    if is_dataclass(hook) and hasattr(hook, "owner"):
        return replace(hook, owner=name(hook.owner))  # type: ignore[type-var]
    return hook


def owner_field() -> Any:
    """The field `owner` of a hook that tells something: `owner: int | None = owner_field()`."""
    return field(default=None, metadata={"static": True})


def _sum(a: Any, b: Any, add: Callable[[Any, Any], Any]) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return add(a, b)


def _either(a: Mapping[str, Array], b: Mapping[str, Array]) -> Mapping[str, Array]:
    if twice := sorted(set(a) & set(b)):
        raise ControlError(f"two controls know the value at '{twice[0]}'; only one can")
    return {**a, **b} if a and b else a or b


def _sum_each(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def check(who: Any, place: str, returned: Any, shape: Sequence[int | None]) -> None:
    """Raise a `ControlError` unless what a hook returned is an array of the shape that its site
    carries; None: any size."""
    sizes = tuple(returned.shape) if hasattr(returned, "shape") else None
    if (
        sizes is None
        or len(sizes) != len(shape)
        or any(size not in (None, a) for a, size in zip(sizes, shape, strict=True))
    ):
        got = type(returned).__name__ if sizes is None else sizes
        carried = str(tuple(shape)).replace("None", "any")
        raise ControlError(f"{named(who)} at '{place}' returned {got}; the site carries {carried}")


def named(who: Any) -> str:
    """A hook or a control in a message: its repr, or its class where that would print arrays."""
    text = repr(who)
    return text if len(text) <= 80 else type(who).__name__


def wanting(hooks: tuple[Hook, ...], queries: int) -> tuple[Hook, ...]:
    """The hooks that act on attention from so many positions."""
    most = (getattr(hook, "queries", None) for hook in hooks)
    return tuple(h for h, m in zip(hooks, most, strict=True) if m is None or queries <= m)


def apply(
    nn: Operations, hooks: tuple[Hook, ...], place: str, x: Array, extras: Extras | None = None
) -> Array:
    """Run the hooks of one site in order, checking that each keeps the shape."""
    for hook in hooks:
        y = hook(nn, place, x)
        if isinstance(y, Observed):
            y, extra = y
            owner = getattr(hook, "owner", None)
            if extras is not None and owner is None:
                raise ControlError(
                    f"{named(hook)} at '{place}' tells something; such a hook is a dataclass with "
                    "a field `owner: int | None = owner_field()`, which the loop sets"
                )
            if extras is not None:
                extras.append(Extra(owner, place, extra))
        check(hook, place, y, x.shape)
        x = y
    return x


def join(
    nn: Operations, hooks: tuple[Join, ...], place: str, hidden: Array, skip: Array
) -> tuple[Array, Array]:
    """Run the hooks of the site `join` in order, with the same checks."""
    for hook in hooks:
        told = hook(nn, place, hidden, skip)
        if not isinstance(told, tuple | list) or len(told) != 2:
            raise ControlError(
                f"{named(hook)} at '{place}' returned {type(told).__name__}; a tuple of hidden and "
                "skip is needed"
            )
        check(hook, place, told[0], hidden.shape)
        check(hook, place, told[1], skip.shape)
        hidden, skip = told
    return hidden, skip


def add_residual(place: str, x: Array, residual: Array) -> Array:
    """Their sum; a residual may have size 1 where it is the same for all images or positions."""
    sizes, carried = tuple(residual.shape), tuple(x.shape)
    if len(sizes) != len(carried) or any(
        a not in (1, b) for a, b in zip(sizes, carried, strict=True)
    ):
        raise ControlError(f"the residual at '{place}' is {sizes}; the site carries {carried}")
    return x + residual
