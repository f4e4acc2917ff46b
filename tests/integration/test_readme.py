"""The README's Python, word for word, on a shipped world."""

import json
import os
import re
import subprocess
import sys

import pytest

SHOWN = """
import json
shown = {"users": gems_ray.evaluate(policy, world, users=1000, seed=1).return_mean}
shown["mine"] = len(gems_ray.load_dataset("mine.npz"))
shown["cells"] = len(run.cells()), set(run.cells()["status"]) == {"finished"}
shown["rows"] = len(run.metrics()), len(run.table())
print(json.dumps(shown))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_python_of_the_readme(command, request, tmp_path):
    """Ten thousand updates of IQL, a thousand episodes and the nine cells of the demo: five minutes on two cores."""
    readme = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if "Trainer" in code)
    (collect,) = re.findall(r"`python run_tune\.py (collect --environment diffuse_mix[^`]*)`", readme)
    assert command(*collect.split()).returncode == 0
    (tmp_path / "tune_configs").symlink_to(request.config.rootpath / "tune_configs")
    done = subprocess.run(
        [sys.executable, "-c", block + SHOWN],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *reports, shown = done.stdout.strip().splitlines()
    returns = [float(line.split()[1]) for line in reports if re.fullmatch(r"\d+ [\d.]+", line)]
    assert len(returns) == 8  # after 0, 50, 100, 250, 500, 1,000, 5,000 and 10,000 updates
    assert returns[-1] > 270  # the behaviour agent returns 289
    found = json.loads(shown)
    assert found["users"] > 270
    assert found["mine"] == 100_000
    assert found["cells"] == [9, True]
    assert found["rows"] == [9 * 8, 3 * 5]
