"""Prompt-to-prompt: an image is made along with another one whose attention it takes over.

Hertz et al. 2022, "Prompt-to-Prompt Image Editing with Cross Attention Control".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array, Operations
from underdraw.checks import shown
from underdraw.controls.control import Call, Planned, Run
from underdraw.controls.local_blend import attention_to, high, smallest_attention
from underdraw.controls.steady import Steady
from underdraw.errors import ControlError, InputError, InputTypeError
from underdraw.networks.sites import NO_SITES, Observed, Sites, UpTo, owner_field
from underdraw.text.alignment import Words, align, find, words

Range = float | tuple[float, float]
"""From where to where in the run, as shares of it in [0, 1]; a number is the end."""


@dataclass(frozen=True)
class AttentionEdit(Steady):
    """Images of some prompts of a call follow the attention of the image of another one.

        pipe(["a red sphere left of a cube", "a green sphere left of a cube"], seed=7,
             controls=[AttentionEdit()])

    All are made in one batch. Under guidance only the conditional half is edited. Several groups in
    one call, or different settings per image, are several controls. With a solver that adds noise
    give the prompts of a group equal seeds, `seed=[7, 7]`.

    Args:
        source: which of the call's prompts the attention is taken from, counted from 0.
        targets: which ones take it. A prompt may be its own target, to weigh its words.
        mode: "replace": words that stand instead of others take their attention ("word swap",
            eq. 6); "refine": they keep their own, as added words do ("adding a phrase", eq. 7).
        cross: in which part of the run cross-attention is edited.
        cross_of: other parts for words or phrases of the targets, `{"green sphere": 0.5}`.
        self_attention: in which part of the run self-attention is the source's.
        weights: factors for the attention to words or phrases of the targets, `{"fluffy": 3.0}`,
            where `cross` is on ("attention re-weighting", eq. 8).
        blend: words or phrases, of the source or the targets, outside of whose places the latents
            of the source are kept ("local editing"); empty: everywhere the target's.
        blend_steps: in which part of the run they are kept.
        threshold: a place belongs to `blend` where the attention to it, averaged over heads,
            layers and the calls so far, exceeds this share of its largest value.
        positions: self-attention of larger images is left alone, and the places are looked up in
            the largest attention within it; 16 x 16 as in the paper.
        share_noise: begin all images of the group from the latents of the source.
        prompts: texts of the call's prompts, where they are given to it as embeddings.

    Raises:
        InputError, InputTypeError: an argument cannot work; what depends on the prompts is told
            when the call begins, before anything is computed.
    """

    source: int = 0
    targets: tuple[int, ...] = (1,)
    mode: str = "replace"
    cross: Range = 0.8
    cross_of: Mapping[str, Range] | tuple[tuple[str, Range], ...] = ()
    self_attention: Range = 0.4
    weights: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    blend: tuple[str, ...] = ()
    blend_steps: Range = (0.2, 1.0)
    threshold: float = 0.3
    positions: int = 16 * 16
    share_noise: bool = True
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        targets = [self.targets] if isinstance(self.targets, Integral) else self.targets
        targets = checks.sequence("targets", targets, "numbers of prompts")
        keep("targets", tuple(_index("targets", target) for target in targets))
        _index("source", self.source)
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise InputError(
                f"targets={shown(self.targets)} must name at least one prompt, each once"
            )
        checks.choice("mode", self.mode, ("replace", "refine"))
        checks.flag("share_noise", self.share_noise)
        for name in ("cross", "self_attention", "blend_steps"):
            keep(name, _range(name, getattr(self, name)))
        pairs = _pairs(self, "cross_of")
        spans = [(word, _range(f"cross_of[{shown(word)}]", span)) for word, span in pairs]
        keep("cross_of", tuple(spans))
        for word, weight in _pairs(self, "weights"):
            checks.factor(f"weights[{shown(word)}]", weight)
        keep("weights", tuple(_pairs(self, "weights")))
        for name in ("blend", "prompts"):
            listed = getattr(self, name)
            listed = [listed] if isinstance(listed, str) else listed
            listed = checks.sequence(name, listed, "texts")
            if not all(isinstance(text, str) for text in listed):
                raise InputTypeError(f"{name}={shown(listed)} holds something that is no text")
            keep(name, tuple(listed))
        keep("threshold", checks.number("threshold", self.threshold, 0.0, 1.0))
        if _index("positions", self.positions) < 1:
            raise InputError("positions=0 is too small; allowed: 1 or more")
        if self.source in self.targets and not self.weights:
            raise InputError(
                f"targets={shown(self.targets)} holds the source, prompt {self.source}; that "
                "changes something only with weights"
            )

    # -- before the run ---------------------------------------------------------------------------
    def check(self, planned: Planned) -> None:
        """That the prompts are there, and hold the words."""
        prompts = self._texts(planned)
        if planned.ids != ():  # else their tokens are known when they are encoded
            self._edits(planned, prompts, np.asarray)
        if self.blend:
            config, (height, width) = planned.model.config, planned.shape[2:]
            least = smallest_attention(config, height, width)
            if least is None or least > self.positions:
                raise InputError(
                    f"AttentionEdit(positions={self.positions}): no cross-attention of this UNet "
                    "is as small, so that there is nothing to find the places of `blend` in"
                    + ("" if least is None else f"; allowed: {least} or more")
                )

    def prepare(self, run: Run) -> _Carry:
        """What each target takes from the source."""
        planned = run.planned
        prompts = self._texts(planned)
        array = partial(run.framework.array, device=getattr(run.latents, "device", None))
        edits = self._edits(planned, prompts, array)
        return _Carry(run.batch, run.batch // len(prompts), edits, array)

    def _texts(self, planned: Planned) -> Sequence[str]:
        """The prompts of the call."""
        prompts = self.prompts or planned.prompts
        if not prompts:
            raise InputError(
                "prompts: the call has embeddings instead of texts; give their texts to "
                "AttentionEdit(prompts=...)"
            )
        count = len(prompts)
        if planned.images % count:
            raise InputError(f"prompts has {count} entries; the call makes {planned.images} images")
        for row in (self.source, *self.targets):
            if row >= count:
                raise InputError(
                    f"AttentionEdit(source={self.source}, targets={self.targets}): there is no "
                    f"prompt {row}; the call has {count}, counted from 0"
                )
        return prompts

    def _edits(
        self, planned: Planned, prompts: Sequence[str], array: Callable[..., Array]
    ) -> tuple[_Edit, ...]:
        tokenizer = getattr(planned.components, "tokenizer", None)
        if tokenizer is None:
            raise InputError("tokenizer=None; an attention edit needs one to find words")
        plain = planned.components.compat == "diffusers"
        known: Any = planned.ids
        if known is None or len(known) != len(prompts):
            known = (None,) * len(prompts)
        rows = sorted({self.source, *self.targets})
        read = {row: words(tokenizer, prompts[row], plain, known[row]) for row in rows}
        for row, found in read.items():
            if planned.tokens is not None and planned.tokens % found.count:
                raise InputError(
                    f"AttentionEdit: the context has {planned.tokens} tokens, prompt {row} has "
                    f"windows of {found.count}; give `prompts` as the texts the embeddings were "
                    "made from"
                )
        source = read[self.source]
        return tuple(self._edit(tokenizer, source, read[row], row, array) for row in self.targets)

    def _edit(
        self, tokenizer: Any, source: Words, target: Words, row: int, array: Callable[..., Array]
    ) -> _Edit:
        mapping, taken = align(source, target, self.mode == "replace")
        ranges = np.tile(np.array(self.cross, np.float64), (target.count, 1))
        for phrase, span in self.cross_of:
            ranges[_places("cross_of", tokenizer, phrase, target)] = span
        weights = np.ones(target.count, np.float32)
        for phrase, weight in self.weights:
            weights[_places("weights", tokenizer, phrase, target)] = weight
        marks = [np.zeros((prompt.count, 1), np.float32) for prompt in (source, target)]
        for phrase in self.blend:
            found = [find(tokenizer, phrase, prompt) for prompt in (source, target)]
            if not any(found):
                raise _not_there("blend", phrase, source, target)
            for mark, places in zip(marks, found, strict=True):
                mark[places] = 1
        # Not multiplied by where it changes nothing, so that nothing is rounded either.
        same = np.array_equal(mapping, np.eye(len(mapping)))
        return _Edit(
            row,
            target.count,
            None if same else array(mapping),
            taken,
            ranges,
            weights,
            tuple(array(mark) if mark.any() else None for mark in marks),
        )

    # -- in the run -------------------------------------------------------------------------------
    def steady(self) -> bool:
        """Unless it keeps places in mind: what the layers tell of them goes from call to call."""
        kind = type(self)
        own = kind.before_call is Steady.before_call and kind.after_step is AttentionEdit.after_step
        return own and not self.blend

    def before(self, carry: _Carry, call: Call) -> Sequence[_Shared]:
        if call.index != 0 or not self.share_noise:
            return ()
        starts = tuple(carry.start(row) for row in self.targets)
        return (_Shared(carry.start(self.source), starts, carry.images),)

    def sites_at(self, nn: Operations, carry: _Carry, like: Array, call: Call) -> Sites:
        progress, offset = call.progress, carry.batch if call.guided else 0
        source = carry.start(self.source, offset)
        targets = tuple(
            edit.at(progress, carry.start(edit.row, offset), carry.array) for edit in carry.edits
        )
        acts = any(target.takes or target.weights is not None for target in targets)
        cross = CrossEdit(source, carry.images, targets, self.positions, bool(self.blend))
        sites = NO_SITES
        if acts:
            sites = Sites(cross_attention=(cross,))
        elif self.blend:
            sites = Sites(cross_attention=(UpTo(self.positions, cross),))
        if _within(self.self_attention, progress) and set(self.targets) != {self.source}:
            starts = tuple(target.start for target in targets)
            hook = UpTo(self.positions, SelfEdit(source, starts, carry.images))
            sites = sites + Sites(self_attention=(hook,))
        return sites

    def after_step(
        self, nn: Operations, carry: _Carry, latents: Array, call: Call
    ) -> tuple[Array, _Carry]:
        if not self.blend:
            return latents, carry
        carry = carry.remember([seen for extra in call.extras for seen in extra.value])
        if not _within(self.blend_steps, call.progress):
            return latents, carry
        source, edited = carry.rows(latents, self.source), {}
        for number, edit in enumerate(carry.edits):
            masks = [
                high(nn, total, latents.shape[2:], self.threshold)
                for total in carry.maps[number]
                if total is not None
            ]
            inside = masks[0] if len(masks) == 1 else masks[0] + masks[1]
            target = carry.rows(latents, edit.row)
            edited[carry.start(edit.row)] = nn.where(inside > 0, target, source)
        return _replaced(nn, latents, edited), carry


# -- inside a call ---------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Shared:
    """The latents of the targets become those of the source."""

    source: int
    """The first row of the source."""
    targets: tuple[int, ...]
    """The first row of each target."""
    images: int
    """Rows of each."""

    def __call__(self, nn: Operations, latents: Array) -> Array:
        first = latents[self.source : self.source + self.images]
        return _replaced(nn, latents, dict.fromkeys(self.targets, first))


@dataclass(frozen=True, eq=False)
class SelfEdit:
    """The hook on self-attention: that of the targets is the source's."""

    source: int
    """The first row of the source."""
    targets: tuple[int, ...]
    """The first row of each target."""
    images: int
    """Rows of each."""

    def __call__(self, nn: Operations, place: str, x: Array) -> Array:
        rows = x[self.source : self.source + self.images]
        return _replaced(nn, x, dict.fromkeys(self.targets, rows))


class Target(NamedTuple):
    """What happens to the cross-attention of one target in a call."""

    prompt: int
    """Its number among the prompts."""
    start: int
    """Its first row."""
    tokens: int
    mapping: Array | None
    """`(tokens, tokens)`, source by target; None where each takes from the same position."""
    takes: str
    """From the source: "all" tokens, "some" (`taken`), or none, ""."""
    taken: Array | None
    """By token, the share taken from the source."""
    weights: Array | None
    """By token, the factor on its attention."""
    marks: tuple[Array | None, ...]
    """`(tokens, 1)`, 1 at the words of `blend`, in the source and in the target."""


class Seen(NamedTuple):
    """Attention to the words of `blend` in one layer, each `(images, positions)`."""

    target: int
    """Which of the targets."""
    positions: int
    at_source: Array | None
    at_target: Array | None


@dataclass(frozen=True, eq=False)
class CrossEdit:
    """The hook on cross-attention: that of the targets, from the source's (eq. 6 to 8)."""

    source: int
    """The first row of the source."""
    images: int
    """Rows of each."""
    targets: tuple[Target, ...]
    positions: int
    looks: bool
    """Whether attention to the words of `blend` is told, in layers of at most `positions`."""
    owner: int | None = owner_field()

    def __call__(self, nn: Operations, place: str, x: Array) -> Array | Observed:
        source, edited = x[self.source : self.source + self.images], {}
        looks, seen = self.looks and x.shape[2] <= self.positions, []
        for number, target in enumerate(self.targets):
            own = x[target.start : target.start + self.images]
            images, heads, queries, keys = own.shape
            if keys % target.tokens:
                raise ControlError(
                    f"AttentionEdit: the context has {keys} tokens, prompt {target.prompt} has "
                    f"windows of {target.tokens}; give `prompts` as the texts the embeddings were "
                    "made from"
                )
            # Shorter prompts of a call repeat their windows; copies take from copies.
            split = (images, heads, queries, keys // target.tokens, target.tokens)
            own, before = own.reshape(*split), source.reshape(*split)
            after = _taken(nn, target, before, own)
            if target.weights is not None:
                after = after * nn.cast(target.weights, x)
            if looks:
                maps = [
                    None if mark is None else attention_to(nn, mark, map_)
                    for mark, map_ in zip(target.marks, (before, after), strict=True)
                ]
                seen.append(Seen(number, queries, maps[0], maps[1]))
            edited[target.start] = after.reshape(images, heads, queries, keys)
        value = _replaced(nn, x, edited)
        return Observed(value, tuple(seen)) if looks else value


def _taken(nn: Operations, target: Target, source: Array, own: Array) -> Array:
    """The attention of a target with what it takes from the source."""
    if not target.takes:
        return own
    if target.mapping is not None:
        source = nn.matmul(source, nn.cast(target.mapping, source))
    if target.takes == "all":
        return source
    share = nn.cast(target.taken, source)
    return source * share + own * (1 - share)


# -- what a run remembers --------------------------------------------------------------------------
class _Edit(NamedTuple):
    """What is known of one target before the run."""

    row: int
    tokens: int
    mapping: Array | None
    """`(tokens, tokens)`, source by target; None where each takes from the same position."""
    taken: np.ndarray
    ranges: np.ndarray
    weights: np.ndarray
    marks: tuple[Array | None, ...]
    """`(tokens, 1)`, 1 at the words of `blend`, in the source and in the target."""

    def at(self, progress: float, start: int, array: Callable[..., Array]) -> Target:
        """What happens at a call, to the rows from `start` on."""
        on = (self.ranges[:, 0] <= progress) & (progress < self.ranges[:, 1])
        taken, weights = self.taken & on, np.where(on, self.weights, 1).astype(np.float32)
        takes = "all" if taken.all() else "some" if taken.any() else ""
        share = array(taken.astype(np.float32)) if takes == "some" else None
        factors = array(weights) if (weights != 1).any() else None
        return Target(self.row, start, self.tokens, self.mapping, takes, share, factors, self.marks)


class _Carry(NamedTuple):
    batch: int
    images: int
    """Of each prompt; they stand next to each other."""
    edits: tuple[_Edit, ...]
    array: Callable[..., Array]
    maps: tuple[tuple[Array | None, Array | None], ...] = ()
    """By edit, sums over layers and calls of what was seen in the source and the target."""

    def start(self, row: int, offset: int = 0) -> int:
        return offset + row * self.images

    def rows(self, x: Array, row: int, offset: int = 0) -> Array:
        first = self.start(row, offset)
        return x[first : first + self.images]

    def remember(self, told: Sequence[Seen]) -> _Carry:
        """With what this call has seen in its largest layers, which a call that is computed in part
        may leave out."""
        if not told:
            return self
        largest = max((seen.positions for seen in told), default=0)
        maps = list(self.maps or [(None, None)] * len(self.edits))
        for seen in told:
            if seen.positions == largest:
                old = maps[seen.target]
                maps[seen.target] = (_plus(old[0], seen.at_source), _plus(old[1], seen.at_target))
        return self._replace(maps=tuple(maps) if largest else ())


def _replaced(nn: Operations, x: Array, rows: Mapping[int, Array]) -> Array:
    """`x` with others from these rows on, in place of as many of its own."""
    parts, at = [], 0
    for first in sorted(rows):
        if first > at:
            parts.append(x[at:first])
        parts.append(rows[first])
        at = first + rows[first].shape[0]
    if at < x.shape[0]:
        parts.append(x[at:])
    return nn.concat(parts, 0)


def _plus(total: Array | None, more: Array | None) -> Array | None:
    return more if total is None else total if more is None else total + more


def _within(span: Any, progress: float) -> bool:
    return span[0] <= progress < span[1]


# -- checking arguments ----------------------------------------------------------------------------
def _index(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputTypeError(f"{name}={shown(value)} is not a whole number")
    if value < 0:
        raise InputError(f"{name}={shown(value)} is below 0; allowed: 0 or more")
    return int(value)


def _range(name: str, value: Any) -> tuple[float, float]:
    pair = (0.0, value) if isinstance(value, Real) else value
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputTypeError(f"{name}={shown(value)} is neither a number nor two of them")
    low, high = (checks.number(name, end, 0.0, 1.0) for end in pair)
    if low > high:
        raise InputError(f"{name}={shown(value)} ends before it begins")
    return low, high


def _pairs(edit: AttentionEdit, name: str) -> list[tuple[str, Any]]:
    value: Any = getattr(edit, name)
    if isinstance(value, Mapping):
        value = tuple(value.items())
    listed = checks.sequence(name, value, "pairs of word and value")
    if not all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in listed):
        raise InputTypeError(f"{name}={shown(value)} is not a mapping from words")
    return listed


def _places(name: str, tokenizer: Any, phrase: str, prompt: Words) -> list[int]:
    places = find(tokenizer, phrase, prompt)
    if not places:
        raise _not_there(name, phrase, prompt)
    return places


def _not_there(name: str, phrase: str, *prompts: Words) -> InputError:
    told = " or ".join(f"{prompt.prompt!r:.80} ({', '.join(prompt.texts)})" for prompt in prompts)
    return InputError(f"{name}: {phrase!r} is not in {told}")
