"""Ctrl-C, SIGTERM and errors of our own callbacks end a Tune run in good order."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, TypeVar, cast

# Tune's own handler for SIGINT stays behind after a run and swallows the next Ctrl-C. It always listens to SIGUSR1.
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Method = TypeVar("Method", bound=Callable[..., Any])


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


class FirstError:
    """The first error of a callback. Tune would wrap it in its traceback, or start an ended cell again for ever."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles what holds this; nothing ever reads that back."""
        return FirstError, ()

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raises the error when Tune has ended because of it."""
        try:
            yield
        except Exception:
            if self.error is None:
                raise
        if self.error is not None:
            raise self.error


def no_error_leaves(value: Any) -> Callable[[Method], Method]:
    """A method that Tune calls, of a class with `errors`: its error is kept there, and ends the run.

    Args:
        value: returned after an error.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.errors.error is not None:
                return value
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self.errors.error = error
                end_tune()
                return value

        return cast(Method, call)

    return decorate
