"""Checks against recordings that cannot be shipped: `python benchmarks/references.py FOLDER`.

FOLDER holds `published/` (item files, checkpoints and logged slates of the authors, CC BY-NC-SA 4.0) and `world/`
(numbers measured on them). Prints the largest deviation of the ranker, what the authors' agent scores here, and the
returns of the slate policies with the published items beside those of the original program.
"""

import argparse
import json
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from gems_ray.action_box import ActionBox
from gems_ray.envs.rollout import rollout, rollout_slates
from gems_ray.envs.slate_env import SlateVectorEnv
from gems_ray.policies.latents import MeanAgent
from gems_ray.policies.slates import SLATE_POLICIES, SlatePolicy
from gems_ray.simulator import TopicRec, environment
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief
from gems_ray.world.ranker import GemsRanker, RankerConfig

# Mean and standard error of 500 episodes on the original program, with the published item files.
ORIGINAL = {
    "diffuse_topdown": ((32.87, 0.31), (97.68, 1.69), (93.65, 0.99)),
    "diffuse_mix": ((33.47, 0.32), (96.66, 1.60), (93.86, 0.97)),
    "diffuse_divpen": ((31.75, 0.31), (76.57, 0.83), (74.43, 0.87)),
    "focused_topdown": ((34.41, 0.32), (104.11, 1.95), (96.61, 1.05)),
    "focused_mix": ((34.24, 0.31), (101.38, 1.91), (95.31, 1.04)),
    "focused_divpen": ((32.06, 0.30), (76.59, 0.98), (77.17, 0.96)),
}
USERS = 5_000


def check_ranker(folder: Path) -> tuple[GemsRanker, ActionBox]:
    """Loads the authors' ranker and compares slates, latents, losses and bounds."""
    (checkpoint,) = (folder / "published").glob("GeMS_*.ckpt")
    ranker = GemsRanker(RankerConfig(lambda_click=0.5, lambda_kl=1.0))
    ranker.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    with np.load(folder / "world" / "gems_vae.npz", allow_pickle=False) as file:
        recorded = {key: file[key] for key in file.files}
    tensor = {key: torch.from_numpy(value) for key, value in recorded.items() if value.dtype.kind != "U"}
    losses = json.loads(str(recorded["losses_json"]))
    for kind in ("in_bounds", "normal"):
        differing = (ranker.decode(tensor[f"latents_{kind}"]) != recorded[f"slates_from_latents_{kind}"]).sum()
        print(f"ranker: {differing} of 5120 slots of latents {kind} decoded differently")
    with torch.no_grad():
        mu, log_variance = ranker.encode(tensor["enc_slates"], tensor["enc_clicks"])
        print(f"ranker: mu {_largest(mu, recorded['enc_mu'])}")
        print(f"ranker: log-variance {_largest(log_variance, recorded['enc_logvar'])}")
    for name, noise in (("validation_step", None), ("training_step_with_noise", tensor["noise_for_training_loss"])):
        loss = ranker.loss(tensor["batch_slates"], tensor["batch_clicks"], noise)
        expected = losses[name]["val_loss" if noise is None else "train_loss"]
        print(f"ranker: {name} loss {float(loss.total.detach()):.6f}, recorded {expected:.6f}")
    with np.load(folder / "published" / "logged_slates_diffuse_topdown.npz", allow_pickle=False) as file:
        slates, clicks = file["slate"][:1000].reshape(-1, 10), file["clicks"][:1000].reshape(-1, 10)
    bounds = ranker.action_box(torch.from_numpy(slates.astype(np.int64)), torch.from_numpy(clicks))
    center, scale = (_largest(getattr(bounds, name), recorded[f"action_{name}"]) for name in ("center", "scale"))
    print(f"ranker: action center {center}, scale {scale}")
    return ranker.requires_grad_(False), bounds


def check_agent(folder: Path, ranker: GemsRanker, bounds: ActionBox) -> None:
    """Plays the authors' SAC+GeMS agent; it scores 287.1 +- 3.1 in the original program (250 users)."""
    (checkpoint,) = (folder / "published").glob("SAC+GeMS_*.ckpt")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    agent = BehaviorAgent(GruBelief(), bounds)
    state = {"center": agent.center, "scale": agent.scale}
    state["belief.item_embeddings.weight"] = weights["belief.item_embeddings.actor.embedd.weight"]
    state |= {
        f"belief.gru.{name}": weights[f"belief.gru.actor.{name}"] for name, _ in agent.belief.gru.named_parameters()
    }
    state |= {f"policy.{name}": weights[f"PolicyNet.{name}"] for name, _ in agent.policy.named_parameters()}
    agent.load_state_dict(state)
    items = np.load(folder / "published" / "item_embeddings_diffuse.npy", allow_pickle=False)
    simulator = TopicRec(environment("diffuse_topdown"), items, users=1000, seed=0)
    episodes = rollout(SlateVectorEnv(simulator, ranker, agent.belief, bounds), MeanAgent(agent))
    print(f"agent: {_summary(episodes.rewards)} (original program 287.1 +- 3.1)")


def check_policies(folder: Path) -> None:
    """Returns of random slates, oracle and epsilon-greedy oracle, and their distance in standard errors."""
    print(f"\n{'environment':16} {'policy':22} {'here':>16} {'original':>16} {'distance':>9}")
    for name, rows in ORIGINAL.items():
        items = np.load(folder / "published" / f"item_embeddings_{name.split('_')[0]}.npy", allow_pickle=False)
        for policy, (mean, error) in zip(SLATE_POLICIES, rows, strict=True):
            simulator = TopicRec(environment(name), items, users=USERS, seed=1)
            played = SlatePolicy(policy, environment(name), np.random.default_rng(2))
            returns = rollout_slates(simulator, played).rewards.sum(axis=1)
            own_error = returns.std() / np.sqrt(USERS)
            distance = (returns.mean() - mean) / np.hypot(error, own_error)
            here = f"{returns.mean():.2f} +- {own_error:.2f}"
            print(f"{name:16} {policy:22} {here:>16} {f'{mean:.2f} +- {error:.2f}':>16} {distance:+9.1f}")


def _largest(ours: np.ndarray | torch.Tensor, recorded: np.ndarray) -> str:
    return f"{np.abs(np.asarray(ours) - recorded).max():.1e}"


def _summary(rewards: np.ndarray) -> str:
    returns = rewards.sum(axis=1)
    return f"{returns.mean():.1f} +- {returns.std() / np.sqrt(len(returns)):.1f}"


def main() -> None:
    """Prints all checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    ranker, bounds = check_ranker(folder)
    check_agent(folder, ranker, bounds)
    check_policies(folder)


if __name__ == "__main__":
    main()
