"""What plots there are; apart, because the command line names them before it reads anything."""

from enum import StrEnum


class PlotName(StrEnum):
    """A plot."""

    LEARNING_CURVES = "learning_curves"
    Q_BOUND = "q_bound"
    PROFILES = "profiles"
    SCORES = "scores"
    CLONING = "cloning"
    DIVERSITY = "diversity"
    TRIALS = "trials"
    HISTORY = "history"
    IMPORTANCES = "importances"
    SLICES = "slices"
    CONTOUR = "contour"
    PARALLEL = "parallel"
    PARETO = "pareto"


class PlotFormat(StrEnum):
    """A format of plots."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


OF_SEARCHES = (
    PlotName.TRIALS,
    PlotName.HISTORY,
    PlotName.IMPORTANCES,
    PlotName.SLICES,
    PlotName.CONTOUR,
    PlotName.PARALLEL,
    PlotName.PARETO,
)
