"""GeMS ranker: a variational auto-encoder whose latent space is the agent's action space."""

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gems_ray.action_box import ActionBox
from gems_ray.config import STRICT, HiddenSizes
from gems_ray.networks import mlp

# Slots scored at once when decoding: 400 x 1000 logits stay in the processor's second-level cache.
DECODE_BLOCK = 400
BOUNDS_SESSIONS = 1_000  # whose slates span the action box, as published
LATENT_DIM = 32  # Z of every dataset
LARGEST_SIZE, LARGEST_LOSS_WEIGHT = 100_000, 1e6

Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
LossWeight = Annotated[float, Field(ge=0, le=LARGEST_LOSS_WEIGHT)]


@dataclass(frozen=True, slots=True)
class RankerConfig:
    """Sizes and loss weights of the ranker; defaults from Deffayet et al. (2023) unless said otherwise."""

    __pydantic_config__ = STRICT

    num_items: Size = 1000  # I
    slate_size: Size = 10  # K
    item_dim: Size = 20  # D, size of the ranker's own item table
    latent_dim: Size = LATENT_DIM  # Z
    encoder_sizes: HiddenSizes = (512, 256)
    decoder_sizes: Annotated[HiddenSizes, Field(min_length=1)] = (256, 512)
    lambda_click: LossWeight = 0.2  # weight of the click loss; the paper's other published value is 0.5
    lambda_kl: LossWeight = 0.5  # weight of the KL term; the paper's other published value is 1.0
    # What multiplies the noise in training. As published it is the variance, not the standard deviation.
    noise_scale: Literal["variance", "standard_deviation"] = "variance"
    duplicates: bool = True  # whether a slate may show an item twice, as published

    def as_data(self) -> dict[str, Any]:
        """Plain data for bundles, whose fingerprint it enters: a bundle from before `duplicates` keeps its own."""
        data = asdict(self)
        if self.duplicates:
            del data["duplicates"]
        return data


@dataclass(frozen=True, slots=True)
class RankerLoss:
    """Terms of the training loss; each a scalar tensor."""

    total: Tensor
    slate: Tensor
    click: Tensor
    kl: Tensor


class GemsRanker(nn.Module):
    """Encodes (slate, clicks) to a latent Gaussian and decodes latents to slates.

    The encoder sees the item vectors slot after slot and then the clicks. In the decoder's product the item table is
    detached, so it learns through the encoder's input only.

    Source: Deffayet et al. (2023), section 4.1; parameter names as in the authors' checkpoints.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        features = config.slate_size * (config.item_dim + 1)
        self.item_embeddings = nn.Embedding(config.num_items, config.item_dim)
        self.inference = mlp([features, *config.encoder_sizes, 2 * config.latent_dim])
        self.decoder = mlp([config.latent_dim, *config.decoder_sizes], final=nn.ReLU())
        self.slate_decoder = nn.Linear(config.decoder_sizes[-1], config.slate_size * config.item_dim)
        self.click_decoder = nn.Linear(config.decoder_sizes[-1], config.slate_size)

    def encode(self, slates: Tensor, clicks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent.

        Args:
            slates: (B, K) int64.
            clicks: (B, K), 0 or 1.
        Returns:
            mu (B, Z) and log-variance (B, Z).
        """
        items = self.item_embeddings(slates).flatten(1)  # (B, K * D)
        mu, log_variance = self.inference(torch.cat([items, clicks.to(items.dtype)], dim=1)).chunk(2, dim=1)
        return mu, log_variance

    def logits(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Item logits (B, K, I) and click logits (B, K) of latents (B, Z)."""
        hidden = self.decoder(latents)
        query = self.slate_decoder(hidden).view(len(latents), self.config.slate_size, self.config.item_dim)
        return query @ self.item_embeddings.weight.detach().T, self.click_decoder(hidden)

    def loss(self, slates: Tensor, clicks: Tensor, noise: Tensor | None = None) -> RankerLoss:
        """Evidence lower bound with weights; every term is a mean over batch and slots, or batch and dimensions.

        Args:
            slates: (B, K) int64.
            clicks: (B, K), 0 or 1.
            noise: (B, Z) standard normal; None takes the mean latent (validation).
        """
        config = self.config
        mu, log_variance = self.encode(slates, clicks)
        latents = mu
        if noise is not None:
            exponent = 1.0 if config.noise_scale == "variance" else 0.5
            latents = mu + noise * torch.exp(exponent * log_variance)
        item_logits, click_logits = self.logits(latents)
        slate = F.cross_entropy(item_logits.flatten(0, 1), slates.flatten())
        click = F.binary_cross_entropy_with_logits(click_logits, clicks.to(click_logits.dtype))
        kl = -0.5 * (1 + log_variance - mu.square() - log_variance.exp()).mean()
        return RankerLoss(slate + config.lambda_click * click + config.lambda_kl * kl, slate, click, kl)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """The item of highest logit in every slot.

        Items may repeat, unless the configuration says otherwise: then the highest logit of all free slots and items
        that are not shown yet decides about the next slot, again and again.

        Args:
            latents: (U, Z) float32.
        Returns:
            (U, K) int64.
        """
        config = self.config
        query = self.slate_decoder(self.decoder(latents)).view(-1, config.item_dim)  # (U * K, D)
        items = self.item_embeddings.weight.T
        slates = np.empty(len(query), dtype=np.int64)
        block = max(DECODE_BLOCK // config.slate_size, 1) * config.slate_size  # whole slates
        for start in range(0, len(query), block):
            scores = torch.mm(query[start : start + block], items).cpu().numpy()
            # NumPy's argmax over contiguous rows is vectorised, torch's is not: half the time of the whole product.
            np.argmax(scores, axis=1, out=slates[start : start + block])
            if not config.duplicates:
                part = slates[start : start + block].reshape(-1, config.slate_size)  # a view
                make_distinct(part, scores.reshape(*part.shape, -1))
        return slates.reshape(-1, config.slate_size)

    def without_duplicates(self) -> "GemsRanker":
        """The same weights in a ranker that shows no item twice in a slate."""
        ranker = deepcopy(self)
        ranker.config = replace(self.config, duplicates=False)
        return ranker.requires_grad_(False)

    @torch.no_grad()
    def action_box(self, slates: Tensor, clicks: Tensor) -> ActionBox:
        """The box that holds mu - std and mu + std of logged slates (B, K) and clicks (B, K), per dimension."""
        mu, log_variance = self.encode(slates, clicks)
        deviation = torch.exp(0.5 * log_variance)
        low, high = (mu - deviation).amin(dim=0), (mu + deviation).amax(dim=0)
        return ActionBox(((low + high) / 2).numpy(), ((high - low) / 2).numpy())


def make_distinct(slates: np.ndarray, logits: np.ndarray) -> None:
    """Gives every slot another item, by greedy assignment: the highest logit that is left decides first.

    Of equal logits the upper slot, and then the item with the smaller number, comes first.

    Args:
        slates: (U, K) int64, the item of highest logit in every slot; changed in place.
        logits: (U, K, I) float32, of at least K items; changed in place.
    """
    ordered = np.sort(slates, axis=1)
    # Where the best items differ already, greedy assignment gives each slot its own.
    users = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    best, logits = slates[users], logits[users]
    highest = np.take_along_axis(logits, best[:, :, None], axis=2)[:, :, 0]
    free = np.ones(best.shape, dtype=bool)
    everyone = np.arange(len(users))
    for _ in range(slates.shape[1]):
        slot = np.where(free, highest, -np.inf).argmax(axis=1)
        item = best[everyone, slot]
        free[everyone, slot] = False
        logits[everyone, :, item] = -np.inf
        user, late = np.nonzero(free & (best == item[:, None]))  # slots that wanted the same
        best[user, late] = logits[user, late].argmax(axis=1)
        highest[user, late] = logits[user, late, best[user, late]]
    slates[users] = best
