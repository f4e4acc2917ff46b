"""Joining a cluster: what is refused before Ray is asked, and what Ray is told."""

import stat
import subprocess
import sys

import pytest

from gems_ray.errors import ResourceError
from gems_ray.tune.cluster import connected, keep_token_private, token


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "ray://head"])
def test_a_ray_client_is_refused(tmp_path, address):
    with (
        pytest.raises(ResourceError, match="such as 10.0.0.1:6379, or auto") as caught,
        connected(address, tmp_path / "ray.log", "lost"),
    ):
        pass
    assert str(caught.value).startswith(f"--address {address}: a Ray client cannot follow a run.")
    assert "\n" not in str(caught.value)


def test_the_environment_is_set_by_a_run_and_not_by_an_import():
    """Ray has read some of it when it was imported: the authentication must count all the same."""
    code = (
        "import os, gymnasium, optuna, ray, ray.tune, ray.tune.search.optuna, torch\n"
        "from ray._private.authentication.authentication_token_setup import AuthenticationMode as Mode\n"
        "from ray._private.authentication.authentication_token_setup import get_authentication_mode\n"
        "before = dict(os.environ)\n"
        "import gems_ray.tune.cluster, gems_ray.tune.run\n"
        "assert dict(os.environ) == before\n"
        "assert get_authentication_mode() != Mode.TOKEN\n"
        "gems_ray.tune.cluster.set_environment()\n"
        "assert get_authentication_mode() == Mode.TOKEN\n"
        "assert os.environ['TUNE_PRINT_ALL_TRIAL_ERRORS'] == '1', 'what the user has set stays'\n"
    )
    environment = {"PATH": "", "HOME": "/nowhere", "TUNE_PRINT_ALL_TRIAL_ERRORS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_the_token_is_for_its_owner_alone(tmp_path, monkeypatch):
    for name, value in (("HOME", str(tmp_path)), ("RAY_AUTH_MODE", "token")):
        monkeypatch.setenv(name, value)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".ray" / "auth_token"
    keep_token_private()
    assert not path.exists()
    assert keep_token_private(may_make=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["auth_token"]
    made = token()
    assert len(made) == 64
    path.chmod(0o644)
    assert keep_token_private(may_make=True)
    assert (stat.S_IMODE(path.stat().st_mode), token()) == (0o600, made)
    path.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert not keep_token_private(), "a file that the user names stays as it is"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
