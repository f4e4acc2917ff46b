"""Recorded episodes of the published program, replayed: requested slates and clicks go in, the rest must come out."""

from pathlib import Path

import numpy as np
import pytest

from gems_ray.simulator import TopicRec, environment

FOLDER = Path(__file__).parent / "simulator"


@pytest.mark.parametrize("alignment", ["published", "aligned"])
@pytest.mark.parametrize("click_model", ["topdown", "mix", "divpen"])
def test_recorded_episodes_replay_exactly(click_model, alignment):
    with np.load(FOLDER / f"{click_model}_{alignment}.npz", allow_pickle=False) as file:
        recorded = dict(file)
    items = np.load(FOLDER / "item_embeddings.npy", allow_pickle=False)
    users, steps = recorded["reward"].shape
    simulator = TopicRec(
        environment(f"diffuse_{click_model}", queue_alignment=alignment), items=items, users=users, seed=0
    )

    shown = simulator.reset(user_vectors=recorded["user_initial"], clicks=recorded["reset_clicks"])
    np.testing.assert_array_equal(shown["slate"], recorded["reset_slate"])
    np.testing.assert_allclose(
        simulator.info["click_probability"], recorded["reset_click_probability"], rtol=0, atol=1e-5
    )
    assert recorded["requested_slate"].min() == -1, "the recording must exercise the oracle substitution"
    for t in range(steps):
        shown, reward, done, info = simulator.step(recorded["requested_slate"][:, t], clicks=recorded["clicks"][:, t])
        np.testing.assert_array_equal(shown["slate"], recorded["shown_slate"][:, t])
        np.testing.assert_array_equal(shown["clicks"], recorded["clicks"][:, t].astype(bool))
        np.testing.assert_allclose(info["click_probability"], recorded["click_probability"][:, t], rtol=0, atol=1e-5)
        np.testing.assert_allclose(info["user"], recorded["user_after"][:, t], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(info["bored"], recorded["bored"][:, t])
        np.testing.assert_array_equal(simulator.topic_queue, recorded["topic_queue_after"][:, t])
        np.testing.assert_array_equal(reward, recorded["reward"][:, t])
        np.testing.assert_array_equal(done, recorded["done"][:, t])


def test_one_user_replays_as_in_a_batch():
    with np.load(FOLDER / "divpen_published.npz", allow_pickle=False) as file:
        recorded = dict(file)
    items = np.load(FOLDER / "item_embeddings.npy", allow_pickle=False)
    simulator = TopicRec(environment("diffuse_divpen"), items=items, users=1, seed=0)
    simulator.reset(user_vectors=recorded["user_initial"][2:3], clicks=recorded["reset_clicks"][2:3])
    for t in range(recorded["reward"].shape[1]):
        _, _, _, info = simulator.step(recorded["requested_slate"][2:3, t], clicks=recorded["clicks"][2:3, t])
        np.testing.assert_allclose(info["user"][0], recorded["user_after"][2, t], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(info["bored"][0], recorded["bored"][2, t])
