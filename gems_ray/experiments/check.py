"""Whether an experiment can be run: every name and setting in it must exist."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gems_ray.config import validate
from gems_ray.errors import ConfigError, Location, Mistake, below
from gems_ray.experiments.space import Space
from gems_ray.experiments.spec import Experiment, SearchSpec, search_domains
from gems_ray.registry import Registry
from gems_ray.simulator.environments import ENVIRONMENTS
from gems_ray.yaml_file import read_yaml


def load_experiment(path: Path) -> Experiment:
    """Reads an experiment file and checks every name and setting in it.

    Raises:
        ConfigError: one line per mistake, with file, line and key.
    """
    document = read_yaml(path)
    with document.located():
        return check_experiment(document.data)


def check_experiment(data: Mapping[str, Any]) -> Experiment:
    """Turns plain data into an experiment; environments, algorithms and their settings must exist.

    Raises:
        ConfigError: one line per mistake.
    """
    from gems_ray.algorithms import ALGORITHMS  # torch: not needed to read results

    experiment = _with_imports(validate(data, Experiment))
    _check_names(("environment",), experiment.environment, ENVIRONMENTS)
    _check_names(("worlds",), experiment.worlds, ENVIRONMENTS)
    _check_names(("algorithm",), experiment.algorithm, ALGORITHMS)
    _check_names(("settings",), experiment.settings, ALGORITHMS)
    _check_use("settings", experiment.settings, "algorithm", experiment.algorithm)
    _check_use("worlds", experiment.worlds, "environment", experiment.environment)
    for algorithm, settings in experiment.settings.items():
        with below("settings", algorithm):
            validate(settings, ALGORITHMS[algorithm].Config)
    if experiment.search:
        _check_search(experiment, experiment.search)
    return experiment


def _with_imports(experiment: Experiment) -> Experiment:
    """The experiment with every algorithm under its name, and the import paths of those from outside the package.

    A file may name an algorithm by its import path, `my_package.my_module:MyAlgorithm`, wherever a name stands.
    """
    from gems_ray.algorithms import ALGORITHMS

    with below("imports"):
        for name, path in experiment.imports.items():
            with below(name):
                if ALGORITHMS[path].name != name:
                    raise ConfigError(Mistake(expected=f"the name of {path} is {ALGORITHMS[path].name}"))
    imports: dict[str, str] = {}
    for index, given in enumerate(experiment.algorithm):
        if given in ALGORITHMS:
            with below("algorithm", index):
                algorithm = ALGORITHMS[given]
            if (path := ALGORITHMS.spell(algorithm)) != algorithm.name:
                imports[algorithm.name] = path

    def name_of(given: str) -> str:
        return ALGORITHMS[given].name if ":" in given else given

    update: dict[str, Any] = {
        "algorithm": tuple(map(name_of, experiment.algorithm)),
        "settings": {name_of(given): settings for given, settings in experiment.settings.items()},
        "imports": imports,
    }
    if search := experiment.search:
        space = {name_of(given): domains for given, domains in search.space.items()}
        update["search"] = search.model_copy(update={"space": space})
    return experiment.model_copy(update=update)


def check_placement(experiment: Experiment) -> None:
    """Makes sure that cells which train on a GPU are given one, and not more than one.

    Raises:
        ConfigError: they are not.
    """
    share = experiment.resources.gpu
    if experiment.training.device == "cuda" and not share:
        raise ConfigError("training.device is cuda, but a cell has no GPU: set resources.gpu, for example to 0.25.")
    if share > 1:
        raise ConfigError(f"resources.gpu {share:g}: a cell is trained on one GPU. Set it to 1 at most.")


def check_tracking(experiment: Experiment) -> None:
    """Makes sure that the packages of the trackers are installed.

    Raises:
        ConfigError: one is not.
    """
    for name, given in experiment.tracking:
        if given is not None and find_spec(name) is None:
            raise ConfigError(
                f"tracking.{name}: the package {name} is not installed. Install it with "
                f"`pip install 'gems_ray[{name}]'`, or leave `tracking.{name}` out."
            )


def all_settings(algorithm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of an algorithm: the given ones, and the published defaults of the others."""
    from gems_ray.algorithms import ALGORITHMS

    return ALGORITHMS[algorithm].Config(**settings).model_dump(mode="json")


def _check_search(experiment: Experiment, search: SearchSpec) -> None:
    """Every value that can be proposed must be one that the algorithm takes."""
    from gems_ray.algorithms import ALGORITHMS

    searched = Registry("algorithm of this search", {name: name for name in experiment.algorithm})
    _check_names(("search", "space"), search.space, searched)
    for algorithm, domains in search.space.items():
        with below("search", "space", algorithm):
            for setting, domain in domains.items():
                for value in domain.examples:
                    validate({setting: value}, ALGORITHMS[algorithm].Config)
    for index, point in enumerate(search.initial):
        with below("search", "initial", index):
            _check_point(experiment, search, point)


def _check_point(experiment: Experiment, search: SearchSpec, point: Mapping[str, Any]) -> None:
    """A point that is tried first must be one of the space."""
    from gems_ray.algorithms import ALGORITHMS

    algorithm = str(point.get("algorithm", experiment.algorithm[0]))
    if algorithm not in experiment.algorithm:
        names = ", ".join(experiment.algorithm)
        expected = f"{algorithm} is not an algorithm of this search ({names})"
        raise ConfigError(Mistake(("algorithm",), expected=expected))
    settings = {key: value for key, value in point.items() if key != "algorithm"}
    validate(settings, ALGORITHMS[algorithm].Config)
    if unknown := set(settings) - set(search.space.get(algorithm, {})):
        advice = "Add it there, or set it in settings."
        raise ConfigError(Mistake((unknown.pop(),), problem="is not in search.space", advice=advice))
    whole = all_settings(algorithm, {**experiment.settings.get(algorithm, {}), **settings})
    if outside := Space(search_domains(experiment)).outside(algorithm, whole):
        origin = "" if outside[0] in settings else " (not named here, so its default)"
        raise ConfigError(Mistake(expected=f"{outside[0]} {whole[outside[0]]}{origin} lies outside of search.space"))


def _check_use(key: str, given: Mapping[str, Any], field: str, names: tuple[str, ...]) -> None:
    """What is said of an algorithm or environment that does not take part would be ignored in silence."""
    for name in given:
        if name not in names:
            advice = f"Add {name} to `{field}`, or remove this."
            raise ConfigError(Mistake((key, name), expected=f"`{field}` is {', '.join(names)}", advice=advice))


def _check_names(location: Location, names: tuple[str, ...] | Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Every name of a list, or every key of a mapping, must be known."""
    for index, name in enumerate(names):
        with below(*location, name if isinstance(names, Mapping) else index):
            known[name]
