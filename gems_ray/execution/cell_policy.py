"""What a cell has learned, read from its checkpoint."""

from safetensors import SafetensorError
from safetensors.torch import load_file

from gems_ray.algorithms.policy import LearnedPolicy, load_policy
from gems_ray.errors import PolicyError, RunFolderError
from gems_ray.execution.storage import CheckpointStorage
from gems_ray.experiments.cell_folder import FORMER_BEST, TRAINER, CellFolder
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.policies.base import Policy


def read_policy(run: RunFolder, cell: CellFolder, checkpoint: str, device: str = "cpu") -> Policy:
    """The policy of a cell's checkpoint.

    Args:
        run: folder of the run, which says where algorithms from outside the package are.
        cell: one of its cells.
        checkpoint: `best` or `last`.
        device: where the networks live.
    Raises:
        RunFolderError: there is no such checkpoint, or it is damaged.
    """
    found = cell.checkpoint()
    if found is None:
        raise RunFolderError(f"{cell.path}: no such checkpoint. The cell is {cell.status}.")
    try:
        with CheckpointStorage(run.storage).fetched(found) as folder:
            if checkpoint == "best" and not (folder / FORMER_BEST).exists():
                return load_policy(folder, device)
            tensors = load_file(folder / (FORMER_BEST if checkpoint == "best" else TRAINER))
        if checkpoint == "last":  # a trainer's whole state
            parts = {"algorithm.": "", "buffer.": "normalizer."}
            tensors = {
                name + key.removeprefix(part): value
                for key, value in tensors.items()
                for part, name in parts.items()
                if key.startswith(part)
            }
        description = cell.description
        facts = {
            "algorithm": run.experiment().imports.get(description.algorithm, description.algorithm),
            "settings": description.settings,
            "state_dim": len(tensors["normalizer.state_mean"]),
            "action_dim": len(tensors["normalizer.action_center"]),
            "policy": {},
        }
        return LearnedPolicy.restore(facts, tensors, device)
    except FileNotFoundError:
        raise RunFolderError(f"{cell.path}: no such checkpoint. The cell is {cell.status}.") from None
    except (PolicyError, SafetensorError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{cell.path}: its {checkpoint} checkpoint cannot be read ({reason}).") from None
