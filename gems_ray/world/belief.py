"""GRU belief: what the agent remembers of the slates shown and the clicks received."""

import torch
from torch import Tensor, nn

BELIEF_DIM = 20  # H of every dataset


class GruBelief(nn.Module):
    """Turns a user's history of slates and clicks into a state of size H.

    Its input per step is, slot after slot, the item vector and the click. The initial state is zero.

    Args:
        num_items: I, rows of its own item table.
        slate_size: K.
        item_dim: D.
        belief_dim: H.
    Source: Deffayet et al. (2023), section 4.2.
    """

    def __init__(self, num_items: int = 1000, slate_size: int = 10, item_dim: int = 20, belief_dim: int = 20) -> None:
        super().__init__()
        self.belief_dim = belief_dim
        self.item_embeddings = nn.Embedding(num_items, item_dim)
        self.gru = nn.GRU(slate_size * (item_dim + 1), belief_dim, batch_first=True)

    def sizes(self) -> dict[str, int]:
        """The arguments that it was built with."""
        num_items, item_dim = self.item_embeddings.weight.shape
        return {
            "num_items": num_items,
            "slate_size": self.gru.input_size // (item_dim + 1),
            "item_dim": item_dim,
            "belief_dim": self.belief_dim,
        }

    def forward(self, slates: Tensor, clicks: Tensor) -> Tensor:
        """Beliefs after every step of whole episodes.

        Args:
            slates: (B, T, K) int64.
            clicks: (B, T, K), 0 or 1.
        Returns:
            (B, T, H) float.
        """
        beliefs: Tensor = self.gru(self._features(slates, clicks))[0]
        return beliefs

    def step(self, slates: Tensor, clicks: Tensor, belief: Tensor | None = None) -> Tensor:
        """The belief after one more step.

        Args:
            slates: (U, K) int64.
            clicks: (U, K), 0 or 1.
            belief: (U, H), the belief before; None at the start of an episode.
        Returns:
            (U, H) float.
        """
        features = self._features(slates, clicks)
        if belief is None:
            belief = features.new_zeros(len(slates), self.belief_dim)
        input_weight, hidden_weight, input_bias, hidden_bias = self.gru.all_weights[0]
        return torch.gru_cell(features, belief, input_weight, hidden_weight, input_bias, hidden_bias)

    def _features(self, slates: Tensor, clicks: Tensor) -> Tensor:
        items = self.item_embeddings(slates)  # (..., K, D)
        return torch.cat([items, clicks.unsqueeze(-1).to(items.dtype)], dim=-1).flatten(-2)
