"""Recorded updates of CORL's classes: same batches, same noise, same weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gems_ray.algorithms import make_algorithm
from gems_ray.data.replay import state_statistics

FOLDER = Path(__file__).parent / "algorithms"


def load(name):
    with np.load(FOLDER / name, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("default_dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-7)], indirect=["default_dtype"]
)
def test_td3_bc(default_dtype, tolerance):
    recorded = load("td3_bc_default_h64.npz")
    meta = json.loads(recorded["meta_json"].tobytes())
    settings = {
        key: meta["cfg"][key] for key in ("discount", "tau", "policy_noise", "noise_clip", "policy_freq", "alpha")
    }
    algorithm = make_algorithm("td3_bc", 20, 32, {**settings, "hidden_sizes": [64, 64]})
    state = algorithm.state_dict()
    for key in [key for key in recorded if key.startswith("init/")]:
        network, _, parameter = key.removeprefix("init/").partition(".")
        for name in (network, f"{network}_target"):
            state[f"{name}.{parameter}"] = torch.from_numpy(recorded[key]).to(default_dtype)
    algorithm.load_state_dict(state)

    double = default_dtype == torch.float64
    expected_after = {9: "f64_after10/"} if double else {0: "after1/", 1: "after2/", 9: "after10/"}
    log = "log_f64/" if double else "log/"
    for update in range(10):
        names = ("states", "actions", "rewards", "next_states", "dones")
        batch = tuple(torch.from_numpy(recorded[f"batch/{name}"][update]).to(default_dtype) for name in names)
        noise = {"target_eps": torch.from_numpy(recorded["noise/target_eps"][update]).to(default_dtype)}
        metrics = algorithm.update(batch, noise)
        for name in ("critic_loss", "actor_loss"):
            value = recorded[f"{log}{name}"][update]
            assert np.isnan(value) == (name not in metrics)
            if name in metrics:
                assert float(metrics[name]) == pytest.approx(value, rel=2e-6, abs=tolerance)
        if prefix := expected_after.get(update):
            state = algorithm.state_dict()
            compared = [key for key in recorded if key.startswith(prefix)]
            assert len(compared) == 36
            for key in compared:
                difference = np.abs(state[key.removeprefix(prefix)].numpy() - recorded[key]).max()
                assert difference <= tolerance, key


def test_state_statistics():
    recorded = load("preprocess.npz")
    mean, std = state_statistics(recorded["in/observations"])
    np.testing.assert_allclose(mean, recorded["state_mean"], rtol=0, atol=5e-6)  # float32 sums there
    np.testing.assert_allclose(std, recorded["state_std"], rtol=0, atol=5e-6)
    rows = (recorded["in/observations"][:5] - mean) / std
    np.testing.assert_allclose(rows, recorded["normalized_first5"], rtol=0, atol=2e-5)
