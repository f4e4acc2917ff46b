"""Recorded beliefs and updates of the published agent."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gems_ray.action_box import ActionBox
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief
from gems_ray.worldmaking.sac import SacConfig, SacGems, Trajectories

FOLDER = Path(__file__).parent / "world"
GRU_WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def recorded(name):
    with np.load(FOLDER / name, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) if file[key].dtype.kind != "U" else str(file[key]) for key in file}


def belief_weights(arrays, prefix, copy):
    return {
        "item_embeddings.weight": arrays[f"{prefix}item_embeddings.{copy}.embedd.weight"],
        **{f"gru.{name}": arrays[f"{prefix}gru.{copy}.{name}"] for name in GRU_WEIGHTS},
    }


@pytest.mark.parametrize("copy", ["actor", "critic"])
def test_beliefs_of_whole_episodes(copy):
    arrays = recorded("gru_belief.npz")
    belief = GruBelief()
    belief.load_state_dict(belief_weights(arrays, "weights/", copy))
    with torch.no_grad():
        whole = belief(arrays["slates"], arrays["clicks"])
    torch.testing.assert_close(whole, arrays[f"belief_{copy}_batch"], rtol=0, atol=2e-6)
    following = arrays[f"next_state_{copy}_flat"].view(8, 100, 20)
    torch.testing.assert_close(whole[:, 1:], following[:, :-1], rtol=0, atol=2e-6)


def test_beliefs_step_by_step():
    arrays = recorded("gru_belief.npz")
    belief = GruBelief()
    belief.load_state_dict(belief_weights(arrays, "weights/", "actor"))
    state = None
    with torch.no_grad():
        for t in range(100):
            state = belief.step(arrays["slates"][:, t], arrays["clicks"][:, t], state)
            torch.testing.assert_close(state, arrays["belief_actor_online"][:, t], rtol=0, atol=2e-6)


def padded(flat, lengths, steps):
    """(sum of lengths, ...) rows of consecutive episodes to (B, steps, ...)."""
    result = torch.zeros((len(lengths), steps, *flat.shape[1:]), dtype=flat.dtype)
    for row, part in zip(result, flat.split(lengths.tolist()), strict=True):
        row[: len(part)] = part
    return result


def parameter_names(prefix):
    """(network, parameter) of ours -> key of the recording."""
    networks = {
        "critic_1": "QNet",
        "critic_2": "QNet2",
        "critic_1_target": "target_QNet",
        "critic_2_target": "target_QNet2",
    }
    layers = ("0.weight", "0.bias", "2.weight", "2.bias")
    names = {(ours, layer): f"{prefix}/{theirs}.{layer}" for ours, theirs in networks.items() for layer in layers}
    names |= {("agent", f"policy.{layer}"): f"{prefix}/PolicyNet.{layer}" for layer in layers}
    for network, ours, theirs in (("agent", "belief.", "actor"), ("critic_belief", "", "critic")):
        names[network, f"{ours}item_embeddings.weight"] = f"{prefix}/belief.item_embeddings.{theirs}.embedd.weight"
        for weight in GRU_WEIGHTS:
            names[network, f"{ours}gru.{weight}"] = f"{prefix}/belief.gru.{theirs}.{weight}"
    return names


def test_sac_updates():
    arrays = recorded("sac_update.npz")
    belief = GruBelief()
    bounds = ActionBox(arrays["action_center"].numpy(), arrays["action_scale"].numpy())
    sac = SacGems(BehaviorAgent(belief, bounds), SacConfig())
    sac.alpha = arrays["alpha_used_in_first_step"]  # the published program begins so, whatever log alpha is
    parameters = {name: dict(module.named_parameters()) for name, module in sac.modules().items()}
    with torch.no_grad():
        for (network, parameter), key in parameter_names("before").items():
            parameters[network][parameter].copy_(arrays[key])

    lengths, steps = arrays["lens"], int(arrays["lens"].max())
    batch = Trajectories(
        *(padded(arrays[key], lengths, steps) for key in ("slates", "clicks", "actions", "rewards")), lengths
    )
    losses = json.loads(arrays["losses_json"])
    for update in range(3):
        result = sac.update(
            batch,
            padded(arrays[f"noise_{update}_next_action"], lengths - 1, steps - 1),
            padded(arrays[f"noise_{update}_policy_action"], lengths, steps),
        )
        assert float(result.critic) == pytest.approx(losses[update]["q_loss"], rel=1e-5)
        assert float(result.actor) == pytest.approx(losses[update]["pi_loss"], rel=1e-5)
        assert float(result.alpha) == pytest.approx(losses[update]["alpha_loss"], rel=1e-5)
        assert float(sac.alpha) == pytest.approx(losses[update]["alpha_after"], rel=1e-6)
        for (network, parameter), key in parameter_names(f"after{update + 1}").items():
            if key in arrays:  # Adam's first step has size 1 in the sign of a gradient, however small: hence 5e-5
                torch.testing.assert_close(parameters[network][parameter].detach(), arrays[key], rtol=0, atol=5e-5)
