"""What a run was made with: versions and hardware."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gems_ray import __version__

PACKAGES = ("numpy", "torch", "ray", "optuna", "gymnasium", "pandas")


def environment_report() -> dict[str, Any]:
    """Versions of the program and what it stands on, processor count, operating system, as plain data."""
    import torch

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "gems_ray": __version__,
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
