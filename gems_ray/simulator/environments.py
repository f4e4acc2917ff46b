"""The six environments of Deffayet et al. (2023) and the constants that they share."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from gems_ray.config import STRICT, checked
from gems_ray.errors import ConfigError
from gems_ray.registry import Registry, did_you_mean

QueueAlignment = Literal["published", "aligned"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10_000)]
CountOrZero = Annotated[int, Field(ge=0, le=10_000)]
Factor = Annotated[float, Field(ge=0, le=1e6)]
Divisor = Annotated[float, Field(ge=1, le=1e6)]


@dataclass(frozen=True, slots=True)
class Environment:
    """Parameters of one TopicRec environment; the defaults are the published ones.

    Source: Deffayet et al., WSDM 2023, section 5.1, and the behaviour of the authors' program.
    """

    __pydantic_config__ = STRICT

    name: str
    items: str = "diffuse"  # diffuse, focused, or file:PATH of an (I, D) float32 .npy
    mixed_examination: bool = False  # examination from the top alone, or half of it from the bottom
    diversity_penalty: Divisor = 1.0  # of the relevance of a slate that repeats a topic too often
    num_items: Annotated[int, Field(ge=1, le=32_768)] = 1000  # I; datasets hold their numbers in 16 bits
    slate_size: Count = 10  # K
    num_topics: Count = 10
    topic_size: Count = 2  # coordinates of each topic, D = num_topics * topic_size
    episode_length: Count = 100  # T, steps
    examination_decay: Share = 0.85  # chance to look at the next rank
    relevance_offset: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.28  # score at which the relevance is one half
    relevance_slope: Factor = 100.0
    preference_inertia: Share = 0.9  # omega, weight of the old preference when a click moves it
    boredom_threshold: CountOrZero = 5  # remembered clicks on a topic that make it boring
    boredom_duration: Count = 5  # steps
    recent_clicks: Count = 10  # length of the click queues
    recent_window: CountOrZero = 5  # steps after which a click is forgotten
    diversity_threshold: CountOrZero = 4  # slots of one topic that call for the penalty
    short_term_boost: Factor = 1.0  # factor on the short-term topic (as published: no effect)
    queue_alignment: QueueAlignment = "published"

    @property
    def item_dim(self) -> int:
        """D, size of an item or user vector."""
        return self.num_topics * self.topic_size

    def examination(self) -> np.ndarray:
        """Probability that the user looks at each rank, (K,) float32, top rank first."""
        from_top = self.examination_decay ** np.arange(self.slate_size)
        weights = 0.5 * from_top + 0.5 * from_top[::-1] if self.mixed_examination else from_top
        return weights.astype(np.float32)


def _six_environments() -> dict[str, Environment]:
    return {
        f"{items}_{click_model}": Environment(
            name=f"{items}_{click_model}",
            items=items,
            mixed_examination=click_model != "topdown",
            diversity_penalty=3.0 if click_model == "divpen" else 1.0,
        )
        for items in ("diffuse", "focused")
        for click_model in ("topdown", "mix", "divpen")
    }


ENVIRONMENTS: Registry[Environment] = Registry("environment", _six_environments())


def environment(name: str, **overrides: Any) -> Environment:
    """The named environment, with some parameters replaced.

    Args:
        name: one of ENVIRONMENTS.
        overrides: fields of `Environment`.
    Raises:
        UnknownNameError: no environment has this name.
        ConfigError: an override is not a field or has an impossible value.
    """
    known = [field.name for field in fields(Environment)]
    for key in overrides:
        if key not in known:
            raise ConfigError(f"`{key}` is not a parameter of an environment. {did_you_mean(key, known)}")
    try:
        return checked(replace(ENVIRONMENTS[name], **overrides))
    except ValueError as error:
        raise ConfigError(f"{error}. See the fields of `Environment`.") from None
