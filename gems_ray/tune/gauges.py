"""What every cell measures, as gauges for Prometheus on Ray's metrics endpoint."""

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.util.metrics import Gauge

from gems_ray import metrics
from gems_ray.tune.cell_queue import cell_configs, cell_reports
from gems_ray.yaml_file import yaml_text

# Ray writes `ray_` before each name; docs/runs.md lists them.
GAUGES = {
    metrics.RETURN_MEAN: ("gems_ray_return", "Return of the validation users, clicks per episode."),
    metrics.BEST_RETURN: ("gems_ray_best_return", "The best one so far."),
    metrics.Q_POLICY: ("gems_ray_q_policy", "Mean Q-value of the policy's actions."),
    metrics.Q_BOUND: ("gems_ray_q_bound", "What no honest Q-value passes."),
    metrics.train("critic_loss"): ("gems_ray_critic_loss", "Loss of the critic, mean since the last evaluation."),
    metrics.train("actor_loss"): ("gems_ray_actor_loss", "Loss of the actor, mean since the last evaluation."),
    metrics.STEP: ("gems_ray_updates", "Gradient updates so far."),
    metrics.UPDATES_PER_SECOND: ("gems_ray_updates_per_second", "Speed of the training alone."),
}
LABELS = ("run", "cell", "algorithm", "environment", "seed", "settings")


class CellGauges(tune.Callback):
    """Sets the gauges of a cell at every report.

    Args:
        run: name of the run.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges = {metric: Gauge(name, text, LABELS) for metric, (name, text) in GAUGES.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its callbacks; nothing ever reads that back."""
        return CellGauges, (self._run,)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        """A report of a cell."""
        configs = cell_configs(trial)
        for cell, report in cell_reports(trial, result).items():
            config = configs[cell]
            settings = ", ".join(f"{name} {yaml_text(value)}" for name, value in config["settings"].items())
            words = (self._run, cell, config["algorithm"], config["environment"], config["seed"], settings)
            labels = dict(zip(LABELS, map(str, words), strict=True))
            for metric, gauge in self._gauges.items():
                if metric in report:
                    gauge.set(float(report[metric]), labels)
