"""Gradients of CQL's critic loss, written out so that a CPU computes what counts, out of its cache.

The conservative term evaluates a critic at 3n + 1 actions of every state. Autograd keeps the activations of all of them
until the backward pass, which then reads them from main memory. Here a few states at a time go forward and backward.
And as the policy sharpens, the soft maximum comes to rest on few of the actions: after some hundred updates nine tenths
of them have weights that vanish in rounding, and they are left out of the backward pass, two thirds of the work.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

ROWS_IN_CACHE = 1024  # pairs of state and action whose activations are alive at once on a CPU
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
    part = size if pairs.is_cuda else max(1, ROWS_IN_CACHE // per_state)
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    room = [pairs.new_empty((part * per_state, bias.shape[0])) for bias in parameters[1:-2:2]]
    gap_of_state, error = torch.empty_like(target), torch.empty_like(target)
    for rows in (slice(start, start + part) for start in range(0, size, part)):
        inputs = pairs[rows].flatten(end_dim=1)
        layers = [inputs, *(activation[: len(inputs)] for activation in room)]
        values = _forward(parameters, layers).view(-1, per_state)
        slope, gap_of_state[rows], error[rows] = _slopes(
            values,
            None if log_density is None else log_density[rows],
            target[rows],
            weight,
            size,
            temperature,
            smallest,
            largest,
        )
        slopes = slope.view(-1, 1)
        if not pairs.is_cuda:  # there, to count would be to wait for the device, and a captured graph has fixed sizes
            counting = slopes.flatten().nonzero().squeeze(1)
            if len(counting) < WORTH_GATHERING * len(slopes):
                slopes, *layers = (tensor.index_select(0, counting) for tensor in (slopes, *layers))
        _backward(parameters, layers, slopes, gradients)
    mean_gap = gap_of_state.mean()
    return [error.square().mean() + weight * (mean_gap - target_gap), mean_gap, *gradients]


@conservative_gradients.register_fake
def _(parameters, pairs, log_density, target, weight, *settings):  # type: ignore[no-untyped-def]
    """Shapes of the results, for the compiler."""
    return [torch.empty_like(weight), torch.empty_like(weight), *(torch.empty_like(p) for p in parameters)]


@conservative_gradients.register_vmap
def _(info, in_dims, parameters, pairs, log_density, target, weight, *settings):  # type: ignore[no-untyped-def]
    """For the n cells of a pack: batched products of all states of all cells at once."""
    *bounds, target_gap = settings

    def of_cells(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    parameters = [of_cells(tensor, dim) for tensor, dim in zip(parameters, in_dims[0], strict=True)]
    pairs, target, weight = (
        of_cells(*of) for of in zip((pairs, target, weight), (in_dims[1], *in_dims[3:5]), strict=True)
    )
    log_density = None if log_density is None else of_cells(log_density, in_dims[2])
    layers = [pairs.flatten(1, 2)]  # (n, B (m + 1), width)
    for layer in range(0, len(parameters) - 2, 2):
        layers.append(torch.baddbmm(parameters[layer + 1][:, None], layers[-1], parameters[layer].mT).relu_())
    values = torch.baddbmm(parameters[-1][:, None], layers[-1], parameters[-2].mT).view(pairs.shape[:3])
    flow, gap, error = _slopes(values, log_density, target, weight[:, None, None], pairs.shape[1], *bounds)
    gradients: list[Tensor] = []
    flow = flow.flatten(1)[..., None]
    for layer in range(len(layers) - 1, -1, -1):
        gradients = [flow.mT @ layers[layer], flow.sum(dim=1), *gradients]
        flow = (flow @ parameters[2 * layer]) * (layers[layer] > 0) if layer else flow
    gap = gap.mean(dim=1)
    results = [error.square().mean(dim=1) + weight * (gap - target_gap), gap, *gradients]
    return results, [0] * len(results)


def _slopes(
    values: Tensor,
    log_density: Tensor | None,
    target: Tensor,
    weight: Tensor,
    size: int,
    temperature: float,
    smallest: float | None,
    largest: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of the loss in the values (..., b, m + 1) of b of its `size` states; the gaps and errors (..., b)."""
    per_state = values.shape[-1]
    sampled = per_state if log_density is None else per_state - 1
    negligible = torch.finfo(values.dtype).eps / per_state  # all that fall below it are together less than rounding
    predicted = values[..., -1]
    scores = values[..., :sampled] if log_density is None else values[..., :sampled] - log_density
    scores = scores / temperature
    soft_maximum = torch.logsumexp(scores, dim=-1, keepdim=True)
    gap = temperature * soft_maximum[..., 0] - predicted
    error = predicted - target
    clipped = gap if smallest is None and largest is None else gap.clamp(smallest, largest)

    share = weight / size * (clipped == gap)[..., None]  # d loss / d gap: none where it is clipped
    slope = torch.zeros_like(values)
    slope[..., :sampled] = share * (scores - soft_maximum).exp()
    slope[..., -1:] += 2 / size * error[..., None] - share
    slope.masked_fill_(slope.abs() <= negligible * share, 0)
    return slope, clipped, error


def _forward(parameters: Sequence[Tensor], layers: Sequence[Tensor]) -> Tensor:
    """Values (b, 1) of the inputs (b, H + Z), which are the first of the layers; fills the hidden layers (b, width)."""
    for layer, (below, above) in enumerate(pairwise(layers)):
        torch.addmm(parameters[2 * layer + 1], below, parameters[2 * layer].T, out=above)
        above.relu_()
    return torch.addmm(parameters[-1], layers[-1], parameters[-2].T)


def _backward(
    parameters: Sequence[Tensor], layers: Sequence[Tensor], slopes: Tensor, gradients: Sequence[Tensor]
) -> None:
    """Adds to the gradients of the parameters what the slopes (b, 1) of the loss in the values contribute."""
    flow = slopes
    for layer in range(len(layers) - 1, -1, -1):
        gradients[2 * layer].addmm_(flow.T, layers[layer])
        gradients[2 * layer + 1].add_(flow.sum(dim=0))
        if layer:
            flow = torch.mm(flow, parameters[2 * layer])
            torch.ops.aten.threshold_backward.grad_input(flow, layers[layer], 0, grad_input=flow)
