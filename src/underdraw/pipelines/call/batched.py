"""Several calls at once: streams of pipelines that share a UNet share each call of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from underdraw import checks
from underdraw.engines.batch import Batch
from underdraw.engines.engine import Engine, Question
from underdraw.errors import InputError, InputTypeError
from underdraw.pipelines.call.stream import Progress, Stream


class Batched(Generator[tuple[int, Progress], None, None]):
    """Streams that go on together; see `batched`."""

    def __init__(self, streams: Iterable[Stream] = ()) -> None:
        self.streams: list[Stream] = []
        """All that ever took part, by number."""
        self.errors: dict[int, Exception] = {}
        """By number what ended a stream before its time."""
        self._live: list[int] = []
        """Numbers of the streams still running."""
        self._ended = False
        self._engines: list[tuple[Engine, Batch]] = []
        if not isinstance(streams, Iterable) or hasattr(streams, "shape"):
            raise InputTypeError(f"streams={checks.shown(streams)} is not a list of streams")
        for stream in streams:
            self.add(stream)
        self._going = self._go()

    def __repr__(self) -> str:
        return f"<Batched: {len(self._live)} of {len(self.streams)} streams going on>"

    def add(self, stream: Stream) -> int:
        """Let one more stream take part from the next tick on; its number.

        Raises:
            InputTypeError: it is no stream of a pipeline.
            InputError: it takes part already, or all others have come to their end.
        """
        if not isinstance(stream, Stream):
            raise InputTypeError(
                f"streams holds {type(stream).__name__}; allowed: what pipe.stream(...) gives"
            )
        for number, known in enumerate(self.streams):
            if known is stream:
                raise InputError(f"streams holds one stream twice; it is number {number} already")
        if self._ended:
            raise InputError("stream: these runs have ended; allowed: new ones, by `batched`")
        self.streams.append(stream)
        self._live.append(len(self.streams) - 1)
        return self._live[-1]

    def drop(self, number: int) -> None:
        """End one stream; the others go on.

        Raises:
            InputError, InputTypeError: there is none of this number.
        """
        self.streams[checks.whole("number", number, 0, len(self.streams) - 1)].close()
        self._leave(number)

    def send(self, value: None) -> tuple[int, Progress]:
        """The next step of some stream, and the stream's number."""
        return next(self._going)

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> tuple[int, Progress]:
        """End all streams; the error goes on from here."""
        self.close()
        raise kind if value is None else value

    def close(self) -> None:
        """End all streams."""
        self._ended = True
        for number in list(self._live):
            self.drop(number)

    def _go(self) -> Generator[tuple[int, Progress], None, None]:
        try:
            while self._live:
                # A tick: each stream goes to its next question, then one call answers all.
                for number in list(self._live):
                    yield from self._to_question(number)
                self._answer()
            if self.errors and not self._ended:
                raise next(iter(self.errors.values()))
        finally:  # also of a KeyboardInterrupt
            self.close()

    def _to_question(self, number: int) -> Generator[tuple[int, Progress], None, None]:
        """The steps of a stream up to its next question, or its end."""
        stream = self.streams[number]
        while number in self._live and stream.asked is None:
            try:
                item = stream.ask()
            except StopIteration:
                self._leave(number)
            except Exception as error:
                self._fail(number, error)
            else:
                if not isinstance(item, Question):
                    yield number, item

    def _answer(self) -> None:
        """Answer all questions, those for one engine together."""
        by_engine: dict[int, list[int]] = {}
        waiting = {number: self.streams[number].asked for number in self._live}
        for number, question in waiting.items():
            if question is not None:
                by_engine.setdefault(id(self.streams[number].pipe.engine), []).append(number)
        for numbers in by_engine.values():
            batch = self._batch(self.streams[numbers[0]].pipe.engine)
            questions: list[Any] = [waiting[number] for number in numbers]
            for number, answer in zip(numbers, batch.run_all(questions), strict=True):
                stream = self.streams[number]
                if stream.asked is not waiting[number]:
                    continue  # it was dropped meanwhile
                if isinstance(answer, Exception):
                    self._fail(number, answer)
                else:
                    stream.answer(answer)

    def _batch(self, engine: Engine) -> Batch:
        """The engine that joins calls for another one, always the same."""
        for known, batch in self._engines:
            if known is engine:
                return batch
        self._engines.append((engine, Batch(engine)))
        return self._engines[-1][1]

    def _fail(self, number: int, error: Exception) -> None:
        self.errors[number] = error
        self.drop(number)

    def _leave(self, number: int) -> None:
        if number in self._live:
            self._live.remove(number)


def batched(streams: Iterable[Stream]) -> Batched:
    """Run several streams at once: at each tick one call of the UNet serves all of them.

        streams = [pipe.stream("a sphere", seed=1), edit.stream("a cube", photo, mask)]
        runs = underdraw.batched(streams)
        for which, step in runs:
            step.preview()[0].save(f"{which}.png")
        runs.streams[0].output.images[0]

    The streams may be of different pipelines that share a UNet (`from_pipe`), and differ in steps,
    solver, guidance, length of prompts and controls. Latents of another size, or another UNet, are
    other calls. Each stream gives what it gives alone, up to rounding. `runs.add(stream)` lets one
    join, `runs.drop(number)` leaves one out, at any time.

    Raises:
        InputTypeError: something else than a stream. While it runs: the first error that ended a
            stream, once all others are done; `runs.errors` holds each, by number, at once.
    """
    return Batched(streams)
