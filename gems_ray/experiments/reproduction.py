"""How a run, or one of its cells, is made again."""

import json
from functools import lru_cache
from typing import Any

from gems_ray import __version__
from gems_ray.experiments.records import CellDescription
from gems_ray.experiments.run_folder import EXPERIMENT, RunFolder
from gems_ray.experiments.spec import Experiment
from gems_ray.program import command_line
from gems_ray.yaml_file import dump_yaml

VERSION = __version__  # of the program that reads


def run_again(run: RunFolder) -> str:
    """The command that makes a run again, beside the old one."""
    command = "search" if run.experiment().search else "grid"
    name = run.path.resolve().name
    return command_line(command, str(run.path / EXPERIMENT), "--name", f"{name}_again")


def cell_experiment(description: CellDescription, experiment: Experiment) -> tuple[str, str]:
    """An experiment file that makes one cell again, in two parts: what differs between seeds, and the rest.

    Args:
        description: of the cell.
        experiment: of its run.
    Returns:
        YAML; one after the other they are the file.
    """
    head: dict[str, Any] = {"environment": description.environment, "seed": description.seed}
    body: dict[str, Any] = {"algorithm": description.algorithm}
    if description.algorithm in experiment.imports:
        body["imports"] = {description.algorithm: experiment.imports[description.algorithm]}
    if description.settings:
        body["settings"] = {description.algorithm: description.settings}
    if description.world != description.environment:
        head["worlds"] = {description.environment: description.world}
    for section in ("dataset", "training", "evaluation", "resources"):
        body[section] = getattr(description, section).model_dump(mode="json")
    return _yaml(json.dumps(head)), _yaml(json.dumps(body))


@lru_cache(maxsize=4096)
def _yaml(text: str) -> str:
    """JSON as YAML; most cells of a run share it."""
    return dump_yaml(json.loads(text))
