"""Item vectors: drawn from the paper's distribution or read from a file."""

import warnings
from pathlib import Path

import numpy as np

from gems_ray.archive import NPY_MAGIC, check_regular
from gems_ray.errors import ConfigError, SimulatorError
from gems_ray.simulator.environments import Environment
from gems_ray.simulator.streams import Draws

SAVE = "Save it with numpy.save."
SMALLEST, LARGEST = 1e-6, 1e6  # of the largest number: squares beyond it are 0 or infinite in single precision
# Elementwise power that concentrates an item on its strongest topics. The files that the authors published under both
# names are draws with power 1; `focused` here follows the paper's definition.
CONCENTRATION = {"diffuse": 1.0, "focused": 2.0}


def draw_items(environment: Environment, rng: np.random.Generator, concentration: float = 1.0) -> np.ndarray:
    """Draws item vectors of unit Euclidean norm, non-negative in every coordinate.

    Args:
        environment: sizes I and D.
        rng: generator of the draw.
        concentration: elementwise power before the normalisation; 1 diffuse, 2 focused.
    Returns:
        (I, D) float32.
    Source: Deffayet et al. (2023), section 5.1.
    """
    topics = environment.num_topics
    weight = rng.random((environment.num_items, topics, 1))
    weight /= weight.sum(axis=1, keepdims=True)
    coordinate = topic_coordinates(environment, environment.num_items, rng)
    vectors = (weight * coordinate).reshape(environment.num_items, -1) ** concentration
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def topic_norms(environment: Environment, items: np.ndarray) -> np.ndarray:
    """How strong items (I, D) are in every topic: (I, topics); the largest is an item's main topic."""
    return np.linalg.norm(items.reshape(len(items), environment.num_topics, environment.topic_size), axis=2)


def topic_coordinates(environment: Environment, count: int, rng: Draws) -> np.ndarray:
    """|clamp(0.4 N(0, 1), -1, 1)| for every coordinate: (count, topics, topic_size) float64."""
    normal = rng.standard_normal((count, environment.num_topics, environment.topic_size))
    return np.abs(np.clip(0.4 * normal, -1.0, 1.0))


def item_vectors(environment: Environment, rng: np.random.Generator) -> np.ndarray:
    """The item vectors that `environment.items` names, (I, D) float32.

    Raises:
        ConfigError: the source is not diffuse, focused or file:PATH.
        SimulatorError: the file is missing, is not a plain float array, or has another shape.
    """
    source = environment.items
    if source in CONCENTRATION:
        return draw_items(environment, rng, CONCENTRATION[source])
    if not source.startswith("file:"):
        raise ConfigError(f"items: expected diffuse, focused or file:PATH, found `{source}`.")
    return read_items(environment, Path(source.removeprefix("file:")))


def read_items(environment: Environment, path: Path) -> np.ndarray:
    """Reads an (I, D) array of item vectors from an .npy file.

    Raises:
        SimulatorError: the file is missing, is not a plain float array, or has another shape or impossible values.
    """
    if not (path.exists() or path.is_symlink()):
        raise SimulatorError(f"{path}: no such item file. Give an .npy file of item vectors.")
    check_regular(path, SimulatorError, "an .npy file of item vectors")
    with path.open("rb") as file:
        if file.read(len(NPY_MAGIC)) != NPY_MAGIC:  # else NumPy would speak of pickles
            raise SimulatorError(f"{path}: expected float item vectors in an .npy file, found another format. {SAVE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Python 2 wrote it, or what its header is as Python
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)  # a header may promise more than the file holds
    except Exception as error:  # whatever the header makes of the reader
        reason = " ".join(str(error).split())[:150].rstrip(".") or type(error).__name__
        raise SimulatorError(f"{path}: not a plain .npy array ({reason}). {SAVE}") from None
    return np.array(check_items(environment, vectors, str(path)))  # in memory only what has the right shape


def check_items(environment: Environment, vectors: np.ndarray, where: str = "items") -> np.ndarray:
    """The vectors as (I, D) float32.

    Raises:
        SimulatorError: they have another shape, are not floats, are not finite, or too small or large to compute with.
    """
    expected = (environment.num_items, environment.item_dim)
    if not isinstance(vectors, np.ndarray) or vectors.shape != expected or vectors.dtype.kind != "f":
        found = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise SimulatorError(f"{where}: expected float item vectors of shape {expected}, found {found}.")
    if not np.isfinite(vectors).all():
        raise SimulatorError(f"{where}: item vectors hold values that are not finite. Give finite ones.")
    largest = np.abs(vectors).max()
    if not SMALLEST <= largest <= LARGEST:
        raise SimulatorError(
            f"{where}: expected item vectors whose largest number is {SMALLEST:g} to {LARGEST:g}, found {largest:.4g}. "
            "Scale them, for example to unit length."
        )
    return np.ascontiguousarray(vectors, dtype=np.float32)
