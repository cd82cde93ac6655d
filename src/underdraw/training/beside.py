"""Work for the cores of a machine while this process keeps an accelerator busy."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from underdraw.errors import UnderdrawError
from underdraw.scenes import stream

Work = Callable[[], Any]
"""Can be pickled, as what it returns can."""
START = "spawn"
"""How the process begins: it must know nothing of devices and threads of this one."""
_NICE = 10
_PATIENCE = 5.0
"""Seconds in which the process ends when it is told to; then it is killed."""


@dataclass(frozen=True)
class Made:
    """What a work gave, and the seconds it took."""

    seconds: float
    value: Any


class Beside:
    """Works, done one after the other by a process of its own that goes after this one; they may
    start processes themselves. All of them end with the block.

    When a work fails, or the process dies, the main thread is interrupted as by Ctrl-C, so that a
    training saves what it has; `fault` then tells why, and `until` and `wait` raise it. Inside the
    block that is so, too, where Ctrl-C is ignored, as scripts have it for what they start in the
    background.
    """

    def __init__(self, works: Mapping[str, Work]) -> None:
        self.made: dict[str, Made] = {}
        self.fault: str | None = None
        self._names, self._closed = list(works), False
        self._changed = threading.Condition()
        self._main = threading.current_thread() is threading.main_thread()
        self._process: Any = None
        self._ignored = False
        if not works:
            return
        context: Any = multiprocessing.get_context(START)
        self._hears, tells = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(dict(works), tells))
        self._process.start()
        tells.close()  # so that the pipe ends with the process
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Beside:
        if self._main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            self._ignored = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.close()
        finally:
            if self._ignored:
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    def until(self, there: Callable[[], bool]) -> None:
        """Wait for something that the process does, looked at some times a second.

        Raises:
            UnderdrawError: a work has failed.
        """
        while True:
            with self._changed:
                self.check()
                if there():
                    return
                self._changed.wait(0.2)

    def wait(self, name: str) -> Made:
        """What a work gave, once it has ended. Raises as `until`."""
        self.until(lambda: name in self.made)
        return self.made[name]

    def check(self) -> None:
        """Raise an UnderdrawError if a work has failed."""
        if self.fault is not None:
            raise UnderdrawError(self.fault)

    def close(self) -> None:
        """End the process and those it has started."""
        with self._changed:
            self._closed = True
        if self._process is None:
            return
        self._process.terminate()
        self._process.join(_PATIENCE)
        with suppress(ProcessLookupError, PermissionError):  # what is left of its group
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._listener.join()

    def _listen(self) -> None:
        """Take in what the process tells until it ends."""
        while True:
            try:
                # Processes that it has forked may keep the pipe open longer than it lives.
                while not self._hears.poll(0.2):
                    if not self._process.is_alive() and not self._hears.poll():
                        raise EOFError
                name, told = self._hears.recv()
            except (EOFError, OSError):
                break
            with self._changed:
                if isinstance(told, Made):
                    self.made[name] = told
                else:
                    self.fault = f"{name} failed: {told}"
                self._changed.notify_all()
        self._process.join()
        with self._changed:
            missing = [name for name in self._names if name not in self.made]
            if missing and self.fault is None and not self._closed:
                code = self._process.exitcode
                self.fault = f"{missing[0]} failed: its process ended with exit code {code}"
            self._changed.notify_all()
            if self.fault is not None and self._main and not self._closed:
                _thread.interrupt_main()


def _work(works: Mapping[str, Work], tells: Any) -> None:
    """The life of the process."""
    os.setpgrp()  # Ctrl-C is for the one that trains, which then ends this one
    with suppress(OSError):
        os.nice(_NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # leaves nothing half-made
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "fork" in multiprocessing.get_all_start_methods():
        stream.START = "fork"  # here no framework has begun to work
    for name, work in works.items():
        began = time.monotonic()
        try:
            value = work()
        except Exception as error:  # whatever it is, the other process is to tell it
            kind = "" if isinstance(error, UnderdrawError) else f"{type(error).__name__}: "
            tells.send((name, f"{kind}{error}"))
            return
        tells.send((name, Made(round(time.monotonic() - began, 1), value)))


def _end_with_parent() -> None:
    """A process that nobody waits for any more ends, however its parent came to its end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(os.getpgrp(), signal.SIGKILL)
