"""Several calls at once: streams of pipelines that share a UNet share each call of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from underdraw.engines.batch import Batch
from underdraw.engines.engine import Engine, Question
from underdraw.errors import InputTypeError
from underdraw.pipelines.call.stream import Progress, Stream


class Batched(Generator[tuple[int, Progress], None, None]):
    """Streams that go on together; see `batched`."""

    def __init__(self, streams: Iterable[Stream] = ()) -> None:
        self.streams: list[Stream] = []
        """All that ever took part, by number."""
        self.errors: dict[int, Exception] = {}
        """By number what ended a stream before its time."""
        self._asked: dict[int, Question | None] = {}
        """The streams still running, and what each of them waits for."""
        self._engines: list[tuple[Engine, Batch]] = []
        for stream in streams:
            self.add(stream)
        self._going = self._go()

    def add(self, stream: Stream) -> int:
        """Let one more stream take part from the next tick on; its number.

        Raises:
            InputTypeError: it is no stream of a pipeline.
        """
        if not isinstance(stream, Stream):
            raise InputTypeError(
                f"streams holds {type(stream).__name__}; allowed: what pipe.stream(...) gives"
            )
        self.streams.append(stream)
        number = len(self.streams) - 1
        self._asked[number] = None
        return number

    def drop(self, number: int) -> None:
        """End one stream; the others go on."""
        self._asked.pop(number, None)
        self.streams[number].close()

    def send(self, value: None) -> tuple[int, Progress]:
        """The next step of some stream, and the stream's number."""
        return next(self._going)

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> tuple[int, Progress]:
        """End all streams; the error goes on from here."""
        self.close()
        raise kind if value is None else value

    def close(self) -> None:
        """End all streams."""
        self._going.close()
        for number in list(self._asked):
            self.drop(number)

    def _go(self) -> Generator[tuple[int, Progress], None, None]:
        while self._asked:
            # A tick: each stream goes to its next question, then one call answers all.
            for number in list(self._asked):
                yield from self._to_question(number)
            self._answer()
        if self.errors:
            raise next(iter(self.errors.values()))

    def _to_question(self, number: int) -> Generator[tuple[int, Progress], None, None]:
        """The steps of a stream up to its next question, or its end."""
        while number in self._asked and self._asked[number] is None:
            try:
                item = self.streams[number].ask()
            except StopIteration:
                self._asked.pop(number, None)
            except Exception as error:
                self._fail(number, error)
            else:
                if isinstance(item, Question):
                    self._asked[number] = item
                else:
                    yield number, item

    def _answer(self) -> None:
        """Answer all questions, those for one engine together."""
        by_engine: dict[int, list[int]] = {}
        for number, question in self._asked.items():
            if question is not None:
                by_engine.setdefault(id(self.streams[number].pipe.engine), []).append(number)
        for numbers in by_engine.values():
            batch = self._batch(self.streams[numbers[0]].pipe.engine)
            questions: list[Any] = [self._asked[number] for number in numbers]
            for number, answer in zip(numbers, batch.run_all(questions), strict=True):
                if isinstance(answer, Exception):
                    self._fail(number, answer)
                else:
                    self.streams[number].answer(answer)
                    self._asked[number] = None

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


def batched(streams: Iterable[Stream]) -> Batched:
    """Run several streams at once: at each tick one call of the UNet serves all of them.

        runs = underdraw.batched([pipe.stream("a sphere", seed=1), edit.stream(photo, ...)])
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
