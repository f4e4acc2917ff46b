"""`OfflineRL` in a script of Ray Tune: alpha of TD3+BC under ASHA, which stops the weaker trials early.

Run it with `python examples/tune_asha.py --trials 8`.
"""

import argparse
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

import gems_ray
from gems_ray.policies.latents import SampledAgent
from gems_ray.tune import OfflineRL


def main() -> None:
    """Runs the example with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=500, help="episodes of the dataset")
    parser.add_argument("--updates", type=int, default=5_000, help="gradient updates of every trial")
    parser.add_argument("--trials", type=int, default=8, help="settings to try")
    arguments = parser.parse_args()

    world = gems_ray.load_world("diffuse_mix")
    dataset = gems_ray.collect(SampledAgent(world.agents["medium"]), world, episodes=arguments.episodes)
    ray.init(address="local")  # a Ray of its own, whatever else runs on this machine
    tuner = tune.Tuner(
        tune.with_parameters(OfflineRL, dataset=dataset),
        param_space={
            "environment": "diffuse_mix",
            "algorithm": "td3_bc",
            "settings": {"alpha": tune.loguniform(0.1, 10)},
            "training": {"max_timesteps": arguments.updates, "evaluation_interval": max(1, arguments.updates // 10)},
        },
        tune_config=tune.TuneConfig(
            metric="eval/return_mean", mode="max", scheduler=ASHAScheduler(), num_samples=arguments.trials
        ),
        run_config=tune.RunConfig(
            storage_path=str(Path("ray_results").absolute()),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    )
    best = tuner.fit().get_best_result()
    print(f"alpha {best.config['settings']['alpha']:.2f}: {best.metrics['eval/return_mean']:.1f} clicks per episode")
    with best.checkpoint.as_directory() as folder:
        policy = gems_ray.load_policy(folder)  # the best one of the trial
    print(f"test users: {gems_ray.evaluate(policy, world).return_mean:.1f} clicks per episode")


if __name__ == "__main__":
    main()
