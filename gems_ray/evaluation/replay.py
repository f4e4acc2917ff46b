"""Logged transitions replayed in a world: which slates were shown, and which clicks explain the next beliefs."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gems_ray.data.schema import Dataset
from gems_ray.world.belief import GruBelief
from gems_ray.world.bundle import World

TOLERANCE = 1e-3  # of a belief in -1 to 1: the rounding of other machines is far below, a click far above
TRIED_AT_ONCE = 8_192  # rows times possible clicks: their gates of 60 numbers take 2 MB


@dataclass(frozen=True, slots=True)
class Explanation:
    """What n transitions were, as far as a world can explain them.

    Args:
        slates: (n, K) int64, what the world's ranker makes of the actions.
        clicks: (n, K) bool, the clicks that explain the next beliefs best.
        errors: (n,) float32, largest distance that is left between replayed and logged belief.
    """

    slates: np.ndarray
    clicks: np.ndarray
    errors: np.ndarray

    @property
    def explained(self) -> np.ndarray:
        """(n,) bool, whether slate and clicks lead to the logged belief."""
        return self.errors <= TOLERANCE


def explain(world: World, dataset: Dataset, rows: np.ndarray) -> Explanation:
    """Decodes logged actions, and finds the clicks that lead from each belief to the next one.

    The belief is a function of the slate and the clicks, and a slate of K items has only 2^K possible clicks. So the
    clicks need not be in the file.

    Args:
        world: in which the transitions may have been logged.
        dataset: logged transitions.
        rows: (n,) int64, the ones to explain.
    """
    slates = world.ranker.decode(torch.from_numpy(dataset.actions[rows]))
    before, after, rewards = (
        array[rows] for array in (dataset.observations, dataset.next_observations, dataset.rewards)
    )
    clicks, errors = np.zeros(slates.shape, dtype=bool), np.full(len(rows), np.inf, dtype=np.float32)
    for count in range(slates.shape[1] + 1):  # as many clicks as the reward says, which is quick to try
        part = np.flatnonzero(rewards == count)
        clicks[part], errors[part] = _best_clicks(world.belief, slates[part], before[part], after[part], count)
    rest = np.flatnonzero(errors > TOLERANCE)
    clicks[rest], errors[rest] = _best_clicks(world.belief, slates[rest], before[rest], after[rest], None)
    return Explanation(slates, clicks, errors)


def explain_first(world: World, first_slate: np.ndarray, beliefs: np.ndarray) -> Explanation:
    """Finds the clicks on the first slate that lead to the first belief of an episode.

    Args:
        world: whose belief encoder starts from zero.
        first_slate: (K,) int, the same for every user.
        beliefs: (n, H) float32.
    """
    slates = np.tile(first_slate, (len(beliefs), 1)).astype(np.int64)
    return Explanation(slates, *_best_clicks(world.belief, slates, np.zeros_like(beliefs), beliefs, None))


@torch.no_grad()
def _best_clicks(
    encoder: GruBelief, slates: np.ndarray, before: np.ndarray, after: np.ndarray, count: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The clicks (n, K) that lead nearest to the next beliefs, and the distances (n,); `count` clicks, or any."""
    slots = slates.shape[1]
    possible = (torch.arange(2**slots)[:, None] >> torch.arange(slots)) & 1  # (2^K, K)
    if count is not None:
        possible = possible[possible.sum(dim=1) == count]
    input_weight, hidden_weight, input_bias, hidden_bias = encoder.gru.all_weights[0]
    by_slot = input_weight.view(len(input_weight), slots, -1)  # (3H, K, D + 1)
    of_clicks = possible.float() @ by_slot[:, :, -1].T  # (c, 3H): the GRU's input is linear in the clicks
    of_items = by_slot[:, :, :-1].flatten(1)
    clicks, errors = np.zeros(slates.shape, dtype=bool), np.zeros(len(slates), dtype=np.float32)
    rows_at_once = max(1, TRIED_AT_ONCE // len(possible))
    for start in range(0, len(slates), rows_at_once):
        part = slice(start, start + rows_at_once)
        belief, target = torch.from_numpy(before[part]), torch.from_numpy(after[part])
        items = encoder.item_embeddings(torch.from_numpy(slates[part])).flatten(1)
        gates = (items @ of_items.T + input_bias)[:, None] + of_clicks  # (n, c, 3H)
        replayed = _gru(gates, (belief @ hidden_weight.T + hidden_bias)[:, None], belief[:, None])
        distances = (replayed - target[:, None]).abs().amax(dim=2)  # (n, c)
        best = distances.min(dim=1)
        clicks[part], errors[part] = possible[best.indices].bool().numpy(), best.values.numpy()
    return clicks, errors


def _gru(from_input: Tensor, from_hidden: Tensor, hidden: Tensor) -> Tensor:
    """The GRU's next state from the two halves of its gates: reset, update, new."""
    reset, update, new = from_input.chunk(3, dim=-1)
    hidden_reset, hidden_update, hidden_new = from_hidden.chunk(3, dim=-1)
    keep = torch.sigmoid(update + hidden_update)
    proposed = torch.tanh(new + torch.sigmoid(reset + hidden_reset) * hidden_new)
    return (1 - keep) * proposed + keep * hidden
