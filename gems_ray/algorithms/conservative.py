"""Gradient of CQL's critic loss, written out so that actions that do not count are left out of the backward pass.

The conservative term evaluates a critic at 3n + 1 actions of every state. As the policy sharpens, the soft maximum
comes to rest on few of them: the weights of the others vanish in rounding. Autograd takes all of them back through the
critic, two thirds of the work; here only those that count go back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WORTH_GATHERING = 0.9  # share of rows that count, below which copying them costs less than the others' backward pass


@torch.library.custom_op("gems_ray::conservative_gradients", mutates_args=())
def conservative_gradients(
    parameters: Sequence[Tensor],
    pairs: Tensor,
    log_density: Tensor | None,
    target: Tensor,
    weight: Tensor,
    temperature: float,
    smallest: float | None,
    largest: float | None,
    target_gap: float,
) -> list[Tensor]:
    """One critic's loss, its conservative gap, and the gradient of the loss (Kumar et al. 2020, eq. 4).

    loss = mean (Q(s, a) - y)^2 + weight (gap - target_gap), with
    gap = mean clip(T logsumexp_i(x_i / T) - Q(s, a)) and x_i = Q(s, a_i) - log_density_i.

    Args:
        parameters: weights and biases of the critic's linear layers, in their order; ReLU lies between the layers.
        pairs: (B, m + 1, H + Z), every state beside its m sampled actions and then beside the logged one.
        log_density: (B, m) of the sampled actions; None adds the logged action to the x_i and takes Q as it is.
        target: (B,), y.
        weight: scalar, multiplier of the gap.
        temperature: T.
        smallest: lower bound of the gap of a state; None for none.
        largest: upper bound of the gap of a state; None for none.
        target_gap: taken from the gap in the loss.
    Returns:
        loss and gap, scalars, and the gradients in the order of the parameters.
    """
    size, per_state = pairs.shape[:2]
    weights, biases = parameters[::2], parameters[1::2]
    layers = [pairs.flatten(end_dim=1)]  # inputs of the linear layers
    for matrix, bias in zip(weights[:-1], biases[:-1], strict=True):
        layers.append(torch.addmm(bias, layers[-1], matrix.T).relu_())
    values = torch.addmm(biases[-1], layers[-1], weights[-1].T).view(size, per_state)

    predicted = values[:, -1]
    scores = (values if log_density is None else values[:, :-1] - log_density) / temperature
    soft_maximum = torch.logsumexp(scores, dim=1, keepdim=True)
    gap = temperature * soft_maximum[:, 0] - predicted
    clipped = gap if smallest is None and largest is None else gap.clamp(smallest, largest)
    error, mean_gap = predicted - target, clipped.mean()

    share = weight / size * (clipped == gap)[:, None]  # d loss / d gap: none where it is clipped
    slope = torch.zeros_like(values)  # d loss / d value
    slope[:, : scores.shape[1]] = share * (scores - soft_maximum).exp()
    slope[:, -1:] += 2 / size * error[:, None] - share
    negligible = torch.finfo(pairs.dtype).eps / per_state  # all that fall below it are together less than rounding
    slope.masked_fill_(slope.abs() <= negligible * share, 0)

    flow = slope.view(-1, 1)
    if not pairs.is_cuda:  # there, to count would be to wait for the device, and a captured graph has fixed sizes
        counting = flow.flatten().nonzero().squeeze(1)
        if len(counting) < WORTH_GATHERING * len(flow):
            flow, *layers = (tensor.index_select(0, counting) for tensor in (flow, *layers))
    gradients: list[Tensor] = []
    for layer in reversed(range(len(layers))):
        gradients[:0] = flow.T @ layers[layer], flow.sum(dim=0)
        if layer:
            flow = flow @ weights[layer]
            torch.ops.aten.threshold_backward.grad_input(flow, layers[layer], 0, grad_input=flow)
    return [error.square().mean() + weight * (mean_gap - target_gap), mean_gap, *gradients]


@conservative_gradients.register_fake
def _(parameters, pairs, log_density, target, weight, *settings):  # type: ignore[no-untyped-def]
    """Shapes of the results, for the compiler."""
    return [torch.empty_like(weight), torch.empty_like(weight), *(torch.empty_like(p) for p in parameters)]
