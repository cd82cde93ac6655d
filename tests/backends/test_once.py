"""What is made once, also where threads ask for it at the same moment."""

import threading

import pytest

from underdraw.backends.once import once

THREADS = 8


def together(task):
    """Results of a task in threads that begin at the same moment."""
    gate, results = threading.Barrier(THREADS), []

    def work():
        gate.wait(60)
        results.append(task())

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_threads_get_the_same():
    made, slow = [], threading.Event()

    @once
    def make(name):
        made.append(name)
        slow.wait(0.05)  # others come meanwhile
        return object()

    results = together(lambda: make("a"))
    assert len(results) == THREADS and len(set(map(id, results))) == 1
    assert made == ["a"] and make("b") is not results[0]


def test_what_is_made_may_ask_for_another():
    @once
    def make(number):
        return [number] + (make(number - 1) if number else [])

    assert together(lambda: make(5)) == [[5, 4, 3, 2, 1, 0]] * THREADS


def test_a_failure_is_not_kept():
    tries = []

    @once
    def make():
        tries.append(1)
        if len(tries) == 1:
            raise KeyError("first")
        return "second"

    with pytest.raises(KeyError):
        make()
    assert make() == make() == "second" and len(tries) == 2
