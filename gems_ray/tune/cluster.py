"""Starting or joining Ray, with token authentication and the dashboard on this machine alone."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError

from gems_ray.errors import ResourceError
from gems_ray.files import log_handler

CONNECT_TIMEOUT_S = 5.0
# What the user has set stays. Ray and Tune read these when they are used, the first one also when they are imported.
# Tune hands RAY_CHDIR_TO_TRIAL_DIR on to its workers.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what the user typed
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 Tune prints nothing: the progress table is ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it stays behind after a run and swallows the next Ctrl-C
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an objective may be known at the end of a cell only
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the cells' logs have them
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
WORKER_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}  # a cell without a share of a GPU does not see any


@contextmanager
def connected(address: str | None, log: Path) -> Iterator[str]:
    """Starts Ray on this machine, or joins the cluster at `address`; yields the dashboard's URL.

    Ray leaves a handler behind that ends the process at once on SIGTERM: take signals after this.

    Args:
        address: of a cluster; None for this machine alone.
        log: file that takes what Ray has to say, its traces included.
    Raises:
        ResourceError: no cluster answers at the address.
    """
    if address:
        _check_address(address)
    _log_to(log)
    set_environment()
    try:
        context = ray.init(
            address=address or "local",
            include_dashboard=None if address else True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}},
        )
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        reason = str(error).splitlines()[0]
        place = f"--address {address}: cannot join this cluster" if address else "Ray does not start on this machine"
        raise ResourceError(f"{place} ({reason}).") from None
    _log_to(log)  # again: `ray.init` brought its handler back
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()


def set_environment() -> None:
    """Sets the variables that Ray and Tune read; before the first use of either, and never by an import."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray._raylet.Config.initialize("")  # reads RAY_AUTH_MODE again, which Ray's C++ part has read when it was imported


def _log_to(log: Path) -> None:
    handler = log_handler(log, "%(asctime)s %(levelname)-7s %(name)s %(message)s")
    logger = logging.getLogger("ray")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def _check_address(address: str) -> None:
    """Ray itself would wait for minutes for a cluster that is not there."""
    if address.startswith("ray://"):  # the callbacks of a run would be copied into the cluster, and see nothing here
        raise ResourceError(
            f"--address {address}: a Ray client cannot follow a run. Run this on a machine of the cluster and give the "
            "address of its head as `ray start --head` prints it, such as 10.0.0.1:6379, or auto."
        )
    host, separator, port = address.rpartition(":")
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


def nodes() -> list[tuple[float, float]]:
    """CPUs and GPUs of every node that is alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(node.get("CPU", 0), node.get("GPU", 0)) for node in alive]
