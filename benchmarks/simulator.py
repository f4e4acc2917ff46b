"""Speed of the simulator and of whole episodes, one thread: `python benchmarks/simulator.py`.

Prints user-steps per second. The floor of a step with policy, belief and decoder is its arithmetic: about 1 MFLOP,
most of it the decoder; the share is that of the machine's own 1024 x 1024 matrix product.
"""

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from gems_ray.envs.rollout import rollout
from gems_ray.envs.slate_env import SlateVectorEnv
from gems_ray.policies.latents import SampledAgent
from gems_ray.policies.slates import random_slates
from gems_ray.simulator import TopicRec
from gems_ray.world.bundle import World, find_world
from gems_ray.worldmaking.collect import collect_dataset

REPEATS = 3
USERS = 1_000


def simulator_alone(world: World, users: int) -> float:
    """User-steps a second under random slates that were drawn before."""
    rng = np.random.default_rng(0)
    simulator = TopicRec(world.environment, world.items, users=users, seed=0)
    slates = [random_slates(world.environment, users, rng) for _ in range(world.environment.episode_length)]
    simulator.reset()
    start = time.perf_counter()
    for slate in slates:
        simulator.step(slate)
    return users * len(slates) / (time.perf_counter() - start)


def whole_world(world: World, users: int) -> float:
    """User-steps a second with the expert's policy, the belief and the decoder."""
    simulator = TopicRec(world.environment, world.items, users=users, seed=0)
    env = SlateVectorEnv(simulator, world.ranker, world.belief, world.bounds)
    policy = SampledAgent(world.agents["expert"])
    start = time.perf_counter()
    rollout(env, policy)
    return users * world.environment.episode_length / (time.perf_counter() - start)


def matrix_product() -> float:
    """FLOP/s of a float32 product of two 1024 x 1024 matrices."""
    matrix = torch.randn((1024, 1024))
    matrix @ matrix
    start = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    return 5 * 2 * 1024**3 / (time.perf_counter() - start)


def step_flops(world: World) -> float:
    """Multiplications and additions of one user-step: policy, belief, decoder."""
    modules = [world.agents["expert"].policy, world.ranker.decoder, world.ranker.slate_decoder]
    weights = sum(parameter.numel() for module in modules for parameter in module.parameters())
    gates = sum(parameter.numel() for parameter in world.belief.gru.parameters())
    return 2.0 * (weights + gates + world.environment.slate_size * world.items.size)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", type=int, default=10_000, help="episodes of the timed collection; 0 leaves it out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = find_world("diffuse_mix")

    rounds = [(simulator_alone(world, USERS), whole_world(world, USERS), matrix_product()) for _ in range(REPEATS)]
    alone, whole, product = np.max(rounds, axis=0)  # interleaved, best of three: the machine may be shared
    flops = step_flops(world)
    share = whole * flops / product
    print(f"simulator alone, {USERS} users:               {alone:12,.0f} user-steps/s")
    print(f"with policy, belief, decoder, {USERS} users:  {whole:12,.0f} user-steps/s")
    print(f"  {flops / 1e6:.2f} MFLOP a step, {share:.0%} of the {product / 1e9:.0f} GFLOP/s of a matrix product")
    for users in (1, 20, 200):
        speeds = simulator_alone(world, users), whole_world(world, users)
        print(f"  {users:4d} users: alone {speeds[0]:10,.0f}, whole {speeds[1]:10,.0f}")
    if arguments.collect:
        start = time.perf_counter()
        dataset = collect_dataset(world, "expert", arguments.collect, seed=0)
        collected = time.perf_counter() - start

        with TemporaryDirectory() as folder:
            dataset.save(Path(folder) / "dataset.npz")
            size = (Path(folder) / "dataset.npz").stat().st_size
        total = time.perf_counter() - start
        print(f"collecting {arguments.collect:,} episodes: {collected:.1f} s")
        print(f"  with the file of {size / 1e6:.0f} MB: {total:.1f} s")


if __name__ == "__main__":
    main()
