"""MLflow and Weights & Biases, written beside the run folder while cells are trained.

Ray has callbacks for both. They make a run of the tracker for every trial of Tune, of which a cell may have several,
write every report, repeated ones too, and let a lost server end the training. These here follow the records of the
cells instead, each in a thread of its own.
"""

import hashlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

from ray import tune
from ray.tune.experiment import Trial

from gems_ray import metrics
from gems_ray.errors import ConfigError
from gems_ray.experiments.cell_folder import FAILED, PRUNED, RUNNING, UNFINISHED, WITH_RESULT, CellFolder
from gems_ray.experiments.check import all_settings
from gems_ray.experiments.records import CellDescription, CellResult, Report
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import TrackingSpec
from gems_ray.tune.cell_queue import cell_names, cell_reports
from gems_ray.yaml_file import yaml_text

# What the user has set stays. Both packages read these when they are imported or used.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # some 30 seconds; by default it is 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "WANDB_ERROR_REPORTING": "false",
}
CONNECT_TIMEOUT_S = 5.0
LONGEST_CLOSING_S = 60.0  # for a tracker to take what it has not got yet, when the run ends
RUN_TAG, CELL_TAG = "gems_ray.run", "gems_ray.cell"
LARGEST_BATCH = 1_000  # metrics; a server of MLflow takes no more at once
PAGE = 1_000  # runs


class Tracker(Protocol):
    """Where cells are shown besides the run folder; its methods are called in one thread, and may raise anything."""

    name: ClassVar[str]

    def follow(self, cell: CellFolder) -> None:
        """Writes what the tracker has not got of a cell, which is being trained or has ended."""

    def close(self) -> None:
        """Says of the cells that have not ended that nothing trains them any more."""


class Tracking(tune.Callback):
    """Hears in Tune which cells have changed, and hands that on; never waits for a tracker.

    Args:
        run: folder of the cells.
        trackers: where they are shown.
        say: told in one line of a tracker that is lost.
    """

    def __init__(self, run: RunFolder, trackers: list[Tracker], say: Callable[[str], None]) -> None:
        self._followers = [Follower(run, tracker, say) for tracker in trackers]
        self._evaluated: dict[str, int] = {}  # by name, updates at the last evaluation

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; nothing ever reads that back, and keys must not be in it."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A cell begins, or goes on."""
        self._changed(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        """A report, which is new only where it tells of another evaluation than the one before."""
        for name, report in cell_reports(trial, result).items():
            evaluated = report.get(metrics.EVALUATED)
            if evaluated is not None and self._evaluated.get(name) != evaluated:
                self._evaluated[name] = evaluated
                self._notice(name)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The cell has ended, or was set back."""
        self._changed(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The cell's process was lost; the cell may have failed by that."""
        self._changed(trial)

    def close(self) -> None:
        """Lets every tracker take what it has not got yet."""
        latest = time.monotonic() + LONGEST_CLOSING_S
        for follower in self._followers:
            follower.end()
        for follower in self._followers:
            follower.wait(latest)

    def _changed(self, trial: Trial) -> None:
        for name in cell_names(trial):
            self._notice(name)

    def _notice(self, name: str) -> None:
        for follower in self._followers:
            follower.notice(name)


class Follower:
    """Lets one tracker follow the cells of a run in a thread of its own, until it fails.

    Args:
        run: folder of the cells.
        tracker: where they are shown.
        say: told in one line if it fails.
    """

    def __init__(self, run: RunFolder, tracker: Tracker, say: Callable[[str], None]) -> None:
        self._run, self._tracker, self._say = run, tracker, say
        self._changed: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: the run ends
        self._thread = threading.Thread(target=self._work, name=f"tracking {tracker.name}", daemon=True)
        self._thread.start()

    def notice(self, name: str) -> None:
        """Something of a cell is new."""
        self._changed.put(name)

    def end(self) -> None:
        """Nothing more will come."""
        self._changed.put(None)

    def wait(self, latest: float) -> None:
        """Waits for the tracker up to a moment of the monotonic clock."""
        self._thread.join(max(0.0, latest - time.monotonic()))
        if self._thread.is_alive():
            self._tell("has not taken everything in time")

    def _work(self) -> None:
        try:
            while (name := self._changed.get()) is not None:
                self._tracker.follow(self._run.cell(name))
            self._tracker.close()
        except Exception as error:  # of many kinds: the packages have their own, and those of what they stand on
            self._tell(f"cannot be written any more ({_reason(error)})")

    def _tell(self, what: str) -> None:
        self._say(f"tracking.{self._tracker.name}: {what}; the training goes on, and the run folder has everything.")


@contextmanager
def tracked(spec: TrackingSpec, run: RunFolder, say: Callable[[str], None]) -> Iterator[list[Tracking]]:
    """The callbacks that an experiment's trackers need, for as long as cells are trained.

    Args:
        spec: the trackers.
        run: whose cells they show.
        say: told in one line of a tracker that is lost.
    Raises:
        ConfigError: one cannot be opened.
    """
    opened: list[Tracker] = []
    for name, kind in KINDS.items():
        if (place := getattr(spec, name)) is not None:
            for variable, value in ENVIRONMENT.items():
                os.environ.setdefault(variable, value)
            try:
                opened.append(kind(place, run))
            except Exception as error:  # of many kinds
                raise ConfigError(f"tracking.{name}: {place} cannot be opened ({_reason(error)}).") from None
    tracking = Tracking(run, opened, say)
    try:
        yield [tracking] if opened else []
    finally:
        tracking.close()


@dataclass
class MlflowRun:
    """A cell in MLflow.

    Args:
        id: of the run there.
        updates: of the last evaluation that it has.
        status: of the run there.
    """

    id: str
    updates: int
    status: str


class Mlflow:
    """A run of MLflow for every cell, below an experiment of the run folder's name.

    Args:
        uri: of the store.
        run: folder of the cells.
    """

    name: ClassVar[str] = "mlflow"
    STATUS = {**dict.fromkeys(WITH_RESULT, "FINISHED"), FAILED: "FAILED", PRUNED: "KILLED"}

    def __init__(self, uri: str, run: RunFolder) -> None:
        _check_server(uri)
        from mlflow.tracking import MlflowClient

        for noisy in ("alembic", "mlflow"):  # they tell of every table of a new database
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._client, self._mark = MlflowClient(tracking_uri=uri), run.mark_in_trackers()
        title = run.path.absolute().name
        known = self._client.get_experiment_by_name(title)
        self._experiment = known.experiment_id if known else self._client.create_experiment(title)
        self._runs = dict(self._known_runs())
        self._open: set[str] = set()  # names of cells

    def follow(self, cell: CellFolder) -> None:
        """Creates the cell's run, or goes on in it, with the evaluations that it has not got."""
        name = cell.path.name
        known = self._runs.get(name) or self._create(cell)
        result = cell.result()
        self._log(known, [row for row in cell.metrics() if row[metrics.STEP] > known.updates])
        if result is None:
            self._set_status(known, "RUNNING", RUNNING)
            self._open.add(name)
            return
        self._log(known, [final] if (final := _final(result)) else [])
        if result.reason:
            self._client.set_tag(known.id, "reason", result.reason)
        self._set_status(known, self.STATUS[result.status], result.status)
        self._open.discard(name)

    def close(self) -> None:
        """Marks what was interrupted; it goes on in the same run."""
        for name in self._open:
            self._set_status(self._runs[name], "KILLED", UNFINISHED)

    def _known_runs(self) -> Iterator[tuple[str, MlflowRun]]:
        """The cells that an earlier attempt has written, by name."""
        token: str | None = None
        while True:
            found = self._client.search_runs(
                [self._experiment], f"tags.`{RUN_TAG}` = '{self._mark}'", max_results=PAGE, page_token=token
            )
            for run in found:
                updates = int(run.data.metrics.get(metrics.STEP, -1))
                yield run.data.tags[CELL_TAG], MlflowRun(run.info.run_id, updates, run.info.status)
            token = found.token
            if not token:
                return

    def _create(self, cell: CellFolder) -> MlflowRun:
        from mlflow.entities import Param

        name = cell.path.name
        tags = {RUN_TAG: self._mark, CELL_TAG: name}
        run = self._client.create_run(self._experiment, tags=tags, run_name=name)
        params = [Param(key, yaml_text(value)) for key, value in parameters(cell.description).items()]
        self._client.log_batch(run.info.run_id, params=params)
        self._runs[name] = MlflowRun(run.info.run_id, -1, "")
        return self._runs[name]

    def _log(self, run: MlflowRun, rows: list[Report]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(key, value, now, int(row[metrics.STEP])) for row in rows for key, value in row.items()]
        for start in range(0, len(values), LARGEST_BATCH):
            self._client.log_batch(run.id, metrics=values[start : start + LARGEST_BATCH])
        if rows:
            run.updates = int(rows[-1][metrics.STEP])

    def _set_status(self, run: MlflowRun, status: str, state: str) -> None:
        if run.status == status:
            return
        self._client.set_tag(run.id, "status", state)
        if status == "RUNNING":
            self._client.update_run(run.id, status=status)
        else:
            self._client.set_terminated(run.id, status)
        run.status = status


class Wandb:
    """A run of Weights & Biases for every cell, in a group of the run folder's name.

    Args:
        project: its name.
        run: folder of the cells, below which offline runs are written.
    """

    name: ClassVar[str] = "wandb"

    def __init__(self, project: str, run: RunFolder) -> None:
        import wandb

        self._mode = os.environ.get("WANDB_MODE", "offline")
        if self._mode == "online" and not wandb.login(prompt=False):
            raise ConfigError("WANDB_MODE is online, but there is no key: set WANDB_API_KEY or run `wandb login`")
        self._wandb, self._project, self._run, self._mark = wandb, project, run, run.mark_in_trackers()
        self._runs: dict[str, tuple[Any, int]] = {}  # by cell, the open run and the updates that it has

    def follow(self, cell: CellFolder) -> None:
        """Opens the cell's run, or goes on in it, with the evaluations that it has not got."""
        name = cell.path.name
        run, updates = self._runs.get(name) or self._open(cell)
        result = cell.result()
        for row in cell.metrics():
            if row[metrics.STEP] > updates:
                updates = int(row[metrics.STEP])
                run.log(row, step=updates)
        self._runs[name] = run, updates
        if result is not None:
            final = {**_final(result), "status": result.status, "reason": result.reason}
            run.summary.update({key: value for key, value in final.items() if value is not None})
            run.finish(exit_code=int(result.status == FAILED))
            del self._runs[name]

    def close(self) -> None:
        """Ends what was interrupted."""
        for run, _ in self._runs.values():
            run.summary.update({"status": UNFINISHED})
            run.finish(exit_code=1)

    def _open(self, cell: CellFolder) -> tuple[Any, int]:
        name, wandb = cell.path.name, self._wandb
        offline = self._mode == "offline"
        run = wandb.init(
            project=self._project,
            group=self._run.path.absolute().name,
            name=name,
            id=hashlib.sha256(f"{self._mark} {name}".encode()).hexdigest()[:16],
            config=parameters(cell.description),
            mode=self._mode,
            dir=str(self._run.path),
            resume=None if offline else "allow",
            reinit="create_new",  # several cells at once
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
            ),
        )
        return run, run.starting_step - 1


KINDS: Mapping[str, Callable[[str, RunFolder], Tracker]] = {Mlflow.name: Mlflow, Wandb.name: Wandb}


def parameters(cell: CellDescription) -> dict[str, Any]:
    """What a cell is, in flat names; its settings with those that are the algorithm's defaults."""
    settings = all_settings(cell.algorithm, cell.settings)
    return {
        "environment": cell.environment,
        "algorithm": cell.algorithm,
        "seed": cell.seed,
        **{f"settings.{name}": value for name, value in settings.items()},
    }


def _final(result: CellResult) -> Report:
    """What the last tests made of a cell, by the names of gems_ray/metrics.py; empty where there were none."""
    values: Report = {}
    if result.test:
        for kind in ("last", "best"):
            values |= {metrics.test(kind, name): value for name, value in getattr(result.test, kind)}
    if result.offline:
        values |= {metrics.offline(name): value for name, value in result.offline}
    return {metrics.STEP: result.updates, **values} if values else {}


def _check_server(uri: str) -> None:
    """MLflow itself would try for minutes."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT_S).close()


def _reason(error: BaseException) -> str:
    """The beginning of what an error says, on a line and without its end."""
    text = " ".join((str(error) or type(error).__name__).split())
    return (text if len(text) <= 200 else f"{text[:200]}...").rstrip(".")
