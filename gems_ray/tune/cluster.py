"""Starting or joining Ray, with token authentication and the dashboard on this machine alone."""

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gems_ray import __version__
from gems_ray.errors import ResourceError
from gems_ray.files import log_handler
from gems_ray.tune.guard import end_marked, guarded

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
CREDENTIALS = ("AWS_", "GOOGLE_APPLICATION_CREDENTIALS")  # beginnings of what a storage asks for on every machine
LOST_AFTER_S = "10"  # without an answer a Ray of this machine alone is lost; a cluster may start its head again
LONGEST_ANSWER_S = 60.0  # of a node that is asked what it has
OTHERS = 0o077  # permissions of everybody but the owner
RUN_FOLDER = "run_folder"  # in the metadata of a run's job, for whoever looks what a Ray is doing


@contextlib.contextmanager
def connected(address: str | None, log: Path, farewell: str, run: Path | None = None) -> Iterator[str]:
    """Starts Ray on this machine, or joins the cluster at `address`; yields the dashboard's URL.

    Ray leaves a handler behind that ends the process at once on SIGTERM: take signals after this.

    Args:
        address: of a cluster; None for this machine alone.
        log: file that takes what Ray has to say, its traces included.
        farewell: printed to the standard error if Ray is lost, and this process with it.
        run: folder of the run for which this is done.
    Raises:
        ResourceError: no cluster answers at the address.
    """
    if address:
        check_address(address)
    else:
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", LOST_AFTER_S)
    _log_to(log)
    set_environment()
    keep_token_private(may_make=address is None)
    place = f"--address {address}: cannot join this cluster" if address else "Ray does not start on this machine"
    with guarded(farewell) as mark:
        try:
            context = ray.init(
                address=address or "local",
                num_gpus=None if address else _usable_gpus(),
                include_dashboard=None if address else True,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"env_vars": _worker_environment()},
                job_config=JobConfig(metadata={RUN_FOLDER: str(run.absolute())} if run else {}),
            )
        except Exception as error:  # of many kinds; Ray's own are among them, and plain ones
            ray.shutdown()
            end_marked(mark)
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ResourceError(f"{place} ({reason}).") from None
        _log_to(log)  # again: `ray.init` brought its handler back
        try:
            yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
        finally:
            ray.shutdown()


def _usable_gpus() -> int:
    """GPUs of this machine that torch can use; Ray itself would count the others too."""
    import torch  # takes seconds, which those who only join a cluster need not wait

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def set_environment() -> None:
    """Sets the variables that Ray and Tune read; before the first use of either, and never by an import."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray._raylet.Config.initialize("")  # reads RAY_AUTH_MODE again, which Ray's C++ part has read when it was imported


def credentials() -> dict[str, str]:
    """The variables of this process that a storage asks for."""
    return {name: value for name, value in os.environ.items() if name.startswith(CREDENTIALS)}


def _worker_environment() -> dict[str, str]:
    """The variables that the processes of every node need."""
    return credentials() | {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}


def check_nodes(storage: str) -> None:
    """Makes sure that every node of a cluster runs the same versions, and sees the folder of the checkpoints.

    Args:
        storage: of the checkpoints, a folder of this machine or a URI.
    Raises:
        ResourceError: one differs, or does not answer.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2:
        return
    here, folder = _versions(), None if "://" in storage else Path(storage).absolute()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-by-every-node-") as marker:
        ask = ray.remote(num_cpus=0)(_look_around)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
        answers = [ask.options(scheduling_strategy=place).remote(marker.name) for place in places]
        for address, answer in zip((node["NodeManagerAddress"] for node in alive), answers, strict=True):
            try:
                versions, seen = ray.get(answer, timeout=LONGEST_ANSWER_S)
            except RayError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ResourceError(f"node {address}: gems_ray does not run there ({reason}). Install it.") from None
            if versions != here:
                raise ResourceError(
                    f"node {address}: has {versions}, this machine has {here}. Install the same on every node."
                )
            if folder is not None and not seen:
                raise ResourceError(
                    f"node {address}: does not see {folder}, where the checkpoints would lie. Choose a --storage that "
                    "every node sees: a shared folder, or a URI such as s3://bucket/runs."
                )


def check_gpus(device: str, say: Callable[[str], None]) -> None:
    """Makes sure that torch can use the GPUs of every node that has some.

    Args:
        device: auto or cuda, on which the cells are trained.
        say: called with a line for every node where they train on the CPU.
    Raises:
        ResourceError: torch cannot use them, and the cells must have one.
    """
    with_gpus = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    ask = ray.remote(num_cpus=0)(cuda_trouble)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in with_gpus]
    answers = [ask.options(scheduling_strategy=place).remote() for place in places]
    for address, answer in zip((node["NodeManagerAddress"] for node in with_gpus), answers, strict=True):
        try:
            trouble = ray.get(answer, timeout=2 * LONGEST_ANSWER_S)  # torch is imported anew
        except RayError as error:
            raise ResourceError(f"node {address}: does not say what its GPUs can do ({error}).") from None
        if trouble:
            line = f"node {address}: has GPUs, but {trouble}"
            if device == "cuda":
                raise ResourceError(f"{line}. Mend that, or set training.device to cpu.")
            say(f"{line}: cells train on the CPU there, and hold their shares of the GPUs.")


def cuda_trouble() -> str:
    """Why torch cannot use the GPUs of this machine; empty where it can.

    Asked in a process that sees all of them: Ray hides the GPUs from one that has no share.
    """
    script = "import torch; print(torch.version.cuda, torch.cuda.is_available())"
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([sys.executable, "-c", script], env=visible, capture_output=True, text=True, check=False)
    version, _, available = done.stdout.strip().partition(" ")
    if available == "True":
        return ""
    if version == "None":
        return "torch is a build for CPUs there"
    warned = done.stderr.strip().splitlines()
    return f"CUDA {version} does not start there ({warned[-1] if warned else 'is the driver too old?'})"


def _look_around(marker: str) -> tuple[str, bool]:
    """What a node has: its versions, and whether it sees a file."""
    return _versions(), Path(marker).exists()


def _versions() -> str:
    return f"gems_ray {__version__}, torch {version('torch')}"


def _log_to(log: Path) -> None:
    handler = log_handler(log, "%(asctime)s %(levelname)-7s %(name)s %(message)s")
    logger = logging.getLogger("ray")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def check_address(address: str) -> None:
    """Makes sure that something listens at an address; Ray itself would wait for minutes.

    Raises:
        ResourceError: nothing does, or it is one of Ray's clients.
    """
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


def token() -> str:
    """The token that Ray's dashboard asks for; empty where there is none."""
    path = token_file()
    return os.environ.get("RAY_AUTH_TOKEN") or (path.read_text(encoding="utf-8").strip() if path else "")


def token_file() -> Path | None:
    """Where the dashboard's token is; None where authentication is off or the token comes from the environment."""
    path = _token_path()
    return path if not os.environ.get("RAY_AUTH_TOKEN") and path.is_file() else None


def keep_token_private(may_make: bool = False) -> bool:
    """Lets nobody else read the file of the token: whoever has it can run code on the cluster.

    Ray itself would make a file that every account of the machine can read. One that RAY_AUTH_TOKEN_PATH names stays
    as it is.

    Args:
        may_make: whether to make the file, where there is none and Ray would make one.
    Returns:
        whether nobody else can read it.
    """
    path = _token_path()
    try:
        is_ours = not any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        if is_ours and may_make and os.environ.get("RAY_AUTH_MODE") == "token" and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # for its owner alone from the beginning
                file.write(secrets.token_hex(32))
                file.flush()
                with contextlib.suppress(FileExistsError):  # another run was quicker
                    os.link(file.name, path)
        if is_ours and path.stat().st_mode & OTHERS:
            path.chmod(0o600)
        return not path.stat().st_mode & OTHERS
    except OSError:  # not there, somebody else's, or on a disk that cannot be written
        return not path.exists()


def _token_path() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()


def nodes() -> list[tuple[float, float]]:
    """CPUs and GPUs of every node that is alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(node.get("CPU", 0), node.get("GPU", 0)) for node in alive]
