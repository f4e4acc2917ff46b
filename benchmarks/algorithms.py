"""Speed of the updates of every algorithm: `python benchmarks/algorithms.py`.

Interleaved on one thread: the yardstick (`plain.py`), our updates one by one, our updates compiled; sampling included.
The data are 1,000 expert episodes of a shipped world. Every algorithm is measured at its start and after some hundred
updates, because the cost of CQL's depends on how sharp its policy has become. The floor is the time of an update's
matrix products at the speed of the machine's own 256 x 256 x 256 product; what CQL leaves out is counted in it all the
same. Rounds are short and the best of each counts, because the machine may be shared. `gpu.py` measures a GPU.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from plain import PLAIN, sample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

from gems_ray.algorithms import make_algorithm
from gems_ray.data.sampling import make_sampler
from gems_ray.data.schema import ACTION_DIM, STATE_DIM, Dataset
from gems_ray.learning.engine import CompiledEngine, Engine
from gems_ray.world.bundle import find_world
from gems_ray.worldmaking.collect import collect_dataset

EPISODES, BATCH = 1000, 256
Timed = dict[str, tuple[Callable[[], None], int]]  # by name, what is timed, and how many updates one call makes


@register_flop_formula(torch.ops.gems_ray.conservative_gradients)
def conservative_flops(parameters: Sequence[tuple[int, ...]], pairs: tuple[int, ...], *_, **__):
    """Matrix products of the written-out gradient: forward, weights, and activations of all layers but the first."""
    first, *later = (math.prod(shape) for shape in parameters if len(shape) == 2)
    return 2 * pairs[0] * pairs[1] * (2 * first + 3 * sum(later))


class FlopCount(TorchDispatchMode):
    """Adds up the arithmetic of matrix products; torch's own counter cannot watch `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Counts one operation."""
        result = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def make_engines(name: str, dataset: Dataset, device: str, trained: int) -> tuple[Engine, CompiledEngine]:
    """The same algorithm twice, after some updates on the dataset as trials see it."""
    engines = []
    for kind in (Engine, CompiledEngine):
        algorithm = make_algorithm(name, STATE_DIM, ACTION_DIM, device=device)
        sampler = make_sampler(
            algorithm.experience,
            dataset,
            seed=0,
            device=device,
            normalize_states=True,
            reward_scale="none",
            bootstrap_time_limit=False,
        )
        engines.append(kind(algorithm, sampler))
    single, compiled = engines
    single.run(trained, lambda: False)
    compiled.algorithm.load_state_dict(single.algorithm.state_dict())
    return single, compiled


def best_seconds(timed: Timed, rounds: int, seconds: float, wait: Callable[[], None]) -> dict[str, float]:
    """Seconds per update, the best of interleaved rounds."""
    best = {}
    calls = {}
    for name, (function, _) in timed.items():
        function()  # compiles, captures, fills caches
        wait()
        start = time.perf_counter()
        function()
        wait()
        calls[name] = max(1, int(seconds / (time.perf_counter() - start)))
        best[name] = math.inf
    for _ in range(rounds):
        for name, (function, updates) in timed.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            wait()
            best[name] = min(best[name], (time.perf_counter() - start) / (calls[name] * updates))
    return best


def product() -> Callable[[], None]:
    """A float32 product of two 256 x 256 matrices into existing memory."""
    left, right, out = torch.randn((256, 256)), torch.randn((256, 256)), torch.empty((256, 256))
    return lambda: torch.mm(left, right.T, out=out)


def on_cpu(names: list[str], dataset: Dataset, trained: int, rounds: int) -> None:
    """Prints the table of the CPU."""
    torch.set_num_threads(1)
    print("algorithm  updates  yardstick/s  single/s  ratio  compiled/s  ratio  floor", flush=True)
    for name, updates in ((name, updates) for name in names for updates in (0, trained)):
        single, compiled = make_engines(name, dataset, "cpu", updates)
        columns = single.sampler.rows(torch.arange(len(dataset)))
        yardstick = PLAIN[name](single.algorithm)
        with FlopCount() as counter:
            for _ in range(single.algorithm.period):
                single.update()
        flops = counter.total / single.algorithm.period
        timed: Timed = {
            "yardstick": (lambda plain=yardstick, columns=columns: plain.update(sample(columns, BATCH)), 1),
            "single": (single.update, 1),
            "compiled": (compiled.block, compiled.length),
            "product": (product(), 1),
        }
        best = best_seconds(timed, rounds, 0.5, lambda: None)
        floor = flops / (2 * 256**3 / best["product"])
        print(
            f"{name:9} {updates:8,} {1 / best['yardstick']:12.1f} {1 / best['single']:9.1f} "
            f"{best['yardstick'] / best['single']:6.2f} {1 / best['compiled']:11.1f} "
            f"{best['yardstick'] / best['compiled']:6.2f} {floor / best['compiled']:6.0%}   {flops / 1e6:,.0f} MFLOP, "
            f"floor {1e3 * floor:.2f} ms, {2 * 256**3 / best['product'] / 1e9:.0f} GFLOP/s",
            flush=True,
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "algorithms", nargs="*", default=sorted(PLAIN), help=f"of {', '.join(sorted(PLAIN))} [default: all]"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trained", type=int, default=300, help="updates before the second measurement")
    arguments = parser.parse_args()
    dataset = collect_dataset(find_world("diffuse_mix"), "expert", EPISODES, seed=0)
    on_cpu(arguments.algorithms, dataset, arguments.trained, arguments.rounds)


if __name__ == "__main__":
    main()
