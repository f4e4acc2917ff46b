"""`OfflineRL` under population based training: alpha and the learning rate change while TD3+BC learns.

Run it with `python examples/tune_pbt.py --updates 5000`.
"""

import argparse
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

import gems_ray
from gems_ray.policies.latents import SampledAgent
from gems_ray.tune import OfflineRL


def main() -> None:
    """Runs the example with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=500, help="episodes of the dataset")
    parser.add_argument("--updates", type=int, default=5_000, help="gradient updates of every trial")
    parser.add_argument("--trials", type=int, default=4, help="size of the population")
    arguments = parser.parse_args()

    world = gems_ray.load_world("diffuse_mix")
    dataset = gems_ray.collect(SampledAgent(world.agents["medium"]), world, episodes=arguments.episodes)
    interval = max(1, arguments.updates // 10)
    changed = {"alpha": tune.loguniform(0.1, 10), "learning_rate": tune.loguniform(1e-4, 1e-3)}
    scheduler = PopulationBasedTraining(
        time_attr="updates", perturbation_interval=2 * interval, hyperparam_mutations={"settings": changed}
    )
    ray.init(address="local")  # a Ray of its own, whatever else runs on this machine
    tuner = tune.Tuner(
        tune.with_parameters(OfflineRL, dataset=dataset),
        param_space={
            "environment": "diffuse_mix",
            "algorithm": "td3_bc",
            "settings": changed,
            "training": {"max_timesteps": arguments.updates, "evaluation_interval": interval},
        },
        tune_config=tune.TuneConfig(
            metric="eval/return_mean", mode="max", scheduler=scheduler, num_samples=arguments.trials, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            storage_path=str(Path("ray_results").absolute()),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),  # a weak trial goes on from a strong one's
        ),
    )
    results = tuner.fit()
    for result in results:
        alphas = result.metrics_dataframe["config/settings/alpha"].round(2).unique()
        print(f"alpha {' -> '.join(map(str, alphas))}: {result.metrics['eval/return_mean']:.1f} clicks per episode")


if __name__ == "__main__":
    main()
