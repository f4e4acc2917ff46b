"""Adam on a fixed list of parameters, as eager code and as code that a compiler can trace; alone and in a pack."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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


class PackedAdam:
    """The same optimiser of n cells as one: a step moves the stacked parameters of all cells.

    The cells keep their optimisers, whose moments become rows of the stacks and whose step counters become one. All
    cells have taken the same number of steps; step sizes and schedules may differ.

    Args:
        cells: the optimiser of every cell.
        stacks: (n, ...) parameters of all cells, in the order of an optimiser's parameters.
    """

    def __init__(self, cells: Sequence[Adam], stacks: Sequence[Tensor]) -> None:
        self.parameters: list[Tensor] = []  # what `learn` sees of the stacks while it runs for a pack
        self._cells, self._stacks = list(cells), list(stacks)
        for cell in cells:
            cell._follow_type()
        self._moments = {
            entry: [stacked(tensors) for tensors in zip(*(cell._state[entry] for cell in cells), strict=True)]
            for entry in ("exp_avg", "exp_avg_sq")
        }
        self._steps = [step.clone() for step in cells[0]._state["step"]]
        for cell in cells:
            for step, shared in zip(cell._state["step"], self._steps, strict=True):
                step.data = shared
        self._gradients: Sequence[Tensor] = ()  # of the last step
        self._moves = [torch.zeros_like(stack, requires_grad=False) for stack in stacks]
        self._scheduled = any(cell._cosine_steps is not None or cell._warm_up_steps for cell in cells)
        self._clipped = any(cell._largest_norm is not None for cell in cells)
        self._shrinks = any(cell._weight_decay for cell in cells)
        self._rates = self._of_cells(cell._learning_rate for cell in cells)
        self._warm_up = self._of_cells(max(1, cell._warm_up_steps) for cell in cells)
        self._cosine = self._of_cells(cell._cosine_steps or math.inf for cell in cells)
        self._decay = self._of_cells(cell._weight_decay for cell in cells)
        self._norms = self._of_cells(math.inf if cell._largest_norm is None else cell._largest_norm for cell in cells)

    def minimize(self, loss: Tensor) -> None:
        """One step down the gradients of the cells' losses; called under `torch.vmap` with the loss of a cell."""
        _Minimize.apply(loss, self)  # type: ignore[no-untyped-call]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step; called under `torch.vmap` with the gradients of a cell."""
        _Step.apply(self, *gradients)  # type: ignore[no-untyped-call]

    def step_all(self, gradients: Sequence[Tensor]) -> None:
        """One step of all cells, along the stacked gradients (n, ...)."""
        self._gradients = gradients
        with torch.no_grad():
            if self._clipped:
                rows = [gradient.reshape(len(gradient), -1) for gradient in gradients]
                norms = torch.stack([row.norm(dim=1) for row in rows]).norm(dim=0)
                shrink = (self._norms.to(norms) / (norms + CLIP_EPS)).clamp(max=1.0)
                gradients = [gradient * _beside(shrink, gradient) for gradient in gradients]
            for move in self._moves:
                move.zero_()
            rates = self._rate()  # before the steps are counted
            tracing = torch.compiler.is_compiling()
            adam(
                self._moves,  # with a step size of 1, from 0: torch's kernel takes one step size for all cells
                [gradient.contiguous() for gradient in gradients],  # the fused kernel looks at no strides
                self._moments["exp_avg"],
                self._moments["exp_avg_sq"],
                [],
                self._steps,
                foreach=tracing,
                fused=not tracing,
                capturable=tracing,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=1.0,
                weight_decay=0.0,
                eps=EPS,
                maximize=False,
            )
            for stack, move in zip(self._stacks, self._moves, strict=True):
                if self._shrinks:
                    stack.mul_(_beside(1 - rates * self._decay, stack))
                stack.addcmul_(move, _beside(rates, stack))

    def show_gradients(self) -> None:
        """Leaves the gradients of the last step at the parameters of the cells, as `Adam.step` does."""
        for index, gradient in enumerate(self._gradients):
            for cell, of_cell in zip(self._cells, gradient, strict=True):
                cell.parameters[index].grad = of_cell

    def release(self) -> None:
        """Gives every cell's optimiser memory of its own again."""
        for cell in self._cells:
            for tensor in (tensor for tensors in cell._state.values() for tensor in tensors):
                tensor.data = tensor.data.clone()

    def _rate(self) -> Tensor:
        """The step sizes (n,), from the steps taken so far."""
        if not self._scheduled:
            return self._rates
        steps = self._steps[0].double()
        rising = ((steps + 1) / self._warm_up).clamp(max=1.0)
        return self._rates * rising * (1 + torch.cos(math.pi * (steps / self._cosine).clamp(max=1.0))) / 2

    def _of_cells(self, values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=self._stacks[0].device)


class _Minimize(torch.autograd.Function):
    """Where a pack leaves `torch.vmap`: the losses of all cells together have the stacked gradients."""

    @staticmethod
    def forward(loss: Tensor, optimizer: PackedAdam) -> Tensor:
        """Never runs: in a pack, a loss belongs to a cell."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is differentiated through a step."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, losses: Tensor, optimizer: PackedAdam) -> tuple[Tensor, int]:
        """One step with the losses (n,) of all cells."""
        optimizer.step_all(torch.autograd.grad(losses.sum(), optimizer._stacks))
        return losses.detach(), 0


class _Step(torch.autograd.Function):
    """The same for gradients that the algorithm has computed itself."""

    @staticmethod
    def forward(optimizer: PackedAdam, *gradients: Tensor) -> Tensor:
        """Never runs: in a pack, a gradient belongs to a cell."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is differentiated through a step."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, optimizer: PackedAdam, *gradients: Tensor) -> tuple[Tensor, int]:
        """One step along the gradients (n, ...) of all cells."""
        optimizer.step_all([gradient.movedim(dim, 0) for gradient, dim in zip(gradients, in_dims[1:], strict=True)])
        return gradients[0], in_dims[1]


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor (n, ...) of n, which become its rows: what is written into one is seen in the other."""
    stack = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, row in zip(tensors, stack, strict=True):
        tensor.data = row
    return stack.requires_grad_(tensors[0].requires_grad)


def _beside(of_cells: Tensor, stack: Tensor) -> Tensor:
    """Numbers (n,) in the shape (n, 1, ...) and the type of a stack."""
    return of_cells.to(stack.dtype).view(-1, *[1] * (stack.ndim - 1))
