"""Starting or joining Ray, with token authentication and the dashboard on this machine alone."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import ray

from gems_ray.errors import ResourceError
from gems_ray.experiments.spec import Resources

CONNECT_TIMEOUT_S = 5.0


@contextmanager
def connected(address: str | None) -> Iterator[str]:
    """Starts Ray on this machine, or joins the cluster at `address`; yields the dashboard's URL.

    SIGTERM acts like Ctrl-C while connected: Tune ends in good order on that one only.

    Raises:
        ResourceError: no cluster answers at the address.
    """
    if address:
        _check_listens(address)
    try:
        context = ray.init(
            address=address or "local",
            include_dashboard=None if address else True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        place = f"--address {address}: cannot join this cluster" if address else "Ray does not start on this machine"
        raise ResourceError(f"{place} ({reason}).") from None
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def _check_listens(address: str) -> None:
    """Ray itself would wait for minutes for a cluster that is not there."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # a name such as `auto`, which Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ResourceError(
            f"--address {address}: cannot join this cluster ({error.strerror or error}). "
            "`ray start --head` prints the address of a cluster."
        ) from None


def token_file() -> Path | None:
    """Where the dashboard's token is; None where authentication is off or the token comes from the environment."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    return path if path.is_file() else None


def usable_resources(wanted: Resources, say: Callable[[str], None]) -> Resources:
    """The resources of a cell on this cluster: without the GPU where there is none.

    Raises:
        ResourceError: no node is large enough, so that the cell would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if wanted.gpu and not any(node.get("GPU", 0) for node in nodes):
        say(f"resources.gpu {wanted.gpu:g} is ignored: no GPU here, the cells run on CPUs.")
        wanted = wanted.model_copy(update={"gpu": 0.0})
    if not any(node.get("CPU", 0) >= wanted.cpu and node.get("GPU", 0) >= wanted.gpu for node in nodes):
        largest = max((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
        raise ResourceError(
            f"resources: a cell asks for {wanted.cpu:g} CPUs and {wanted.gpu:g} GPUs, the largest node has "
            f"{largest[0]:g} and {largest[1]:g}. Lower `resources` in the experiment file."
        )
    return wanted


def _interrupt(signum: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGINT)
