"""A small process beside a run that ends what is left of Ray if the run dies, and tells how to go on.

Ray's C++ part ends a driver at once when its raylet or its GCS is lost, and nothing of Python is asked before. This
file is started as a script of its own, so it imports nothing of the package.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator

import psutil

MARK = "GEMS_RAY_RUN"  # environment variable of every process that Ray starts for a run
LOOK_EVERY_S = 3.0  # at what the run has started


@contextlib.contextmanager
def guarded(message: str) -> Iterator[str]:
    """Lets the guard watch while the block lasts, and yields the mark of what is started in it.

    Args:
        message: printed to the standard error if this process dies in the block.
    """
    mark = os.environ[MARK] = uuid.uuid4().hex
    # In a session of its own: Ctrl-C in a terminal reaches the run, and not its guard.
    guard = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, start_new_session=True)
    assert guard.stdin is not None
    guard.stdin.write(json.dumps({"mark": mark, "message": message}).encode() + b"\n")
    guard.stdin.flush()
    try:
        yield mark
    finally:
        os.environ.pop(MARK, None)
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.write(b"the run has ended by itself\n")
            guard.stdin.close()
        guard.wait()


def end_marked(mark: str, known: Iterable[psutil.Process] = ()) -> None:
    """Ends every process of this machine that has the mark, but this one.

    Args:
        mark: of the run.
        known: further processes of the run; some of Ray's write their titles over their environment.
    """
    marked = [process for process in psutil.process_iter() if process.pid != os.getpid() and _mark_of(process) == mark]
    found = {*marked, *known}
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=5)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # of another account, or gone
        return None


def _watch() -> None:
    """Waits until the run says goodbye, or dies."""
    line = sys.stdin.readline()
    if not line:  # the run was interrupted before it began
        return
    order, run = json.loads(line), psutil.Process(os.getppid())
    known: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], LOOK_EVERY_S)[0]:
        with contextlib.suppress(psutil.Error):
            for child in run.children():
                if child.pid != os.getpid() and _mark_of(child) == order["mark"]:
                    known |= {child, *child.children(recursive=True)}
    if not sys.stdin.readline():
        end_marked(order["mark"], known)
        sys.stderr.write(order["message"] + "\n")


if __name__ == "__main__":
    _watch()
