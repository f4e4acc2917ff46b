"""An algorithm of your own: cloning in which an action counts more if its slate was clicked more often.

Run it with `python examples/own_algorithm.py --updates 10000`.
"""

import argparse

from pydantic import Field
from torch import Tensor

import gems_ray
from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.base import AlgorithmConfig, Noise
from gems_ray.algorithms.transitions import TransitionAlgorithm
from gems_ray.data.experience import Batch
from gems_ray.networks import DeterministicActor
from gems_ray.policies.latents import SampledAgent


class ClickCloningConfig(AlgorithmConfig):
    """Settings of cloning that follows the clicks."""

    learning_rate: float = Field(3e-4, gt=0, description="Adam's step size.")
    strength: float = Field(1.0, ge=0, description="0 clones everything alike; larger follows the clicks more closely.")


@gems_ray.algorithms.register
class ClickCloning(TransitionAlgorithm[ClickCloningConfig]):
    """Cloning with weights proportional to exp(strength * clicks)."""

    name = "click_cloning"
    Config = ClickCloningConfig
    loss_names = ("actor_loss",)

    def build(self) -> None:
        """Creates the actor and its optimiser."""
        self.actor = DeterministicActor(self.state_dim, self.action_dim, (256, 256)).to(self.device)
        self.networks = {"actor": self.actor}
        self.optimizers = {"actor": Adam(self.actor.parameters(), self.config.learning_rate)}

    def learn(self, batch: Batch, noise: Noise, phase: int) -> dict[str, Tensor]:
        """One update."""
        weights = (batch.rewards.flatten() * self.config.strength).softmax(dim=0)  # (B,), of sum one
        errors = (self.actor(batch.states) - batch.actions).square().mean(dim=1)  # (B,)
        loss = (weights * errors).sum()
        self.optimizers["actor"].minimize(loss)
        return {"actor_loss": loss.detach()}

    def actions(self, states: Tensor) -> Tensor:
        """The actor's actions (B, Z) for normalised states (B, H)."""
        return self.actor(states)


def main() -> None:
    """Runs the example with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", default="diffuse_mix", help="an environment whose world is shipped")
    parser.add_argument("--episodes", type=int, default=500, help="episodes of the dataset")
    parser.add_argument("--updates", type=int, default=5_000, help="gradient updates")
    arguments = parser.parse_args()

    world = gems_ray.load_world(arguments.environment)
    dataset = gems_ray.collect(SampledAgent(world.agents["medium"]), world, episodes=arguments.episodes, seed=0)
    for strength in (0.0, 1.0):
        settings = {"strength": strength}
        trainer = gems_ray.Trainer(
            dataset, "click_cloning", settings=settings, seed=0, max_timesteps=arguments.updates, world=world
        )
        *_, last = trainer
        print(f"strength {strength:.0f}: {last['eval/return_mean']:6.1f} clicks per episode")


if __name__ == "__main__":
    main()
