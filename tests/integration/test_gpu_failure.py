"""A GPU that fails, under real Ray: the process ends with it, and another one takes the cell up."""

import json
import re

import pandas as pd
import pytest

ALGORITHM = '''
"""Cloning in a process whose GPU fails once, in the middle of the first cell."""

from pathlib import Path

import torch

from gems_ray.algorithms.bc import BC

MARKER = Path(__file__).with_name("has_failed")


class Failing(BC):
    name = "failing"

    def learn(self, batch, noise, phase):
        if self.updates == 70 and not MARKER.exists():
            MARKER.touch()
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().learn(batch, noise, phase)
'''


@pytest.mark.slow
def test_another_process_takes_the_cell_up(command, tmp_path, world_folder, dataset_file, monkeypatch):
    """The cells are short, so that a process that is still alive would train the next one too."""
    (tmp_path / "failing_gpu.py").write_text(ALGORITHM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    experiment = {
        "environment": "diffuse_mix",
        "algorithm": "failing_gpu:Failing",
        "seed": [0, 1, 2],
        "settings": {"failing_gpu:Failing": {"hidden_sizes": [8]}},
        "worlds": {"diffuse_mix": str(world_folder)},
        "dataset": {"file": str(dataset_file)},
        "training": {"max_timesteps": 100, "evaluation_interval": 50},
        "evaluation": {"validation_users": 2, "test_users": 3},
        "resources": {"cpu": 2},
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(experiment))
    done = command("grid", "grid.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "grid"
    assert set(pd.read_csv(run / "cells.csv")["status"]) == {"finished"}
    logs = [path.read_text() for path in sorted(run.glob("cells/*/log.txt"))]
    (failed,) = [log for log in logs if "set back" in log]
    assert "set back: its process was lost" in failed
    before, after = re.findall(r"after (\d+) updates on cpu .* process (\d+)", failed)
    assert before[1] != after[1], "not the process that failed"
    assert before[1] not in [pid for log in logs if log != failed for pid in re.findall(r"process (\d+)", log)]
