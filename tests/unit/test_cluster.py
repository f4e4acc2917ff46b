"""Joining a cluster: what is refused before Ray is asked."""

import pytest

from gems_ray.errors import ResourceError
from gems_ray.tune.cluster import connected


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "ray://head"])
def test_a_ray_client_is_refused(tmp_path, address):
    with (
        pytest.raises(ResourceError, match="such as 10.0.0.1:6379, or auto") as caught,
        connected(address, tmp_path / "ray.log"),
    ):
        pass
    assert str(caught.value).startswith(f"--address {address}: a Ray client cannot follow a run.")
    assert "\n" not in str(caught.value)
