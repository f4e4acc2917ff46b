"""Bundles that nobody changed, of worlds that cannot be; and manifests whose mistakes are said in our words."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from gems_ray.action_box import ActionBox
from gems_ray.errors import ConfigError, WorldError
from gems_ray.simulator import TopicRec, environment
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief
from gems_ray.world.bundle import load_world
from gems_ray.world.ranker import GemsRanker, RankerConfig


def refused(folder):
    with pytest.raises(WorldError) as caught:
        load_world(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder}: ")
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "foo"}, "`name`: expected one of diffuse_topdown, "),
        ({"name": "diffuse_mixx"}, "Did you mean `diffuse_mix`"),
        ({"slate_size": 0}, "`slate_size`: expected greater than or equal to 1, found `0`"),
        ({"slate_size": 5}, "`slate_size` of ranker: expected 5, found 10"),
        ({"slate_size": 11}, "`slate_size`: expected at most 10"),
        ({"num_topics": 5, "topic_size": 4}, "`slate_size`: expected at most 5"),
        ({"num_topics": -10, "topic_size": -2}, "`num_topics`"),
        ({"recent_clicks": -1}, "`recent_clicks`"),
        ({"recent_window": -1}, "`recent_window`"),
        ({"episode_length": 0}, "`episode_length`"),
        ({"episode_length": -5}, "`episode_length`"),
        ({"episode_length": 10**9}, "`episode_length`: expected less than or equal to 10000"),
        ({"relevance_slope": 1e308}, "`relevance_slope`: expected less than or equal to 1000000, found `1e+308`"),
        ({"diversity_penalty": 0.0}, "`diversity_penalty`"),
        ({"diversity_penalty": float("nan")}, "`diversity_penalty`: expected a finite number, found `nan`"),
        ({"examination_decay": float("nan")}, "`examination_decay`"),
        ({"preference_inertia": 1e300}, "`preference_inertia`"),
    ],
)
def test_impossible_environments(world, tmp_path, changes, message):
    replace(world, environment=replace(world.environment, **changes)).save(tmp_path)
    assert message in refused(tmp_path)


def ranker(**changes):
    config = RankerConfig(encoder_sizes=(4,), decoder_sizes=(4,), **changes)
    return {"ranker": GemsRanker(config).requires_grad_(False)}


def box(center, scale, size=32):
    return {"bounds": ActionBox(np.full(size, center, dtype=np.float32), np.full(size, scale, dtype=np.float32))}


def agents(size=32, **changes):
    agent = BehaviorAgent(GruBelief(**changes), box(0, 3, size)["bounds"]).requires_grad_(False)
    return {"agents": {"expert": agent}}


def encoder(**changes):
    return {"agents": {}, "encoder": GruBelief(**changes).requires_grad_(False)}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: ranker(num_items=2000), "`num_items` of ranker: expected 1000, found 2000"),
        (lambda: ranker(slate_size=5), "`slate_size` of ranker: expected 10, found 5"),
        (lambda: ranker(latent_dim=16) | box(0, 3, 16) | agents(16), "`latent_dim` of ranker: expected 32, found 16"),
        (lambda: agents(num_items=500), "`num_items` of expert: expected 1000, found 500"),
        (lambda: agents(slate_size=5), "`slate_size` of expert: expected 10, found 5"),
        (lambda: agents(belief_dim=10), "`belief_dim`: expected 20, found 10"),
        (lambda: encoder(num_items=500), "`num_items` of belief: expected 1000, found 500"),
        (lambda: {"agents": agents()["agents"] | {"ranker": agents()["agents"]["expert"]}}, "`agents`"),
        (lambda: box(0, 1e-30), "`scale`: expected numbers from 1e-06 to 1e+06, found 1e-30"),
        (lambda: box(3e38, 1), "`center`: expected numbers from -1e+06 to 1e+06, found 3e+38"),
        (lambda: {"items": np.full((1000, 20), 3e38, dtype=np.float32)}, "largest number is 1e-06 to 1e+06"),
        (lambda: {"items": np.zeros((1000, 20), dtype=np.float32)}, "largest number is 1e-06 to 1e+06, found 0"),
    ],
)
def test_parts_that_make_no_world(world, tmp_path, parts, message):
    with torch.random.fork_rng():
        changes = parts()
    replace(world, **changes).save(tmp_path)
    assert message in refused(tmp_path)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_tensors_that_belong_to_nothing(world, tmp_path, value):
    world.save(tmp_path)
    path = tmp_path / "weights.safetensors"
    save_file({**load_file(path), "foo": torch.full((3,), value)}, path)
    assert "'foo' in weights.safetensors belongs to no part" in refused(tmp_path)


def test_weights_larger_than_the_memory(world, tmp_path):
    world.save(tmp_path)
    with (tmp_path / "weights.safetensors").open("r+b") as file:
        file.truncate(40_000_000_000)  # sparse: it takes no room
    assert "weights.safetensors: expected at most 2,000,000,000 bytes, found 40,000,000,000" in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", "1", "schema version the text `1`, this program reads 1. Use the version"),
        ("schema_version", list(range(3_000)), "schema version a list, this program reads 1"),
        ("environment.name", b"hello", "`name`: expected a valid string, found"),
        ("environment.items", b"hello", "`items`: expected a valid string, found"),
        ("environment.name", ..., "`name` is missing"),
        ("environment.num_items", True, "`num_items`: expected a valid integer, found `true`"),
        ("ranker.decoder_sizes", [], "`decoder_sizes`: "),
        ("agent_sizes.expert.hidden_size", 10**20, "`agent_sizes.expert.hidden_size`"),
        ("agent_sizes.expert.foo", 1, "`agent_sizes.expert.foo`"),
        ("belief_sizes", {"num_items": -1}, "`belief_sizes."),
    ],
)
def test_values_of_a_manifest(world, tmp_path, key, value, message):
    world.save(tmp_path)
    yaml = YAML(typ="safe")
    data = yaml.load((tmp_path / "manifest.yaml").read_text())
    owner = data
    *path, last = key.split(".")
    for part in path:
        owner = owner[part]
    if value is ...:
        del owner[last]
    else:
        owner[last] = value
    with (tmp_path / "manifest.yaml").open("w") as file:
        yaml.dump(data, file)
    text = refused(tmp_path)
    assert message in text
    assert not any(word in text for word in ("__init__", "frame #", "JSON serializable"))


def test_whole_numbers_stay_whole(world, tmp_path):
    """A penalty of 3 is not written as 3.0 when the fingerprint is compared."""
    other = replace(world, environment=environment("diffuse_mix", diversity_penalty=3, episode_length=7))
    other.save(tmp_path)
    loaded = load_world(tmp_path)
    assert loaded.fingerprint == other.fingerprint
    assert json.dumps(loaded.environment.diversity_penalty) == "3"


@pytest.mark.parametrize("changes", [{"slate_size": 0}, {"relevance_slope": float("nan")}, {"queue_alignment": "x"}])
def test_impossible_overrides(changes):
    with pytest.raises(ConfigError, match=f"`{next(iter(changes))}`: expected "):
        environment("diffuse_mix", **changes)


@pytest.mark.filterwarnings("error")
def test_a_steep_slope_is_no_overflow():
    simulator = TopicRec(environment("diffuse_mix", relevance_slope=1e5), users=3)
    simulator.reset()
    assert np.isfinite(simulator.info["click_probability"]).all()
