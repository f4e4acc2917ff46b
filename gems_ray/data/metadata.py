"""What a dataset says about itself, compared with its arrays."""

import json
import re
from collections.abc import Mapping

import numpy as np
from pydantic import ValidationError

from gems_ray.action_box import LARGEST_SIDE, SMALLEST_SCALE
from gems_ray.data.schema import ACTION_DIM, SCHEMA_VERSION, DatasetMetadata
from gems_ray.data.trajectories import last_steps, trajectory_ends
from gems_ray.errors import DatasetError
from gems_ray.registry import did_you_mean
from gems_ray.simulator.environments import ENVIRONMENTS

FINGERPRINT = re.compile(r"[0-9a-f]{16}")
WIDEST_ACTION = 100.0  # in sides of the action box; beyond it the box is not that of the actions
LONGEST_TEXT = 200  # characters
RETURN_TOLERANCE = 1e-3  # clicks: the stored number is rounded, and sums of float32 differ by their order
ADVICE = "Collect the file anew, or remove `metadata` from it and bind it to its world again with `dataset attach`."


def read_metadata(text: np.ndarray | None, arrays: Mapping[str, np.ndarray], where: str) -> DatasetMetadata | None:
    """The metadata of a dataset, every field compared with the arrays.

    Args:
        text: () JSON text; None where the file has no metadata.
        arrays: the checked arrays of the file.
        where: file name for messages.
    Raises:
        DatasetError: it is not readable, or does not describe these arrays.
    """
    if text is None:
        return None
    metadata = _parsed(text, where)
    for field, found, expected in _mistakes(metadata, arrays):
        hint = did_you_mean(found, list(ENVIRONMENTS)) if field == "environment" else ""
        raise DatasetError(f"{where}: `metadata` says {field} {found}, expected {expected}. {hint}{ADVICE}")
    return metadata


def _parsed(text: np.ndarray, where: str) -> DatasetMetadata:
    unreadable = f"{where}: `metadata` is not readable at"
    if text.ndim or text.dtype.kind != "U":
        raise DatasetError(f"{unreadable} `JSON`: expected one text, found {text.dtype}. {ADVICE}")
    try:
        data = json.loads(str(text))
        version = data.get("schema_version", SCHEMA_VERSION) if isinstance(data, dict) else SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise DatasetError(
                f"{where}: `metadata` has schema version {str(version)[:20]}, this program reads {SCHEMA_VERSION}. "
                "Use the version of the program that made it."
            )
        return DatasetMetadata.model_validate_json(str(text))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "JSON"
        raise DatasetError(f"{unreadable} `{key[:60]}`: {problem['msg']}. {ADVICE}") from None
    except (ValueError, RecursionError, SystemError) as error:  # SystemError: numpy's word for what is no character
        raise DatasetError(f"{unreadable} `JSON`: {error}. {ADVICE}") from None


def _mistakes(metadata: DatasetMetadata, arrays: Mapping[str, np.ndarray]) -> list[tuple[str, str, str]]:
    """Field, what it says, what was expected."""
    mistakes = []

    def check(right: bool, field: str, found: object, expected: str) -> None:
        if not right:
            mistakes.append((field, str(found)[:LONGEST_TEXT], expected))

    name = metadata.environment
    check(name in ENVIRONMENTS, "environment", name, f"one of {', '.join(ENVIRONMENTS)}")
    check(0 < len(metadata.quality) <= LONGEST_TEXT, "quality", f"`{metadata.quality}`", "a word")
    check(0 < len(metadata.program_version) <= LONGEST_TEXT, "program_version", metadata.program_version, "a version")
    fingerprint = metadata.world_fingerprint
    check(bool(FINGERPRINT.fullmatch(fingerprint)), "world_fingerprint", fingerprint, "16 hexadecimal digits")
    check(metadata.seed is None or metadata.seed >= 0, "seed", metadata.seed, "0 or larger")
    share = metadata.expert_share
    check(share is None or 0 <= share <= 1, "expert_share", share, "0 to 1")
    sides = {name: getattr(metadata, name) for name in ("action_center", "action_scale")}
    for field, side in sides.items():
        check(
            len(side) == ACTION_DIM,
            field,
            f"with {len(side)} values",
            f"{ACTION_DIM}, one for each number of an action",
        )
        large = max(map(abs, side), default=0)
        check(large <= LARGEST_SIDE, field, f"with a value of {large:.4g}", f"at most {LARGEST_SIDE:,.0f}")
    small = min(sides["action_scale"], default=1.0)
    check(small >= SMALLEST_SCALE, "action_scale", f"with a value of {small:.4g}", f"{SMALLEST_SCALE:g} or larger")
    episodes = len(trajectory_ends(last_steps(arrays)))
    check(metadata.episodes == episodes, "episodes", metadata.episodes, f"the {episodes} of its arrays")
    returns = float(arrays["rewards"].sum(dtype=np.float64)) / episodes
    right = abs(metadata.behavior_return - returns) <= RETURN_TOLERANCE + 1e-6 * abs(returns)
    check(right, "behavior_return", f"{metadata.behavior_return:.6g}", f"the {returns:.6g} of its arrays")
    if not mistakes:
        center, scale = (np.asarray(side, dtype=np.float32) for side in sides.values())
        low, high = arrays["actions"].min(axis=0), arrays["actions"].max(axis=0)
        widest = float((np.maximum(np.abs(low - center), np.abs(high - center)) / scale).max())
        found = f"that its actions exceed {widest:.4g} times"
        check(widest <= WIDEST_ACTION, "action_scale", found, f"at most {WIDEST_ACTION:g} times")
    return mistakes
