"""Several cells that one process trains as a pack; each keeps its own reports, checkpoints and end."""

from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gems_ray import metrics
from gems_ray.execution.cell_training import CellTraining, Evaluate
from gems_ray.experiments.cell_folder import FAILED
from gems_ray.learning.pack import Pack
from gems_ray.learning.trainer import Trainer

Say = Callable[[str], None]
Opener = Callable[[Say], CellTraining]

ASK_EVERY_S = 0.1  # whether to stop, while nothing is left to do but to wait for evaluations


@dataclass(slots=True)
class _Member:
    """A cell of the pack."""

    training: CellTraining | None = None
    failure: str = ""  # why it ended without a result
    log: list[str] = field(default_factory=list)


class PackTraining:
    """Trains cells together and tests each at its end; a cell that fails does not stop the others.

    Cells that have come equally far are one pack. Whoever is behind the others after an interruption catches up first.

    Args:
        openers: by name of the cell, what opens its training, continued from its checkpoint.
        say: told what a reader of the first cell's log should know.
        reason_of: why a cell has failed after an error; it raises an error that is not the cell's.
        evaluate: plays policies elsewhere while training goes on, so that a report comes one evaluation later; None
            plays them here between the updates.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        say: Say,
        reason_of: Callable[[Exception, Say], str],
        evaluate: Evaluate | None = None,
    ) -> None:
        self._say, self._reason_of, self._evaluate = say, reason_of, evaluate
        self._members = {name: _Member() for name in openers}
        for name, member in self._members.items():
            try:
                member.training = openers[name](self._log_of(name))
            except torch.OutOfMemoryError:
                raise  # the others on the GPU may leave it soon
            except Exception as error:
                self._fail(name, error)
        self._packs: list[Pack] = []
        groups: dict[tuple[int, int], list[Trainer]] = {}
        for training in self._open.values():
            trainer = training.trainer
            if not trainer.trained:
                groups.setdefault((trainer.updates, trainer.begun), []).append(trainer)
        for group in groups.values():
            self._join(group, opening=True)

    @property
    def ended(self) -> bool:
        """Whether every cell has ended."""
        return all(training.ended for training in self._open.values())

    def advance(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Trains those that are behind up to their next report, as `CellTraining.advance` does with one cell.

        Args:
            stop: asked before every update; true returns early, between two updates.
        Returns:
            whether a report is due; false when stopped before it.
        """
        waiting = {
            name
            for name, training in self._open.items()
            if not training.ended and (training.trainer.trained or training.trainer.open_report)
        }
        reached = self._train(stop)
        if self._evaluate is None:
            due = waiting | reached
            self._each(due, CellTraining.advance)
        else:
            due = self._evaluate_elsewhere(self._evaluate, waiting, reached, stop)
        self._regroup()
        return bool(due)

    def _train(self, stop: Callable[[], bool]) -> set[str]:
        """Trains the pack that is furthest behind; the cells of it whose next report is due."""
        if not self._packs:
            return set()
        pack = min(self._packs, key=lambda pack: pack.trainers[0].updates)
        members = {name for name, training in self._open.items() if training.trainer in pack.trainers}
        try:
            return members if pack.train(stop) else set()
        except Exception as error:
            for name in members:
                self._fail(name, error)
            return set()

    def _evaluate_elsewhere(
        self, evaluate: Evaluate, waiting: set[str], reached: set[str], stop: Callable[[], bool]
    ) -> set[str]:
        """Takes over evaluations that are ready, and asks for those that are due; the cells that have a new report.

        Args:
            evaluate: plays a policy.
            waiting: cells with a report that is open, or with nothing to do but to be tested.
            reached: cells whose next report is due; the one before is made first.
            stop: true leaves the evaluations that are not ready to the next call.
        """
        cells = self._open
        if reached or not self._packs:
            needed = [asked for name in waiting | reached if name in cells for asked in cells[name].evaluations]
            while futures.wait(needed, timeout=ASK_EVERY_S).not_done and not stop():
                pass
        ready = {name for name, cell in cells.items() if cell.evaluations and all(e.done() for e in cell.evaluations)}
        self._each(ready, CellTraining.end_evaluation)
        idle = {name for name, cell in self._open.items() if not cell.evaluations and not cell.ended}
        self._each(idle & (waiting | reached), lambda cell: cell.begin_evaluation(evaluate))
        # The first report is waited for, so that all reports have the same keys.
        first = {name for name, cell in self._open.items() if cell.evaluations and cell.trainer.reported < 0}
        self._each(first, CellTraining.end_evaluation)
        return ready | first

    def _each(self, names: Iterable[str], work: Callable[[CellTraining], object]) -> None:
        for name in names:
            try:
                work(self._open[name])
            except Exception as error:
                self._fail(name, error)

    def report(self) -> dict[str, Any]:
        """The report of the first cell, and those of the others by name as `metrics.PACK`, with their logs."""
        reports = {name: self._report_of(member) for name, member in self._members.items()}
        first, *others = reports
        for name in others:
            member = self._members[name]
            reports[name][metrics.LOG] = "\n".join(member.log)
            member.log.clear()
        return {**reports[first], metrics.PACK: {name: reports[name] for name in others}}

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of every cell that has not failed into a folder of its name."""
        for name, training in self._open.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            training.save(folder / name)

    @property
    def _open(self) -> dict[str, CellTraining]:
        """The cells that have not failed."""
        return {n: m.training for n, m in self._members.items() if m.training is not None and not m.failure}

    def _log_of(self, name: str) -> Say:
        return self._say if name == next(iter(self._members)) else self._members[name].log.append

    def _fail(self, name: str, error: Exception) -> None:
        self._members[name].failure = self._reason_of(error, self._log_of(name))

    @staticmethod
    def _report_of(member: _Member) -> dict[str, Any]:
        report = member.training.report() if member.training else {}
        return report | ({metrics.STATUS: FAILED, metrics.REASON: member.failure} if member.failure else {})

    def _regroup(self) -> None:
        """Cells that have ended leave their pack; packs that have come equally far become one."""
        going_on = [t.trainer for t in self._open.values() if not t.trainer.trained]
        groups: dict[tuple[int, int], list[Pack]] = {}
        for pack in self._packs:
            pack.leave(*(trainer for trainer in pack.trainers if trainer not in going_on))
            if pack.trainers:
                groups.setdefault((pack.trainers[0].updates, pack.trainers[0].begun), []).append(pack)
        self._packs = []
        for packs in groups.values():
            if len(packs) == 1:
                self._packs += packs
                continue
            trainers = [trainer for pack in packs for trainer in pack.trainers]
            for pack in packs:
                pack.leave(*pack.trainers)
            self._join(trainers)

    def _join(self, trainers: list[Trainer], *, opening: bool = False) -> None:
        try:
            self._packs.append(Pack(trainers))
        except Exception as error:
            if opening and isinstance(error, torch.OutOfMemoryError):
                raise  # others on the GPU may leave it soon
            for name in [name for name, training in self._open.items() if training.trainer in trainers]:
                self._fail(name, error)
