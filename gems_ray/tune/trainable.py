"""The Ray Tune trainable: one cell of a grid on its share of a machine."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from gems_ray.errors import GemsRayError
from gems_ray.experiments.run_folder import FAILED, CellFolder
from gems_ray.training.cell_run import CellRun
from gems_ray.training.trainer import TrainingData
from gems_ray.world.bundle import find_world

SLICE_SECONDS = 2.0  # of training between two signs of life


class CellTrainable(tune.Trainable):
    """Trains a cell in its folder, from its last checkpoint if there is one.

    `config["cell"]` holds the cell's folder, label, environment, world, CPUs and share of a GPU. The datasets come by
    environment as references into the object store, of which a trial fetches its own alone: read-only arrays in shared
    memory, one copy per node.
    """

    def setup(self, config: dict[str, Any], datasets: Mapping[str, "ray.ObjectRef[TrainingData]"]) -> None:
        """Opens the cell."""
        self._datasets = datasets
        self._open()

    def step(self) -> dict[str, Any]:
        """Trains for about two seconds, or up to the next evaluation; repeats the last report in between."""
        deadline = time.monotonic() + SLICE_SECONDS
        try:
            while not self._cell.finished and time.monotonic() < deadline:
                self._cell.advance(stop=lambda: time.monotonic() > deadline)
        except (GemsRayError, torch.OutOfMemoryError) as error:  # would happen again: not for a retry
            self._fail(str(error))
        trainer = self._cell.trainer
        return {**trainer.last_report, "updates": trainer.algorithm.updates, "done": self._cell.finished}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Brings the cell's folder up to date; that is where training continues."""
        if not self._cell.finished:
            self._cell.save()

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continues from the cell's folder."""
        self._open()

    def cleanup(self) -> None:
        """Saves an interrupted cell."""
        cell = getattr(self, "_cell", None)  # missing where the cell could not be opened
        if cell is not None and not cell.finished:
            cell.save()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on with another cell in the same process, which saves its start-up time."""
        self.config = new_config
        self._open()
        return True

    def __repr__(self) -> str:
        """What the dashboard and log prefixes show."""
        config = getattr(self, "config", None)
        return str(config["cell"]["label"]) if config else type(self).__name__

    def _open(self) -> None:
        cell = self.config["cell"]
        torch.set_num_threads(max(1, int(cell["cpu"])))
        if torch.cuda.is_available() and 0 < cell["gpu"] < 1:  # Ray divides a GPU's time, not its memory
            torch.cuda.set_per_process_memory_fraction(cell["gpu"])
        data = ray.get(self._datasets[cell["environment"]])
        world = find_world(cell["world"]) if data.world_fingerprint else None
        self._cell = CellRun(CellFolder(Path(cell["folder"])), data, world)

    def _fail(self, reason: str) -> None:
        updates = self._cell.trainer.algorithm.updates
        self._cell.folder.write_result({"status": FAILED, "updates": updates, "reason": reason})
