"""What ends a Tune run before its last cell: a signal, or an error in the code of ours that Tune calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from ray import tune

Method = TypeVar("Method", bound=Callable[..., Any])


class RunEnd(tune.Stopper):
    """Asks Tune to save all cells and to end.

    Args:
        stop: whether the run is to end early, with its cells saved.
    """

    def __init__(self, stop: Callable[[], bool] = lambda: False) -> None:
        self._stop = stop
        self.error: Exception | None = None  # Tune would wrap it in its traceback, or go on

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles what holds this; nothing ever reads that back."""
        return RunEnd, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tune asks this for every trial: none is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Whether the run is to end."""
        return self.error is not None or self._stop()

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
