"""What a run was made with: versions and hardware."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from gems_ray import __version__

PACKAGES = ("numpy", "torch", "ray", "optuna", "gymnasium", "pandas")


def machine_report() -> dict[str, Any]:
    """Versions of the program and what it stands on, commit, operating system, hardware, as plain data."""
    import torch

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "gems_ray": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _commit() -> str | None:
    """The commit of a checkout, with `+` where files were changed since; None for an installed package."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # the repository around an installed package is somebody else's
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
