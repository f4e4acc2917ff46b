"""`run_tune.py report`: everything about runs on one page of HTML, without ray or torch."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="File; several runs need one [default: RUN/report.html].", show_default=False)
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on 127.0.0.1, where it refreshes itself, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of --serve [default: a free one].", show_default=False)
    ] = 0,
) -> None:
    """Write one page of HTML about runs: summary, curves, tables, cells. It needs no other file and no network."""
    from gems_ray.cli.console import print_line
    from gems_ray.errors import ConfigError
    from gems_ray.experiments.readable_run import ReadableRun
    from gems_ray.files import write_text_atomically

    folders = [ReadableRun.open(run) for run in dict.fromkeys(runs)]
    if serve and output is not None:
        raise ConfigError("report: a page that is served is not written. Leave out one of --serve and --output.")
    if serve:
        from gems_ray.results.report.server import ReportServer

        with ReportServer([folder.path for folder in folders], port) as server:
            print_line(f"Report of {', '.join(str(folder.path) for folder in folders)}: {server.url}")
            print_line("It is served to this machine alone, and follows the runs while they go on. Ctrl-C ends it.")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return
    if output is None and len(folders) > 1:
        raise ConfigError("report: several runs, and no file for the page. Choose one with --output.")
    path = output or folders[0].path / "report.html"
    if path.is_dir():
        raise ConfigError(f"{path}: expected a file, but it is a folder. Choose another --output.")

    from gems_ray.results.report import page
    from gems_ray.results.results import Results

    results = Results(folders)
    write_text_atomically(path, page(results))
    print_line(f"Wrote {path}")
    for gap in results.gaps:
        print_line(f"Left out: {gap}")
