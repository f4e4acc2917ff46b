"""The user simulator TopicRec, batched over users."""

from gems_ray.simulator.environments import ENVIRONMENTS, Environment, environment
from gems_ray.simulator.topic_rec import TopicRec

__all__ = ["ENVIRONMENTS", "Environment", "TopicRec", "environment"]
