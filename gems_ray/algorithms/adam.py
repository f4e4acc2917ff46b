"""Adam on a fixed list of parameters, as eager code and as code that a compiler can trace."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from gems_ray.flat_state import FlatState

BETAS, EPS = (0.9, 0.999), 1e-8
CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class Adam:
    """Adam (Kingma & Ba 2015) with torch's kernels.

    torch.optim.Adam cannot be traced together with the loss that it minimises; this class calls the same functions on
    tensors that exist from the start and never move, so that a captured graph keeps pointing at them.

    Args:
        parameters: what it moves.
        learning_rate: step size.
        cosine_steps: number of steps over which the step size falls to 0 by a cosine; None keeps it.
        warm_up_steps: number of steps over which the step size rises to its full size, linearly.
        weight_decay: share of the step size by which parameters shrink in a step (Loshchilov & Hutter 2019).
        largest_norm: gradients of a larger Euclidean norm are scaled down to it; None leaves them.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        cosine_steps: int | None = None,
        warm_up_steps: int = 0,
        weight_decay: float = 0.0,
        largest_norm: float | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self._learning_rate, self._cosine_steps, self._warm_up_steps = learning_rate, cosine_steps, warm_up_steps
        self._weight_decay, self._largest_norm = weight_decay, largest_norm
        self._earlier_norm: Tensor | None = None  # of the gradients before the state was loaded
        device = self.parameters[0].device
        self._state: dict[str, list[Tensor]] = {
            "exp_avg": [torch.zeros_like(p, requires_grad=False) for p in self.parameters],
            "exp_avg_sq": [torch.zeros_like(p, requires_grad=False) for p in self.parameters],
            "step": [torch.zeros((), device=device) for _ in self.parameters],
        }

    def minimize(self, loss: Tensor) -> None:
        """One step down the gradient of a scalar loss."""
        self.step(torch.autograd.grad(loss, self.parameters))

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step; eager code leaves the gradients at the parameters."""
        tracing = torch.compiler.is_compiling()
        if not tracing:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self._follow_type()
        if self._largest_norm is not None:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            shrink = (self._largest_norm / (norm + CLIP_EPS)).clamp(max=1.0)
            gradients = [gradient * shrink for gradient in gradients]
        with torch.no_grad():
            adam(
                list(self.parameters),
                list(gradients),
                self._state["exp_avg"],
                self._state["exp_avg_sq"],
                [],
                self._state["step"],
                foreach=tracing,
                fused=not tracing,  # the fused kernel cannot be traced; a compiler makes its own of all parameters
                capturable=tracing,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=self._rate(),
                weight_decay=self._weight_decay,
                decoupled_weight_decay=self._weight_decay > 0,
                eps=EPS,
                maximize=False,
            )

    def _follow_type(self) -> None:
        """Gives the moments the parameters' type: networks may have been made double after their optimiser."""
        for entry in ("exp_avg", "exp_avg_sq"):
            moments = self._state[entry]
            if moments[0].dtype != self.parameters[0].dtype:
                moments[:] = [m.to(p.dtype) for m, p in zip(moments, self.parameters, strict=True)]

    def _rate(self) -> Tensor | float:
        """The step size, from the steps taken so far: a tensor, so that compiled code follows the schedule."""
        if self._cosine_steps is None and not self._warm_up_steps:
            return self._learning_rate
        steps = self._state["step"][0].double()
        rate = torch.full_like(steps, self._learning_rate)
        if self._warm_up_steps:
            rate = rate * ((steps + 1) / self._warm_up_steps).clamp(max=1.0)
        if self._cosine_steps is not None:
            rate = rate * (1 + torch.cos(math.pi * (steps / self._cosine_steps).clamp(max=1.0))) / 2
        return rate if rate.device.type == "cpu" else rate.float()  # the fused kernel of CUDA takes no other type

    def gradient_norm(self) -> Tensor | None:
        """Euclidean norm of the gradients of the last eager step; None before it."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients) if gradients else self._earlier_norm

    def state_dict(self) -> FlatState:
        """Moments and step counters as `parameter index/entry`, and the last gradient norm, copied to the CPU."""
        moments = {
            f"{index}/{entry}": tensor.cpu().clone()
            for entry, tensors in self._state.items()
            for index, tensor in enumerate(tensors)
        }
        norm = self.gradient_norm()
        return moments if norm is None else {**moments, "gradient_norm": norm.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Fills the existing tensors from `state_dict`."""
        for entry, tensors in self._state.items():
            for index, tensor in enumerate(tensors):
                tensor.copy_(state[f"{index}/{entry}"])
        for parameter in self.parameters:
            parameter.grad = None
        self._earlier_norm = state.get("gradient_norm")
