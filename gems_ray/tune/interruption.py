"""Ctrl-C and SIGTERM end a Tune run in good order."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Tune's own handler for SIGINT stays behind after a run and swallows the next Ctrl-C. It always listens to SIGUSR1.
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Remembers the first signal, and lets the second one through; yields whether there was one."""
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, remember) for number in (*SIGNALS, signal.SIGUSR1)}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_tune() -> None:
    """Tells the Tune run of this process to save its state and to end."""
    os.kill(os.getpid(), signal.SIGUSR1)
