"""GPUs without a GPU: what they hold, who may have how much, and what is said before a run, on numbers by hand."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gems_ray import device
from gems_ray.data import sampler as sampling
from gems_ray.data.sampler import Sampler
from gems_ray.device import CONTEXT_BYTES, indexed, matmul_precision, memory_fraction, room
from gems_ray.errors import ConfigError, DeviceError, ResourceError
from gems_ray.execution.in_process import InProcess
from gems_ray.execution.mps import PIPES, mps
from gems_ray.experiments.check import check_experiment, check_placement
from gems_ray.experiments.spec import Resources
from gems_ray.learning import estimate as estimates
from gems_ray.learning import trainer as trainers
from gems_ray.learning.estimate import estimate
from gems_ray.learning.trainer import Trainer
from gems_ray.tune import cluster
from gems_ray.tune.backend import RayBackend
from tests.unit.test_algorithms import SMALL

GB = 10**9
CPU_NODE, GPU_NODE = (8.0, 0.0), (8.0, 1.0)


def experiment(**more):
    return check_experiment({"environment": "diffuse_mix", **more})


class TestMemory:
    def test_a_device_has_its_number(self, monkeypatch):
        """Without it torch refuses to tell the fraction, so that the message on exhausted memory was a stack trace."""
        assert indexed("cuda") == torch.device("cuda:0")
        assert indexed("cuda:2") == torch.device("cuda:2")
        assert indexed("cpu") == torch.device("cpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        assert trainers.resolve_device("auto") == "cuda:1"
        assert trainers.resolve_device("cuda") == "cuda:1"

    @pytest.mark.parametrize(
        ("free", "total", "reserved", "fraction", "expected"),
        [
            (60 * GB, 80 * GB, 0, 1.0, 60 * GB),  # others have the rest
            (60 * GB, 80 * GB, 0, 0.25, 20 * GB),  # the cap of the share
            (60 * GB, 80 * GB, 15 * GB, 0.25, 5 * GB),  # of which a part is taken
            (2 * GB, 80 * GB, 15 * GB, 0.25, 2 * GB),
            (60 * GB, 80 * GB, 25 * GB, 0.25, 0),
        ],
    )
    def test_room_by_hand(self, free, total, reserved, fraction, expected):
        assert room(free, total, reserved, fraction) == expected

    def test_a_dataset_that_fits_the_gpu_and_not_the_share_stays_on_the_host(self, monkeypatch):
        buffer = SimpleNamespace(device=torch.device("cuda:0"))
        columns = {"observations": torch.zeros(1_000, 20)}  # 80 kB
        for left, fits in ((200_000, True), (100_000, False)):
            monkeypatch.setattr(sampling, "room_on", lambda device, left=left: left)
            assert Sampler._fits(buffer, columns) == fits

    def test_memory_that_is_lost_to_another_process_leaves_the_dataset_on_the_host(self, dataset, monkeypatch):
        def exhausted(self, columns):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(Sampler, "_copied", exhausted)
        training = Trainer(dataset, "bc", SMALL, max_timesteps=2)
        assert not training.sampler.on_device
        assert np.isfinite(list(training)[-1]["train/actor_loss"])

    def test_shares_leave_room_for_the_contexts(self):
        total = 16 * GB
        for cells in (1, 2, 4, 8):
            taken = cells * (memory_fraction(1 / cells, total) * total + CONTEXT_BYTES)
            assert taken <= total * (1 + 1e-9)
        with pytest.raises(DeviceError, match=r"resources\.gpu 0\.01: this share of the GPU is 0\.2 GB"):
            memory_fraction(0.01, total)


class TestPlacement:
    def test_a_cell_on_the_cpu_reserves_no_gpu(self):
        said = []
        usable = Resources(gpu=0.25).usable_on([GPU_NODE], said.append, "cpu")
        assert usable.gpu == 0
        assert said == ["resources.gpu 0.25 is ignored: training.device is cpu."]

    def test_cuda_where_no_node_has_a_gpu_is_refused(self):
        with pytest.raises(ResourceError, match="device is cuda, and no GPU is here"):
            Resources(gpu=0.25).usable_on([CPU_NODE], lambda line: None, "cuda")
        assert Resources(gpu=0.25).usable_on([CPU_NODE], lambda line: None, "auto").gpu == 0
        assert Resources(gpu=0.25).usable_on([CPU_NODE, GPU_NODE], lambda line: None, "cuda").gpu == 0.25

    def test_two_gpus_for_a_cell_are_refused(self):
        with pytest.raises(ConfigError, match=r"resources\.gpu 2: a cell is trained on one GPU"):
            check_placement(experiment(resources={"gpu": 2}))
        check_placement(experiment(resources={"gpu": 1}))

    @pytest.mark.parametrize(
        ("script", "trouble"),
        [
            ("print('None False')", "torch is a build for CPUs there"),
            ("print('13.0 True')", ""),
            (
                "import sys; print('13.0 False'); sys.exit('The NVIDIA driver on your system is too old')",
                "CUDA 13.0 does not start there (The NVIDIA driver on your system is too old)",
            ),
        ],
    )
    def test_what_torch_can_do_with_the_gpus_of_a_node(self, monkeypatch, script, trouble):
        """The question is asked in a process of its own that sees every GPU; here a script answers it."""
        real, environments = subprocess.run, []
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

        def answer(command, env, **options):
            environments.append(env)
            return real([sys.executable, "-c", script], env=env, **options)

        monkeypatch.setattr(cluster.subprocess, "run", answer)
        assert cluster.cuda_trouble() == trouble
        assert "CUDA_VISIBLE_DEVICES" not in environments[0]

    def test_ray_is_told_of_no_gpu_that_torch_cannot_use(self, monkeypatch):
        """A build for CPUs, or an old driver: Ray would find the GPUs and hand out shares of them."""
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        for available, count in ((True, 2), (False, 0)):
            monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
            assert cluster._usable_gpus() == count

    @pytest.fixture
    def node_in_trouble(self, monkeypatch):
        """A cluster whose node has a GPU and a torch that cannot use it; Ray itself answers as the function does."""
        node = {"Alive": True, "NodeID": "1", "NodeManagerAddress": "10.0.0.2", "Resources": {"GPU": 1.0}}
        task = SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda: "torch is a build for CPUs"))
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [node, {**node, "Alive": False}])
        monkeypatch.setattr(cluster.ray, "remote", lambda **options: lambda function: task)
        monkeypatch.setattr(cluster.ray, "get", lambda answer, timeout: answer)
        monkeypatch.setattr(cluster, "NodeAffinitySchedulingStrategy", lambda node, soft: node)

    def test_shares_of_a_gpu_that_torch_cannot_use_are_told(self, node_in_trouble):
        said = []
        cluster.check_gpus("auto", said.append)
        (line,) = said
        assert line.startswith("node 10.0.0.2: has GPUs, but torch is a build for CPUs: cells train on the CPU there")
        with pytest.raises(ResourceError, match=r"10\.0\.0\.2: has GPUs, but .* set training\.device to cpu"):
            cluster.check_gpus("cuda", said.append)


class TestClock:
    def test_the_clock_is_read_when_the_gpu_is_done(self, dataset, monkeypatch):
        """A GPU that needs 0.2 s for what it was given, while the program has gone on."""
        monkeypatch.setattr(trainers, "wait_for", lambda device: time.sleep(0.2))
        training = Trainer(dataset, "bc", SMALL, max_timesteps=1)
        assert training.advance()["seconds"] >= 0.2

    def test_the_estimate_waits_and_measures_the_engine_of_the_run(self, monkeypatch):
        asked, waited = [], []
        real = estimates.make_engine

        def make(learner, sampler, mode, updates):
            asked.append((mode, updates))
            return real(learner, sampler, mode, updates)

        monkeypatch.setattr(estimates, "make_engine", make)
        monkeypatch.setattr(estimates, "wait_for", waited.append)
        monkeypatch.setattr(estimates, "MEASURED_SECONDS", 0.01)
        spec = experiment(training={"max_timesteps": 77})
        found = estimate("bc", SMALL, spec.training, spec.evaluation, None)
        assert asked == [("off", 0)]
        assert found.engine == "eager"
        assert len(waited) == 2 * estimates.MEASUREMENTS
        modes = {
            mode: estimates._without_compiler(mode, torch.device("cuda:0")) for mode in ("auto", "on", "graph", "off")
        }
        assert modes == {"auto": "auto", "on": "auto", "graph": "graph", "off": "off"}


class TestPrecision:
    def test_tf32_for_a_while_and_on_gpus_alone(self):
        for kind, inside in (("cuda:0", "high"), ("cpu", "highest")):
            with matmul_precision(torch.device(kind), "high"):
                assert torch.get_float32_matmul_precision() == inside
            assert torch.get_float32_matmul_precision() == "highest"

    def test_it_is_recorded_and_tells_cells_apart(self):
        plain, exact, fast = (
            experiment(training=training).cells()[0]
            for training in ({}, {"matmul_precision": "highest"}, {"matmul_precision": "high"})
        )
        assert plain.name == exact.name != fast.name
        assert fast.describe()["training"]["matmul_precision"] == "high"
        assert experiment().as_yaml()["training"]["matmul_precision"] == "highest"

    def test_the_trainer_uses_it(self, dataset, monkeypatch):
        seen = []
        monkeypatch.setattr(device, "wait_for", lambda device: None)
        training = Trainer(dataset, "bc", SMALL, training=experiment(training={"matmul_precision": "high"}).training)
        training.algorithm.device = torch.device("cuda:0")  # only the precision asks for it
        monkeypatch.setattr(trainers, "wait_for", lambda device: None)
        monkeypatch.setattr(training.engine, "run", lambda *_: seen.append(torch.get_float32_matmul_precision()))
        training.train()
        assert seen == ["high"]


class TestMps:
    @pytest.fixture
    def control(self, tmp_path, monkeypatch):
        """A real program under the name of NVIDIA's, which writes down how it is called."""
        log = tmp_path / "calls.txt"
        program = tmp_path / "bin" / "nvidia-cuda-mps-control"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$CUDA_MPS_PIPE_DIRECTORY" "$@" "$(test -n "$1" || cat)" >> {log}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.delenv(PIPES, raising=False)
        return program, log

    def test_it_is_started_for_the_run_and_ended(self, control):
        said = []
        with mps(said.append):
            pipes = os.environ[PIPES]
            assert control[1].read_text().split() == [pipes, "-d"]
        assert control[1].read_text().splitlines()[1].split() == [pipes, "quit"]
        assert PIPES not in os.environ
        assert said == ["MPS: started for this run."]

    def test_one_that_runs_already_is_used(self, control, monkeypatch):
        monkeypatch.setenv(PIPES, "/run/mps")
        with mps(lambda line: None):
            assert os.environ[PIPES] == "/run/mps"
        assert not control[1].exists()

    def test_trouble_is_one_line(self, control, monkeypatch):
        control[0].write_text("#!/bin/sh\necho An instance of this daemon is already running >&2\nexit 1\n")
        with pytest.raises(ResourceError, match="mps-control fails .An instance of this daemon is already"):
            mps(lambda line: None).__enter__()
        assert PIPES not in os.environ
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(ResourceError, match="nvidia-cuda-mps-control is not here"):
            mps(lambda line: None).__enter__()

    def test_where_it_is_not_started(self):
        said = []
        assert not Resources(gpu=0.25, mps=True).usable_on([CPU_NODE], said.append).mps
        assert not Resources(mps=True).usable_on([GPU_NODE], said.append).mps
        assert said[1] == "resources.mps is ignored: no cell has a share of a GPU."
        assert Resources(gpu=0.25, mps=True).usable_on([GPU_NODE], said.append).mps
        asked = experiment(resources={"gpu": 0.25, "mps": True})
        with pytest.raises(ConfigError, match=r"resources\.mps: a run starts MPS on its own machine alone"):
            RayBackend("10.0.0.1:6379").check(asked)
        with pytest.raises(ConfigError, match=r"resources\.mps: is started by runs under Ray"):
            InProcess().check(asked)
