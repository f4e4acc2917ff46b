"""The program that measures a GPU works on a CPU: what it says in a rehearsal, and after an error of the GPU."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def rehearse(*steps, cwd):
    """Lines and table of a rehearsal, from another folder than the source tree's."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", *(("--only", *steps) if steps else ())]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines, _, table = done.stdout.partition("\n\n")
    return [json.loads(line) for line in lines.splitlines()], table


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_rehearsal(tmp_path, gpu):
    lines, table = rehearse(cwd=tmp_path)
    assert [line["step"] for line in lines] == [*gpu.STEPS]
    skipped = {line["step"] for line in lines if line["ok"] is None}
    assert {"out_of_memory"} <= skipped <= {"out_of_memory", "compiled_graph"}
    assert all(line["ok"] for line in lines if line["step"] not in skipped)
    by_step = {line["step"]: line.get("result") for line in lines}
    assert by_step["graph"] == {"bc": 0, "td3_bc": 0}
    assert by_step["packs"]["td3_bc"]["9 pack_graph"] > 0
    assert by_step["sharing"]["2 without MPS"]["overlap"] > 0.5, "the processes were at work at the same time"
    assert len(table.splitlines()) == 2 + len(lines), "the header and a row for every step"


def test_a_step_that_fails_keeps_no_other_from_running(gpu, monkeypatch, capsys):
    def broken(bench):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(gpu, "STEPS", {"broken": broken, "out_of_memory": gpu.out_of_memory})
    lines = gpu.run_steps(["broken", "out_of_memory"], rehearse=True)
    assert [(line["step"], line["ok"]) for line in lines] == [("broken", False), ("out_of_memory", None)]
    assert lines[0]["error"] == "ZeroDivisionError: oh"
    assert [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()] == ["broken", "out_of_memory"]
    assert gpu.markdown(lines).splitlines()[2] == "| broken | **no** | ZeroDivisionError: oh |"


@pytest.mark.slow
def test_after_an_error_of_the_gpu_the_rest_goes_on_in_another_process(gpu, monkeypatch, capfd):
    def poisoned(bench):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(gpu.STEPS, "graph", poisoned)
    lines = gpu.run_steps(["graph", "device", "out_of_memory"], rehearse=True)
    assert [(line["step"], line["ok"]) for line in lines] == [
        ("graph", False),
        ("device", True),
        ("out_of_memory", None),
    ]
    assert len(capfd.readouterr().out.strip().splitlines()) == 3


def test_the_speed_of_processes_that_share_is_that_of_their_common_time(gpu):
    """Two at 100 updates a second each, of which one begins later: neither counts for the time that it had alone."""
    assert gpu.common([(200, 0.0, 2.0), (200, 0.0, 2.0)]) == {"updates_per_second": 200.0, "overlap": 1.0}
    late = gpu.common([(200, 0.0, 2.0), (200, 1.0, 3.0)])
    assert late == {"updates_per_second": pytest.approx(133.3), "overlap": pytest.approx(0.333)}
