"""Logs a dataset, trains an algorithm on it, saves the policy, and measures its return.

Run it with `python examples/train_and_evaluate.py --algorithm iql --updates 10000`.
"""

import argparse

import gems_ray
from gems_ray.policies.latents import SampledAgent


def main() -> None:
    """Runs the example with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", default="diffuse_mix", help="an environment whose world is shipped")
    parser.add_argument("--algorithm", default="iql")
    parser.add_argument("--episodes", type=int, default=1000, help="episodes of the dataset")
    parser.add_argument("--updates", type=int, default=10_000, help="gradient updates")
    parser.add_argument("--users", type=int, default=1000, help="users who play the trained policy")
    parser.add_argument("--dataset", default="mine.npz", help="file that the dataset is written to")
    parser.add_argument("--policy", default="my_policy", help="folder that the policy is written to")
    arguments = parser.parse_args()

    world = gems_ray.load_world(arguments.environment)

    # The behaviour policy: the expert agent of the world, with the noise that it had in its own training.
    behavior = SampledAgent(world.agents["expert"])
    gems_ray.collect(behavior, world, episodes=arguments.episodes, seed=0).save(arguments.dataset)

    dataset = gems_ray.load_dataset(arguments.dataset)
    trainer = gems_ray.Trainer(dataset, arguments.algorithm, seed=0, max_timesteps=arguments.updates, world=world)
    for report in trainer:
        print(f"{report['updates']:>9,} updates: {report['eval/return_mean']:6.1f} clicks per episode")

    trainer.policy().save(arguments.policy)
    policy = gems_ray.load_policy(arguments.policy)
    result = gems_ray.evaluate(policy, world, users=arguments.users, seed=1)
    print(f"{result.return_mean:.1f} ± {result.return_se:.1f} clicks per episode")


if __name__ == "__main__":
    main()
