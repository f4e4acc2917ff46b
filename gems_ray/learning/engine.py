"""How updates are executed: one by one, as compiled blocks, or as captured CUDA graphs.

The algorithms do not see it: a block is a few calls of `learn`, compiled or captured as they stand.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gems_ray.algorithms.base import AnyAlgorithm
from gems_ray.data.sampler import Sampler
from gems_ray.device import wait_for
from gems_ray.errors import DeviceError
from gems_ray.learning.capture import WARM_UP_RUNS, capture
from gems_ray.learning.compiler import compile_function, missing_for_compilation
from gems_ray.learning.inputs import BlockInputs
from gems_ray.learning.losses import LossMeans

# On a CPU, the first compilation takes 20 to 60 seconds of a core and saves about a quarter of every update's time.
UPDATES_WORTH_COMPILING = 100_000
BLOCK_UPDATES = 4  # where updates are short: a call of compiled code costs 0.1 ms before it computes
LONGEST_PERIOD = 8  # every update of a period is compiled: some seconds each
GRAPH_BLOCK_UPDATES = 64  # whose row numbers, or gathered rows, go to the GPU in one copy
EAGER, COMPILED, GRAPH, COMPILED_GRAPH = "eager", "compiled", "graph", "compiled_graph"  # what `Engine.name` may be
PACK, PACK_GRAPH = "pack", "pack_graph"  # in a pack

Failure = Callable[[str, Exception], None]
Capture = Callable[[Callable[[], Any], torch.device], Callable[[], None]]


class Engine:
    """Runs an algorithm's updates one by one.

    Args:
        algorithm: what learns.
        sampler: what it learns from.
    """

    name = EAGER  # of the way in which most updates run; another one after a failure that was survived

    def __init__(self, algorithm: AnyAlgorithm, sampler: Sampler[Any]) -> None:
        self.algorithm = algorithm
        self.sampler = sampler
        self.losses = LossMeans(algorithm)
        self.why = ""  # it was chosen
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

    def room_for_noise(self) -> dict[str, Tensor]:
        """Tensors that take the noise of an update."""
        state = self.algorithm.generator.get_state()
        noise = self.algorithm.draw_noise(self._batch_size)
        self.algorithm.generator.set_state(state)  # these draws only made the room
        return noise

    def draw_noise(self, room: dict[str, Tensor]) -> None:
        """Fills the room with the noise of the next update."""
        for name, value in self.algorithm.draw_noise(self._batch_size).items():
            room[name].copy_(value)

    def _survived(self, work: Callable[[], Any], name: str, on_failure: Failure | None) -> Any | None:
        result = survived(work, [self], name, on_failure)
        if result is not None:
            self.name = name
        return result


def survived(work: Callable[[], Any], engines: "Sequence[Engine]", name: str, on_failure: Failure | None) -> Any | None:
    """What the work returns; None where it fails, the device still works, and `on_failure` returns.

    Args:
        work: compiles or captures; whatever it trains on the way is taken back.
        engines: whose algorithms it trains.
        name: what would run the updates.
        on_failure: told the name and the error; None to raise the error.
    Raises:
        torch.AcceleratorError: the device does not work any more, or not in this process.
    """
    before = [(engine.algorithm.state_dict(), engine.losses.state_dict()) for engine in engines]
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a part of the compiler or of CUDA raises
        wait_for(engines[0].algorithm.device)  # a failed capture may have left the process without its GPU
        if on_failure is None:
            raise
        failure = error
    finally:
        for engine, (algorithm, losses) in zip(engines, before, strict=True):
            engine.algorithm.load_state_dict(algorithm)
            engine.losses.load_state_dict(losses)
    on_failure(name, failure)
    return None


class GraphEngine(Engine):
    """Plays every phase of the updates as a CUDA graph, captured from the code as it stands: no compiler is needed.

    The last period of updates before a report runs one by one, so that the gradients of the last steps can be read
    then. The arithmetic is the same.

    Args:
        algorithm: what learns, on a GPU.
        sampler: what it learns from.
        on_failure: told the engine's name and the error where capturing fails, None to raise it; where it returns, the
            updates run one by one.
        capture: records work that was started, and returns what repeats it.
    """

    def __init__(
        self,
        algorithm: AnyAlgorithm,
        sampler: Sampler[Any],
        on_failure: Failure | None = None,
        capture: Capture = capture,
    ) -> None:
        super().__init__(algorithm, sampler)
        self.length = max(GRAPH_BLOCK_UPDATES, WARM_UP_RUNS + 1)
        self._on_failure, self._capture = on_failure, capture
        self._inputs = BlockInputs(sampler, self._batch_size, self.length)
        self._noise = self.room_for_noise()
        self._position = torch.zeros(1, dtype=torch.int64, device=algorithm.device)  # of the next update in the block
        self._play: dict[int, Callable[[], None]] | None = None  # by the first of the phases that are alike
        self._losses: dict[int, list[str]] = {}  # their names, likewise

    def run(self, until: int, stop: Callable[[], bool]) -> None:
        """Blocks as long as possible; `stop` is heard between them."""
        algorithm = self.algorithm
        while algorithm.updates < until and not stop():
            count = min(self.length, until - algorithm.updates - algorithm.period)
            if count > 0 and self._ready():
                self.block(count)
            else:
                self.update()

    def block(self, count: int) -> None:
        """A block of at most `length` updates."""
        algorithm = self.algorithm
        if not self._ready():
            raise DeviceError("training.compile graph: the updates could not be captured.")
        assert self._play is not None
        self._inputs.fill(count)
        self._position.zero_()
        for _ in range(count):
            alike = algorithm.first_alike(algorithm.updates % algorithm.period)
            self.draw_noise(self._noise)
            self._play[alike]()
            self.losses.count(self._losses[alike])
            algorithm.updates += 1

    def _ready(self) -> bool:
        if self._play is None:
            self._play = self._survived(self._capture_phases, GRAPH, self._on_failure) or {}
        return bool(self._play)

    def _capture_phases(self) -> dict[int, Callable[[], None]]:
        algorithm = self.algorithm
        alike = {algorithm.first_alike(phase) for phase in range(algorithm.period)}
        play = {}
        for phase in sorted(alike):
            self._position.zero_()
            play[phase] = self._capture(partial(self._learn, phase), algorithm.device)
        return play

    def _learn(self, phase: int) -> None:
        losses = self.algorithm.learn(self._inputs.batch(self._position), self._noise, phase)
        self.losses.add(losses)
        self._losses[phase] = list(losses)
        self._position.add_(1)


class CompiledEngine(Engine):
    """Runs blocks of a few updates through torch's compiler, on CUDA as one captured graph.

    A block starts at a multiple of its length. What is left before a report, at least one block, runs uncompiled, so
    that the gradients of the last step can be read then. Which updates are compiled depends on the points of the
    reports alone: an interrupted run continues with the same arithmetic.

    Args:
        algorithm: what learns.
        sampler: what it learns from.
        on_failure: told the engine's name and the error where the compiler fails, None to raise it; where it returns,
            blocks run as they stand, on CUDA captured if that succeeds.
    """

    def __init__(self, algorithm: AnyAlgorithm, sampler: Sampler[Any], on_failure: Failure | None = None) -> None:
        super().__init__(algorithm, sampler)
        self._on_failure = on_failure
        self.name = COMPILED_GRAPH if algorithm.device.type == "cuda" else COMPILED
        short_updates = BLOCK_UPDATES // (algorithm.period * algorithm.evaluations_per_row)
        self.length = algorithm.period * max(1, short_updates)
        self._inputs = BlockInputs(sampler, self._batch_size, self.length)
        self._noise = [self.room_for_noise() for _ in range(self.length)]
        self._losses: list[list[str]] = []  # names, by update of a block
        self._launch: Callable[[], None] | None = None

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
        self._inputs.fill(self.length)
        for noise in self._noise:
            self.draw_noise(noise)
        self._launch()
        for names in self._losses:
            self.losses.count(names)
        self.algorithm.updates += self.length

    def _prepare(self) -> Callable[[], None]:
        """What runs a filled block: compiled, on CUDA captured, or as it stands where the compiler fails."""
        device = self.algorithm.device
        plain = partial(self._run_block, self._learn)
        compiled = partial(self._run_block, compile_function(self._learn, device.type == "cuda"))
        if device.type == "cuda":
            attempts = {COMPILED_GRAPH: partial(capture, compiled, device), GRAPH: partial(capture, plain, device)}
        else:
            attempts = {COMPILED: partial(_called_once, compiled)}
        for name, attempt in attempts.items():
            if (launch := self._survived(attempt, name, self._on_failure)) is not None:
                return launch
        self.name = EAGER
        return plain

    def _run_block(self, learn: Callable[[], list[dict[str, Tensor]]]) -> None:
        losses = learn()
        for of_update in losses:
            self.losses.add(of_update)
        self._losses = [list(of_update) for of_update in losses]

    def _learn(self) -> list[dict[str, Tensor]]:
        """The arithmetic of a block."""
        return [
            self.algorithm.learn(self._inputs.batch(update), self._noise[update], update % self.algorithm.period)
            for update in range(self.length)
        ]


def _called_once(function: Callable[[], None]) -> Callable[[], None]:
    """The function, after a call that compiles it."""
    function()
    return function


def make_engine(
    algorithm: AnyAlgorithm,
    sampler: Sampler[Any],
    mode: str,
    updates: int,
    warn: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine of a run, which says in `why` for what reason it was chosen.

    Args:
        algorithm: what learns.
        sampler: what it learns from.
        mode: `on` for torch's compiler, `graph` for CUDA graphs without it, `off` for neither, or `auto`. For runs of
            100,000 updates and more, `auto` compiles where a compiler is; on a CPU it does so for algorithms that see
            each transition once, because CQL's large matrix products gain nothing. Otherwise it takes graphs on CUDA
            and single updates on a CPU.
        updates: length of the run.
        warn: told when `auto` goes on without the compiler, or without graphs, because they fail.
    Raises:
        DeviceError: `on` or `graph` was asked for, and is not possible here.
    """
    engine, why = _choose(algorithm, sampler, mode, updates, partial(on_failure, mode, warn))
    engine.why = why
    return engine


def _choose(
    algorithm: AnyAlgorithm, sampler: Sampler[Any], mode: str, updates: int, failed: Failure
) -> tuple[Engine, str]:
    cuda = algorithm.device.type == "cuda"
    against = _against_compilation(algorithm, cuda)
    if mode == "off":
        return Engine(algorithm, sampler), "training.compile is off"
    if mode == "graph":
        if not cuda:
            raise DeviceError(
                "training.compile graph: only a GPU has graphs, and this cell is trained on the CPU. "
                "Set training.compile to auto."
            )
        return GraphEngine(algorithm, sampler, failed), "training.compile is graph"
    if mode == "on":
        if against:
            raise DeviceError(f"training.compile on: {against[1]} set training.compile to off.")
        return CompiledEngine(algorithm, sampler, failed), "training.compile is on"
    if updates < UPDATES_WORTH_COMPILING:
        why = f"auto: {updates:,} updates are too few for the compiler"
    elif against:
        why = f"auto: {against[0]}"
    elif not cuda and algorithm.evaluations_per_row > 1:
        why = f"auto: on a CPU the updates of {algorithm.name} gain nothing from the compiler"
    else:
        return CompiledEngine(algorithm, sampler, failed), f"auto: {updates:,} updates are worth compiling"
    return (GraphEngine(algorithm, sampler, failed) if cuda else Engine(algorithm, sampler)), why


def _against_compilation(algorithm: AnyAlgorithm, cuda: bool) -> tuple[str, str] | None:
    """Why updates cannot be compiled: in a word, and as the beginning of advice."""
    if algorithm.period > LONGEST_PERIOD:
        return (
            f"a period of {algorithm.period} updates is too long for the compiler",
            f"the computation of {algorithm.name} repeats after {algorithm.period} updates, and at most "
            f"{LONGEST_PERIOD} are compiled into one block. To go on,",
        )
    if missing := missing_for_compilation(cuda):
        return f"{missing} is not here, which the compiler needs", f"{missing} is not here. Install it, or"
    return None


def on_failure(mode: str, warn: Callable[[str], None], name: str, error: Exception) -> None:
    """Goes on without the compiler or without graphs where the mode allows it, and says so.

    Args:
        mode: `training.compile`.
        warn: told how updates run now.
        name: of the engine that fails.
        error: what it raised.
    Raises:
        DeviceError: the mode asked for what fails.
    """
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    what = "capturing updates as a graph" if name in (GRAPH, PACK_GRAPH) else "torch's compiler"
    if mode != "auto":
        raise DeviceError(
            f"training.compile {mode}: {what} fails here ({reason}). Set training.compile to off."
        ) from None
    instead = "uncompiled" if name in (COMPILED, COMPILED_GRAPH) else "one by one"
    warn(f"training.compile auto: {what} fails here, so updates run {instead} ({reason})")
