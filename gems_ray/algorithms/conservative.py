"""Gradients of CQL's critic loss, written out so that a CPU keeps its intermediate results in the cache.

The conservative term evaluates a critic at 3n + 1 actions of every state. Autograd keeps the activations of all of them
until the backward pass, which then reads them from main memory. Here a few states at a time go forward and backward.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS_IN_CACHE = 1024  # pairs of state and action whose activations are alive at once on a CPU


@torch.library.custom_op("gems_ray::conservative_gradients", mutates_args=())
def conservative_gradients(
    parameters: Sequence[Tensor],
    states: Tensor,
    actions: Tensor,
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
        states: (B, H).
        actions: (B, m + 1, Z), the m sampled actions and then the logged one.
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
    size, per_state = actions.shape[:2]
    sampled = per_state if log_density is None else per_state - 1
    part = size if states.is_cuda else max(1, ROWS_IN_CACHE // per_state)
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    room = [states.new_empty((part * per_state, bias.shape[0])) for bias in parameters[1:-2:2]]
    flows = [torch.empty_like(activation) for activation in room]
    gap_of_state, error = torch.empty_like(target), torch.empty_like(target)
    for rows in (slice(start, start + part) for start in range(0, size, part)):
        activations = [activation[: len(states[rows]) * per_state] for activation in room]
        values = _forward(parameters, states[rows], actions[rows], activations)
        predicted = values[:, -1]
        scores = values[:, :sampled] if log_density is None else values[:, :sampled] - log_density[rows]
        scores = scores / temperature
        soft_maximum = torch.logsumexp(scores, dim=1, keepdim=True)
        gap = temperature * soft_maximum[:, 0] - predicted
        error[rows] = predicted - target[rows]
        gap_of_state[rows] = gap if smallest is None and largest is None else gap.clamp(smallest, largest)

        share = weight / size * (gap_of_state[rows] == gap)[:, None]  # d loss / d gap: none where it is clipped
        slope = torch.zeros_like(values)
        slope[:, :sampled] = share * (scores - soft_maximum).exp()
        slope[:, -1:] += 2 / size * error[rows, None] - share
        _backward(parameters, activations, states[rows], actions[rows], slope, gradients, flows)
    mean_gap = gap_of_state.mean()
    return [error.square().mean() + weight * (mean_gap - target_gap), mean_gap, *gradients]


@conservative_gradients.register_fake
def _(parameters, states, actions, log_density, target, weight, *settings):  # type: ignore[no-untyped-def]
    """Shapes of the results, for the compiler."""
    return [torch.empty_like(weight), torch.empty_like(weight), *(torch.empty_like(p) for p in parameters)]


def _forward(parameters: Sequence[Tensor], states: Tensor, actions: Tensor, activations: Sequence[Tensor]) -> Tensor:
    """Values (b, m) at actions (b, m, Z) of states (b, H); fills the activations (b * m, width) of hidden layers."""
    size, per_state, action_dim = actions.shape
    of_state, of_action = parameters[0].split([states.shape[1], action_dim], dim=1)
    hidden = torch.mm(actions.reshape(-1, action_dim), of_action.T, out=activations[0])
    # The states' share of the first layer is computed once, not m times.
    hidden.view(size, per_state, -1).add_(torch.addmm(parameters[1], states, of_state.T)[:, None])
    hidden.relu_()
    for layer, activation in enumerate(activations[1:], start=1):
        torch.addmm(parameters[2 * layer + 1], hidden, parameters[2 * layer].T, out=activation)
        hidden = activation.relu_()
    return torch.addmm(parameters[-1], hidden, parameters[-2].T).view(size, per_state)


def _backward(
    parameters: Sequence[Tensor],
    activations: Sequence[Tensor],
    states: Tensor,
    actions: Tensor,
    slope: Tensor,
    gradients: Sequence[Tensor],
    flows: Sequence[Tensor],
) -> None:
    """Adds to the gradients of the parameters what the slope (b, m) of the loss in the values contributes.

    `flows` is room for the slopes in the activations.
    """
    size, per_state, action_dim = actions.shape
    flow = slope.reshape(-1, 1)
    for layer in range(len(activations), 0, -1):
        below = activations[layer - 1]
        gradients[2 * layer].addmm_(flow.T, below)
        gradients[2 * layer + 1].add_(flow.sum(dim=0))
        flow = torch.mm(flow, parameters[2 * layer], out=flows[layer - 1][: len(below)])
        torch.ops.aten.threshold_backward.grad_input(flow, below, 0, grad_input=flow)
    of_state, of_action = gradients[0].split([states.shape[1], action_dim], dim=1)
    of_action.addmm_(flow.T, actions.reshape(-1, action_dim))
    per_state_flow = flow.view(size, per_state, -1).sum(dim=1)
    of_state.addmm_(per_state_flow.T, states)
    gradients[1].add_(per_state_flow.sum(dim=0))
