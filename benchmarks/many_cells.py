"""What the driver pays for cells and for reports.

    python benchmarks/many_cells.py [--cells 500]

First hundreds of trivial cells: time per cell and memory of the driver, in the first part of the run and later. Both
should stay flat, because what grows with the number of cells decides how large a run can be. Then a few cells that
report as often as they can: processor time of the driver per report, which decides how many cells can run at once.
Last, a study with more and more trials: processor time of the driver for each proposal of a search.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import psutil

from gems_ray.experiments.study import make_sampler

SCRIPT = Path(__file__).parents[1] / "run_tune.py"
PARTS = 10
LOOK_EVERY_S = 0.5
REPORTS_BEFORE, MEASURED_S = 100, 20.0
TRIALS, PROPOSALS = (100, 500, 1000), 20


def experiment(cells: int, updates: int, interval: int) -> dict[str, object]:
    """A grid of so many cells, as small as cells can be."""
    return {
        "environment": "diffuse_mix",
        "algorithm": "td3_bc",
        "seed": list(range(cells)),
        "settings": {"td3_bc": {"hidden_sizes": [16]}},
        "dataset": {"quality": "random", "episodes": 2},
        "training": {"max_timesteps": updates, "evaluation_interval": interval, "compile": "off"},
        "evaluation": {"validation_users": 2, "test_users": 2},
    }


def start(folder: Path, name: str, content: dict[str, object]) -> "subprocess.Popen[bytes]":
    """Starts a grid."""
    (folder / name).write_text(json.dumps(content))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / f"{name}.txt").open("w") as output:
        line = [sys.executable, SCRIPT, "grid", name]
        return subprocess.Popen(line, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)


def finish(run: "subprocess.Popen[bytes]", output: Path) -> None:
    """Waits for the end of a grid."""
    if run.wait():
        sys.exit(output.read_text())


def measure_cells(folder: Path, cells: int) -> None:
    """Prints a line for every part of the run."""
    results = folder / "runs" / "many" / "cells"
    begin = time.perf_counter()
    run = start(folder, "many.yaml", experiment(cells, updates=1, interval=1))
    driver, before, first = psutil.Process(run.pid), (0, 0.0, 0.0), 0.0
    print("cells  ms per cell  driver: ms of processor per cell  memory (USS, MB)")
    while run.poll() is None:
        time.sleep(LOOK_EVERY_S)
        ended, now = sum(1 for _ in results.glob("*/result.json")), time.perf_counter() - begin
        with contextlib.suppress(psutil.Error):  # it has ended since
            used, memory = sum(driver.cpu_times()[:2]), driver.memory_full_info().uss / 1e6
            if ended and not first:
                first, before = now, (ended, now, used)
            if ended >= before[0] + cells // PARTS:
                number = ended - before[0]
                wall, processor = 1000 * (now - before[1]) / number, 1000 * (used - before[2]) / number
                print(f"{ended:5}  {wall:11.0f}  {processor:32.0f}  {memory:16.0f}", flush=True)
                before = (ended, now, used)
    finish(run, folder / "many.yaml.txt")
    print(f"{cells} cells in {time.perf_counter() - begin:.0f} s, the first one after {first:.0f} s")


def measure_reports(folder: Path) -> None:
    """Prints the processor time per report."""
    run = start(folder, "reports.yaml", experiment(2, updates=90_000, interval=20))
    driver, tables = psutil.Process(run.pid), folder / "runs" / "reports" / "cells"

    def state() -> tuple[int, float]:
        rows = sum(table.read_bytes().count(b"\n") - 1 for table in tables.glob("*/metrics.csv"))
        return rows, sum(driver.cpu_times()[:2])

    while state()[0] < REPORTS_BEFORE:
        time.sleep(LOOK_EVERY_S)
    (rows, used), begin = state(), time.perf_counter()
    time.sleep(MEASURED_S)
    (more, later), seconds = state(), time.perf_counter() - begin
    run.terminate()
    run.wait()
    number = more - rows
    each = 1000 * (later - used) / number
    print(f"{number / seconds:.0f} reports/s from 2 cells, driver: {each:.1f} ms of processor for each")


def measure_proposals(folder: Path) -> None:
    """Prints the processor time of a proposal of alpha and batch size, with results of so many trials before it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {
        "alpha": optuna.distributions.FloatDistribution(0.1, 10, log=True),
        "batch_size": optuna.distributions.CategoricalDistribution([64, 128, 256, 512]),
    }
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}", direction="maximize", sampler=make_sampler("random", 0)
    )
    for trials in TRIALS:
        study.sampler = make_sampler("random", trials)  # quick, and its results serve as well
        while len(study.trials) < trials:
            trial = study.ask(space)
            study.tell(trial, -abs(trial.params["alpha"] - 3))
        study.sampler = make_sampler("tpe", 0)
        begin = time.process_time()
        for _ in range(PROPOSALS):
            study.tell(study.ask(space), 0.0)
        print(f"{trials} trials: {1000 * (time.process_time() - begin) / PROPOSALS:.0f} ms of processor for a proposal")


def main() -> None:
    """All three measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=500)
    cells = parser.parse_args().cells
    with tempfile.TemporaryDirectory() as name:
        measure_cells(Path(name), cells)
        measure_reports(Path(name))
        measure_proposals(Path(name))


if __name__ == "__main__":
    main()
