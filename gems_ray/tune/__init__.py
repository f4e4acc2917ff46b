"""Everything that touches Ray; `OfflineRL` is a trainable of Ray Tune for scripts of your own."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gems_ray.tune.offline_rl import OfflineRL as OfflineRL

__all__ = ["OfflineRL"]


def __getattr__(name: str) -> Any:
    """Imports the trainable when it is first used: `gems_ray.tune` itself needs no Ray."""
    if name == "OfflineRL":
        from gems_ray.tune.offline_rl import OfflineRL

        return OfflineRL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
