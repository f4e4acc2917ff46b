"""Offline reinforcement learning for slate recommendation, from simulator to result table.

Every name below is imported when it is first used: `import gems_ray` itself is quick. It also gives Gymnasium the names
of the environments, `gems_ray/DiffuseMix-v0` and its siblings.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gems_ray.envs.registration import register_with_gymnasium

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gems_ray import algorithms as algorithms
    from gems_ray.algorithms.policy import load_policy as load_policy
    from gems_ray.api import Run as Run
    from gems_ray.api import attach_dataset as attach_dataset
    from gems_ray.api import check_dataset as check_dataset
    from gems_ray.api import collect as collect
    from gems_ray.api import comparison as comparison
    from gems_ray.api import curves as curves
    from gems_ray.api import evaluate as evaluate
    from gems_ray.api import import_world as import_world
    from gems_ray.api import load_dataset as load_dataset
    from gems_ray.api import load_world as load_world
    from gems_ray.api import open_run as open_run
    from gems_ray.api import plan as plan
    from gems_ray.api import plot as plot
    from gems_ray.api import report as report
    from gems_ray.api import run as run
    from gems_ray.data.schema import Dataset as Dataset
    from gems_ray.errors import GemsRayError as GemsRayError
    from gems_ray.evaluation.record import Evaluation as Evaluation
    from gems_ray.execution.interruption import RunInterrupted as RunInterrupted
    from gems_ray.execution.listener import RunListener as RunListener
    from gems_ray.experiments.spec import Experiment as Experiment
    from gems_ray.learning.pack import Pack as Pack
    from gems_ray.learning.trainer import Trainer as Trainer
    from gems_ray.policies.base import Policy as Policy
    from gems_ray.world.bundle import World as World

_HOMES = {
    "Dataset": "data.schema",
    "Evaluation": "evaluation.record",
    "Experiment": "experiments.spec",
    "GemsRayError": "errors",
    "Pack": "learning.pack",
    "Policy": "policies.base",
    "Run": "api",
    "RunInterrupted": "execution.interruption",
    "RunListener": "execution.listener",
    "Trainer": "learning.trainer",
    "World": "world.bundle",
    "attach_dataset": "api",
    "check_dataset": "api",
    "import_world": "api",
    "collect": "api",
    "comparison": "api",
    "curves": "api",
    "evaluate": "api",
    "load_dataset": "api",
    "load_policy": "algorithms.policy",
    "load_world": "api",
    "open_run": "api",
    "plan": "api",
    "plot": "api",
    "report": "api",
    "run": "api",
}
_MODULES = ("algorithms",)
__all__ = [*_HOMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    """Imports a name from its home."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What the package offers."""
    return sorted({*globals(), *__all__})


register_with_gymnasium()
