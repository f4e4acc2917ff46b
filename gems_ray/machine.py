"""What a run was made with: versions and hardware."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from pydantic import Field

from gems_ray import __version__
from gems_ray.record import Record


class MachineReport(Record):
    """machine.json: versions and hardware, where a run began."""

    gems_ray: str = Field(description="Version of this program.")
    commit: str | None = Field(description="Commit of its checkout, with `+` where files were changed since.")
    python: str = Field(description="Version of Python.")
    numpy: str | None = Field(description="Version of NumPy.")
    torch: str | None = Field(description="Version of PyTorch.")
    ray: str | None = Field(description="Version of Ray.")
    optuna: str | None = Field(description="Version of Optuna.")
    gymnasium: str | None = Field(description="Version of Gymnasium.")
    pandas: str | None = Field(description="Version of pandas.")
    platform: str = Field(description="Operating system.")
    host: str = Field(description="Name of the machine in its network.")
    cpus: int | None = Field(description="CPU cores.")
    memory_gb: float = Field(description="Main memory, 10^9 bytes.")
    gpus: list[str] = Field(description="Names of its GPUs.")


def machine_report() -> MachineReport:
    """Versions of the program and what it stands on, commit, operating system and hardware of this machine."""
    import torch

    return MachineReport(
        gems_ray=__version__,
        commit=_commit(),
        python=platform.python_version(),
        numpy=_version("numpy"),
        torch=_version("torch"),
        ray=_version("ray"),
        optuna=_version("optuna"),
        gymnasium=_version("gymnasium"),
        pandas=_version("pandas"),
        platform=platform.platform(),
        host=platform.node(),
        cpus=os.cpu_count(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        gpus=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    )


def _version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
