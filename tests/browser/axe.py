"""axe-core, the checker of accessibility, fetched from npm once a session; it is no part of the package."""

import shutil
import subprocess
import tarfile

import pytest

VERSION = "4.14.1"


def fetch(folder):
    """The script of axe-core as a text; skips the test where npm is missing or reaches nothing."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm on the PATH: apt-get install npm")
    found = subprocess.run(
        [npm, "pack", f"axe-core@{VERSION}", "--silent"], cwd=folder, capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(f"npm cannot fetch axe-core: {found.stderr.strip()[-200:]}")
    with tarfile.open(folder / f"axe-core-{VERSION}.tgz") as archive:
        return archive.extractfile("package/axe.min.js").read().decode()
