"""The settings in which cells differ, as columns."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gems_ray.errors import RunFolderError
from gems_ray.experiments.records import CellDescription
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.yaml_file import short_text, yaml_text

SECTIONS = ("dataset", "training", "evaluation")  # of an experiment file, besides the settings of its algorithms
# A path, and what has a column of its own and is left out where a search only tries.
NO_SETTINGS = ("dataset.folder", "evaluation.test_users")
Value = bool | int | float | str | None


def searched_settings(run: RunFolder) -> dict[str, dict[str, Any]]:
    """What the trials of a search tried, by the name of the cell; empty for a grid.

    A trial with the default settings of its algorithm says them too; the description of its cell leaves them out.
    """
    try:
        trials = run.trials()
        again = run.candidates() or [] if trials else []
    except RunFolderError:  # a damaged record: the descriptions of the cells remain
        return {}
    found: dict[str, dict[str, Any]] = {}
    for trial in trials.values():
        settings = {name.removeprefix(f"{trial.algorithm}."): value for name, value in trial.params.items()}
        settings.pop("algorithm", None)
        found |= dict.fromkeys(trial.cells, settings)
    for candidate in again:
        if candidate.trial in trials:
            cells = trials[candidate.trial].cells
            found |= dict.fromkeys(candidate.cells, found[cells[0]] if cells else {})
    return found


def all_settings(description: CellDescription, searched: Mapping[str, Any]) -> dict[str, Value]:
    """What is known of the settings of a cell, by name: `alpha`, and `training.max_timesteps`.

    Args:
        description: of the cell; it leaves out what is as the algorithm's default.
        searched: what a trial tried.
    """
    found = {**searched, **description.settings}
    for section in SECTIONS:
        found |= flat(section, getattr(description, section).model_dump(mode="json"))
    return {name: _scalar(value) for name, value in found.items() if name not in NO_SETTINGS}


def told_defaults(description: CellDescription, searched: Mapping[str, Any]) -> dict[str, Value]:
    """Defaults of the algorithm that a cell tells: what its trial tried, and its description leaves out.

    Args:
        description: of the cell.
        searched: what a trial tried.
    """
    return {name: _scalar(value) for name, value in searched.items() if name not in description.settings}


def differing(settings: Sequence[Mapping[str, Value]], taken: Sequence[str] = ()) -> dict[str, list[Value]]:
    """A column for every setting that is not the same in all cells.

    Args:
        settings: of every cell.
        taken: names of other columns; a setting of such a name is called `settings.NAME`.
    Returns:
        by the name of the setting, a value for each cell; None where it is the algorithm's default, or none of its own.
    """
    columns = {}
    for name in dict.fromkeys(name for each in settings for name in each):
        values = [each.get(name) for each in settings]
        if len({(isinstance(value, bool), value) for value in values}) > 1:
            columns[f"settings.{name}" if name in taken else name] = _of_one_kind(values)
    return columns


def distinct_texts(values: Iterable[Value]) -> dict[Value, str]:
    """A text for every value: as short as no two values look the same."""
    texts = {value: short_text(value) for value in dict.fromkeys(values)}
    for longer in (yaml_text, str):
        counts = Counter(texts.values())
        texts = {value: text if counts[text] == 1 else longer(value) for value, text in texts.items()}
    return texts


def _of_one_kind(values: list[Value]) -> list[Value]:
    """Numbers, truth values or texts; all as texts where a setting can be of several kinds, such as `auto` or 0.5."""
    kinds = {
        bool if isinstance(value, bool) else str if isinstance(value, str) else float
        for value in values
        if value is not None
    }
    return values if len(kinds) < 2 else [None if value is None else yaml_text(value) for value in values]


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with names such as `training.device`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else name
        found |= flat(key, value) if isinstance(value, Mapping) else {key: value}
    return found


def _scalar(value: Any) -> Value:
    """Lists and mappings as their YAML."""
    return value if value is None or isinstance(value, bool | int | float | str) else yaml_text(value)
