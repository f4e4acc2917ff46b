"""Recorded updates and actions of CORL's Decision Transformer: same windows, same weights, no dropout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gems_ray.algorithms import make_algorithm
from gems_ray.data.experience import WindowBatch
from gems_ray.data.normalizer import Normalizer

FILE = Path(__file__).parent / "algorithms" / "decision_transformer_e32.npz"


@pytest.fixture(scope="module")
def recorded():
    with np.load(FILE, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def start(request, recorded):
    """The algorithm with the settings and initial weights of the recording, in one of two types."""
    config = json.loads(recorded["meta_json"].tobytes())["cfg"]
    settings = {
        "embedding_dim": config["embedding_dim"],
        "num_layers": config["num_layers"],
        "num_heads": config["num_heads"],
        "sequence_length": config["seq_len"],
        "warm_up_steps": config["warmup_steps"],
        "largest_gradient_norm": config["clip_grad"],
        "learning_rate": config["learning_rate"],
        "weight_decay": config["weight_decay"],
        "reward_scale": config["reward_scale"],
        "target_return": config["target_return"],
        "dropout": 0.0,
    }
    torch.set_default_dtype(request.param)
    try:
        algorithm = make_algorithm("decision_transformer", 20, 32, settings)
        state = algorithm.state_dict()
        names = [key.removeprefix("init/") for key in recorded if key.startswith("init/")]
        assert {f"transformer.{name}" for name in names} == {key for key in state if key.startswith("transformer.")} - {
            "transformer.reward_factor",
            "transformer.best_return",
        }
        for name in names:
            state[f"transformer.{name}"] = torch.from_numpy(recorded[f"init/{name}"]).to(request.param)
        algorithm.load_state_dict(state)
        yield algorithm
    finally:
        torch.set_default_dtype(torch.float32)


def test_recorded_updates(start, recorded):
    double = torch.get_default_dtype() == torch.float64
    tolerance = 1e-7 if double else 2e-6
    after = {5: "f64_after6/"} if double else {0: "after1/", 5: "after6/"}
    compared = 0
    for update in range(6):
        columns = {name: recorded[f"batch/{name}"][update] for name in WindowBatch._fields if name != "rewards"}
        loss = start.update(WindowBatch(**columns, rewards=np.zeros((16, 8))))["actor_loss"]
        assert float(loss) == pytest.approx(recorded["log_f64/loss" if double else "log/loss"][update], rel=tolerance)
        optimizer = start.optimizers["transformer"]
        assert float(optimizer.gradient_norm()) == pytest.approx(recorded["log/grad_norm"][update], rel=1e-5)
        if prefix := after.get(update):
            state = start.state_dict()
            for key in [key for key in recorded if key.startswith(prefix)]:
                ours = state[f"transformer.{key.removeprefix(prefix)}"].numpy()
                np.testing.assert_allclose(ours, recorded[key], rtol=0, atol=tolerance, err_msg=key)
                compared += 1
    assert compared >= 37


def test_recorded_actions(start, recorded):
    """Three users; the window is full after 8 of the 14 steps."""
    double = torch.get_default_dtype() == torch.float64
    state = start.state_dict()
    prefix = "after6/"
    for key in [key for key in recorded if key.startswith(prefix)]:
        state[f"transformer.{key.removeprefix(prefix)}"] = torch.from_numpy(recorded[key]).to(torch.get_default_dtype())
    start.load_state_dict(state)
    start.transformer.reward_factor.fill_(0.01)
    policy = start.policy(Normalizer(torch.zeros(20), torch.ones(20), torch.zeros(32), torch.ones(32)))
    memory, rewards = policy.initial_state(3), None
    expected = recorded["act/actions_f64" if double else "act/actions"]
    for step in range(14):
        actions, memory = policy.act(recorded["act/states"][:, step], memory, rewards)
        np.testing.assert_allclose(actions, expected[:, step], rtol=0, atol=1e-6)
        asked = memory.returns_to_go[:, -1]
        np.testing.assert_allclose(asked, recorded["act/returns_to_go"][:, step], rtol=0, atol=1e-5)
        assert memory.states.shape[1] == min(step + 1, 8)
        rewards = recorded["act/rewards"][:, step]
