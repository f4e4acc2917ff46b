"""How the updates of a pack are executed: one by one, or as captured CUDA graphs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from gems_ray.algorithms.adam import stacked
from gems_ray.learning.capture import capture
from gems_ray.learning.engine import GRAPH_BLOCK_UPDATES, PACK, PACK_GRAPH, Capture, Engine, Failure, survived
from gems_ray.learning.inputs import BlockInputs
from gems_ray.learning.packed_update import PackedUpdate


class PackEngine:
    """Runs the updates of several algorithms as one batched computation.

    On a GPU, every phase is captured as one graph for all cells, because a single update starts so many kernels that
    the processor could not keep up. As with `GraphEngine`, the last period of updates before a report runs one by one,
    and the arithmetic is the same.

    Args:
        cells: algorithm, sampler and losses of every cell; see `check_packable`. Their own way to run is not used.
        graphs: whether to capture.
        on_failure: told the engine's name and the error where capturing fails, None to raise it; where it returns, the
            updates run one by one.
        capture: records work that was started, and returns what repeats it.
    """

    def __init__(
        self,
        cells: Sequence[Engine],
        graphs: bool = False,
        on_failure: Failure | None = None,
        capture: Capture = capture,
    ) -> None:
        self.cells = list(cells)
        self.algorithm = cells[0].algorithm  # its number of updates is that of all
        self.name = PACK_GRAPH if graphs else PACK
        self._update = PackedUpdate([cell.algorithm for cell in cells])
        sums = [cell.losses.sums for cell in cells]
        self._sums = {name: stacked([of_cell[name] for of_cell in sums]) for name in sums[0]}
        self._on_failure, self._capture = on_failure, capture
        self._play: dict[int, Callable[[], None]] | None = None if graphs else {}
        self._losses: dict[int, list[str]] = {}  # their names, by the first of the phases that are alike
        if graphs:
            size = self.algorithm.config.batch_size
            self._inputs = [BlockInputs(cell.sampler, size, GRAPH_BLOCK_UPDATES) for cell in cells]
            self._noise = [cell.room_for_noise() for cell in cells]
            self._position = torch.zeros(1, dtype=torch.int64, device=self.algorithm.device)

    def run(self, until: int, stop: Callable[[], bool]) -> None:
        """Updates until every algorithm has seen `until` in all, or until `stop` is true between two blocks of them."""
        algorithm = self.algorithm
        while algorithm.updates < until and not stop():
            count = min(GRAPH_BLOCK_UPDATES, until - algorithm.updates - algorithm.period)
            if count > 0 and self._captured():
                self._run_block(count)
            else:
                self._run_one()
        self._update.show_gradients()

    def release(self) -> None:
        """Gives every cell memory of its own again; nothing can be run afterwards."""
        self._play = {}
        self._update.release()
        for cell in self.cells:
            for total in cell.losses.sums.values():
                total.data = total.data.clone()

    def _run_one(self) -> None:
        size, phase = self.algorithm.config.batch_size, self.algorithm.updates % self.algorithm.period
        batches = [cell.sampler.sample(size) for cell in self.cells]
        losses = self._update(batches, [cell.algorithm.draw_noise(size) for cell in self.cells], phase)
        self._add(losses)
        self._count(losses)

    def _run_block(self, count: int) -> None:
        assert self._play
        for inputs in self._inputs:
            inputs.fill(count)
        self._position.zero_()
        for _ in range(count):
            alike = self.algorithm.first_alike(self.algorithm.updates % self.algorithm.period)
            for cell, room in zip(self.cells, self._noise, strict=True):
                cell.draw_noise(room)
            self._play[alike]()
            self._count(self._losses[alike])

    def _captured(self) -> bool:
        if self._play is None:
            self._play = survived(self._capture_phases, self.cells, PACK_GRAPH, self._on_failure) or {}
            self.name = PACK_GRAPH if self._play else PACK
        return bool(self._play)

    def _capture_phases(self) -> dict[int, Callable[[], None]]:
        algorithm = self.algorithm
        play = {}
        for phase in sorted({algorithm.first_alike(phase) for phase in range(algorithm.period)}):
            self._position.zero_()
            play[phase] = self._capture(partial(self._learn, phase), algorithm.device)
        return play

    def _learn(self, phase: int) -> None:
        losses = self._update([inputs.batch(self._position) for inputs in self._inputs], self._noise, phase)
        self._add(losses)
        self._losses[phase] = list(losses)
        self._position.add_(1)

    def _add(self, losses: Mapping[str, Tensor]) -> None:
        for name, values in losses.items():
            self._sums[name].add_(values)

    def _count(self, names: Iterable[str]) -> None:
        for cell in self.cells:
            cell.losses.count(names)
            cell.algorithm.updates += 1
