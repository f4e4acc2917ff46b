"""What tuning is worth, and what a search has learned about the settings."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gems_ray.experiments.candidates import COMPLETE, Trial, read_trials, search_of
from gems_ray.experiments.objectives import RETURN
from gems_ray.experiments.readable_run import ReadableRun
from gems_ray.experiments.spec import search_domains
from gems_ray.results.plots.style import empty, finish, group_styles, panels, plain_log_ticks
from gems_ray.results.results import Results
from gems_ray.results.statistics import expected_best, expected_best_interval
from gems_ray.results.text import one_line

if TYPE_CHECKING:
    from optuna import Study

FEWEST = 3  # trials of which something can be learned
NO_SEARCH = "The run is no search, so that there are no tried settings to show."
TOO_FEW = f"Fewer than {FEWEST} trials are complete: nothing can be learned from them yet."


def score_against_trials(results: Results) -> Figure:
    """Expected best value of n tried settings against n: what a search of n trials is worth (Dodge et al. 2019)."""
    values = _values_by_place(results)
    if not values:
        return empty(NO_SEARCH if not any(run.experiment().search for run in results.runs) else TOO_FEW)
    styles = group_styles(sorted({algorithm for by_algorithm in values.values() for algorithm in by_algorithm}))
    figure, axes = panels([place for place, _ in values])
    for axis, ((_, objective), by_algorithm) in zip(axes, values.items(), strict=False):
        for algorithm, found in sorted(by_algorithm.items()):
            sizes, style = np.arange(1, len(found) + 1), styles[algorithm]
            best = expected_best(found, sizes)
            low, high = expected_best_interval(found, sizes, np.random.default_rng(0))
            label = one_line(f"{algorithm} ({len(found)} settings)")
            axis.plot(sizes, best, color=style.color, linestyle=style.dashes, label=label)
            axis.fill_between(sizes, low, high, color=style.color, alpha=0.15, linewidth=0)
            axis.axvline(len(found) / 2, color=style.color, linewidth=0.8, linestyle=":")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("tried settings")
        axis.set_ylabel(f"expected best {objective}")
    note = (
        "mean of the best of n settings over all choices of n among the tried ones, as the search measured them; "
        "band: 95% of resamples, to be trusted up to half of the settings (dotted)."
    )
    return finish(figure, note, axes)


def _values_by_place(results: Results) -> dict[tuple[str, str], dict[str, list[float]]]:
    """By environments and objective, then by algorithm: the values of the complete trials of all searches."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in results.runs:
        if run.experiment().search:
            place = (", ".join(run.experiment().environment), objectives(run)[0])
            for trial in _complete(run):
                found.setdefault(place, {}).setdefault(trial.algorithm, []).append(trial.values[0])
    kept = {
        place: {algorithm: values for algorithm, values in by_algorithm.items() if len(values) >= FEWEST}
        for place, by_algorithm in found.items()
    }
    return {place: by_algorithm for place, by_algorithm in kept.items() if by_algorithm}


def objectives(run: ReadableRun) -> list[str]:
    """What a search maximises."""
    return list(search_of(run.experiment()).objectives) or [RETURN]


def _complete(run: ReadableRun) -> list[Trial]:
    return [trial for trial in read_trials(run, objectives(run)) if trial.state == COMPLETE]


def study_of(run: ReadableRun, algorithm: str) -> "Study":
    """The complete trials of one algorithm as a study in memory, so that Optuna's plots can be used.

    Args:
        run: of a search.
        algorithm: whose trials are taken.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    domains = search_domains(run.experiment())[algorithm]
    study = optuna.create_study(directions=["maximize"] * len(objectives(run)))
    for trial in _complete(run):
        params = {name.removeprefix(f"{algorithm}."): value for name, value in trial.params.items()}
        known = {name: value for name, value in params.items() if name in domains}
        if trial.algorithm == algorithm and all(domains[name].contains(value) for name, value in known.items()):
            distributions: dict[str, Any] = {name: domains[name].distribution for name in known}
            study.add_trial(optuna.create_trial(params=known, distributions=distributions, values=list(trial.values)))
    return study


def _of_optuna(draw: Callable[["Study", list[str], dict[str, Any]], Any], fewest_params: int = 1) -> Any:
    """A function that draws one of Optuna's plots of the algorithm that has the most complete trials."""

    def plot(results: Results) -> Figure:
        from matplotlib import pyplot

        searches = [run for run in results.runs if run.experiment().search]
        studies = [(run, name, study_of(run, name)) for run in searches for name in run.experiment().algorithm]
        if not studies:
            return empty(NO_SEARCH)
        run, algorithm, study = max(studies, key=lambda found: len(found[2].trials))
        names = objectives(run)
        params = list(study.trials[0].params) if study.trials else []
        if len(study.trials) < FEWEST:
            return empty(TOO_FEW)
        if len(params) < fewest_params:
            found = ", ".join(params) or "none"
            return empty(f"This plot needs {fewest_params} settings that were searched together; there is {found}.")
        options: dict[str, Any] = {"target_name": names[0]}
        if len(names) > 1:
            options["target"] = lambda trial: trial.values[0]
        with warnings.catch_warnings():  # Optuna says of every plot that its interface may change
            warnings.simplefilter("ignore")
            drawn = draw(study, names, options)
        if drawn is None:
            return empty(f"A Pareto front needs two or three objectives; there are {len(names)}.")
        figure: Figure = np.ravel(drawn)[0].figure
        title = f"{one_line(algorithm)}, {one_line(run.path.resolve().name)}: {len(study.trials)} complete trials"
        figure.suptitle(title, fontsize=9)
        for axis in figure.axes:
            plain_log_ticks(axis)
        pyplot.close(figure)
        return figure

    return plot


def _history(study: "Study", names: list[str], options: dict[str, Any]) -> Any:
    from optuna.visualization.matplotlib import plot_optimization_history

    return plot_optimization_history(study, **options)


def _importances(study: "Study", names: list[str], options: dict[str, Any]) -> Any:
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization.matplotlib import plot_param_importances

    return plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), **options)


def _slices(study: "Study", names: list[str], options: dict[str, Any]) -> Any:
    from optuna.visualization.matplotlib import plot_slice

    return plot_slice(study, **options)


def _contour(study: "Study", names: list[str], options: dict[str, Any]) -> Any:
    from optuna.visualization.matplotlib import plot_contour

    return plot_contour(study, params=list(study.trials[0].params)[:2], **options)


def _parallel(study: "Study", names: list[str], options: dict[str, Any]) -> Any:
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    return plot_parallel_coordinate(study, **options)


def _pareto(study: "Study", names: list[str], options: dict[str, Any]) -> Any:
    from optuna.visualization.matplotlib import plot_pareto_front

    return plot_pareto_front(study, target_names=names) if len(names) in (2, 3) else None


history = _of_optuna(_history)
importances = _of_optuna(_importances)
slices = _of_optuna(_slices)
contour = _of_optuna(_contour, fewest_params=2)
parallel_coordinates = _of_optuna(_parallel, fewest_params=2)
pareto_front = _of_optuna(_pareto)
