"""`run_tune.py plot`: plots of runs, without ray or torch."""

from pathlib import Path
from typing import Annotated

import typer

from gems_ray.results.plot_names import PlotFormat, PlotName


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the files; several runs need one [default: RUN/plots].")
    ] = None,
    plots: Annotated[
        list[PlotName] | None,
        typer.Option("--plot", help="Once for each plot [default: all that fit the runs].", show_default=False),
    ] = None,
    formats: Annotated[
        list[PlotFormat] | None, typer.Option("--format", help="Once for each [default: png].", show_default=False)
    ] = None,
) -> None:
    """Draw learning curves, scores, diagnostics and what a search has learned."""
    from gems_ray.cli.console import print_line
    from gems_ray.cli.paths import check_folder
    from gems_ray.errors import ConfigError
    from gems_ray.experiments.readable_run import ReadableRun

    folders = [ReadableRun.open(run) for run in dict.fromkeys(runs)]
    if output is None and len(folders) > 1:
        raise ConfigError("plot: several runs, and no folder for their plots. Choose one with --output.")
    folder = output or folders[0].path / "plots"
    check_folder(folder, "--output")

    from gems_ray.results.plots import fitting_plots, write_plots
    from gems_ray.results.results import Results

    results = Results(folders)
    for name in plots or fitting_plots(results):
        for path in write_plots(results, folder, [name], formats or [PlotFormat.PNG]):
            print_line(f"Wrote {path}")
    for gap in results.gaps:
        print_line(f"Left out: {gap}")
