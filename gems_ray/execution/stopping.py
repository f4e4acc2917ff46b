"""Ctrl-C and SIGTERM end the work of this process in good order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody wants this process to stop; called between two steps of its work."""

    def __init__(self) -> None:
        self.signal: int | None = None  # number of the signal

    def __call__(self) -> bool:
        """True after the first signal."""
        return self.signal is not None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Remembers the first SIGINT or SIGTERM, so that the work can be saved; the second one is a KeyboardInterrupt.

    Only the main thread of a program gets signals: in any other thread the request is never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if request():
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
