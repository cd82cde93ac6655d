"""Random scenes: the split keeps its word, streams are in order, workers change nothing."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from underdraw.errors import UnderdrawError
from underdraw.scenes import (
    has_reserved_pair,
    is_reserved,
    render_many,
    sample_scene,
    scene_at,
    scene_rng,
    stream,
)
from underdraw.scenes.vocabulary import COLOURS, SHAPES

FORKS = pytest.mark.filterwarnings("ignore:.*fork\\(\\)")
"""JAX, which other tests may have imported, warns of what it does not see: these children do not
compute by it."""


def test_about_one_pair_in_sixteen_is_reserved():
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    reserved = [(a, b) for a in kinds for b in kinds if a < b and is_reserved(a, b)]
    assert 0.03 < len(reserved) / (len(kinds) * (len(kinds) - 1) / 2) < 0.1
    assert all(is_reserved(b, a) for a, b in reserved)


def test_the_splits_do_not_share_pairs():
    for index in range(150):
        assert not has_reserved_pair(scene_at(0, index))
        held_out = scene_at(0, index, split="held_out")
        assert len(held_out.objects) == 1 or has_reserved_pair(held_out)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_count_is_kept_and_objects_differ(count):
    for index in range(20):
        objects = scene_at(1, index, count).objects
        assert len({(o.colour, o.shape) for o in objects}) == count


def test_both_sizes_and_all_names_occur():
    objects = [o for index in range(200) for o in scene_at(2, index).objects]
    for name, values in (("colour", COLOURS), ("shape", SHAPES), ("size", ("small", "large"))):
        seen = [getattr(o, name) for o in objects]
        assert all(seen.count(v) > 0.5 * len(seen) / len(values) for v in values)


def test_a_stream_is_its_parts():
    whole = list(render_many(0, 0, 5, 64, 80))
    parts = [*render_many(0, 0, 2, 64, 80), *render_many(0, 2, 3, 64, 80)]
    for a, b in zip(whole, parts, strict=True):
        assert a.scene == b.scene and a.caption == b.caption
        np.testing.assert_array_equal(a.rendering.image, b.rendering.image)


def test_workers_change_nothing():
    alone = list(render_many(0, 10, 3, 64, 64))
    shared = list(render_many(0, 10, 3, 64, 64, workers=2))
    for a, b in zip(alone, shared, strict=True):
        assert a.scene == b.scene and a.caption == b.caption
        np.testing.assert_array_equal(a.rendering.image, b.rendering.image)


def _killed_at_five(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@FORKS
def test_nobody_waits_for_a_process_that_was_killed(monkeypatch):
    monkeypatch.setattr(stream, "START", "fork")
    assert list(stream.in_order(abs, range(-70, 0), 2)) == list(range(70, 0, -1))
    with pytest.raises(UnderdrawError, match="one of 2 processes that make examples was killed"):
        list(stream.in_order(_killed_at_five, range(70), 2))


def _is_killed_while_others_work_for_it():
    asked = stream.in_order(time.sleep, [0.01] * 999, 2)
    next(asked)
    os.kill(os.getpid(), signal.SIGKILL)


@FORKS
def test_processes_end_with_the_one_they_work_for(monkeypatch):
    monkeypatch.setattr(stream, "START", "fork")
    reads, writes = os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_is_killed_while_others_work_for_it
    )
    process.start()
    os.close(writes)  # they have it, too, as long as they live
    process.join()
    with open(reads, "rb") as pipe:
        assert select.select([pipe], [], [], 20)[0] and pipe.read() == b""


def test_bad_arguments_are_refused():
    for call, message in (
        (lambda: scene_at(0, 0, 5), "count=5"),
        (lambda: scene_at(0, 0, 0), "count=0"),
        (lambda: scene_rng(-1, 0), "seed=-1"),
        (lambda: scene_rng(0, 0.5), "index=0.5"),
        (lambda: sample_scene(np.random.default_rng(0), split="test"), "split='test'.*held_out"),
        (lambda: render_many(0, 0, -1), "count=-1"),
        (lambda: render_many(0, 0, 1, workers=0), "workers=0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_scenes_load_no_framework():
    code = (
        "import sys, underdraw.scenes, underdraw.scenes.draw;"
        "assert not {'torch', 'jax', 'mindspore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
