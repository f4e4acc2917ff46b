"""Networks, optimisers and generators as one flat dictionary of tensors, which safetensors can hold."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

FlatState = dict[str, Tensor]


def flatten_modules(modules: Mapping[str, nn.Module]) -> FlatState:
    """Parameters and buffers as `name.parameter`, copied to the CPU."""
    return {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def load_modules(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> None:
    """Fills modules from `flatten_modules`; other entries of `state` are ignored."""
    for name, module in modules.items():
        module.load_state_dict({key: state[f"{name}.{key}"] for key in module.state_dict()})


def flatten_optimizers(optimizers: Mapping[str, torch.optim.Optimizer]) -> FlatState:
    """Moments and step counters as `name_optimizer/parameter index/entry`, learning rates as `name_optimizer/lr`."""
    flat: FlatState = {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        rates = [float(group["lr"]) for group in state["param_groups"]]
        flat[f"{name}_optimizer/lr"] = torch.tensor(rates, dtype=torch.float64)
        for index, entries in state["state"].items():
            for entry, value in entries.items():
                flat[f"{name}_optimizer/{index}/{entry}"] = torch.as_tensor(value).detach().cpu().clone()
    return flat


def load_optimizers(optimizers: Mapping[str, torch.optim.Optimizer], state: Mapping[str, Tensor]) -> None:
    """Fills optimisers from `flatten_optimizers`."""
    for name, optimizer in optimizers.items():
        prefix = f"{name}_optimizer/"
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith(prefix) and key != f"{prefix}lr":
                index, entry = key.removeprefix(prefix).split("/")
                entries.setdefault(int(index), {})[entry] = value.clone()
        groups = optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, state[f"{prefix}lr"].tolist(), strict=True):
            group["lr"] = rate
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
