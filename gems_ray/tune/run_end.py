"""What ends a trial before its cell has ended: a signal, an error in the code of ours that Tune calls, other runs."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from ray import tune

Method = TypeVar("Method", bound=Callable[..., Any])

LONGEST_SAVING_S = 30.0  # for the cells to be saved when the run is to end


class RunEnd(tune.Stopper):
    """Lets Tune save and end every trial at its next report, and then the run.

    Args:
        stop: whether the run is to end early, with its cells saved.
    """

    def __init__(self, stop: Callable[[], bool] = lambda: False) -> None:
        self._stop = stop
        self._waits_for: set[str] | None = None  # cells that were at work when the run was to end
        self._latest = 0.0
        self.gives_way: Callable[[str], bool] = lambda name: False  # whether a cell is to leave its place to other runs
        self.unsaved: Callable[[], Collection[str]] = set  # names of the cells that are at work
        self.error: Exception | None = None  # Tune would wrap it in its traceback, or go on

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles what holds this; nothing ever reads that back."""
        return RunEnd, ()

    @property
    def stopping(self) -> bool:
        """Whether the run is to end, so that no cell begins any more."""
        return self.error is not None or self._stop()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tune asks this at every report of a trial: one that is stopped by it is saved first."""
        return self._stop() or self.gives_way(result["config"]["cell"])

    def stop_all(self) -> bool:
        """Whether Tune is to end all trials now, in the state in which they were saved last."""
        if self.error is not None or not self._stop():
            return self.error is not None
        if self._waits_for is None:
            self._waits_for, self._latest = set(self.unsaved()), time.monotonic() + LONGEST_SAVING_S
        return self._waits_for.isdisjoint(self.unsaved()) or time.monotonic() > self._latest

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


def error_ends_run(value: Any) -> Callable[[Method], Method]:
    """For a method that Tune calls, of a class with a `RunEnd` as `end`: the first error in any of them ends the run.

    Args:
        value: returned after an error.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.end.error is None:
                try:
                    return method(self, *args, **kwargs)
                except Exception as error:
                    self.end.error = error
            return value

        return cast(Method, call)

    return decorate
