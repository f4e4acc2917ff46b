"""What each piece of speed machinery gains over plain eager code: `python benchmarks/machinery.py [PIECE ...]`.

Every line compares whole updates, or a whole evaluation, with one piece and with its plain counterpart. One thread;
denormal numbers are flushed to zero on both sides. The two run in turn; the best of many short rounds counts, in CPU
time of the thread, because the machine may be shared. Rounds go on until the ratio has come to rest.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from algorithms import make_engines
from torch import Tensor

from gems_ray.algorithms import cql
from gems_ray.algorithms.conservative import conservative_gradients
from gems_ray.data.schema import Dataset
from gems_ray.evaluation.returns import Evaluator
from gems_ray.learning import engine
from gems_ray.learning.engine import CompiledEngine, Engine
from gems_ray.policies.latents import MeanAgent
from gems_ray.world.bundle import World, find_world
from gems_ray.world.ranker import GemsRanker
from gems_ray.worldmaking.collect import collect_dataset

Call = Callable[[], object]
Pair = tuple[str, Call, Call]  # name, with the piece, without it; the same work in both
SECONDS, PASS, PASSES, REST = 0.05, 8, 6, 0.01  # of a round; rounds in a pass; passes at most; change at rest


def settled_ratio(ours: Call, plain: Call) -> tuple[float, float, float]:
    """CPU seconds of both at their best, and plain / ours, once a pass has changed the ratio by 1% at most."""
    calls, best = [], [math.inf, math.inf]
    for function in (ours, plain):
        function()  # compiles, fills caches
        calls.append(max(1, int(SECONDS / cpu_seconds(function, 1))))
    ratio = math.inf
    for _ in range(PASSES):
        for _ in range(PASS):
            for side, function in enumerate((ours, plain)):
                best[side] = min(best[side], cpu_seconds(function, calls[side]))
        before, ratio = ratio, best[1] / best[0]
        if abs(ratio / before - 1) < REST:
            break
    return *best, ratio


def cpu_seconds(function: Call, calls: int) -> float:
    """CPU time of one call."""
    start = time.thread_time()
    for _ in range(calls):
        function()
    return (time.thread_time() - start) / calls


class TorchAdam:
    """torch.optim.Adam in the place of our class."""

    def __init__(self, parameters: Sequence[Tensor], fused: bool) -> None:
        self._adam = torch.optim.Adam(parameters, lr=3e-4, fused=fused)

    def minimize(self, loss: Tensor) -> None:
        """One step."""
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()


def engines(name: str, dataset: Dataset, trained: int = 0) -> tuple[Engine, Engine]:
    """Two in the same state."""
    first, compiled = make_engines(name, dataset, "cpu", trained)
    return first, Engine(compiled.algorithm, compiled.sampler)


def adam(dataset: Dataset, world: World) -> Iterator[Pair]:
    """The traceable Adam against torch's own, whose fused kernel it calls."""
    for name in ("bc", "td3_bc"):
        for fused in (True, False):
            ours, plain = engines(name, dataset)
            for key, optimizer in plain.algorithm.optimizers.items():
                plain.algorithm.optimizers[key] = TorchAdam(optimizer.parameters, fused)
            yield f"adam, torch's {'fused' if fused else 'own'}: {name}", ours.update, plain.update


def compiled(dataset: Dataset, world: World) -> Iterator[Pair]:
    """Compiled blocks against single updates."""
    for name, trained in (("bc", 0), ("td3_bc", 0), ("iql", 0), ("cql", 0), ("cql", 300)):
        single, block = make_engines(name, dataset, "cpu", trained)

        def updates(single: Engine = single, count: int = block.length) -> None:
            for _ in range(count):
                single.update()

        yield f"compiled blocks: {name} from {trained}", block.block, updates


def blocks(dataset: Dataset, world: World) -> Iterator[Pair]:
    """Several short updates in a compiled block against one."""
    for name in ("bc", "iql"):
        long = make_engines(name, dataset, "cpu", 0)[1]
        engine.BLOCK_UPDATES = 1
        short = make_engines(name, dataset, "cpu", 0)[1]
        engine.BLOCK_UPDATES = 4

        def updates(short: CompiledEngine = short, count: int = long.length) -> None:
            for _ in range(count):
                short.block()

        yield f"{long.length} updates in a block: {name}", long.block, updates


def gradients_by_autograd(
    parameters: Sequence[Tensor],
    pairs: Tensor,
    log_density: Tensor,
    target: Tensor,
    weight: Tensor,
    temperature: float,
    smallest: None,
    largest: None,
    target_gap: float,
) -> list[Tensor]:
    """`conservative_gradients` as the public class computes it, for the default settings."""
    with torch.enable_grad():
        values = pairs
        for layer in range(0, len(parameters), 2):
            values = F.linear(values if layer == 0 else F.relu(values), parameters[layer], parameters[layer + 1])
        values = values.squeeze(2)
        predicted = values[:, -1]
        gap = (temperature * torch.logsumexp((values[:, :-1] - log_density) / temperature, dim=1) - predicted).mean()
        loss = F.mse_loss(predicted, target) + weight * (gap - target_gap)
        return [loss.detach(), gap.detach(), *torch.autograd.grad(loss, parameters)]


def gradient(dataset: Dataset, world: World) -> Iterator[Pair]:
    """CQL's written-out gradient, which leaves out actions that do not count, against autograd."""

    def update(engine: Engine, gradients: Callable) -> None:
        cql.conservative_gradients = gradients
        engine.update()

    for trained in (0, 300):
        ours, plain = engines("cql", dataset, trained)
        yield (
            f"written-out gradient: cql from {trained}",
            partial(update, ours, conservative_gradients),
            partial(update, plain, gradients_by_autograd),
        )


def decode(dataset: Dataset, world: World) -> Iterator[Pair]:
    """Blocks of slots with NumPy's argmax against torch's argmax over all, in the evaluation of a policy."""

    @torch.no_grad()
    def by_torch(ranker: GemsRanker, latents: Tensor) -> np.ndarray:
        return ranker.logits(latents)[0].argmax(dim=2).numpy()

    policy, by_numpy = MeanAgent(world.agents["expert"]), GemsRanker.decode
    for users in (100, 500):
        evaluator = Evaluator(world, "test", users)

        def evaluate(decode: Callable, evaluator: Evaluator = evaluator) -> None:
            GemsRanker.decode = decode
            evaluator.evaluate(policy)

        yield f"decoding: {users} users", partial(evaluate, by_numpy), partial(evaluate, by_torch)


PIECES = {"gradient": gradient, "compiled": compiled, "blocks": blocks, "adam": adam, "decode": decode}


def main() -> None:
    """Prints one line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pieces", nargs="*", default=sorted(PIECES), help="names [default: all]")
    parser.add_argument("--data", choices=("mixed", "expert"), default="mixed", help="collected with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    world = find_world("diffuse_mix")
    dataset = collect_dataset(world, arguments.data, 300, seed=0)
    print(f"{'piece':40} {'with':>9} {'without':>9}  ratio", flush=True)
    for piece in arguments.pieces:
        for name, ours, plain in PIECES[piece](dataset, world):
            with_it, without, ratio = settled_ratio(ours, plain)
            print(f"{name:40} {1e3 * with_it:6.2f} ms {1e3 * without:6.2f} ms  {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
