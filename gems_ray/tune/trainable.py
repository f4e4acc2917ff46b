"""The Ray Tune trainable: one cell of a run on its share of a machine."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError

from gems_ray.data.schema import Dataset
from gems_ray.errors import GemsRayError
from gems_ray.execution.cell_run import CellRun
from gems_ray.experiments.cell_folder import DESCRIPTION, ENDED, FAILED, CellFolder
from gems_ray.experiments.records import CellResult
from gems_ray.world.bundle import find_world

SLICE_SECONDS = 2.0  # of training between two signs of life
LOCK_SECONDS = 60.0  # for a process that was believed lost to let go of the cell
SET_BACKS = (OSError, MemoryError, RayError)  # of the machine, the object store or the network; they may pass


class CellTrainable(tune.Trainable):
    """Trains a cell in its folder, from its last checkpoint if there is one.

    `config["cell"]` holds the cell's folder, label, environment, world, CPUs and share of a GPU. The datasets come by
    environment as references into the object store, of which a trial fetches its own alone: read-only arrays in shared
    memory, one copy per node.

    What the machine did wrong (a full disk, a folder or a dataset that cannot be reached) ends the trial with the
    reason as `set_back`, and leaves the cell as it was at its last checkpoint. What the cell did wrong (a setting, a
    loss that is not finite) ends the cell as failed: it would happen again.
    """

    def setup(self, config: dict[str, Any], datasets: Mapping[str, "ray.ObjectRef[Dataset]"]) -> None:
        """Opens the cell."""
        logging.captureWarnings(True)
        self._datasets = datasets
        self._open()

    def step(self) -> dict[str, Any]:
        """Trains for two seconds, or up to the next evaluation; repeats the last report in between."""
        if self._cell is not None:
            self._attempt(self._train)
        return {**self._report, "cell": self._folder.path.name, "done": self._cell is None, "set_back": self._set_back}

    def cleanup(self) -> None:
        """Saves an interrupted cell."""
        if self._cell is not None:
            if not self._cell.finished:
                self._cell.save()
            self._close()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on with another cell in the same process, which saves its start-up time."""
        self.cleanup()
        self.config = new_config
        self._open()
        return True

    def __repr__(self) -> str:
        """What the dashboard and log prefixes show."""
        config = getattr(self, "config", None)
        return str(config["cell"]["label"]) if config else type(self).__name__

    def _open(self) -> None:
        self._cell: CellRun | None = None
        self._folder = CellFolder(Path(self.config["cell"]["folder"]))
        self._report: dict[str, Any] = {}
        self._set_back = ""
        self._attempt(self._load)

    def _load(self) -> None:
        cell = self.config["cell"]
        if not (self._folder.path / DESCRIPTION).exists():
            raise OSError(f"{self._folder.path}: not visible on this node. Use a --storage that every node sees.")
        if self._folder.status in ENDED:
            return
        torch.set_num_threads(max(1, int(cell["cpu"])))
        if torch.cuda.is_available() and 0 < cell["gpu"] < 1:  # Ray divides a GPU's time, not its memory
            torch.cuda.set_per_process_memory_fraction(cell["gpu"])
        dataset = ray.get(self._datasets[cell["environment"]])
        world = find_world(cell["world"]) if dataset.world_fingerprint else None
        self._cell = CellRun(self._folder, dataset, world, LOCK_SECONDS)
        self._report = self._describe(self._cell)

    def _train(self) -> None:
        cell = self._cell
        assert cell is not None
        deadline = time.monotonic() + SLICE_SECONDS
        if not cell.finished:  # one evaluation at most, so that a scheduler sees each of them
            cell.advance(stop=lambda: time.monotonic() > deadline)
        self._report = self._describe(cell)
        if cell.finished:
            self._close()

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            self._attempt_or_fail(work)
        except SET_BACKS as error:
            self._set_back = (str(error) or type(error).__name__).splitlines()[0]
            if self._cell is not None:
                self._cell.log.warning("set back: %s", self._set_back)
            self._close()

    def _attempt_or_fail(self, work: Callable[[], None]) -> None:
        try:
            work()
        except SET_BACKS:
            raise
        except (GemsRayError, torch.OutOfMemoryError) as error:
            self._fail(str(error))
        except Exception as error:
            if self._cell:
                self._cell.log.exception("unexpected error")
            self._fail(f"{type(error).__name__}: {error} (the traceback is in the cell's log)")

    def _fail(self, reason: str) -> None:
        if self._cell is not None:
            self._cell.fail(reason)
        else:
            self._folder.write_result(CellResult(status=FAILED, updates=0, reason=reason))
        self._close()

    def _close(self) -> None:
        if self._cell is not None:
            self._cell.close()
        self._cell = None

    def _describe(self, cell: CellRun) -> dict[str, Any]:
        trainer = cell.trainer
        return {
            **trainer.last_report,
            "updates": trainer.algorithm.updates,
            "evaluated_updates": max(0, trainer.reported),
        }
