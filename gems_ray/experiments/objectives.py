"""What a search can maximise, and where it is found."""

import math
from collections.abc import Mapping
from typing import Any

from gems_ray import metrics

RETURN, FQE = "return", "fqe"
# All on the validation users, of the last checkpoint unless the name says best.
MEASURED = {
    RETURN: metrics.RETURN_MEAN,
    "best_return": metrics.BEST_RETURN,
    "slate_diversity": metrics.DISTINCT_SLATES,
    "topic_entropy": metrics.TOPIC_ENTROPY,
    "coverage": metrics.COVERAGE,
}


def reported_value(report: Mapping[str, Any], objective: str) -> float | None:
    """The objective in a report on the way; None where it is not measured there."""
    value = report.get(MEASURED.get(objective, ""))
    return None if value is None else float(value)


def result_value(result: Mapping[str, Any], objective: str) -> float:
    """The objective of a cell that has its result; NaN where it was not measured.

    The estimate is a cautious one: the critics' mean less their deviation, large where a policy leaves the data.
    """
    if objective == FQE:
        offline = result.get("offline")
        return float(offline["fqe_value"] - offline["fqe_spread"]) if offline else math.nan
    return float(result.get("report", {}).get(MEASURED[objective], math.nan))
