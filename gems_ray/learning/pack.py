"""Several trainings as one program: their updates are one batched computation, everything else stays their own."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from gems_ray.device import matmul_precision, wait_for
from gems_ray.errors import ConfigError, TrainingError
from gems_ray.learning.engine import PACK, Engine, on_failure
from gems_ray.learning.pack_engine import PackEngine
from gems_ray.learning.packed_update import check_packable
from gems_ray.learning.trainer import Report, Trainer


class Pack:
    """Trainers whose updates are computed together, which a GPU does in hardly more time than those of one.

        trainers = [gems_ray.Trainer(dataset, "td3_bc", seed=seed, world=world) for seed in range(9)]
        for reports in gems_ray.Pack(trainers):
            print([report["eval/return_mean"] for report in reports])

    All of them have the same algorithm, shapes and evaluations; seeds may differ, and the settings that the algorithm
    lists in `per_cell`. Every trainer draws its own rows and noise, so that it learns what it learns alone, up to
    rounding. It can be saved and loaded as always, alone or in another pack. On a CPU a pack gains nothing.

    Args:
        trainers: at the same number of updates; they must not be advanced otherwise from now on, until they leave.
    Raises:
        ConfigError: the trainers differ in more than a pack allows.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        if not trainers:
            raise ConfigError("pack: expected at least one trainer.")
        check_packable([trainer.algorithm for trainer in trainers])
        for trainer in trainers[1:]:
            if trainer.matmul_precision != trainers[0].matmul_precision:
                raise ConfigError("pack: expected trainers with the same matmul_precision.")
            if (trainer.points, trainer.begun) != (trainers[0].points, trainers[0].begun):
                raise ConfigError(
                    "pack: expected trainers with the same evaluations, at the same one. Give all of them the same "
                    "max_timesteps and evaluation_interval."
                )
        self.trainers = list(trainers)
        self._errors: list[Exception] = []  # of trainers that have left, not raised yet
        self._join()

    def __iter__(self) -> Iterator[list[Report]]:
        """Trains all to the end; yields the reports of all that are still trained, at every evaluation.

        Raises:
            TrainingError: a trainer could not go on; it has left, and the others can be iterated again.
        """
        while self.trainers or self._errors:
            reports = [report for report in self.advance() if report is not None]
            if reports:
                yield reports

    def advance(self, stop: Callable[[], bool] = lambda: False) -> list[Report | None]:
        """Trains up to the next evaluation.

        Args:
            stop: asked before every update; true returns early, between two updates.
        Returns:
            the report of every trainer, in their order; None as in `Trainer.advance`. A trainer that has finished
            leaves.
        Raises:
            TrainingError: one of them could not go on; it has left. The reports of the others come first.
        """
        if self._errors:
            raise self._errors.pop(0)
        trainers = list(self.trainers)
        due = [trainer for trainer in trainers if trainer.open_report] or (trainers if self.train(stop) else [])
        reports: list[Report | None] = []
        leaving: list[Trainer] = []
        for trainer in trainers:
            report = None
            if trainer in due:
                try:
                    report = trainer.advance()
                except Exception as error:
                    self._errors.append(error)
                    leaving.append(trainer)
            reports.append(report)
        self.leave(*leaving, *(trainer for trainer in trainers if trainer.finished))
        return reports

    def train(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Runs the updates up to the next evaluation, which every trainer then makes by its own `advance`.

        Returns:
            whether the evaluation is due; false when stopped before it.
        Raises:
            TrainingError: the memory of the GPU is exhausted.
        """
        until, start, exhausted = self.trainers[0].next_point, time.perf_counter(), False
        device = self.trainers[0].algorithm.device
        try:
            with matmul_precision(device, self.trainers[0].matmul_precision):
                self._engine.run(until, stop)
            wait_for(device)  # else the clock tells how long it took to ask
        except torch.OutOfMemoryError:
            exhausted = True  # what the failed update held is free once its traceback is gone
        if exhausted:
            raise TrainingError(f"the GPU's memory is exhausted by a pack of {len(self.trainers)}. Pack fewer cells.")
        seconds = time.perf_counter() - start
        for trainer in self.trainers:
            trainer.engine.name = self._engine.name
            trainer.seconds += seconds
        return self.trainers[0].updates >= until

    def leave(self, *trainers: Trainer) -> None:
        """Takes trainers out of the pack; they can go on alone, and the pack goes on without them."""
        if not trainers:
            return
        for trainer in self.trainers:
            trainer.use_engine(None)
        self._engine.release()
        self.trainers = [trainer for trainer in self.trainers if trainer not in trainers]
        if self.trainers:
            self._join()

    def _join(self) -> None:
        for trainer in self.trainers:
            trainer.use_engine(_MemberEngine(trainer.algorithm, trainer.sampler))
        first = self.trainers[0]
        self._engine = PackEngine(
            [trainer.engine for trainer in self.trainers],
            graphs=first.algorithm.device.type == "cuda" and first.compile != "off",
            on_failure=partial(on_failure, first.compile, first.warn),
        )


class _MemberEngine(Engine):
    """What a trainer in a pack has as its engine: the pack has run the updates already."""

    name = PACK

    def run(self, until: int, stop: Callable[[], bool]) -> None:
        """Nothing.

        Raises:
            ConfigError: the updates are missing, because the trainer was not advanced by its pack.
        """
        if self.algorithm.updates < until:
            raise ConfigError("this trainer is in a pack. Advance the pack, or let the trainer `leave` it first.")
