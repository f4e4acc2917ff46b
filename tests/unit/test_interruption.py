"""The first signal is remembered, the second one ends the work at once."""

import os
import signal
import threading

import pytest

from gems_ray.execution.interruption import RunInterrupted, first_signal


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


def test_a_thread_takes_no_signals():
    found = []

    def work():
        with first_signal() as received:
            found.append(received())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
