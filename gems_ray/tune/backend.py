"""Ray as what trains the cells of a run, started with the first cell that has something to do."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from gems_ray.errors import ConfigError
from gems_ray.execution.interruption import RunInterrupted, first_signal
from gems_ray.execution.mps import mps
from gems_ray.execution.plan import Machine, this_machine
from gems_ray.execution.run import OpenRun
from gems_ray.experiments.check import check_placement, check_tracking
from gems_ray.experiments.spec import Cell, Experiment
from gems_ray.learning.trainer import resolve_device
from gems_ray.program import command_line

if TYPE_CHECKING:
    from gems_ray.experiments.study import StudyPlace
    from gems_ray.tune.run import CellRunner


class RayBackend:
    """Trains cells under Ray Tune, as many at once as the machines hold.

    Args:
        address: of a Ray cluster; None for this machine.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._stack = ExitStack()
        self._runner: CellRunner | None = None

    def check(self, experiment: Experiment) -> None:
        """Makes sure that cells find the device that they ask for."""
        if self._address is None:  # errors now, not in every cell or when Ray has been started
            resolve_device(experiment.training.device)
            experiment.resources.usable_on([this_machine()], lambda line: None, experiment.training.device)
        if experiment.resources.mps and self._address is not None:
            raise ConfigError(
                "resources.mps: a run starts MPS on its own machine alone. Start `nvidia-cuda-mps-control -d` on every "
                "node, before `ray start`, and leave `resources.mps` out."
            )
        check_placement(experiment)
        check_tracking(experiment)

    def train_cells(self, run: OpenRun, cells: Sequence[Cell]) -> None:
        """Trains cells until each has ended or was left for good."""
        if self._started(run).run_cells(cells):
            raise RunInterrupted

    def train_trials(self, run: OpenRun, study: "StudyPlace") -> None:
        """Runs the trials that have not ended."""
        from gems_ray.tune.search import is_complete

        if is_complete(run.experiment, run.folder, study):
            return
        if self._started(run).run_search(run.experiment, study):
            raise RunInterrupted

    def close(self) -> None:
        """Ends or leaves Ray."""
        self._stack.close()

    def _started(self, run: OpenRun) -> "CellRunner":
        """What runs cells; starts Ray, once."""
        if self._runner is None:
            from gems_ray.tune.cluster import check_gpus, check_nodes, connected, nodes, token_file
            from gems_ray.tune.run import CellRunner
            from gems_ray.tune.tracking import tracked

            listener = run.listener
            # Before Ray, which is not started for nothing then, and is not kept while a tracker takes the rest.
            tracking = self._stack.enter_context(tracked(run.experiment.tracking, run.folder, listener.on_line))
            if self._address is None:
                device, here = run.experiment.training.device, [this_machine()]
                if run.experiment.resources.usable_on(here, lambda line: None, device).mps:
                    self._stack.enter_context(mps(listener.on_line))
            listener.on_line("Starting Ray ..." if self._address is None else f"Joining Ray at {self._address} ...")
            log = run.folder.path / "ray.log"
            farewell = (
                f"error: the run was killed, or Ray was lost ({log}). Everything up to the last seconds is saved. "
                f"Continue with:\n  {command_line('resume', str(run.folder.path))}"
            )
            dashboard = self._stack.enter_context(connected(self._address, log, farewell, run.folder.path))
            received = self._stack.enter_context(first_signal())  # after Ray, which leaves a handler of its own
            check_nodes(run.folder.storage)
            device = run.experiment.training.device
            resources = run.experiment.resources.usable_on(nodes(), listener.on_line, device)
            if resources.gpu:
                check_gpus(device, listener.on_line)
            at_once = sum(resources.cells_on(*node) for node in nodes())
            if (size := resources.cells_per_pack) > 1:
                listener.on_line(f"Up to {size} cells are trained as one program (resources.pack).")
                if resources.cpu < 2:
                    listener.on_line(
                        "The training of a pack waits while its policies are evaluated; with resources.cpu of 2 or "
                        "more, the further CPUs evaluate them at the same time."
                    )
            listener.on_line(f"Ray dashboard: {dashboard or 'not available'}")
            if dashboard and (token := token_file()):
                listener.on_line(f"The dashboard asks for a token: paste the content of {token} there.")
            listener.on_training(run.folder)
            self._runner = CellRunner(
                run.folder,
                run.sources,
                resources,
                at_once,
                listener.on_cell,
                stop=lambda: received() is not None,
                shared=self._address is not None,
                callbacks=tracking,
            )
        return self._runner


def cluster_machines(address: str) -> list[Machine]:
    """CPUs and GPUs of every machine of a Ray cluster.

    Raises:
        ResourceError: no cluster answers at the address.
    """
    from gems_ray.tune.cluster import connected, nodes

    with connected(address, Path(os.devnull), f"error: --address {address}: the cluster was lost."):
        return nodes()
