"""One update of several cells as one batched computation: `learn` as it stands, under `torch.vmap`."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from gems_ray.algorithms.adam import PackedAdam, stacked
from gems_ray.algorithms.base import AlgorithmConfig, AnyAlgorithm, Noise
from gems_ray.data.experience import Batch, WindowBatch
from gems_ray.errors import ConfigError

Stacks = Mapping[str, Tensor]  # tensors (n, ...) of n cells, by name


class PackedUpdate:
    """The arithmetic of one update of n algorithms of one class and one shape.

    Their parameters, buffers, moments and step counters become rows of stacked tensors, in place: the algorithms can
    be evaluated, saved and loaded as before, and what an update changes is seen in them.

    Args:
        algorithms: n of them, with the same number of updates; see `check_packable`.
    """

    def __init__(self, algorithms: Sequence[AnyAlgorithm]) -> None:
        self._algorithms = list(algorithms)
        networks = [_networks(algorithm) for algorithm in algorithms]
        self._tensors = {
            name: stacked([of_cell.get_parameter(name) for of_cell in networks])
            for name, _ in networks[0].named_parameters()
        } | {
            name: stacked([of_cell.get_buffer(name) for of_cell in networks]) for name, _ in networks[0].named_buffers()
        }
        names = {id(parameter): name for name, parameter in networks[0].named_parameters()}
        self._optimizers = {
            name: PackedAdam(
                [algorithm.optimizers[name] for algorithm in algorithms],
                [self._tensors[names[id(parameter)]] for parameter in optimizer.parameters],
            )
            for name, optimizer in algorithms[0].optimizers.items()
        }
        self._like = next(iter(self._tensors.values()))
        self._settings = _numbers(algorithms, self._like)
        self._learner = _Learner(algorithms[0], self._optimizers)

    def __call__(self, batches: Sequence[Batch | WindowBatch], noise: Sequence[Noise], phase: int) -> Stacks:
        """One update of every cell with its own batch and noise.

        Args:
            batches: of every cell.
            noise: of every cell.
            phase: number of the update modulo the algorithm's period.
        Returns:
            losses (n,) by name.
        """
        stacks = type(batches[0])(*(torch.stack(columns) for columns in zip(*batches, strict=True)))
        batch = stacks.to(self._like.device, self._like.dtype)
        drawn = {name: torch.stack([of_cell[name] for of_cell in noise]) for name in noise[0]}

        def learn(tensors: Stacks, settings: Stacks, batch: Any, noise: Noise) -> Stacks:
            losses: Stacks = functional_call(self._learner, dict(tensors), (tensors, settings, batch, noise, phase))
            return losses

        with sdpa_kernel(SDPBackend.MATH):  # torch.vmap knows the other kernels of attention as loops only
            losses: Stacks = torch.vmap(learn)(self._tensors, self._settings, batch, drawn)
        return losses

    def show_gradients(self) -> None:
        """Leaves the gradients of the last update at the parameters of the cells."""
        for optimizer in self._optimizers.values():
            optimizer.show_gradients()

    def release(self) -> None:
        """Gives every algorithm memory of its own again."""
        for algorithm in self._algorithms:
            networks = _networks(algorithm)
            for tensor in (*networks.parameters(), *networks.buffers()):
                tensor.data = tensor.data.clone()
        for optimizer in self._optimizers.values():
            optimizer.release()


class _Learner(nn.Module):
    """An algorithm's `learn` as the `forward` of a module, whose tensors `functional_call` can replace."""

    def __init__(self, algorithm: AnyAlgorithm, optimizers: Mapping[str, PackedAdam]) -> None:
        super().__init__()
        self._algorithm = copy.deepcopy(algorithm, {id(algorithm.generator): algorithm.generator})
        for name, network in self._algorithm.networks.items():
            self.add_module(name, network)
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        self._lists = {  # attributes that list parameters, which `functional_call` does not see
            attribute: [names[id(parameter)] for parameter in value]
            for attribute, value in vars(self._algorithm).items()
            if isinstance(value, list | tuple) and value and all(id(part) in names for part in value)
        }
        self._of_optimizers = {
            name: [names[id(parameter)] for parameter in optimizer.parameters]
            for name, optimizer in self._algorithm.optimizers.items()
        }
        self._config = algorithm.config
        self._optimizers = dict(optimizers)
        self._algorithm.optimizers = self._optimizers  # type: ignore[assignment]
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.fill_(torch.nan)  # stand for the cells' tensors; were one of them used, no loss would be finite

    def forward(self, tensors: Stacks, settings: Stacks, batch: Any, noise: Noise, phase: int) -> dict[str, Tensor]:
        """`learn` of one cell."""
        algorithm = self._algorithm
        algorithm.config = _CellSettings(self._config, settings)
        for attribute, names in self._lists.items():
            setattr(algorithm, attribute, [tensors[name] for name in names])
        for optimizer, names in self._of_optimizers.items():
            self._optimizers[optimizer].parameters = [tensors[name] for name in names]
        return algorithm.learn(batch, noise, phase)


class _CellSettings:
    """The settings of a cell; numbers that may differ between the cells are tensors."""

    def __init__(self, config: AlgorithmConfig, own: Stacks) -> None:
        self._config, self._own = config, own

    def __getattr__(self, name: str) -> Any:
        return self._own[name] if name in self._own else getattr(self._config, name)


def check_packable(algorithms: Sequence[AnyAlgorithm]) -> None:
    """Makes sure that algorithms can be trained as one pack.

    Raises:
        ConfigError: they differ in more than in settings that may differ.
    """
    first = algorithms[0]
    allowed = first.per_cell
    if allowed is None:
        raise ConfigError(
            f"pack: {first.name} cannot be packed, it does not say which settings may differ between cells. Set its "
            "`per_cell`, or train its cells alone (resources.pack: 1)."
        )
    for other in algorithms[1:]:
        if type(other) is not type(first):
            raise ConfigError(f"pack: expected cells of one algorithm, found {first.name} and {other.name}.")
        for name in type(first.config).model_fields:
            mine, its = getattr(first.config, name), getattr(other.config, name)
            if mine != its and name not in allowed:
                raise ConfigError(
                    f"pack: expected the same `{name}` in all cells, found {mine} and {its}. Only {', '.join(allowed)} "
                    "may differ."
                )
        for what, of_first, of_other in (
            ("sizes of state and action", _sizes(first), _sizes(other)),
            ("device", first.device, other.device),
            ("number of updates", first.updates, other.updates),
        ):
            if of_first != of_other:
                raise ConfigError(f"pack: expected the same {what} in all cells, found {of_first} and {of_other}.")


def _sizes(algorithm: AnyAlgorithm) -> tuple[int, int]:
    return algorithm.state_dim, algorithm.action_dim


def _networks(algorithm: AnyAlgorithm) -> nn.Module:
    """All networks as one module."""
    whole = nn.Module()
    for name, network in algorithm.networks.items():
        whole.add_module(name, network)
    return whole


def _numbers(algorithms: Sequence[AnyAlgorithm], like: Tensor) -> dict[str, Tensor]:
    """The settings (n,) that may differ between the cells, where they are numbers."""
    found = {
        name: [getattr(algorithm.config, name) for algorithm in algorithms] for name in algorithms[0].per_cell or ()
    }
    return {
        name: torch.tensor(values, dtype=like.dtype, device=like.device)
        for name, values in found.items()
        if all(type(value) in (int, float) for value in values)
    }
