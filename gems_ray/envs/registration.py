"""The names under which `gymnasium.make` finds our environments; neither Gymnasium nor torch is imported for them."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

GYMNASIUM = "gymnasium"
CLICK_MODELS = {"topdown": "TopDown", "mix": "Mix", "divpen": "DivPen"}
NAMES = {
    f"{items}_{clicks}": f"gems_ray/{items.title()}{spelled}"
    for items in ("diffuse", "focused")
    for clicks, spelled in CLICK_MODELS.items()
}
VARIANTS = {"": "LatentActions", "Slates": "SlateActions"}  # endings of the names, beginnings of the classes


def environment_id(environment: str, variant: str = "") -> str:
    """What `gymnasium.make` calls an environment: `gems_ray/DiffuseMix-v0` for diffuse_mix.

    Args:
        environment: name of one of the six.
        variant: empty for latent actions, "Slates" for actions that are slates.
    """
    return f"{NAMES[environment]}{variant}-v0"


def register_environments() -> None:
    """Registers the six environments with latent actions, and the six with slates as actions."""
    from gymnasium import register, registry

    for environment in NAMES:
        for variant, kind in VARIANTS.items():
            if (name := environment_id(environment, variant)) not in registry:
                register(
                    name,
                    entry_point=f"gems_ray.envs.registered:{kind}Env",
                    vector_entry_point=f"gems_ray.envs.registered:{kind}VectorEnv",
                    kwargs={"environment": environment},
                )


def register_with_gymnasium() -> None:
    """Registers the environments now if Gymnasium is there, and else as soon as it has been imported.

    Gymnasium takes longer to import than everything else that `import gems_ray` does, and has no entry point by which
    a package could name its environments.
    """
    if GYMNASIUM in sys.modules:
        register_environments()
    elif not any(isinstance(finder, _AfterGymnasium) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterGymnasium())


class _AfterGymnasium(MetaPathFinder):
    """Waits for the first import of Gymnasium, and is gone after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != GYMNASIUM:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)  # only now: others look for Gymnasium without importing it
                register_environments()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
