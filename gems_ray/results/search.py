"""The tables of a search: its trials, and what became of the best ones on fresh seeds and test users."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from gems_ray.errors import RunFolderError
from gems_ray.experiments.candidates import COMPLETE, Trial, pareto_front, read_trials
from gems_ray.experiments.cell_folder import WITH_RESULT
from gems_ray.experiments.objectives import FQE, RETURN, result_value
from gems_ray.experiments.records import CellResult
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.files import write_text_atomically
from gems_ray.results.cells import cells_frame
from gems_ray.results.comparison import ALIKE, BEST, UNTOLD
from gems_ray.results.facts import facts
from gems_ray.results.numbers import short, spread
from gems_ray.results.tables import markdown_facts
from gems_ray.results.text import visible
from gems_ray.results.text_table import TextTable, markdown_table
from gems_ray.yaml_file import short_text


def trials_frame(run: RunFolder) -> pd.DataFrame:
    """One row per trial: state, what was searched, objectives (means over its cells), whether on the Pareto front.

    Raises:
        RunFolderError: the folder holds a grid, or is damaged.
    """
    objectives = _objectives(run)
    return _trials_frame(read_trials(run, objectives), objectives)


def _trials_frame(trials: Sequence[Trial], objectives: Sequence[str]) -> pd.DataFrame:
    front = pareto_front(trials)
    rows = []
    for trial in trials:
        row: dict[str, Any] = {"trial": trial.number, "state": trial.state, "algorithm": trial.algorithm}
        row |= dict(trial.params) | dict(zip(objectives, trial.values, strict=False))
        if trial.state == COMPLETE:
            if all(result and result.offline for result in trial.results):
                row[FQE] = _mean([result_value(result, FQE) for result in trial.results])
            if all(result and result.validation for result in trial.results):
                row[RETURN] = _mean([result_value(result, RETURN) for result in trial.results])
        row["best"] = trial.number in front
        row["cells"] = " ".join(cell.path.name for cell in trial.cells)
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["trial", "state", "algorithm", "best", "cells"])


def candidates_frame(run: RunFolder) -> pd.DataFrame:
    """One row per candidate: the first objective in the search and on fresh seeds, and the test return.

    Raises:
        RunFolderError: the folder holds a grid, or is damaged.
    """
    return _candidates_frame(run, read_trials(run, _objectives(run)))


def _candidates_frame(run: RunFolder, trials: Sequence[Trial]) -> pd.DataFrame:
    objective = _objectives(run)[0]
    values: dict[int | None, tuple[float, ...]] = {trial.number: trial.values for trial in trials}
    rows = []
    readable = {cell.path.name for cell in run.cells()}
    common: dict[str, Mapping[str, Any]] = {}  # by algorithm, what all trials share: the settings of its default
    for candidate in run.candidates() or []:
        base = common.setdefault(candidate.algorithm, candidate.settings)
        cells = [
            (cell.description.seed, result)
            for cell in (run.cell(name) for name in candidate.cells if name in readable)
            if (result := cell.result()) and result.status in WITH_RESULT
        ]
        fresh = _by_seed(cells, lambda result: result_value(result, objective))
        test = _by_seed(cells, lambda result: result.test.last.return_mean if result.test else None)
        rows.append(
            {
                "candidate": candidate.label,
                "settings": _settings({k: v for k, v in candidate.settings.items() if base.get(k) != v}),
                "search": (values.get(candidate.trial) or (math.nan,))[0],
                "fresh_mean": _mean(fresh),
                "fresh_std": pd.Series(fresh, dtype=float).std(),
                "test_mean": _mean(test),
                "test_std": pd.Series(test, dtype=float).std(),
                "seeds": len(fresh),
            }
        )
    columns = ["candidate", "settings", "search", "fresh_mean", "fresh_std", "test_mean", "test_std", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _by_seed(cells: list[tuple[int, CellResult]], value: Callable[[CellResult], float | None]) -> list[float]:
    """A value per seed: the mean over environments; cells without it are left out."""
    by_seed: dict[int, list[float]] = {}
    for seed, result in cells:
        if (found := value(result)) is not None:
            by_seed.setdefault(seed, []).append(found)
    return [_mean(values) for values in by_seed.values()]


def rank_correlation(trials: pd.DataFrame) -> float | None:
    """Spearman's correlation of the offline estimate with the return in the simulator, over complete trials."""
    if FQE not in trials or RETURN not in trials:
        return None
    both = trials[[FQE, RETURN]].dropna()
    if len(both) < 3 or both[FQE].nunique() < 2 or both[RETURN].nunique() < 2:
        return None
    return float(both[FQE].rank().corr(both[RETURN].rank()))


def export(run: RunFolder, folder: Path) -> list[Path]:
    """Writes trials.csv, candidates.csv and table.md; returns their paths."""
    texts = {f"{name}.csv": frame.to_csv(index=False) for name, frame in frames(run).items()}
    texts["table.md"] = to_markdown(run, facts([run], cells_frame(run)))
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    return [folder / name for name in texts]


def frames(run: RunFolder) -> dict[str, pd.DataFrame]:
    """Trials and candidates, with as many decimals as their numbers mean."""
    found = read_trials(run, _objectives(run))
    trials = _trials_frame(found, _objectives(run)).round(dict.fromkeys((*_objectives(run), FQE, RETURN), 4))
    return {"trials": trials, "candidates": _candidates_frame(run, found).round(3)}


def to_markdown(run: RunFolder, described: Sequence[str]) -> str:
    """The candidates as GitHub Markdown.

    Args:
        run: of a search.
        described: where the numbers come from, of `facts`.
    """
    (table,) = text_tables(run)
    text = markdown_table(table.header, table.rows, left=2) + "\n" + "\n".join(table.notes) + "\n"
    return "\n".join([text, *markdown_facts(described)])


def text_tables(run: RunFolder) -> list[TextTable]:
    """The candidates as people read them."""
    found = read_trials(run, _objectives(run))
    header, rows = _display(_candidates_frame(run, found))
    return [TextTable("Candidates", header, rows, notes=notes(run, _trials_frame(found, _objectives(run))))]


def to_rich(run: RunFolder) -> list[Table]:
    """The best trials, and the candidates, for a terminal of 80 columns."""
    objectives = _objectives(run)
    found = read_trials(run, objectives)
    trials = _trials_frame(found, objectives)
    shown = Table(box=None, pad_edge=False, title="Best trials", title_justify="left")
    for name in ("trial", "settings", *objectives):
        shown.add_column(name, justify="left" if name == "settings" else "right", overflow="fold")
    if objectives[0] in trials:
        done = trials[trials["state"] == COMPLETE].sort_values(["best", objectives[0]], ascending=False, kind="stable")
        params = {trial.number: trial.params for trial in found}
        for row in done.head(5).to_dict("records"):
            settings = {name.removeprefix(f"{row['algorithm']}."): v for name, v in params[row["trial"]].items()}
            cells = [str(row["trial"]), _settings(settings), *(short(row[name]) for name in objectives)]
            shown.add_row(*(Text(visible(cell)) for cell in cells))
    drawn = Table(box=None, pad_edge=False, title="Candidates", title_justify="left")
    header, rows = _display(_candidates_frame(run, found))
    for index, name in enumerate(header):
        drawn.add_column(name, justify="left" if index < 2 else "right", overflow="fold", no_wrap=index != 1)
    for cells in rows:
        drawn.add_row(*(Text(visible(cell)) for cell in cells))
    return [shown, drawn] if rows else [shown]


def notes(run: RunFolder, trials: pd.DataFrame) -> list[str]:
    """What the numbers mean, a sentence each."""
    objective = _objectives(run)[0]
    counts = Counter(trials["state"])
    lines = [f"{len(trials)} trials: {', '.join(f'{count} {state}' for state, count in counts.items()) or 'none'}."]
    if objective == FQE:
        lines.append(
            "fqe is an estimate of discounted clicks: fitted Q evaluation on held-out episodes, mean less spread."
        )
    if run.candidates():
        lines.append(
            f"search: {objective} of the trial, the best of many, so too high. "
            "fresh: the same on seeds that chose nothing; test: return on test users; ± deviation over seeds."
        )
    correlation = rank_correlation(trials)
    if correlation is not None:
        lines.append(f"fqe ranks the trials like the return in the simulator with Spearman's {correlation:.2f}.")
    return lines


def told_apart(run: RunFolder, compared: pd.DataFrame) -> list[str]:
    """Which candidates the test users cannot tell apart from the best, a sentence for each environment.

    Args:
        run: of a search.
        compared: of `comparison_frame`, of this run alone.
    """
    label = {name: candidate.label for candidate in run.candidates() or [] for name in candidate.cells}
    if compared.empty:
        return []
    last = compared[compared["checkpoint"] == "last"]
    last = last.assign(label=[label[cells.split()[0]] for cells in last["cells"]])
    lines = ["Too few seeds to tell candidates apart."] if (last["verdict"] == UNTOLD).any() else []
    for environment, rows in last.groupby("environment", sort=True):
        best, alike = (rows[rows["verdict"] == verdict]["label"].tolist() for verdict in (BEST, ALIKE))
        if alike:
            lines.append(f"{environment}: {', '.join(alike)} cannot be told apart from the best, {best[0]}.")
    return lines


def _objectives(run: RunFolder) -> list[str]:
    search = run.experiment().search
    if search is None:
        raise RunFolderError(f"{run.path}: holds a grid, which has neither trials nor candidates.")
    return list(search.objectives) or [RETURN]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {short_text(value)}" for name, value in settings.items()) or "-"


def _display(tried: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            row["candidate"],
            row["settings"],
            short(row["search"]),
            *(spread(row[f"{kind}_mean"], row[f"{kind}_std"]) for kind in ("fresh", "test")),
            str(row["seeds"]),
        ]
        for row in tried.to_dict("records")
    ]
    return ["candidate", "settings", "search", "fresh", "test", "seeds"], rows
