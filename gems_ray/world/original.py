"""Checkpoints of the original GeMS program: its files, its key names, without running anything that is in them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gems_ray.action_box import ActionBox
from gems_ray.archive import read_arrays
from gems_ray.config import checked
from gems_ray.errors import WorldError
from gems_ray.simulator import Environment
from gems_ray.simulator.environments import ENVIRONMENTS
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import BELIEF_DIM, GruBelief
from gems_ray.world.pytorch_file import read_checkpoint
from gems_ray.world.ranker import (
    BOUNDS_SESSIONS,
    LARGEST_LOSS_WEIGHT,
    LARGEST_SIZE,
    LATENT_DIM,
    GemsRanker,
    RankerConfig,
)
from gems_ray.yaml_file import shown

NAMES_IN_FILES = re.compile("|".join(ENVIRONMENTS))

# Key names of the original program -> ours.
ENCODER = {"item_embeddings.weight": "belief.item_embeddings.actor.embedd.weight"} | {
    f"gru.{name}": f"belief.gru.actor.{name}" for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
}
POLICY = {f"policy.{layer}": f"PolicyNet.{layer}" for layer in ("0.weight", "0.bias", "2.weight", "2.bias")}
HELD_RANKER = "ranker."  # an agent's checkpoint holds a copy of its ranker


def read_ranker(path: Path, environment: Environment) -> GemsRanker:
    """The ranker of a GeMS checkpoint.

    Args:
        path: of the checkpoint.
        environment: in which it was trained.
    Raises:
        WorldError: the file is damaged, asks to be unpickled, is no ranker, or is one of another size or environment.
    """
    check_name(path, environment)
    state, facts = read_checkpoint(path)
    if "item_embeddings.weight" not in state and any(key.startswith(HELD_RANKER) for key in state):
        raise WorldError(f"{path}: expected a GeMS checkpoint, found that of an agent. Give it as the agent.")
    config = _ranker_config(path, state, facts)
    _compare_sizes(path, environment, config.num_items, config.slate_size, config.latent_dim)
    ranker = GemsRanker(config)
    _fill(ranker, {key: key for key in ranker.state_dict()}, state, path)
    return ranker


def read_agent(path: Path, environment: Environment, bounds: ActionBox, ranker: GemsRanker) -> BehaviorAgent:
    """The actor of a SAC+GeMS checkpoint: its belief encoder and its policy.

    Args:
        path: of the checkpoint.
        environment: in which it was trained.
        bounds: action box, which the checkpoint does not hold.
        ranker: that it must have been trained with.
    Raises:
        WorldError: the file is damaged, is no agent, or was trained with another ranker or in another environment.
    """
    state, encoder = _read_encoder(path, environment)
    hidden = _weight(state, POLICY["policy.0.weight"], path).shape[0]
    if hidden > LARGEST_SIZE:
        raise WorldError(f"{path}: a policy of impossible width ({hidden:,}). Copy it again.")
    agent = BehaviorAgent(encoder, bounds, hidden)
    _fill(agent.policy, {key.removeprefix("policy."): name for key, name in POLICY.items()}, state, path)
    held = {key.removeprefix(HELD_RANKER): value for key, value in state.items() if key.startswith(HELD_RANKER)}
    for key, value in ranker.state_dict().items():
        if key in held and not torch.equal(held[key], value):
            raise WorldError(
                f"{path}: was trained with another ranker: its `{HELD_RANKER}{key}` differs. Give the GeMS checkpoint "
                "that its name mentions."
            )
    return agent.requires_grad_(False)


def read_belief(path: Path, environment: Environment) -> GruBelief:
    """The actor's belief encoder of a SAC+GeMS checkpoint.

    Args:
        path: of the checkpoint.
        environment: whose items and slates it must know.
    Raises:
        WorldError: the file is damaged, is no agent, or is one of another size or environment.
    """
    return _read_encoder(path, environment)[1].requires_grad_(False)


def read_bounds(path: Path, environment: Environment) -> ActionBox:
    """The action box of an npz file with `center` and `scale`, each (32,), in latent units.

    Args:
        path: of the file.
        environment: that its name must not contradict.
    Raises:
        WorldError: they are missing, or no box.
        DatasetError: the file is damaged.
    """
    check_name(path, environment)
    arrays, present = read_arrays(path, ["center", "scale"])
    sides = []
    for name in ("center", "scale"):
        side = _array(arrays, present, name, path)
        if side.shape != (LATENT_DIM,) or side.dtype.kind not in "fiu":
            raise WorldError(f"{path}: `{name}`: expected {LATENT_DIM} numbers, found {side.dtype} {side.shape}.")
        with np.errstate(over="ignore"):
            sides.append(side.astype(np.float32))
    bounds = ActionBox(*sides)
    try:
        bounds.check()
    except ValueError as error:
        raise WorldError(f"{path}: {error}. Save the bounds of the agent's actions in latent units.") from None
    return bounds


def read_sessions(path: Path, environment: Environment) -> tuple[np.ndarray, np.ndarray]:
    """Logged slates and clicks of an npz file with `slate` (S, T, K) and `clicks` (S, T, K), or one row for each step.

    Args:
        path: of the file.
        environment: whose items they show.
    Returns:
        slates (n, K) int64 and clicks (n, K) bool of the first 1,000 sessions.
    Raises:
        WorldError: they are missing, or hold other items.
        DatasetError: the file is damaged.
    """
    check_name(path, environment)
    arrays, present = read_arrays(path, ["slate", "slates", "clicks"])
    slates = _array(arrays, present, "slates" if "slates" in arrays else "slate", path)
    clicks = _array(arrays, present, "clicks", path)
    slots = environment.slate_size
    if slates.ndim not in (2, 3) or slates.shape[-1] != slots or slates.shape != clicks.shape or not slates.size:
        raise WorldError(
            f"{path}: expected slates and clicks of shape (sessions, steps, {slots}), found {slates.shape} and "
            f"{clicks.shape}."
        )
    rows = BOUNDS_SESSIONS if slates.ndim == 3 else BOUNDS_SESSIONS * environment.episode_length
    slates, clicks = (array[:rows].reshape(-1, slots) for array in (slates, clicks))
    for what, array, kinds, largest in (
        ("items", slates, "iu", environment.num_items - 1),
        ("clicks", clicks, "biu", 1),
    ):
        if array.dtype.kind not in kinds:
            raise WorldError(f"{path}: expected whole numbers as {what}, found {array.dtype}.")
        wrong = np.argwhere((array < 0) | (array > largest))
        if len(wrong):
            row, slot = wrong[0]
            raise WorldError(
                f"{path}: expected {what} from 0 to {largest}, found {int(array[row, slot])} in row {row}, slot {slot}."
            )
    return slates.astype(np.int64), clicks.astype(bool)


def check_name(path: Path, environment: Environment) -> None:
    """Makes sure that the name of a file does not mention another environment: nothing else says where it is from.

    Raises:
        WorldError: it does.
    """
    named = set(NAMES_IN_FILES.findall(path.name))
    if named and environment.name not in named:
        raise WorldError(
            f"{path}: its name says that it is of {', '.join(sorted(named))}, expected {environment.name}. Give the "
            "file of that environment, or rename it if the name is wrong."
        )


def _ranker_config(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, object]) -> RankerConfig:
    """Sizes from the shapes, loss weights from the hyper-parameters."""
    num_items, item_dim = _shape(state, "item_embeddings.weight", path)
    encoder, decoder = _widths(state, "inference", path), _widths(state, "decoder", path)
    weights: dict[str, Any] = {}
    for field, name in (("lambda_click", "lambda_click"), ("lambda_kl", "lambda_KL")):
        if name not in facts:
            continue
        value = facts[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LARGEST_LOSS_WEIGHT:
            raise WorldError(
                f"{path}: `hyper_parameters.{name}`: expected a number from 0 to {LARGEST_LOSS_WEIGHT:,.0f}, found "
                f"{shown(value)}. It is a weight of the ranker's loss."
            )
        weights[field] = float(value)
    slots = _weight(state, "click_decoder.bias", path).shape[0]
    latent_dim = _shape(state, "decoder.0.weight", path)[1]
    try:
        return checked(RankerConfig(num_items, slots, item_dim, latent_dim, encoder[:-1], decoder, **weights))
    except ValueError as error:
        raise WorldError(f"{path}: a ranker of impossible size ({error}). Copy it again.") from None


def _widths(state: Mapping[str, Tensor], network: str, path: Path) -> tuple[int, ...]:
    """Outputs of the linear layers 0, 2, 4, ... of a network."""
    _weight(state, f"{network}.0.weight", path)
    widths: list[int] = []
    while (key := f"{network}.{2 * len(widths)}.weight") in state and len(widths) < 20:
        widths.append(_shape(state, key, path)[0])
    return tuple(widths)


def _read_encoder(path: Path, environment: Environment) -> tuple[dict[str, Tensor], GruBelief]:
    check_name(path, environment)
    state, _ = read_checkpoint(path)
    if ENCODER["item_embeddings.weight"] not in state and "slate_decoder.weight" in state:
        raise WorldError(f"{path}: expected the checkpoint of an agent, found that of a ranker. Give it as the ranker.")
    num_items, item_dim = _shape(state, ENCODER["item_embeddings.weight"], path)
    gates, features = _shape(state, ENCODER["gru.weight_ih_l0"], path)
    slots, rest = divmod(features, item_dim + 1)
    if rest or gates != 3 * BELIEF_DIM:
        raise WorldError(
            f"{path}: `{ENCODER['gru.weight_ih_l0']}`: expected ({3 * BELIEF_DIM}, slots x ({item_dim} + 1)), found "
            f"({gates}, {features}): it is an agent of another size."
        )
    _compare_sizes(path, environment, num_items, slots)
    encoder = GruBelief(num_items, slots, item_dim, BELIEF_DIM)
    _fill(encoder, ENCODER, state, path)
    return state, encoder


def _compare_sizes(
    path: Path, environment: Environment, num_items: int, slots: int, latent_dim: int = LATENT_DIM
) -> None:
    for what, found, expected in (
        ("items", num_items, environment.num_items),
        ("slots in a slate", slots, environment.slate_size),
        ("numbers in a latent action", latent_dim, LATENT_DIM),
    ):
        if found != expected:
            raise WorldError(f"{path}: has {found} {what}, and {environment.name} expects {expected}.")


def _fill(module: nn.Module, names: Mapping[str, str], state: Mapping[str, Tensor], path: Path) -> None:
    """Copies tensors into a module: `names` leads from its names to those of the file."""
    values = {}
    for key, current in module.state_dict().items():
        if key not in names:
            continue
        value = _weight(state, names[key], path)
        if value.shape != current.shape:
            raise WorldError(
                f"{path}: `{names[key]}`: expected shape {tuple(current.shape)}, found {tuple(value.shape)}: it is a "
                "checkpoint of another size."
            )
        values[key] = value.float()
    module.load_state_dict(values)


def _weight(state: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in state:
        found = ", ".join(sorted(state)[:4]) or "no tensors"
        raise WorldError(f"{path}: `{key}` is missing: not a checkpoint of that kind. Found {found}, ...")
    value = state[key]
    if not (value.is_floating_point() and value.ndim and value.numel()):
        found = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        raise WorldError(f"{path}: `{key}`: expected numbers with a fraction, found {found}.")
    wrong = value[~value.float().isfinite()]  # as the bundle will hold it: 1e300 is finite in float64 alone
    if len(wrong):
        raise WorldError(
            f"{path}: `{key}`: expected finite numbers in single precision, found {wrong[0].item():.4g} and "
            f"{len(wrong) - 1:,} more such. Copy the checkpoint again, or take one of an earlier epoch."
        )
    return value


def _shape(state: Mapping[str, Tensor], key: str, path: Path) -> tuple[int, int]:
    shape = tuple(_weight(state, key, path).shape)
    if len(shape) != 2:
        raise WorldError(f"{path}: `{key}`: expected two dimensions, found shape {shape}.")
    return shape[0], shape[1]


def _array(arrays: Mapping[str, np.ndarray], present: list[str], name: str, path: Path) -> np.ndarray:
    if name not in arrays:
        raise WorldError(f"{path}: `{name}` is missing, found {', '.join(present[:6]) or 'nothing'}.")
    return arrays[name]
