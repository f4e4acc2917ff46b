"""How updates are executed: one by one, as compiled blocks, or as captured CUDA graphs.

The algorithms do not see it: a block is a few calls of `learn`, traced as they stand.
"""

import importlib.util
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gems_ray.algorithms.base import AnyAlgorithm, Noise
from gems_ray.data.experience import Batch, WindowBatch
from gems_ray.data.sampler import Sampler
from gems_ray.errors import DeviceError
from gems_ray.flat_state import FlatState

# On a CPU, the first compilation takes 20 to 60 seconds of a core and saves about a quarter of every update's time.
UPDATES_WORTH_COMPILING = 100_000
BLOCK_UPDATES = 4  # where updates are short: a call of compiled code costs 0.1 ms before it computes
LONGEST_PERIOD = 8  # every update of a period is compiled: some seconds each
WARM_UP_RUNS = 3  # before a capture, as the CUDA manual asks


class LossMeans:
    """Means of an algorithm's losses since the last report; they stay on the device until then."""

    def __init__(self, algorithm: AnyAlgorithm) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=algorithm.device)
        self._sums = {name: zero.clone() for name in algorithm.loss_names}
        self._counts = dict.fromkeys(algorithm.loss_names, 0)

    @property
    def sums(self) -> dict[str, Tensor]:
        """The sums by name, scalars on the device."""
        return self._sums

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Adds the losses of one update on the device; `count` must hear of them too."""
        for name, value in losses.items():
            self._sums[name].add_(value)

    def count(self, losses: Mapping[str, Tensor]) -> None:
        """Counts the losses of one update."""
        for name in losses:
            self._counts[name] += 1

    def take(self) -> dict[str, float | None]:
        """The means, None where there was no loss; begins anew."""
        means = {name: float(self._sums[name]) / count if count else None for name, count in self._counts.items()}
        for name in self._sums:
            self._sums[name].zero_()
            self._counts[name] = 0
        return means

    def state_dict(self) -> FlatState:
        """Sums and counts."""
        return {
            name: torch.stack([total.cpu(), torch.tensor(self._counts[name], dtype=torch.float64)])
            for name, total in self._sums.items()
        }

    def load_state_dict(self, state: FlatState) -> None:
        """Fills sums and counts from `state_dict`."""
        for name, pair in state.items():
            self._sums[name].copy_(pair[0])
            self._counts[name] = int(pair[1])


class Engine:
    """Runs an algorithm's updates one by one.

    Args:
        algorithm: what learns.
        sampler: what it learns from.
    """

    def __init__(self, algorithm: AnyAlgorithm, sampler: Sampler[Any]) -> None:
        self.algorithm = algorithm
        self.sampler = sampler
        self.losses = LossMeans(algorithm)
        self._batch_size = algorithm.config.batch_size

    def run(self, until: int, stop: Callable[[], bool]) -> None:
        """Updates until the algorithm has seen `until` in all, or until `stop` is true between two of them."""
        while self.algorithm.updates < until and not stop():
            self.update()

    def update(self) -> None:
        """One update."""
        losses = self.algorithm.update(self.sampler.sample(self._batch_size))
        self.losses.add(losses)
        self.losses.count(losses)


class CompiledEngine(Engine):
    """Runs blocks of a few updates through torch's compiler, on CUDA as one captured graph.

    A block starts at a multiple of its length. What is left before a report, at least one block, runs uncompiled, so
    that the gradients of the last step can be read then. Which updates are compiled depends on the points of the
    reports alone: an interrupted run continues with the same arithmetic.

    Args:
        algorithm: what learns.
        sampler: what it learns from.
        on_failure: what becomes of an error of the compiler, None to raise it; where it returns, blocks run as they
            stand.
    """

    def __init__(
        self, algorithm: AnyAlgorithm, sampler: Sampler[Any], on_failure: Callable[[Exception], None] | None = None
    ) -> None:
        super().__init__(algorithm, sampler)
        self._on_failure = on_failure
        short_updates = BLOCK_UPDATES // (algorithm.period * algorithm.evaluations_per_row)
        self.length = algorithm.period * max(1, short_updates)
        size = self._batch_size
        self._rows = torch.zeros((self.length, size), dtype=torch.int64, device=algorithm.device)
        self._batches: list[Batch | WindowBatch] = []
        if not sampler.on_device:  # gathered on the host, so outside of what is compiled
            first = sampler.rows(torch.zeros(size, dtype=torch.int64))
            self._batches = [type(first)(*(column.clone() for column in first)) for _ in range(self.length)]
        state = algorithm.generator.get_state()
        self._noise = [algorithm.draw_noise(size) for _ in range(self.length)]
        algorithm.generator.set_state(state)  # these draws only made the room
        self._launch: Callable[[], list[dict[str, Tensor]]] | None = None

    def run(self, until: int, stop: Callable[[], bool]) -> None:
        """Blocks where they fit, single updates elsewhere; `stop` is heard between blocks."""
        algorithm = self.algorithm
        while algorithm.updates < until and not stop():
            if algorithm.updates % self.length == 0 and algorithm.updates + 2 * self.length <= until:
                self.block()
            else:
                self.update()

    def block(self) -> None:
        """One block."""
        if self._launch is None:
            self._launch = self._prepare()
        self._fill()
        for losses in self._launch():
            self.losses.count(losses)
        self.algorithm.updates += self.length

    def _fill(self) -> None:
        """Row numbers and noise of the next block, into the tensors that the compiled code reads."""
        for phase, noise in enumerate(self._noise):
            rows = self.sampler.draw(self._batch_size)
            if self._batches:
                for static, column in zip(self._batches[phase], self.sampler.rows(rows), strict=True):
                    static.copy_(column)
            else:
                self._rows[phase].copy_(rows)
            for name, value in self.algorithm.draw_noise(self._batch_size).items():
                noise[name].copy_(value)

    def _prepare(self) -> Callable[[], list[dict[str, Tensor]]]:
        """What runs a filled block: compiled, on CUDA captured, or as it stands where the compiler fails."""
        cuda = self.algorithm.device.type == "cuda"
        launch = self._launcher(compile_function(self._learn, cuda))
        before = self.algorithm.state_dict(), self.losses.state_dict()
        try:
            if cuda:
                with torch.cuda.device(self.algorithm.device):
                    return _capture(launch)
            launch()  # compiles
            return launch
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a part of the compiler raises
            if self._on_failure is None:
                raise
            self._on_failure(error)
            return self._launcher(self._learn)
        finally:
            self.algorithm.load_state_dict(before[0])  # the trial has trained
            self.losses.load_state_dict(before[1])

    def _launcher(self, learn: Callable[..., list[dict[str, Tensor]]]) -> Callable[[], list[dict[str, Tensor]]]:
        def launch() -> list[dict[str, Tensor]]:
            losses = learn(self._rows, self._batches, self._noise)
            for of_update in losses:
                self.losses.add(of_update)
            return losses

        return launch

    def _learn(self, rows: Tensor, batches: list[Batch | WindowBatch], noise: list[Noise]) -> list[dict[str, Tensor]]:
        """The arithmetic of a block."""
        return [
            self.algorithm.learn(
                batches[phase] if batches else self.sampler.rows(rows[phase]),
                noise[phase],
                phase % self.algorithm.period,
            )
            for phase in range(self.length)
        ]


def _capture(launch: Callable[[], Any]) -> Callable[[], Any]:
    """Records the kernels of `launch` on the current device once; what is returned plays them again with one call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = launch()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


def make_engine(
    algorithm: AnyAlgorithm,
    sampler: Sampler[Any],
    mode: str,
    updates: int,
    warn: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine of a run.

    Args:
        algorithm: what learns.
        sampler: what it learns from.
        mode: `on`, `off`, or `auto`: where a compiler is, on CUDA, and on a CPU for runs of 100,000 updates and more of
            an algorithm that sees each transition once; CQL's large matrix products gain nothing.
        updates: length of the run.
        warn: told when `auto` goes on without the compiler because it fails.
    Raises:
        DeviceError: `on` was asked for, and there is no compiler or a block would be too long.
    """

    def on_failure(error: Exception) -> None:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if mode == "on":
            raise DeviceError(
                f"training.compile on: torch's compiler fails here ({reason}). Set training.compile to off."
            ) from None
        warn(f"training.compile auto: torch's compiler fails here, so updates run uncompiled ({reason})")

    if mode == "off" or (mode == "auto" and algorithm.period > LONGEST_PERIOD):
        return Engine(algorithm, sampler)
    if algorithm.period > LONGEST_PERIOD:
        raise DeviceError(
            f"training.compile on: the computation of {algorithm.name} repeats after {algorithm.period} updates, and "
            f"at most {LONGEST_PERIOD} are compiled into one block. Set training.compile to off."
        )
    cuda = algorithm.device.type == "cuda"
    missing = missing_for_compilation(cuda)
    if mode == "on" and missing:
        raise DeviceError(f"training.compile on: {missing} is not here. Install it, or set training.compile to off.")
    worth_it = cuda or (updates >= UPDATES_WORTH_COMPILING and algorithm.evaluations_per_row == 1)
    if mode == "on" or (not missing and worth_it):
        return CompiledEngine(algorithm, sampler, on_failure)
    return Engine(algorithm, sampler)


def missing_for_compilation(cuda: bool) -> str | None:
    """What torch's compiler needs and this machine lacks; None when nothing is missing."""
    if shutil.which("g++") is None:
        return "g++"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python.h (Debian: python3-dev)"
    if cuda and importlib.util.find_spec("triton") is None:
        return "triton"
    return None


def compile_function(function: Callable[..., Any], cuda: bool) -> Callable[..., Any]:
    """The function through torch's compiler as one graph, gradients and optimiser included."""
    torch.compiler.reset()  # torch keeps a few versions of a function only, and a process may train many cells
    options: dict[str, Any] = {"compile_threads": 1}  # the other cores belong to other cells
    if not cuda:
        options["cpp_wrapper"] = True
    compiled = torch.compile(function, fullgraph=True, dynamic=False, options=options)

    def call(*arguments: Any) -> Any:
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            return compiled(*arguments)

    return call
