"""Ctrl-C and SIGTERM while a run goes on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped before its end, and all of its cells are saved: running it again goes on.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; all cells are saved")
        self.number = number


_early: list[int] = []  # signals since `listening`


@contextmanager
def listening() -> Iterator[None]:
    """SIGINT and SIGTERM raise `RunInterrupted`, and are remembered; to be used in the main thread.

    An import, or a library that is starting, may swallow what was raised: then the run ends as soon as it can be saved.
    """

    def remember(number: int, frame: FrameType | None) -> None:
        _early.append(number)
        raise RunInterrupted(number)

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield
    finally:
        _early.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def first_signal() -> Iterator[Callable[[], int | None]]:
    """Remembers the first SIGINT or SIGTERM, and lets the second one interrupt; yields what asks for its number.

    One that came before, since `listening`, counts as the first.

    Signals reach the main thread alone; in another one nothing is changed.
    """
    seen = _early[:1]

    def remember(number: int, frame: FrameType | None) -> None:
        if seen:
            raise RunInterrupted(number)
        seen.append(number)

    numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda: seen[0] if seen else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
