"""What keeping the memory of tensors that are gone is worth: `python benchmarks/freed_memory.py`.

Two processes, one that gives this memory back and one that keeps it, take turns at the same work on one thread. The
table has their processor time for one unit of work (median over the rounds), the median ratio of neighbours, and the
most memory that each has had so far. The machine may be shared: time that other processes take does not count.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from gems_ray.algorithms import make_algorithm
from gems_ray.data.sampling import make_sampler
from gems_ray.data.schema import ACTION_DIM, STATE_DIM
from gems_ray.envs.rollout import rollout
from gems_ray.envs.slate_env import SlateVectorEnv
from gems_ray.learning.engine import CompiledEngine
from gems_ray.policies.base import Policy
from gems_ray.policies.latents import MeanAgent
from gems_ray.processor import keep_freed_memory
from gems_ray.simulator import TopicRec
from gems_ray.world.bundle import find_world
from gems_ray.worldmaking.agent import AgentTrainer, AgentTraining
from gems_ray.worldmaking.collect import collect_dataset
from gems_ray.worldmaking.ranker import RankerTrainer, RankerTraining, log_sessions

WORLD = find_world("diffuse_mix")
ALGORITHMS = ("bc", "td3_bc", "iql", "cql", "decision_transformer")
SESSIONS, ROUND, USERS = 100, 50, 200

Work = tuple[Callable[[], object], int]  # what is timed, and how many units of work one call does


def ranker_updates() -> Work:
    """Updates of a ranker in training; what it costs to test the ranker counts too."""
    training = RankerTraining(sessions=SESSIONS, epochs=1_000_000)
    sessions = log_sessions(WORLD.environment, WORLD.items, SESSIONS, seed=0)
    trainer = RankerTrainer(sessions, WORLD.ranker.config, training, seed=0)
    rows = int(SESSIONS * WORLD.environment.episode_length * (1 - training.validation_share))
    return trainer.run().__next__, rows // training.batch_size


def agent_updates() -> Work:
    """Episodes of a behaviour agent in training, each with its update."""
    training = AgentTraining(random_episodes=ROUND, validation_interval=ROUND, validation_users=1, buffer_episodes=1000)
    trainer = AgentTrainer(WORLD.environment, WORLD.items, WORLD.ranker, WORLD.bounds, training, seed=0)
    return trainer.run().__next__, ROUND


def engine(name: str) -> CompiledEngine:
    """An algorithm on 100 expert episodes."""
    algorithm = make_algorithm(name, STATE_DIM, ACTION_DIM, device="cpu")
    sampler = make_sampler(
        algorithm.experience,
        collect_dataset(WORLD, "expert", 100, seed=0),
        seed=0,
        device="cpu",
        normalize_states=True,
        reward_scale="none",
        bootstrap_time_limit=False,
    )
    return CompiledEngine(algorithm, sampler)


def updates(name: str) -> Work:
    """Compiled updates of an algorithm."""
    made = engine(name)
    return made.block, made.length


def steps(policy: Policy) -> Work:
    """Steps of many users at once."""
    simulator = TopicRec(WORLD.environment, WORLD.items, users=USERS, seed=0)
    env = SlateVectorEnv(simulator, WORLD.ranker, WORLD.belief, WORLD.bounds)
    return lambda: rollout(env, policy), WORLD.environment.episode_length


def transformer_steps() -> Work:
    """Steps of a Decision Transformer."""
    made = engine("decision_transformer")
    return steps(made.algorithm.policy(made.sampler.normalizer))


WORKS: dict[str, Callable[[], Work]] = {
    "update of the ranker": ranker_updates,
    "episode and update of the behaviour agent": agent_updates,
    **{f"update of {name}": lambda name=name: updates(name) for name in ALGORITHMS},
    f"step of the expert, {USERS} users": lambda: steps(MeanAgent(WORLD.agents["expert"])),
    f"step of decision_transformer, {USERS} users": transformer_steps,
}


def serve(pipe: Connection, keeps: bool) -> None:
    """Prepares a work when it is named, does it when asked, and answers milliseconds of a unit and megabytes."""
    torch.set_num_threads(1)
    if keeps and not keep_freed_memory():
        raise SystemExit("The memory of tensors can only be kept with glibc.")
    work: Work | None = None
    while (order := pipe.recv()) is not None:
        if order in WORKS:
            work = WORKS[order]()
            work[0]()  # compiles, fills caches
        assert work is not None
        call, units = work
        start = time.process_time()
        call()
        milliseconds = 1000 * (time.process_time() - start) / units
        pipe.send((milliseconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    context = get_context("spawn")
    pipes = []
    for keeps in (False, True):
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, keeps), daemon=True).start()
        pipes.append(ours)
    print("| work | given back, ms | kept, ms | ratio | given back, MB | kept, MB |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for name in WORKS:
        answers = []
        for index in range(rounds + 1):
            turn = []
            for pipe in pipes:
                pipe.send("again" if index else name)
                turn.append(pipe.recv())
            answers.append(turn)
        back, kept = ([turn[which][0] for turn in answers] for which in (0, 1))
        ratio = statistics.median(first / second for first, second in zip(back, kept, strict=True))
        largest = [answers[-1][which][1] for which in (0, 1)]
        print(
            f"| {name} | {statistics.median(back):.2f} | {statistics.median(kept):.2f} | {ratio:.2f} "
            f"| {largest[0]:,.0f} | {largest[1]:,.0f} |",
            flush=True,
        )
    for pipe in pipes:
        pipe.send(None)


if __name__ == "__main__":
    main()
