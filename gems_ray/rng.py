"""Named random streams of one experiment seed: a new stream moves no other."""

import zlib

import numpy as np


def seed_sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """The seed sequence of the stream that `names` spell under `seed`.

    Args:
        seed: experiment seed, 0 or larger.
        names: path of the stream, for example `"eval", "test"`; integers number repeated draws of one stream.
    """
    key = tuple(name if isinstance(name, int) else zlib.crc32(name.encode()) for name in names)
    return np.random.SeedSequence(entropy=seed, spawn_key=key)


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator of the named stream."""
    return np.random.default_rng(seed_sequence(seed, *names))


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit integer seed of the named stream, for generators that are not NumPy's."""
    return int(seed_sequence(seed, *names).generate_state(1, np.uint64)[0] >> np.uint64(1))
