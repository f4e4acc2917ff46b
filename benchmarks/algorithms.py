"""Speed of the updates of every algorithm: `python benchmarks/algorithms.py`.

Interleaved on one thread: the yardstick (`plain.py`), our updates one by one, our updates compiled; sampling included.
The floor is the time of an update's matrix products at the speed of the machine's own 256 x 256 x 256 product. Rounds
are short and the best of each counts, because the machine may be shared. `--device cuda` measures single updates and
captured graphs on a GPU, and `--trials 4` what each of four processes reaches that share it.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from plain import PLAIN, sample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

from gems_ray.algorithms import make_algorithm
from gems_ray.data.replay import ReplayBuffer
from gems_ray.training.engine import CompiledEngine, Engine

TRANSITIONS, STATE_DIM, ACTION_DIM, BATCH = 100_000, 20, 32, 256
Timed = dict[str, tuple[Callable[[], None], int]]  # by name, what is timed, and how many updates one call makes


@register_flop_formula(torch.ops.gems_ray.conservative_gradients)
def conservative_flops(
    parameters: Sequence[tuple[int, ...]], states: tuple[int, ...], actions: tuple[int, ...], *_, **__
):
    """Matrix products of the written-out gradient: forward, weights, and activations of all layers but the first."""
    matrices = [shape for shape in parameters if len(shape) == 2]
    (width, _), later = matrices[0], sum(rows * columns for rows, columns in matrices[1:])
    pairs, action_dim = actions[0] * actions[1], actions[2]
    first = pairs * width * action_dim + states[0] * width * states[1]
    return 2 * (2 * first + 3 * pairs * later)


class FlopCount(TorchDispatchMode):
    """Adds up the arithmetic of matrix products; torch's own counter cannot watch `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Counts one operation."""
        result = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def transitions() -> dict[str, np.ndarray]:
    """Random transitions; what they hold does not change the speed."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(TRANSITIONS, STATE_DIM)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(TRANSITIONS, ACTION_DIM)).astype(np.float32),
        "rewards": rng.integers(0, 5, size=TRANSITIONS).astype(np.float32),
        "next_observations": rng.normal(size=(TRANSITIONS, STATE_DIM)).astype(np.float32),
        "terminals": np.arange(TRANSITIONS) % 100 == 99,
    }


def make_engines(name: str, arrays: dict[str, np.ndarray], device: str) -> tuple[Engine, CompiledEngine]:
    """The same algorithm twice."""
    engines = []
    for kind in (Engine, CompiledEngine):
        buffer = ReplayBuffer(STATE_DIM, ACTION_DIM, TRANSITIONS, device, normalize_states=True)
        buffer.load_d4rl_dataset(arrays)
        engines.append(kind(make_algorithm(name, STATE_DIM, ACTION_DIM, device=device), buffer))
    return engines[0], engines[1]


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
        best[name] = np.inf
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


def on_cpu(names: list[str], rounds: int) -> None:
    """Prints the table of the CPU."""
    torch.set_num_threads(1)
    arrays = transitions()
    columns = tuple(
        torch.from_numpy(array if array.ndim == 2 else array.astype(np.float32)[:, None]) for array in arrays.values()
    )
    print(
        f"{'algorithm':9} {'yardstick/s':>11} {'single/s':>9} {'ratio':>6} {'compiled/s':>10} {'ratio':>6} {'floor':>6}"
    )
    for name in names:
        single, compiled = make_engines(name, arrays, "cpu")
        yardstick = PLAIN[name](single.algorithm)
        with FlopCount() as counter:
            for _ in range(single.algorithm.period):
                single.update()
        flops = counter.total / single.algorithm.period
        timed: Timed = {
            "yardstick": (lambda plain=yardstick: plain.update(sample(columns, BATCH)), 1),
            "single": (single.update, 1),
            "compiled": (compiled.block, compiled.length),
            "product": (product(), 1),
        }
        best = best_seconds(timed, rounds, 0.5, lambda: None)
        speed = {key: 1 / value for key, value in best.items()}
        floor = flops / (2 * 256**3 / best["product"])
        print(
            f"{name:9} {speed['yardstick']:11.1f} {speed['single']:9.1f} {best['yardstick'] / best['single']:6.2f} "
            f"{speed['compiled']:10.1f} {best['yardstick'] / best['compiled']:6.2f} {floor / best['compiled']:6.0%}"
            f"   {flops / 1e6:,.0f} MFLOP, floor {1e3 * floor:.2f} ms, {2 * 256**3 / best['product'] / 1e9:.0f} GFLOP/s"
        )


def on_gpu(names: list[str], rounds: int) -> None:
    """Prints the table of a GPU."""
    arrays = transitions()
    print(f"{torch.cuda.get_device_name()}\n{'algorithm':9} {'single/s':>9} {'graph/s':>9}")
    for name in names:
        single, captured = make_engines(name, arrays, "cuda")
        timed: Timed = {"single": (single.update, 1), "graph": (captured.block, captured.length)}
        best = best_seconds(timed, rounds, 1.0, torch.cuda.synchronize)
        print(f"{name:9} {1 / best['single']:9.1f} {1 / best['graph']:9.1f}", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algorithms", nargs="*", default=sorted(PLAIN), help="names [default: all]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trials", type=int, default=1, help="processes at once on the GPU")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        on_cpu(arguments.algorithms, arguments.rounds)
    elif arguments.trials == 1:
        on_gpu(arguments.algorithms, arguments.rounds)
    else:
        torch.multiprocessing.spawn(
            shared_gpu, (arguments.algorithms, arguments.rounds), nprocs=arguments.trials, join=True
        )


def shared_gpu(index: int, names: list[str], rounds: int) -> None:
    """One of several processes that share a GPU."""
    on_gpu(names, rounds)


if __name__ == "__main__":
    main()
