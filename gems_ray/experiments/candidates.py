"""From the trials of a search to the settings that are trained again, and to the best of them.

Everything is read from the run folder: neither Ray nor the study is needed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gems_ray.experiments.cell_folder import FAILED, PRUNED, WITH_RESULT, CellFolder
from gems_ray.experiments.check import all_settings
from gems_ray.experiments.objectives import FQE, RETURN, result_value
from gems_ray.experiments.records import CandidateRecord, CellResult, TrialRecord
from gems_ray.experiments.run_folder import BEST, RunFolder
from gems_ray.experiments.spec import Cell, Experiment, SearchSpec
from gems_ray.files import write_text_atomically
from gems_ray.yaml_file import dump_yaml

COMPLETE = "complete"
OFFLINE_HOLDOUT = 0.2  # of the episodes, where a search has nothing but the dataset


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial of a search as the run folder tells it."""

    number: int
    algorithm: str
    settings: Mapping[str, Any]  # that differ from the algorithm's defaults
    params: Mapping[str, Any]  # what was searched, under the names of the study
    state: str  # complete, pruned, failed or unfinished
    values: tuple[float, ...]  # by objective, means over cells; empty unless complete
    cells: tuple[CellFolder, ...]
    results: tuple[CellResult | None, ...] = ()  # of the cells


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings that are trained on fresh seeds after a search."""

    label: str  # `td3_bc default` or `trial 7`
    trial: Trial | None  # that proposed them
    grid: Experiment  # its cells on fresh seeds, scored by the test users

    @property
    def cells(self) -> list[Cell]:
        """The cells on fresh seeds."""
        return self.grid.cells()

    def as_record(self) -> CandidateRecord:
        """What the run folder keeps of the candidate."""
        (algorithm,) = self.grid.algorithm
        return CandidateRecord(
            label=self.label,
            trial=None if self.trial is None else self.trial.number,
            algorithm=algorithm,
            settings=self.grid.settings.get(algorithm, {}),
            cells=[cell.name for cell in self.cells],
        )


def search_of(experiment: Experiment) -> SearchSpec:
    """The search of an experiment that has one."""
    assert experiment.search is not None
    return experiment.search


def with_objectives(experiment: Experiment, has_world: bool) -> Experiment:
    """The experiment with the objectives that its search takes, where it names none.

    Args:
        experiment: a search.
        has_world: whether policies can be measured in the simulator.
    """
    search, evaluation = search_of(experiment), experiment.evaluation
    objectives = search.objectives or (RETURN if has_world else FQE,)
    if FQE in objectives and not evaluation.holdout:
        evaluation = evaluation.model_copy(update={"holdout": OFFLINE_HOLDOUT})
    search = search.model_copy(update={"objectives": objectives})
    return experiment.model_copy(update={"search": search, "evaluation": evaluation})


def trial_cells(
    experiment: Experiment, algorithm: str, searched: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Cell]]:
    """Settings and cells of a trial.

    Args:
        experiment: a search.
        algorithm: that the trial chose.
        searched: the settings that it chose.
    """
    settings = {**experiment.settings.get(algorithm, {}), **searched}
    first = experiment.seed[0]
    seeds = range(first, first + search_of(experiment).seeds_per_trial)
    return settings, experiment.with_settings(algorithm, settings, seeds, test=False).cells()


def read_trials(run: RunFolder, objectives: Sequence[str]) -> list[Trial]:
    """All trials of a search, by number."""
    return [read_trial(run, number, record, objectives) for number, record in run.trials().items()]


def read_trial(run: RunFolder, number: int, record: TrialRecord, objectives: Sequence[str]) -> Trial:
    """A trial by its record and its cells."""
    cells = tuple(run.cell(name) for name in record.cells)
    results = tuple(cell.result() for cell in cells)
    statuses = [cell.status_by(result) for cell, result in zip(cells, results, strict=True)]
    if FAILED in statuses:
        state = FAILED
    elif PRUNED in statuses:
        state = PRUNED
    else:
        state = COMPLETE if all(status in WITH_RESULT for status in statuses) else "unfinished"
    values = tuple(_mean(results, objective) for objective in objectives) if state == COMPLETE else ()
    if not all(map(math.isfinite, values)):  # a study takes no such value
        state, values = FAILED, ()
    return Trial(number, record.algorithm, record.settings, record.params, state, values, cells, results)


def _mean(results: Sequence[CellResult | None], objective: str) -> float:
    return fmean(result_value(result, objective) for result in results)


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Complete trials: the Pareto front before all others, each by the first objective."""
    complete = [trial for trial in trials if trial.state == COMPLETE]
    front = pareto_front(complete)
    return sorted(complete, key=lambda trial: (trial.number not in front, -trial.values[0], trial.number))


def pareto_front(trials: Sequence[Trial]) -> set[int]:
    """Numbers of the complete trials that no other one beats in every objective."""
    complete = [trial for trial in trials if trial.state == COMPLETE]

    def beats(one: Trial, other: Trial) -> bool:
        pairs = zip(one.values, other.values, strict=True)
        return one.values != other.values and all(mine >= theirs for mine, theirs in pairs)

    return {trial.number for trial in complete if not any(beats(other, trial) for other in complete)}


def candidates(experiment: Experiment, trials: Sequence[Trial]) -> list[Candidate]:
    """The default settings of every algorithm, and the best trials beside them.

    Args:
        experiment: a search.
        trials: of that search.
    """
    search = search_of(experiment)
    if not search.confirm.candidates:
        return []
    first = experiment.seed[0] + search.seeds_per_trial
    seeds = range(first, first + search.confirm.seeds)
    ranked = best_first(trials)
    distinct: dict[str, Trial] = {}  # proposals may repeat
    for trial in ranked:
        distinct.setdefault(_settings_key(trial.algorithm, trial.settings), trial)

    def candidate(label: str, trial: Trial | None, algorithm: str, settings: Mapping[str, Any]) -> Candidate:
        return Candidate(label, trial, experiment.with_settings(algorithm, settings, seeds, test=True))

    defaults = {name: experiment.settings.get(name, {}) for name in experiment.algorithm}
    found = [
        candidate(f"{name} default", distinct.get(_settings_key(name, settings)), name, settings)
        for name, settings in defaults.items()
    ]
    known = {_settings_key(name, settings) for name, settings in defaults.items()}
    for key, trial in list(distinct.items())[: search.confirm.candidates]:
        if key not in known:
            found.append(candidate(f"trial {trial.number}", trial, trial.algorithm, trial.settings))
    return found


def _settings_key(algorithm: str, settings: Mapping[str, Any]) -> str:
    """An algorithm with all of its settings, as a key."""
    return json.dumps([algorithm, all_settings(algorithm, settings)], sort_keys=True)


def candidate_value(run: RunFolder, candidate: Candidate, objective: str) -> float | None:
    """Mean of an objective over the fresh seeds; None until all of them have their result."""
    results = [run.cell(cell.name).result() for cell in candidate.cells]
    return _mean(results, objective) if all(result and result.status in WITH_RESULT for result in results) else None


def write_best(run: RunFolder, experiment: Experiment, trials: Sequence[Trial], tried: Sequence[Candidate]) -> None:
    """Writes best.yaml: a grid of the settings that did best, by what the validation users say of the fresh seeds.

    Without candidates it is the best trial with its own seeds.
    """
    objective = search_of(experiment).objectives[0]
    scored = [(value, c) for c in tried if (value := candidate_value(run, c, objective)) is not None]
    if scored:
        value, best = max(scored, key=lambda pair: pair[0])
        label, grid = best.label, best.grid
    elif ranked := best_first(trials):
        best_trial = ranked[0]
        value, label = best_trial.values[0], f"trial {best_trial.number}"
        first = experiment.seed[0]
        seeds = range(first, first + search_of(experiment).seeds_per_trial)
        grid = experiment.with_settings(best_trial.algorithm, best_trial.settings, seeds, test=True)
    else:
        return
    head = f"# Best of the search ({label}): {objective} {value:.1f} on these seeds, which `grid` gives again.\n"
    write_text_atomically(run.path / BEST, head + dump_yaml(grid.as_yaml()))
