"""What a GPU does, checked and measured: `python benchmarks/gpu.py`.

Runs from the source tree; Ray is not needed. Every step prints one line of JSON, and one that fails does not keep the
others from running: after an error that leaves the GPU unusable in this process, the rest goes on in another one. At
the end stands a Markdown table for docs/performance.md. The exit code is 1 if a step failed.

    python benchmarks/gpu.py --rehearse              # on a CPU, tiny: whether the program itself works
    python benchmarks/gpu.py --only speeds sharing   # some steps

In a rehearsal, a recording of torch's operations (tape.py) stands for the CUDA graph, and no speed means anything.
"""

import argparse
import gc
import importlib.util
import json
import platform
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the source tree, which need not be installed

import torch
from gpu_bench import Bench, Facts, Skipped, demand, difference, run_on, state

STEPS: dict[str, Callable[["Bench"], Facts]] = {}
PACK_SIZES, PROCESSES = (1, 3, 9, 32), (1, 2, 4)
MILLION = 1_000_000
TOLERANCE = 1e-3  # of weights after some 20 updates that were rounded in another way


def step(function: Callable[["Bench"], Facts]) -> Callable[["Bench"], Facts]:
    """Adds a step under the name of its function."""
    STEPS[function.__name__] = function
    return function


@step
def device(bench: Bench) -> Facts:
    """Device and versions."""
    facts: Facts = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
    packages = ("triton", "ray", "gymnasium")
    return facts | {f"has_{name}": importlib.util.find_spec(name) is not None for name in packages}


@step
def first_updates(bench: Bench) -> Facts:
    """20 updates of every algorithm, on the GPU and on the CPU, with the same rows and noise."""

    facts = {}
    for name in bench.names:
        here, sampler = bench.parts(name, torch.device("cpu"))
        there, _ = bench.parts(name)
        there.load_state_dict({**here.state_dict(), "noise_generator": there.generator.get_state()})
        for _ in range(20):
            batch, noise = sampler.sample(here.config.batch_size), here.draw_noise(here.config.batch_size)
            for algorithm in (here, there):
                algorithm.update(batch, noise)
        states = [
            {
                key: value
                for key, value in algorithm.state_dict().items()
                if "optimizer" not in key and "noise" not in key
            }
            for algorithm in (here, there)
        ]
        facts[name] = difference(*states)
    return demand(max(facts.values()) < TOLERANCE, facts)


@step
def graph(bench: Bench) -> Facts:
    """Captured updates and single ones: the same bits."""
    facts = {}
    for name in bench.names:
        pair = [bench.engine(kind, name) for kind in ("eager", "graph")]
        for engine in pair:
            run_on(engine, 30 if bench.rehearse else 300)
        facts[name] = difference(*map(state, pair))
        demand(pair[1].name == "graph", {name: pair[1].name})
    return demand(not any(facts.values()), facts)


@step
def compiled_graph(bench: Bench) -> Facts:
    """Compiled updates and single ones: the same but for rounding."""
    from gems_ray.flat_state import flatten_modules
    from gems_ray.learning.compiler import missing_for_compilation

    if missing := missing_for_compilation(bench.device.type == "cuda"):
        raise Skipped(f"no {missing}")
    facts = {}
    for name in bench.names[:1] if bench.rehearse else bench.names:
        pair = [bench.engine(kind, name) for kind in ("eager", "compiled_graph")]
        for engine in pair:
            run_on(engine, 24)
        facts[name] = difference(*(flatten_modules(engine.algorithm.networks) for engine in pair))
    return demand(max(facts.values()) < TOLERANCE, facts)


@step
def resume(bench: Bench) -> Facts:
    """Interrupted twice in the middle of a block: the same bits as without."""
    whole = bench.engine("graph", "td3_bc")
    run_on(whole, 100)
    engine = bench.engine("graph", "td3_bc")
    for stop_after in (13, 57, 100):
        engine.run(stop_after, lambda: False)
        again = bench.engine("graph", "td3_bc", seed=7)
        again.algorithm.load_state_dict(engine.algorithm.state_dict())
        again.sampler.load_state_dict(engine.sampler.state_dict())
        again.losses.load_state_dict(engine.losses.state_dict())
        engine = again
    facts = {"difference": difference(state(whole), state(engine))}
    return demand(facts["difference"] == 0, facts)


@step
def no_synchronisation(bench: Bench) -> Facts:
    """50 blocks in which the host never waits for the device; torch raises an error where it would."""
    engine = bench.engine("graph", "td3_bc", batch_size=16)
    run_on(engine, 10)
    if bench.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(50):
            engine.block(4)
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return {"blocks": 50, "checked": bench.device.type == "cuda"}


@step
def host_path(bench: Bench) -> Facts:
    """Rows that are gathered on the host, as for a dataset that does not fit: the same bits, and what it costs."""
    from gems_ray.data.sampler import Sampler

    inside, fits = bench.engine("graph", "td3_bc"), Sampler._fits
    Sampler._fits = lambda self, columns: False  # type: ignore[method-assign]
    try:
        outside = bench.engine("graph", "td3_bc")
    finally:
        Sampler._fits = fits  # type: ignore[method-assign]
    for engine in (inside, outside):
        run_on(engine, 70)
    facts: Facts = {"difference": difference(state(inside), state(outside))}
    facts |= {"on_device": bench.speed(inside), "on_host": bench.speed(outside)}
    return demand(facts["difference"] == 0 and not outside.sampler.on_device, facts)


@step
def out_of_memory(bench: Bench) -> Facts:
    """A batch that does not fit: one line that names one that would, and the process goes on."""
    if bench.device.type != "cuda":
        raise Skipped("needs a GPU's memory")
    from gems_ray.learning.memory import out_of_memory_message

    torch.cuda.set_per_process_memory_fraction(2e9 / torch.cuda.get_device_properties(0).total_memory, 0)
    try:
        algorithm, sampler = bench.parts("td3_bc", batch_size=MILLION)
        exhausted = False
        try:
            algorithm.update(sampler.sample(MILLION))
        except torch.OutOfMemoryError:
            exhausted = True
        message = out_of_memory_message(algorithm, sampler) if exhausted else ""
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    run_on(bench.engine("graph", "td3_bc"), 10)
    return demand("Set settings.td3_bc.batch_size to" in message, {"message": message})


@step
def forty_cells(bench: Bench) -> Facts:
    """40 cells in one process, one after the other: memory stays flat."""
    cells, taken, left = 6 if bench.rehearse else 40, [], []
    for seed in range(cells):
        engine = bench.engine("graph", "td3_bc", seed=seed)
        run_on(engine, 10)
        left.append(weakref.ref(engine.algorithm))
        del engine
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            taken.append(torch.cuda.memory_reserved())
            free, total = torch.cuda.mem_get_info()
            taken[-1] = max(taken[-1], total - free)
    facts: Facts = {"cells": cells, "left": sum(reference() is not None for reference in left)}
    if taken:
        facts |= {"mb_after_5": taken[4] // 10**6, "mb_at_the_end": taken[-1] // 10**6}
    return demand(not facts["left"] and (not taken or taken[-1] <= taken[4] + 16 * 10**6), facts)


@step
def speeds(bench: Bench) -> Facts:
    """Updates per second: the plain form, single updates, graphs, compiled graphs, in two precisions of products."""
    from gems_ray.device import matmul_precision
    from gems_ray.learning.compiler import missing_for_compilation

    kinds = ["eager", "graph"]
    if not bench.rehearse and not missing_for_compilation(True):
        kinds.append("compiled_graph")
    facts: Facts = {}
    for name in bench.names:
        facts[name] = {}
        for precision in ("highest", "high"):
            with matmul_precision(bench.device, precision):
                facts[name][precision] = {kind: bench.speed(bench.engine(kind, name)) for kind in kinds}
                if plain := yardstick(bench, name):
                    facts[name][precision]["plain"] = plain
    return facts


def yardstick(bench: Bench, name: str) -> float | None:
    """Updates per second in the plain form (plain.py); None where there is none of the algorithm."""
    from plain import PLAIN, sample

    if name not in PLAIN:
        return None
    algorithm, sampler = bench.parts(name)
    columns = tuple(sampler.rows(torch.arange(bench.transitions, device=bench.device)))
    plain, count = PLAIN[name](algorithm), 0
    plain.update(sample(columns, algorithm.config.batch_size))
    bench.wait()
    start = time.perf_counter()
    while time.perf_counter() - start < bench.seconds:
        plain.update(sample(columns, algorithm.config.batch_size))
        count += 1
    bench.wait()
    return round(count / (time.perf_counter() - start), 1)


@step
def sharing(bench: Bench) -> Facts:
    """1, 2 and 4 processes that share the GPU, without and with MPS: all updates per second together."""
    facts: Facts = {}
    for service in (False, True):
        for processes in PROCESSES[:2] if bench.rehearse else PROCESSES:
            key = f"{processes} {'with' if service else 'without'} MPS"
            try:
                with started_mps() if service else nullcontext():
                    facts[key] = shared_speed(bench, processes)
            except Exception as error:
                facts[key] = f"{type(error).__name__}: {error}"
    return facts


def started_mps() -> Any:
    """MPS as a run starts it."""
    from gems_ray.execution.mps import mps

    return mps(lambda line: None)


def shared_speed(bench: Bench, processes: int) -> Facts:
    """Updates per second of all processes together, in a time in which every one of them is at work."""
    context = torch.multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.SimpleQueue()
    torch.multiprocessing.spawn(
        share, (bench.rehearse, barrier, results), nprocs=processes, join=True, start_method="spawn"
    )
    return common(results.get() for _ in range(processes))


def common(measured: Any) -> Facts:
    """What all processes did together: (updates, begin, end) of each, whose times must overlap.

    Every process measures from the barrier on and for the same time. The speed is that of all updates over the longest
    time, so that a process that ran alone at its end does not count for more than it was.
    """
    updates, begins, ends = zip(*measured, strict=True)
    overlap = max(0.0, min(ends) - max(begins)) / (max(ends) - min(begins))
    return {"updates_per_second": round(sum(updates) / (max(ends) - min(begins)), 1), "overlap": round(overlap, 3)}


def share(index: int, rehearse: bool, barrier: Any, results: Any) -> None:
    """One of several processes: prepares, waits for the others, and runs for as long as they do."""
    bench = Bench(rehearse)
    torch.set_num_threads(1)
    engine = bench.engine("graph", "td3_bc", seed=index)
    run_on(engine, 12 if rehearse else 200)
    bench.wait()
    barrier.wait(timeout=300)
    before, begin = engine.algorithm.updates, time.monotonic()
    engine.run(10**9, lambda: time.monotonic() > begin + max(0.5, 2 * bench.seconds))
    bench.wait()
    results.put((engine.algorithm.updates - before, begin, time.monotonic()))


@step
def packs(bench: Bench) -> Facts:
    """Packs: captured ones have the bits of single updates of the pack; updates per second of all cells together."""
    sizes = PACK_SIZES[:3] if bench.rehearse else PACK_SIZES
    facts: Facts = {}
    for name in bench.names:
        pair = [bench.pack(kind, name, 3) for kind in ("pack", "pack_graph")]
        for pack in pair:
            run_on(pack, 30 if bench.rehearse else 300)
        demand(pair[1].name == "pack_graph", {name: pair[1].name})
        differences = [difference(*map(state, cells)) for cells in zip(*(pack.cells for pack in pair), strict=True)]
        demand(not any(differences), {name: differences})
        facts[name] = {
            f"{size} {kind}": round(size * bench.speed(bench.pack(kind, name, size)), 1)
            for kind in ("pack", "pack_graph")
            for size in sizes
        }
    together = facts["td3_bc"]["9 pack_graph"]
    return facts | {"minutes_for_nine_cells_of_a_million_updates": round(9 * MILLION / together / 60, 1)}


@step
def evaluation(bench: Bench) -> Facts:
    """The share of evaluation in a run: 200 users after every 5,000 updates, on the GPU and on a CPU beside it."""
    from gems_ray.data.normalizer import Normalizer
    from gems_ray.evaluation.returns import Evaluator
    from gems_ray.world.bundle import find_world

    engine = bench.engine("graph", "td3_bc")
    run_on(engine, 10)
    learned = engine.algorithm.policy(Normalizer(*engine.sampler.normalizer))
    evaluator = Evaluator(find_world("diffuse_mix"), "validation", 4 if bench.rehearse else 200)
    facts: Facts = {"training_s": round(5_000 / bench.speed(engine), 3)}
    for place, policy in (("", learned), ("on_cpu_", learned.restore(learned.describe(), learned.tensors()))):
        seconds = []
        for _ in range(1 if bench.rehearse else 3):
            start = time.perf_counter()
            evaluator.evaluate(policy)
            seconds.append(time.perf_counter() - start)
        facts[f"evaluation_{place}s"] = round(min(seconds), 3)
    return facts | {"share": round(facts["evaluation_s"] / (facts["evaluation_s"] + facts["training_s"]), 3)}


def run_steps(names: list[str], rehearse: bool) -> list[Facts]:
    """Runs steps and prints a line for each; returns the lines."""
    bench, lines = Bench(rehearse), []
    for position, name in enumerate(names):
        start = time.perf_counter()
        line: Facts = {"step": name, "ok": True}
        unusable = False
        try:
            line["result"] = STEPS[name](bench)
        except Skipped as reason:
            line |= {"ok": None, "skipped": str(reason)}
        except Exception as error:
            line |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
            unusable = isinstance(error, torch.AcceleratorError)
        line["seconds"] = round(time.perf_counter() - start, 1)
        print(json.dumps(line), flush=True)
        lines.append(line)
        if unusable and (rest := names[position + 1 :]):
            return lines + elsewhere(rest, rehearse)
    return lines


def elsewhere(names: list[str], rehearse: bool) -> list[Facts]:
    """The steps in a process of their own, whose lines are printed here."""
    command = [sys.executable, __file__, "--only", *names, *(["--rehearse"] if rehearse else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    print("\n".join(found), flush=True)
    return [json.loads(line) for line in found]


def markdown(lines: list[Facts]) -> str:
    """The table for the documentation."""
    words = {True: "yes", False: "**no**", None: "skipped"}
    rows = ["| step | as it should be | result |", "|---|---|---|"]
    for line in lines:
        result = line.get("result") or line.get("skipped") or line.get("error")
        text = json.dumps(result) if isinstance(result, dict) else str(result)
        rows.append(f"| {line['step']} | {words[line['ok']]} | {text.replace('|', '/')} |")
    return "\n".join(rows)


def main() -> None:
    """Runs the steps and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, as small as possible")
    parser.add_argument("--only", nargs="+", choices=[*STEPS], default=[*STEPS], metavar="STEP")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here. `--rehearse` tries the program itself on a CPU.")
    lines = run_steps(arguments.only, arguments.rehearse)
    print(f"\n{markdown(lines)}")
    sys.exit(any(line["ok"] is False for line in lines))


if __name__ == "__main__":
    main()
