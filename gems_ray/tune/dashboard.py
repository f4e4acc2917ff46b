"""Where the dashboards of the Ray clusters are that this machine can see, and what runs there."""

import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray._private.services import find_gcs_addresses

from gems_ray.errors import ResourceError
from gems_ray.program import program_name
from gems_ray.tune.cluster import CONNECT_TIMEOUT_S, RUN_FOLDER, check_address, set_environment, token

# Ray itself would wait for 40 seconds for something that listens at the address and is no Ray.
QUICKLY = {"RAY_gcs_rpc_server_connect_timeout_s": "1", "RAY_py_gcs_connect_timeout_s": "3"}
KEY, NAMESPACE = b"dashboard", b"dashboard"  # under which Ray keeps the dashboard's address


@dataclass(frozen=True, slots=True)
class Dashboard:
    """The dashboard of a Ray cluster.

    Args:
        url: as the cluster gives it out.
        runs: folders of the runs that go on there, as far as they are known.
        asks_for_token: whether it does.
        head: the machine that alone can open it; None where this machine can.
    """

    url: str
    runs: tuple[str, ...]
    asks_for_token: bool
    head: str | None = None


def find_dashboards(address: str | None) -> list[Dashboard]:
    """The dashboards of all Ray clusters of this machine, or the one of the cluster at an address.

    Args:
        address: of a cluster, HOST:PORT; None for this machine.
    Raises:
        ResourceError: there is none; or no cluster answers at the address, or it takes another token.
    """
    os.environ.update(QUICKLY)
    set_environment()
    if address is not None:
        if not _is_host_and_port(address):
            raise ResourceError(f"--address {address}: expected HOST:PORT, as `ray start --head` prints it.")
        check_address(address)
        return [_ask(address)]
    found, refusals = [], []
    for known in sorted(find_gcs_addresses()):
        try:
            found.append(_ask(known))
        except ResourceError as error:  # ended in between, or another account's
            refusals.append(error)
    if not found and refusals:
        raise refusals[0]
    if not found:
        raise ResourceError(
            f"no Ray runs on this machine. `{program_name()} grid tune_configs/demo.yaml` starts one; --address "
            "HOST:PORT names the head of a cluster elsewhere."
        )
    return sorted(found, key=lambda dashboard: dashboard.url)


def _ask(address: str) -> Dashboard:
    """What a cluster says of its dashboard."""
    place = f"Ray at {address}"
    if os.environ["RAY_AUTH_MODE"] == "token" and not token():  # Ray would end this process
        raise ResourceError(
            f"{place}: there is no token here to ask it with; give the file of its account's by RAY_AUTH_TOKEN_PATH."
        )
    try:
        with _silent():
            client = ray._raylet.GcsClient(address=address)
            url = client.internal_kv_get(KEY, namespace=NAMESPACE, timeout=CONNECT_TIMEOUT_S)
            jobs = client.get_all_job_info(timeout=CONNECT_TIMEOUT_S).values()
    except ray.exceptions.AuthenticationError:
        raise ResourceError(
            f"{place}: takes another token than yours; give the one of its account by RAY_AUTH_TOKEN_PATH."
        ) from None
    except ray.exceptions.RayError as error:
        raise ResourceError(f"{place}: does not answer ({' '.join(str(error).split()).rstrip('.')}).") from None
    if url is None:
        raise ResourceError(f"{place}: has no dashboard. Start it with `ray start --head --include-dashboard=true`.")
    folders = [dict(job.config.metadata).get(RUN_FOLDER) for job in jobs if not job.is_dead]
    runs = tuple(dict.fromkeys(filter(None, folders)))
    url, head = url.decode(), address.rpartition(":")[0]
    elsewhere = url.startswith(("127.", "localhost:", "[::1]")) and not _is_here(head)
    asks = os.environ.get("RAY_AUTH_MODE") == "token" if elsewhere else _asks_for_token(f"http://{url}")
    return Dashboard(f"http://{url}", runs, asks, head if elsewhere else None)


def _asks_for_token(url: str) -> bool:
    """Whether a dashboard wants a token; it does unless it says otherwise."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/api/authentication_mode", timeout=CONNECT_TIMEOUT_S) as answer:
            return bool(json.load(answer)["authentication_mode"] == "token")
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _is_host_and_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdigit() and "://" not in address


def _is_here(host: str) -> bool:
    """Whether a machine is this one, by one of its own addresses."""
    own = {known.address for addresses in psutil.net_if_addrs().values() for known in addresses}
    return host in own or host == "localhost"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps what Ray's C++ part has to say from the standard error: it cannot be told to be silent."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
