"""What a cell in training reports, written into its folder. The process that runs the run writes all of it."""

from collections.abc import Mapping
from typing import Any

from gems_ray import metrics
from gems_ray.experiments.cell_folder import DIVERGED, FAILED, CellFolder
from gems_ray.experiments.records import CellCheckpoint, CellResult, Fingerprints, evaluation_row


class CellRecorder:
    """Records one cell, from the moment when a process takes it up to the moment when that lets go of it.

    Args:
        folder: of the cell.
        fingerprints: of its dataset and world.
    """

    def __init__(self, folder: CellFolder, fingerprints: Fingerprints) -> None:
        self.folder = folder
        self.checkpoint = folder.checkpoint()  # where the cell goes on
        self.max_timesteps = folder.description.training.max_timesteps
        self._fingerprints = fingerprints
        self._evaluated: int | None = None  # updates in the last row of metrics.csv; None before the first report

    def hear(self, report: Mapping[str, Any]) -> bool:
        """Records a report; the same one may come several times.

        Args:
            report: by the names of gems_ray/metrics.py.
        Returns:
            whether it tells of an evaluation that was not known.
        """
        for line in str(report.get(metrics.LOG, "")).splitlines():
            self.folder.add_log(line)
        if metrics.EVALUATED not in report:  # the cell could not be opened
            return False
        row = evaluation_row(report)
        updates = int(row[metrics.STEP])
        if self._evaluated is None:
            if self.checkpoint and updates < self.checkpoint.updates:
                self.checkpoint = None  # it could not be read; its files stay where they are
            self.folder.keep_metrics_until(updates)  # later ones will come again
            self._evaluated = next((int(known[metrics.STEP]) for known in reversed(self.folder.metrics())), -1)
        if updates <= self._evaluated:
            return False
        self.folder.append_metrics(row)
        self._evaluated = updates
        self.folder.add_log(describe_report(row, self.max_timesteps))
        return True

    def checkpointed(self, path: str, updates: int) -> CellCheckpoint | None:
        """Records a checkpoint that was written.

        Args:
            path: its folder, below the storage.
            updates: at the last report before it.
        Returns:
            the one before it, which is of no use any more; None where there is none, or where it could not be read.
        """
        before, self.checkpoint = self.checkpoint, CellCheckpoint(path=path, updates=updates)
        self.folder.write_checkpoint(self.checkpoint)
        return before

    def end(self, report: Mapping[str, Any]) -> None:
        """Records how the cell ended, from its last report."""
        if report[metrics.STATUS] == FAILED:
            self.fail(str(report[metrics.REASON]), int(report.get(metrics.EVALUATED, 0)))
            return
        if report[metrics.STATUS] == DIVERGED and report[metrics.REASON]:
            self.folder.add_log(str(report[metrics.REASON]), "WARNING")
        result = CellResult.of(report, self._fingerprints)
        self.folder.write_result(result)
        self.folder.add_log(result.status)

    def fail(self, reason: str, updates: int) -> None:
        """Records that the cell ended without a result."""
        self.folder.write_result(CellResult(status=FAILED, updates=updates, reason=reason))
        self.folder.add_log(f"failed: {reason}", "ERROR")


def describe_report(report: Mapping[str, float], max_timesteps: int) -> str:
    """A report on one line."""
    parts = [f"{int(report[metrics.STEP]):>9,}/{max_timesteps:,}"]
    if metrics.RETURN_MEAN in report:
        parts.append(f"return {report[metrics.RETURN_MEAN]:6.1f} ± {report[metrics.RETURN_SE]:.1f}")
        parts.append(f"best {report[metrics.BEST_RETURN]:6.1f}")
    if metrics.Q_POLICY in report:
        parts.append(f"Q {report[metrics.Q_POLICY]:.1f} (bound {report[metrics.Q_BOUND]:.1f})")
    if metrics.CLONING_ERROR in report:
        parts.append(f"cloning {report[metrics.CLONING_ERROR]:.3f}")
    return "  ".join(parts)
