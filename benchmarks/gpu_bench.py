"""Sizes, data and engines for the steps of `gpu.py`."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Facts = dict[str, Any]


class Skipped(Exception):  # noqa: N818 - nothing went wrong
    """A step that is not possible here, and why."""


class Bench:
    """Sizes, data and engines of the steps.

    Args:
        rehearse: whether this is on a CPU and as small as possible.
    """

    def __init__(self, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.device = torch.device("cpu" if rehearse else "cuda:0")
        self.transitions = 2_000 if rehearse else 100_000
        self.seconds = 0.02 if rehearse else 2.0  # of a measurement
        self.rounds = 1 if rehearse else 3
        self.names = ("bc", "td3_bc") if rehearse else ("bc", "td3_bc", "iql", "cql", "decision_transformer")
        self.settings: dict[str, Any] = {"hidden_sizes": [16, 16], "batch_size": 16} if rehearse else {}

    def parts(self, name: str, device: torch.device | None = None, seed: int = 0, **settings: Any) -> tuple[Any, Any]:
        """An algorithm and a sampler over random transitions, both on a device."""
        from gems_ray.algorithms import make_algorithm
        from gems_ray.data.sampling import make_sampler
        from gems_ray.data.schema import ACTION_DIM, STATE_DIM, Dataset

        device = device or self.device
        rng, size = np.random.default_rng(0), self.transitions
        dataset = Dataset(
            observations=rng.normal(size=(size, STATE_DIM)).astype(np.float32),
            actions=rng.uniform(-1, 1, size=(size, ACTION_DIM)).astype(np.float32),
            rewards=rng.uniform(0, 10, size=size).astype(np.float32),
            next_observations=rng.normal(size=(size, STATE_DIM)).astype(np.float32),
            terminals=np.arange(size) % 100 == 99,
        )
        algorithm = make_algorithm(name, STATE_DIM, ACTION_DIM, self.settings | settings, device, seed)
        sampler = make_sampler(
            algorithm.experience,
            dataset,
            seed=seed,
            device=device,
            normalize_states=True,
            reward_scale="none",
            bootstrap_time_limit=False,
        )
        algorithm.prepare(dataset.rewards, dataset.terminals, sampler.reward_factor)
        return algorithm, sampler

    def engine(self, kind: str, name: str, seed: int = 0, **settings: Any) -> Any:
        """An engine by the name that reports give it."""
        from gems_ray.learning import engine as engines

        parts = self.parts(name, seed=seed, **settings)
        if kind == engines.GRAPH:
            return engines.GraphEngine(*parts, capture=self.capture)
        return {engines.EAGER: engines.Engine, engines.COMPILED_GRAPH: engines.CompiledEngine}[kind](*parts)

    def pack(self, kind: str, name: str, size: int) -> Any:
        """Several cells in one program, by the name that reports give it."""
        from gems_ray.learning.engine import PACK_GRAPH
        from gems_ray.learning.pack_engine import PackEngine

        cells = [self.engine("eager", name, seed) for seed in range(size)]
        return PackEngine(cells, graphs=kind == PACK_GRAPH, capture=self.capture)

    @property
    def capture(self) -> Callable[[Callable[[], Any], torch.device], Callable[[], None]]:
        """Captures work as a CUDA graph; in a rehearsal, records it."""
        from gems_ray.learning.capture import WARM_UP_RUNS, capture

        def taped(launch: Callable[[], Any], device: torch.device) -> Callable[[], None]:
            from tape import record

            for _ in range(WARM_UP_RUNS):
                launch()
            return record(launch)

        return taped if self.rehearse else capture

    def wait(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def speed(self, engine: Any) -> float:
        """Updates per second, the best of some measurements."""
        run_on(engine, 200 if not self.rehearse else 12)  # captures, compiles, fills caches
        best = 0.0
        for _ in range(self.rounds):
            self.wait()
            start, before = time.perf_counter(), engine.algorithm.updates
            engine.run(10**9, lambda end=start + self.seconds: time.perf_counter() > end)
            self.wait()
            best = max(best, (engine.algorithm.updates - before) / (time.perf_counter() - start))
        return round(best, 1)


def run_on(engine: Any, updates: int) -> None:
    """Some more updates."""
    engine.run(engine.algorithm.updates + updates, lambda: False)


def state(engine: Any) -> dict[str, torch.Tensor]:
    """Weights, moments and losses, on the CPU."""
    losses = {f"losses.{key}": value for key, value in engine.losses.state_dict().items()}
    return engine.algorithm.state_dict() | losses


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference of two states."""
    assert first.keys() == second.keys()
    return max(
        float((first[key].double() - second[key].double()).abs().max())
        for key in first
        if first[key].is_floating_point()
    )


def demand(truth: bool, facts: Facts) -> Facts:
    """The facts, if what they must show is true."""
    if not truth:
        raise AssertionError(f"not as it should be: {json.dumps(facts)}")
    return facts
