"""What a search can maximise, and where it is found."""

import math
from collections.abc import Mapping

from gems_ray import metrics
from gems_ray.experiments.records import CellResult

RETURN, FQE = "return", "fqe"
# All on the validation users, of the last checkpoint unless the name says best.
MEASURED = {
    RETURN: metrics.RETURN_MEAN,
    "best_return": metrics.BEST_RETURN,
    "slate_diversity": metrics.DISTINCT_SLATES,
    "topic_entropy": metrics.TOPIC_ENTROPY,
    "coverage": metrics.COVERAGE,
}


def reported_value(report: Mapping[str, float], objective: str) -> float | None:
    """The objective in a report on the way; None where it is not measured there."""
    return report.get(MEASURED.get(objective, ""))


def result_value(result: CellResult | None, objective: str) -> float:
    """The objective of a cell that has its result; NaN where it was not measured.

    The estimate is a cautious one: the critics' mean less their deviation, large where a policy leaves the data.
    """
    if result is None:
        return math.nan
    if objective == FQE:
        return result.offline.fqe_value - result.offline.fqe_spread if result.offline else math.nan
    return result.report.get(MEASURED[objective], math.nan)
