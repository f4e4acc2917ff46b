"""What holds in all six environments, whatever is shown and whatever the seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gems_ray.errors import SimulatorError
from gems_ray.policies.slates import SLATE_POLICIES
from gems_ray.simulator import ENVIRONMENTS, TopicRec, environment
from gems_ray.simulator.items import item_vectors
from gems_ray.simulator.users import topic_norm_sum

USERS, STEPS = 3, 12
ITEMS = {name: item_vectors(environment(name), np.random.default_rng(0)) for name in ENVIRONMENTS}
NAMES, SEEDS = st.sampled_from(sorted(ENVIRONMENTS)), st.integers(0, 2**32 - 1)
POLICIES, ALIGNMENTS = st.sampled_from([*SLATE_POLICIES, "one item"]), st.sampled_from(["published", "aligned"])
sometimes = settings(max_examples=25, deadline=None)


def simulator(name, alignment="published", users=USERS, seed=0):
    return TopicRec(environment(name, queue_alignment=alignment), ITEMS[name], users=users, seed=seed)


def slates_of(policy, sim, rng, users=USERS):
    """Slates that a policy asks for; the strangest ones show a single item in all slots."""
    if policy == "one item":
        return np.tile(rng.integers(0, len(sim.items), (users, 1)), (1, 10))
    return SLATE_POLICIES[policy](sim.environment, users, rng)


def play(sim, policy, seed):
    """Everything that is seen of some steps: what was asked for, shown and clicked, and the privileged values."""
    rng = np.random.default_rng(seed)
    seen = [{**sim.reset(), **sim.info, "queue": sim.topic_queue}]
    for _ in range(STEPS):
        asked = slates_of(policy, sim, rng)
        shown, reward, done, info = sim.step(asked)
        seen.append({**shown, **info, "queue": sim.topic_queue, "asked": asked, "reward": reward, "done": done})
    return seen


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@sometimes
@given(NAMES, POLICIES, ALIGNMENTS, SEEDS)
def test_every_step_is_possible(name, policy, alignment, seed):
    """Probabilities are in [0, 1], clicks and rewards belong to what was shown, and topic norms sum to one."""
    sim = simulator(name, alignment, seed=seed)
    for step in play(sim, policy, seed):
        probability, clicks, slate = step["click_probability"], step["clicks"], step["slate"]
        assert probability.dtype == np.float32
        assert (probability >= 0).all()
        assert (probability <= sim.environment.examination()).all(), "nobody clicks on what is not looked at"
        assert not clicks[probability == 0].any()
        assert clicks.shape == slate.shape == (USERS, 10)
        assert ((slate >= 0) & (slate < len(sim.items))).all()
        np.testing.assert_array_equal(step["topic"], sim.item_topics[slate])
        np.testing.assert_allclose(topic_norm_sum(step["user"], sim.environment), 1, atol=1e-5)
        assert (step["user"] >= 0).all()
        if "asked" in step:
            chosen = step["asked"] >= 0
            np.testing.assert_array_equal(slate[chosen], step["asked"][chosen])
            np.testing.assert_array_equal(step["reward"], clicks.sum(axis=1))


@sometimes
@given(NAMES, POLICIES, SEEDS)
def test_only_clicks_on_shown_items_move_a_user(name, policy, seed):
    """The drift of a step, by hand from the items that were shown and clicked."""
    sim = simulator(name, seed=seed)
    before, *steps = play(sim, policy, seed)
    user = before["user"].astype(np.float64)
    for step in steps:
        for row in range(USERS):
            for item in step["slate"][row][step["clicks"][row]]:
                user[row] = 0.9 * user[row] + 0.1 * sim.items[item]
                user[row] /= np.linalg.norm(user[row].reshape(10, 2), axis=1).sum()
        np.testing.assert_allclose(step["user"], user, atol=1e-5)


@sometimes
@given(NAMES, POLICIES, SEEDS)
def test_one_seed_one_episode(name, policy, seed):
    first, again, other = (play(simulator(name, seed=start), policy, 0) for start in (seed, seed, seed + 1))
    assert_same(first, again)
    assert (first[0]["user"] != other[0]["user"]).any()


@sometimes
@given(NAMES, POLICIES, ALIGNMENTS, SEEDS)
def test_replay_is_exact(name, policy, alignment, seed):
    """Given the users, the slates and the clicks, another simulator comes to the same values in every step."""
    first = play(simulator(name, alignment, seed=seed), policy, seed)
    sim = simulator(name, alignment, seed=seed + 1)
    start, *steps = first
    shown = sim.reset(user_vectors=start["user"], clicks=start["clicks"])
    again = [{**shown, **sim.info, "queue": sim.topic_queue}]
    for step in steps:
        shown, reward, done, info = sim.step(step["asked"], clicks=step["clicks"])
        asked = {"asked": step["asked"], "reward": reward, "done": done}
        again.append({**shown, **info, "queue": sim.topic_queue, **asked})
    assert_same(first, again)


@sometimes
@given(NAMES, POLICIES, ALIGNMENTS, SEEDS)
def test_a_user_is_the_same_alone_and_among_others(name, policy, alignment, seed):
    """With a generator for each user, row u of a batch is what a simulator of one user does with that generator."""
    together = simulator(name, alignment)
    together.reseed([np.random.default_rng([seed, user]) for user in range(USERS)])
    alone = [simulator(name, alignment, users=1) for _ in range(USERS)]
    for user, sim in enumerate(alone):
        sim.reseed([np.random.default_rng([seed, user])])
    steps = play(together, policy, seed)
    for user, sim in enumerate(alone):
        seen = [{**sim.reset(), **sim.info}]
        for step in steps[1:]:
            shown, reward, done, info = sim.step(step["slate"][[user]])
            seen.append({**shown, **info, "reward": reward, "done": done})
        for one, batch in zip(seen, steps, strict=True):
            for key, value in one.items():
                if value.dtype.kind == "f":  # sums over one user and over many may differ in their last digit
                    np.testing.assert_allclose(value[0], batch[key][user], atol=1e-5, err_msg=key)
                else:
                    np.testing.assert_array_equal(value[0], batch[key][user], err_msg=key)


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_a_batch_of_one_equals_a_single_generator(name):
    """One generator for all users and one for each are the same where there is one user."""
    shared, own = simulator(name, users=1, seed=5), simulator(name, users=1)
    own.reseed([np.random.default_rng(5)])
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(shared.reset()["clicks"], own.reset()["clicks"])
    for _ in range(100):
        slate = slates_of("epsilon_greedy_oracle", shared, rng, 1)
        (first, *_), (second, *_) = shared.step(slate), own.step(slate)
        np.testing.assert_array_equal(first["slate"], second["slate"])
        np.testing.assert_array_equal(first["clicks"], second["clicks"])
        np.testing.assert_array_equal(shared.info["user"], own.info["user"])


def test_one_generator_for_each_user():
    with pytest.raises(SimulatorError, match="one for each of 3 users, found 2"):
        simulator("diffuse_mix").reseed([np.random.default_rng(0)] * 2)
