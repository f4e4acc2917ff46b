"""Recorded updates of CORL's classes: same batches, same noise, same weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gems_ray.algorithms import make_algorithm
from gems_ray.data.normalizer import state_statistics
from gems_ray.data.trajectories import best_trajectories

FOLDER = Path(__file__).parent / "algorithms"


def load(name):
    with np.load(FOLDER / name, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


# By recording: the algorithm, the names of our settings for those of CORL, and of our losses for those of its log.
CQL_SETTINGS = {
    "cql_alpha": "alpha",
    "cql_n_actions": "num_actions",
    "cql_temp": "temperature",
    "cql_importance_sample": "importance_sampling",
    "cql_lagrange": "lagrange",
    "cql_target_action_gap": "target_action_gap",
    "cql_max_target_backup": "max_target_backup",
    "backup_entropy": "backup_entropy",
    "cql_clip_diff_min": "clip_diff_min",
    "cql_clip_diff_max": "clip_diff_max",
    "target_update_period": "target_update_period",
    "target_entropy": "target_entropy",
    "policy_lr": "actor_learning_rate",
    "qf_lr": "critic_learning_rate",
    "soft_target_update_rate": "tau",
    "discount": "discount",
}
IQL_SETTINGS = {
    "iql_tau": "expectile",
    "beta": "beta",
    "iql_deterministic": "deterministic",
    "max_steps": "max_timesteps",
    "tau": "tau",
    "discount": "discount",
    "actor_lr": "actor_learning_rate",
    "qf_lr": "critic_learning_rate",
    "vf_lr": "value_learning_rate",
}
TD3_BC_SETTINGS = {key: key for key in ("discount", "tau", "policy_noise", "noise_clip", "policy_freq", "alpha")}
IQL_LOSSES = {"actor_loss": "actor_loss", "critic_loss": "q_loss", "value_loss": "value_loss"}
CQL_LOSSES = {"actor_loss": "policy_loss", "alpha_entropy": "alpha"}
RECORDINGS = {
    "td3_bc_default_h64": ("td3_bc", TD3_BC_SETTINGS, {"critic_loss": "critic_loss", "actor_loss": "actor_loss"}),
    "iql_gauss_h64": ("iql", IQL_SETTINGS, IQL_LOSSES),
    "iql_det_h64": ("iql", IQL_SETTINGS, IQL_LOSSES),
    "cql_default_h64": ("cql", CQL_SETTINGS, CQL_LOSSES),
    "cql_lagrange_maxtarget_h64": ("cql", CQL_SETTINGS, CQL_LOSSES),
    "bc_h64": ("bc", {}, {"actor_loss": "actor_loss"}),
}
TARGETS = {"qf": "q_target"}  # CORL's names of target networks that are not `<network>_target`


def start(recording, dtype):
    """The algorithm of a recording with its settings and initial weights; targets start equal to their networks."""
    recorded = load(f"{recording}.npz")
    name, settings, _ = RECORDINGS[recording]
    configured = json.loads(recorded["meta_json"].tobytes())["cfg"]
    config = {ours: configured[theirs] for theirs, ours in settings.items()}
    algorithm = make_algorithm(name, 20, 32, config | {"hidden_sizes": [64] * (3 if name == "cql" else 2)})
    state = algorithm.state_dict()
    for key in [key for key in recorded if key.startswith("init/")]:
        network, _, parameter = key.removeprefix("init/").partition(".")
        for target in (network, TARGETS.get(network, f"{network}_target")):
            if f"{target}.{parameter}" in state:
                state[f"{target}.{parameter}"] = torch.from_numpy(recorded[key]).to(dtype)
    algorithm.load_state_dict(state)
    return algorithm, recorded


@pytest.mark.parametrize(
    ("default_dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-7)], indirect=["default_dtype"]
)
@pytest.mark.parametrize("recording", RECORDINGS)
def test_recorded_updates(recording, default_dtype, tolerance):
    algorithm, recorded = start(recording, default_dtype)
    double = default_dtype == torch.float64
    after = {9: "f64_after10/"} if double else {0: "after1/", 1: "after2/", 9: "after10/"}
    if recording == "cql_lagrange_maxtarget_h64" and not double:
        tolerance = 3e-5  # float32 and float64 differ by 2e-5 in CORL itself
    compared = 0
    for update in range(10):
        names = ("states", "actions", "rewards", "next_states", "dones")
        batch = tuple(torch.from_numpy(recorded[f"batch/{name}"][update]).to(default_dtype) for name in names)
        noise = {
            key.removeprefix("noise/"): torch.from_numpy(recorded[key][update]).to(default_dtype)
            for key in recorded
            if key.startswith("noise/")
        }
        losses = algorithm.update(batch, noise)
        for ours, theirs in RECORDINGS[recording][2].items():
            value = recorded[f"{'log_f64' if double else 'log'}/{theirs}"][update]
            assert np.isnan(value) == (ours not in losses)
            if ours in losses:
                assert float(losses[ours]) == pytest.approx(value, rel=1e-7 if double else 2e-5, abs=tolerance)
        if prefix := after.get(update):
            state = algorithm.state_dict()
            for key in [key for key in recorded if key.startswith(prefix)]:
                difference = np.abs(state[key.removeprefix(prefix)].numpy() - recorded[key]).max()
                assert difference <= tolerance, key
                compared += 1
    assert compared >= 6


def test_state_statistics():
    recorded = load("preprocess.npz")
    mean, std = state_statistics(recorded["in/observations"])
    np.testing.assert_allclose(mean, recorded["state_mean"], rtol=0, atol=5e-6)  # float32 sums there
    np.testing.assert_allclose(std, recorded["state_std"], rtol=0, atol=5e-6)
    rows = (recorded["in/observations"][:5] - mean) / std
    np.testing.assert_allclose(rows, recorded["normalized_first5"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_best_trajectories(fraction):
    recorded = load("preprocess.npz")
    rows = best_trajectories(recorded["in/rewards"], recorded["in/terminals"], fraction, 0.99)
    np.testing.assert_array_equal(rows, recorded[f"keep_best_{fraction}_order"])
