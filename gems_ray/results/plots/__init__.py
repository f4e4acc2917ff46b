"""Plots of runs, from their folders alone: for the screen, for print, and for every colour vision.

Every function takes `Results` and returns a matplotlib figure, which belongs to nobody else: pyplot does not know it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from matplotlib.figure import Figure

from gems_ray.results.plot_names import OF_SEARCHES, PlotFormat, PlotName
from gems_ray.results.plots.curves import learning_curves, q_against_bound
from gems_ray.results.plots.scores import (
    cloning_against_return,
    diversity_against_return,
    performance_profiles,
    score_distributions,
)
from gems_ray.results.plots.style import save, styled
from gems_ray.results.plots.tuning import (
    contour,
    history,
    importances,
    parallel_coordinates,
    pareto_front,
    score_against_trials,
    slices,
)
from gems_ray.results.results import Results

PLOTS: Mapping[PlotName, Callable[[Results], Figure]] = MappingProxyType(
    {
        PlotName.LEARNING_CURVES: learning_curves,
        PlotName.Q_BOUND: q_against_bound,
        PlotName.PROFILES: performance_profiles,
        PlotName.SCORES: score_distributions,
        PlotName.CLONING: cloning_against_return,
        PlotName.DIVERSITY: diversity_against_return,
        PlotName.TRIALS: score_against_trials,
        PlotName.HISTORY: history,
        PlotName.IMPORTANCES: importances,
        PlotName.SLICES: slices,
        PlotName.CONTOUR: contour,
        PlotName.PARALLEL: parallel_coordinates,
        PlotName.PARETO: pareto_front,
    }
)


def draw(results: Results, name: PlotName) -> Figure:
    """Draws a plot; one that has nothing to show says so in words.

    Args:
        results: of one or many runs.
        name: of the plot.
    """
    with styled():
        return PLOTS[name](results)


def write_plots(
    results: Results, folder: Path, names: Sequence[PlotName], formats: Sequence[PlotFormat] = (PlotFormat.PNG,)
) -> list[Path]:
    """Writes plots as files; returns their paths.

    Args:
        results: of one or many runs.
        folder: of the files.
        names: of the plots.
        formats: of the files.
    """
    paths = []
    for name in names:
        figure = draw(results, name)
        for kind in formats:
            paths.append(folder / f"{name}.{kind}")
            save(figure, paths[-1])
    return paths


def fitting_plots(results: Results) -> list[PlotName]:
    """The plots that can show something of these runs: some are for searches alone."""
    searches = [search for run in results.runs if (search := run.experiment().search)]
    several = any(len(search.objectives) > 1 for search in searches)
    return [
        name for name in PLOTS if name not in OF_SEARCHES or (searches and (name is not PlotName.PARETO or several))
    ]
