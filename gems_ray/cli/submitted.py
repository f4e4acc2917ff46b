"""`python -m gems_ray.cli.submitted FOLDER`: what a submitted run does first on the cluster."""

import contextlib
import filecmp
import json
import os
import shutil
import sys
from pathlib import Path

import psutil

from gems_ray.cli.main import main, print_error
from gems_ray.errors import GemsRayError, RunFolderError
from gems_ray.execution.parcel import FILES
from gems_ray.files import atomic_path
from gems_ray.program import COMMAND, INSTALLED

GCS_ADDRESS = "--gcs-address="  # option of a raylet


def unpack(sent: Path, folder: Path, newest: str) -> None:
    """Puts the files that travelled with a run where it looks for them.

    Args:
        sent: folder of the files.
        folder: where the run is at home.
        newest: of the files, the one that takes the place of an older one.
    Raises:
        RunFolderError: another file lies where a dataset or world was to be put; nothing has been written then.
    """
    new = []
    for source in sorted(path for path in sent.rglob("*") if path.is_file()):
        target = folder / source.relative_to(sent)
        if target.exists() and filecmp.cmp(source, target, shallow=False):
            continue
        if target.exists() and target != folder / newest:
            raise RunFolderError(
                f"{target}: on the cluster lies another file than the one that was sent, and runs may need it. Remove "
                "it there, give yours another name, or choose another --folder."
            )
        new.append((source, target))
    for source, target in new:
        with atomic_path(target) as partial:
            shutil.copyfile(source, partial)


def run_submitted(folder: Path) -> None:
    """Unpacks, and runs the command of the job in the run's folder.

    Args:
        folder: on the head of the cluster.
    """
    words = json.loads(os.environ[COMMAND])
    try:
        unpack(Path(FILES).absolute(), folder, words[1])
        os.chdir(folder)
    except OSError as error:
        print_error(f"--folder {folder}: {error.strerror}. Choose a folder on the head that can be written.")
        sys.exit(2)
    except GemsRayError as error:
        print_error(error)
        sys.exit(2)
    sys.argv = [INSTALLED, *words, "--address", _cluster()]
    main()


def _cluster() -> str:
    """The address of the cluster that this job belongs to, which the raylet above it was started with.

    Ray's `auto` would be the latest cluster that was started on this machine.
    """
    for parent in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            for word in parent.cmdline():
                if word.startswith(GCS_ADDRESS):
                    return word.removeprefix(GCS_ADDRESS)
    return "auto"


if __name__ == "__main__":
    run_submitted(Path(sys.argv[1]).expanduser())
