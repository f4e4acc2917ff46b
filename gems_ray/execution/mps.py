"""NVIDIA's Multi-Process Service beside a run: the kernels of cells that share a GPU overlap, and do not take turns."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gems_ray.errors import ResourceError

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"


@contextmanager
def mps(say: Callable[[str], None]) -> Iterator[None]:
    """Starts the service for the processes that are started meanwhile, and ends it.

    A service of the machine, to which the environment variable CUDA_MPS_PIPE_DIRECTORY leads, is used as it is.

    Args:
        say: called with a line for the user.
    Raises:
        ResourceError: the service does not start.
    """
    if os.environ.get(PIPES):
        say(f"MPS: the service of {PIPES}={os.environ[PIPES]} is used.")
        yield
        return
    if shutil.which(CONTROL) is None:
        raise ResourceError(f"resources.mps: {CONTROL} is not here. It comes with NVIDIA's driver; or leave mps out.")
    before = {name: os.environ.get(name) for name in (PIPES, LOGS)}
    # Its daemon may still write a last line while the folder goes.
    with tempfile.TemporaryDirectory(prefix="gems-ray-mps-", ignore_cleanup_errors=True) as folder:
        os.environ |= {PIPES: folder, LOGS: folder}
        try:
            _control(["-d"], "")
            say("MPS: started for this run.")
            try:
                yield
            finally:
                try:
                    _control([], "quit\n")
                except ResourceError as error:  # the run itself has ended well
                    say(str(error))
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _control(arguments: list[str], order: str) -> None:
    try:
        subprocess.run([CONTROL, *arguments], input=order, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or getattr(error, "stdout", None) or str(error)
        raise ResourceError(f"resources.mps: {CONTROL} fails ({' '.join(str(said).split())}).") from None
