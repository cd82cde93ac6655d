"""Deep features that go on along a line: from which calls, how far, and where there is no line."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from engines.runs import ended, unet
from pipelines import tiny

from underdraw import DeepCache
from underdraw.controls.acceleration.presets import mixed
from underdraw.controls.steady import Steady
from underdraw.engines.eager import EAGER
from underdraw.networks.sites import NO_SITES
from underdraw.networks.unet import UNET

STEPS = 11


class Features:
    """Runs programs as they are. Notes what each call of the UNet was given, or else told."""

    def __init__(self):
        self.given, self.told = {}, {}

    def run(self, question):
        made = EAGER.run(question)
        if question.program == UNET:
            index, features = len(self.given) + len(self.told), question.inputs[-1].features
            if features:
                self.given[index] = dict(features)
            else:
                self.told[index] = {extra.place: extra.value for extra in made.extras}
        return made


@dataclass(frozen=True)
class Sometimes(Steady):
    """Somebody else who leaves one call without guidance, or acts up to some call."""

    unguided: int = -1
    end: int = STEPS

    def guides(self, carry, call):
        return call.index != self.unguided

    def active(self, carry, latents, call):
        return call.index < self.end

    def sites_at(self, nn, carry, like, call):
        return NO_SITES


def watched(*others, **how):
    watch = Features()
    controls = mixed((DeepCache(every=3, order=1, **how),)).controls()
    ended(unet(**tiny.DEEP), engine=watch, steps=STEPS, controls=[*controls, *others])
    return watch


def test_features_go_on_along_a_line():
    watch = watched()
    assert list(watch.told) == [0, 3, 6, 9]
    for index, given in watch.given.items():
        last = index - index % 3
        for place, value in given.items():
            now = watch.told[last][place]
            if last == 0:
                assert torch.equal(value, now)  # one point is no line
                continue
            line = now + (now - watch.told[last - 3][place]) * ((index - last) / 3)
            torch.testing.assert_close(value, line)
            assert not torch.allclose(value, now, rtol=1e-4)


def test_the_last_two_calls_may_be_nearer():
    watch = watched(first=2)
    assert list(watch.told) == [0, 1, 3, 6, 9]
    for index, (last, before) in {2: (1, 0), 4: (3, 1), 5: (3, 1), 7: (6, 3)}.items():
        for place, value in watch.given[index].items():
            now, was = watch.told[last][place], watch.told[before][place]
            torch.testing.assert_close(value, now + (now - was) * (index - last) / (last - before))


@pytest.mark.parametrize("what", ["a half", "a control"])
def test_there_is_no_line(what):
    """Through a call that lacked a half, and over one where another control has ended."""
    other = {"a half": Sometimes(unguided=3), "a control": Sometimes(end=6)}[what]
    watch = watched(other)
    # A half that the last whole call did not have is computed with the next guided one.
    assert list(watch.told) == ([0, 3, 4, 6, 9] if what == "a half" else [0, 3, 6, 9])
    kept = {"a half": (5, 4), "a control": (7, 6)}[what]
    for place, value in watch.given[kept[0]].items():
        assert torch.equal(value, watch.told[kept[1]][place])
    last = watch.given[10]
    assert not any(torch.equal(value, watch.told[9][place]) for place, value in last.items())
