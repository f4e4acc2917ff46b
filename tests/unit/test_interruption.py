"""The first signal is remembered, the second one ends the work at once."""

import contextlib
import os
import signal
import threading

import pytest

from gems_ray.execution.interruption import RunInterrupted, first_signal, listening


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_gets_through(number):
    before = signal.getsignal(number)
    with first_signal() as received:
        assert received() is None
        os.kill(os.getpid(), number)
        assert received() == number
        with pytest.raises(RunInterrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert received() == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_was_swallowed_is_not_lost(number):
    """As an import does that catches whatever is raised in it."""
    before = signal.getsignal(number)
    with listening():
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            pytest.fail("the signal raises")
        with first_signal() as received:
            assert received() == number
    assert signal.getsignal(number) is before
    with first_signal() as received:
        assert received() is None


def test_a_thread_takes_no_signals():
    found = []

    def work():
        with first_signal() as received:
            found.append(received())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
