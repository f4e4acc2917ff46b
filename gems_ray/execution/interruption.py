"""Ctrl-C and SIGTERM while a run goes on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped before its end, and all of its cells are saved: running it again goes on.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; all cells are saved")
        self.number = number


@contextmanager
def first_signal() -> Iterator[Callable[[], int | None]]:
    """Remembers the first SIGINT or SIGTERM, and lets the second one interrupt; yields what asks for its number.

    Signals reach the main thread alone; in another one nothing is changed.
    """
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if seen:
            raise RunInterrupted(number)
        seen.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda: seen[0] if seen else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
