"""What evaluations say of a policy, as it stands in results; without torch, so that results can be read without it."""

from pydantic import Field

from gems_ray import metrics
from gems_ray.record import RecordPart


class Evaluation(RecordPart):
    """What U users made of a policy in one episode each."""

    return_mean: float = Field(description="Clicks per episode, mean over users.")
    return_se: float = Field(description="Standard error of that mean over users, clicks.")
    return_per_step: float = Field(description="Clicks per step, mean over users.")
    distinct_items_per_slate: float = Field(description="Different items on a slate, mean over slates.")
    distinct_slates: int = Field(description="Different slates among all that were shown to all users.")
    repeated_slates: float = Field(description="Share of slates that the same user had seen before in the episode.")
    catalogue_coverage: float = Field(description="Share of all items that were shown at least once.")
    topic_entropy: float = Field(description="Entropy of the shown items' topics, bits.")
    bored_topics: float = Field(description="Topics that bore a user in a step, mean over users and steps.")
    users: int = Field(description="U.")

    def as_metrics(self) -> dict[str, float]:
        """The values under their names in reports."""
        return {
            metrics.RETURN_MEAN: self.return_mean,
            metrics.RETURN_SE: self.return_se,
            metrics.RETURN_PER_STEP: self.return_per_step,
            metrics.DISTINCT_ITEMS: self.distinct_items_per_slate,
            metrics.DISTINCT_SLATES: self.distinct_slates,
            metrics.REPEATED_SLATES: self.repeated_slates,
            metrics.COVERAGE: self.catalogue_coverage,
            metrics.TOPIC_ENTROPY: self.topic_entropy,
            metrics.BORED_TOPICS: self.bored_topics,
        }


class OfflineEvaluation(RecordPart):
    """What held-out episodes say about a policy."""

    fqe_value: float = Field(description="Estimated discounted return, clicks, mean over first states of episodes.")
    fqe_se: float = Field(
        description="Standard error of that mean over episodes, clicks; the error of the critics is not in it."
    )
    fqe_spread: float = Field(
        description="Standard deviation of that mean over critics, clicks: large where the policy leaves the data."
    )
    behavior_value: float = Field(description="Discounted return that was logged, clicks, mean over the episodes.")
    cloning_error: float = Field(description="Mean squared distance of policy and logged actions, normalised units.")
    episodes: int = Field(description="Held-out episodes.")
