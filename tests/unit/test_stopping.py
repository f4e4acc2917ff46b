"""The first signal is remembered, the second one ends the work at once."""

import os
import signal
import threading

import pytest

from gems_ray.execution.stopping import stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_gets_through(number):
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == number
    assert signal.getsignal(number) is before


def test_a_thread_takes_no_signals():
    found = []

    def work():
        with stop_signals() as stop:
            found.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
