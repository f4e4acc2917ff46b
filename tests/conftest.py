"""Fixtures of all folders: small worlds and datasets that are made on the spot."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from gems_ray.action_box import ActionBox
from gems_ray.simulator import environment
from gems_ray.simulator.items import draw_items
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief
from gems_ray.world.bundle import World
from gems_ray.world.ranker import GemsRanker, RankerConfig
from gems_ray.worldmaking.collect import collect_dataset

torch.set_num_threads(1)


def make_world(name="diffuse_mix", seed=0):
    """A world of the right sizes with random weights: nothing in it is trained."""
    chosen = environment(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ranker = GemsRanker(RankerConfig(encoder_sizes=(16,), decoder_sizes=(16,))).requires_grad_(False)
        bounds = ActionBox(np.zeros(32, dtype=np.float32), np.full(32, 3.0, dtype=np.float32))
        agents = {quality: BehaviorAgent(GruBelief(), bounds).requires_grad_(False) for quality in ("expert", "medium")}
    return World(chosen, draw_items(chosen, np.random.default_rng(seed)), ranker, bounds, agents, {"made": "by a test"})


@pytest.fixture(scope="session")
def world():
    return make_world()


@pytest.fixture(scope="session")
def world_folder(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    world.save(folder)
    return folder


@pytest.fixture(scope="session")
def dataset(world):
    return collect_dataset(world, "mixed", 12, seed=0)


@pytest.fixture(scope="session")
def dataset_file(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("datasets") / "diffuse_mix_mixed.npz"
    dataset.save(path)
    return path
