"""The rules of TopicRec, one by one, on cases that can be worked out by hand."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gems_ray.errors import ConfigError, SimulatorError, UnknownNameError
from gems_ray.policies.slates import SLATE_POLICIES, random_slates
from gems_ray.simulator import ENVIRONMENTS, TopicRec, environment
from gems_ray.simulator.clicks import ClickModel, topic_counts
from gems_ray.simulator.items import draw_items, item_vectors
from gems_ray.simulator.topic_rec import ClickQueue, clicks_in_order
from gems_ray.simulator.users import draw_users, drift, topic_norm_sum

MIX = environment("diffuse_mix")


def simulator(name="diffuse_mix", users=3, seed=0, **overrides):
    return TopicRec(environment(name, **overrides), users=users, seed=seed)


def no_clicks(users):
    return np.zeros((users, 10), dtype=bool)


def clicks_at(*ranks, users=1):
    clicks = no_clicks(users)
    clicks[:, list(ranks)] = True
    return clicks


def items_of_topic(sim, topic):
    return np.flatnonzero(sim.item_topics == topic)


def test_the_six_environments():
    assert sorted(ENVIRONMENTS) == [
        "diffuse_divpen", "diffuse_mix", "diffuse_topdown", "focused_divpen", "focused_mix", "focused_topdown",
    ]  # fmt: skip
    assert ENVIRONMENTS["diffuse_divpen"].diversity_penalty == 3
    assert ENVIRONMENTS["focused_mix"].diversity_penalty == 1


def test_examination():
    top = environment("diffuse_topdown").examination()
    np.testing.assert_allclose(top, [0.85**rank for rank in range(10)], rtol=1e-6)
    mixed = MIX.examination()
    np.testing.assert_allclose(mixed, [0.5 * 0.85**r + 0.5 * 0.85 ** (9 - r) for r in range(10)], rtol=1e-6)


def test_unknown_environment_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean `diffuse_mix`"):
        environment("diffuse_mixx")


def test_unknown_parameter():
    with pytest.raises(ConfigError, match="Did you mean `diversity_penalty`"):
        environment("diffuse_mix", diversity_penalti=2)


def test_items_have_unit_norm_and_focus_concentrates():
    diffuse = draw_items(MIX, np.random.default_rng(0), 1.0)
    focused = draw_items(MIX, np.random.default_rng(0), 2.0)
    for items in (diffuse, focused):
        assert items.shape == (1000, 20)
        assert items.dtype == np.float32
        assert items.min() >= 0
        np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, atol=1e-6)
    assert focused.max(axis=1).mean() > diffuse.max(axis=1).mean() + 0.1


def test_items_from_a_file(tmp_path):
    items = draw_items(MIX, np.random.default_rng(1))
    np.save(tmp_path / "items.npy", items)
    chosen = environment("diffuse_mix", items=f"file:{tmp_path / 'items.npy'}")
    np.testing.assert_array_equal(item_vectors(chosen, np.random.default_rng(0)), items)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((10, 20), dtype=np.float32), "expected float item vectors of shape"),
        (np.full((1000, 20), np.nan, dtype=np.float32), "not finite"),
        (np.array([object()], dtype=object), "not a plain .npy array"),
    ],
)
def test_bad_item_files(tmp_path, content, message):
    np.save(tmp_path / "items.npy", content, allow_pickle=True)
    with pytest.raises(SimulatorError, match=message):
        TopicRec(environment("diffuse_mix", items=f"file:{tmp_path / 'items.npy'}"))


def test_topic_norms_of_users_sum_to_one():
    users = draw_users(MIX, 500, np.random.default_rng(0))
    np.testing.assert_allclose(topic_norm_sum(users, MIX), 1, atol=1e-6)
    assert users.min() >= 0


def test_drift_by_hand():
    user = np.zeros((1, 20), dtype=np.float32)
    user[0, 0] = 1.0
    item = np.zeros((1, 10, 20), dtype=np.float32)
    item[0, 0, 2] = 1.0  # first clicked item, all in topic 1
    item[0, 1, 4] = 1.0  # second, all in topic 2
    drift(user, item, np.array([2]), MIX)
    # 0.9 and 0.1 sum to 1; the second click: 0.81, 0.09, 0.1
    np.testing.assert_allclose(user[0, [0, 2, 4]], [0.81, 0.09, 0.1], rtol=1e-6)


def test_relevance_by_hand():
    items = np.zeros((1000, 20), dtype=np.float32)
    items[:, 0] = 1.0
    items[:10, 0] = np.linspace(0.1, 1.0, 10)
    model = ClickModel(environment("diffuse_topdown"), items, np.zeros(1000, dtype=int))
    user = np.zeros((1, 20), dtype=np.float32)
    user[0, 0] = 0.28
    probability, scores = model(np.arange(10)[None], user)
    np.testing.assert_allclose(scores[0], 0.28 * np.linspace(0.1, 1.0, 10), rtol=1e-5)
    assert probability[0, 9] == pytest.approx(0.5 * 0.85**9, rel=1e-4)  # score equals the offset: one half


def test_diversity_penalty_divides_all_slots_from_four_of_a_topic():
    plain, penal = without_and_with_penalty()
    users = draw_users(MIX, 1, np.random.default_rng(3))
    by_topic = [items_of_topic(plain, topic) for topic in range(10)]
    three = np.array([[*by_topic[0][:3], *(by_topic[topic][0] for topic in range(1, 8))]])
    four = np.array([[*by_topic[0][:4], *(by_topic[topic][0] for topic in range(1, 7))]])
    np.testing.assert_allclose(penal._click_model(three, users)[0], plain._click_model(three, users)[0])
    np.testing.assert_allclose(penal._click_model(four, users)[0], plain._click_model(four, users)[0] / 3, rtol=1e-5)


def without_and_with_penalty():
    items = draw_items(MIX, np.random.default_rng(0))
    return TopicRec(MIX, items), TopicRec(environment("diffuse_divpen"), items)


def test_first_slate_shows_the_strongest_item_of_every_topic():
    sim = simulator()
    shown = sim.reset()
    norms = np.linalg.norm(sim.items.reshape(1000, 10, 2), axis=2)
    assert shown["slate"].shape == (3, 10)
    for topic, item in enumerate(shown["slate"][0]):
        assert norms[item, topic] == norms[:, topic].max()


def test_boredom_lasts_five_steps_and_starts_one_step_after_the_fifth_click():
    sim = simulator(users=1)
    sim.reset(clicks=no_clicks(1))
    slate = items_of_topic(sim, 4)[:10][None]
    sim.step(slate, clicks=clicks_at(0, 1, 2, 3, 4))  # t = 1: five clicks on topic 4
    bored = []
    for _ in range(12):
        _, _, _, info = sim.step(slate, clicks=no_clicks(1))
        bored.append(bool(info["bored"][0, 4]))
    # Triggered at t = 2, so bored at 2..6. Released at t = 7, and bored again at once, because the clicks of t = 1 are
    # forgotten at the end of t = 7 only. Bored at 7..11, free from t = 12 on.
    assert bored == [True] * 10 + [False] * 2


def test_boredom_ends_after_five_steps_when_the_clicks_are_forgotten_by_then():
    sim = simulator(users=1, recent_window=2)
    sim.reset(clicks=no_clicks(1))
    slate = items_of_topic(sim, 4)[:10][None]
    sim.step(slate, clicks=clicks_at(0, 1, 2, 3, 4))
    bored = [bool(sim.step(slate, clicks=no_clicks(1))[3]["bored"][0, 4]) for _ in range(7)]
    assert bored == [True] * 5 + [False] * 2


def test_bored_topics_are_masked_but_preferences_stay():
    sim = simulator(users=1)
    sim.reset(clicks=no_clicks(1))
    slate = items_of_topic(sim, 4)[:10][None]
    sim.step(slate, clicks=clicks_at(0, 1, 2, 3, 4))
    before = sim.info["user"].copy()
    _, _, _, info = sim.step(slate, clicks=no_clicks(1))
    assert info["bored"][0, 4]
    np.testing.assert_array_equal(info["user"], before)
    masked = before.copy().reshape(1, 10, 2)
    masked[0, 4] = 0
    expected = sim.items[slate[0]] @ masked.reshape(20) / np.linalg.norm(sim.items, axis=1).max()
    np.testing.assert_allclose(info["score"][0], expected, atol=1e-6)


def test_clicks_older_than_the_window_are_forgotten():
    sim = simulator(users=1)
    sim.reset(clicks=no_clicks(1))
    slate = items_of_topic(sim, 2)[:10][None]
    sim.step(slate, clicks=clicks_at(0))  # t = 1
    for _ in range(5):
        sim.step(slate, clicks=no_clicks(1))
    assert sim.topic_queue[0, 0] == 2  # t = 6: 1 is not older than 6 - 5
    sim.step(slate, clicks=no_clicks(1))
    assert sim.topic_queue[0, 0] == -1


def test_queue_alignment_of_the_first_clicks():
    for alignment, left in (("published", 1), ("aligned", 0)):
        sim = simulator(users=1, queue_alignment=alignment)
        sim.reset(clicks=clicks_at(3))
        for _ in range(6):
            sim.step(random_slates(MIX, 1, np.random.default_rng(0)), clicks=no_clicks(1))
        assert (sim.topic_queue >= 0).sum() == left


def test_minus_one_asks_for_the_item_of_that_rank():
    sim = simulator(users=4, seed=1)
    sim.reset(clicks=no_clicks(4))
    users = sim.info["user"]
    best = np.argsort(-(users @ sim.items.T), axis=1)[:, :10]
    requested = np.full((4, 10), -1)
    requested[:, 3] = 7
    shown, _, _, _ = sim.step(requested, clicks=no_clicks(4))
    np.testing.assert_array_equal(shown["slate"][:, [0, 1, 2, *range(4, 10)]], best[:, [0, 1, 2, *range(4, 10)]])
    np.testing.assert_array_equal(shown["slate"][:, 3], 7)


def test_episode_ends_after_its_length_and_not_before():
    sim = simulator(users=2, episode_length=3)
    sim.reset()
    slates = random_slates(MIX, 2, np.random.default_rng(0))
    assert [sim.step(slates)[2].tolist() for _ in range(3)] == [[False] * 2, [False] * 2, [True] * 2]
    with pytest.raises(SimulatorError, match="reset"):
        sim.step(slates)


def test_one_seed_one_episode():
    def play(seed):
        sim = simulator(users=5, seed=seed)
        sim.reset()
        return np.stack([sim.step(np.full((5, 10), -1))[1] for _ in range(20)])

    np.testing.assert_array_equal(play(3), play(3))
    assert (play(3) != play(4)).any()


def test_click_frequency_matches_the_probability():
    sim = simulator(users=4000)
    sim.reset()
    expected = np.zeros(10)
    clicked = np.zeros(10)
    for _ in range(5):
        shown, _, _, info = sim.step(np.full((4000, 10), -1))
        expected += info["click_probability"].mean(axis=0) / 5
        clicked += shown["clicks"].mean(axis=0) / 5
    np.testing.assert_allclose(clicked, expected, atol=5 * 0.5 / np.sqrt(20_000))


@pytest.mark.parametrize(
    ("slates", "message"),
    [
        (np.zeros((2, 10), dtype=int), "expected shape"),
        (np.zeros((3, 10)), "expected integers"),
        (np.full((3, 10), 1000), "items 0 to 999"),
        (np.full((3, 10), -2), "items 0 to 999"),
    ],
)
def test_bad_slates(slates, message):
    sim = simulator()
    sim.reset()
    with pytest.raises(SimulatorError, match=message):
        sim.step(slates)


def test_step_before_reset():
    with pytest.raises(SimulatorError, match="reset"):
        simulator().step(np.zeros((3, 10), dtype=int))


def test_info_is_a_snapshot():
    sim = simulator()
    sim.reset()
    _, _, _, first = sim.step(np.full((3, 10), -1))
    kept = {key: value.copy() for key, value in first.items()}
    for _ in range(10):
        sim.step(np.full((3, 10), -1))
    for key, value in kept.items():
        np.testing.assert_array_equal(first[key], value)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=10), st.integers(0, 4)), max_size=12))
def test_queue_behaves_like_a_bounded_deque(operations):
    queue, model = ClickQueue(2, 10), deque(maxlen=10)
    for values, popped in operations:
        clicks = np.zeros((2, 10), dtype=bool)
        clicks[1, : len(values)] = True
        rows, _, order = clicks_in_order(clicks)
        queue.append(rows, order, np.array(values, dtype=int), clicks.sum(axis=1))
        model.extend(values)
        popped = min(popped, len(model))
        queue.pop(np.array([0, popped]))
        for _ in range(popped):
            model.popleft()
        assert [entry for entry in queue.entries[1] if entry != -1] == list(model)
        assert (queue.entries[1][len(model) :] == -1).all()
        assert (queue.entries[0] == -1).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 9), min_size=10, max_size=10), min_size=1, max_size=5))
def test_topic_counts(rows):
    counts = topic_counts(np.array(rows), 10)
    for row, counted in zip(rows, counts, strict=True):
        assert counted.tolist() == [row.count(topic) for topic in range(10)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_slates_hold_distinct_items(seed):
    slates = random_slates(MIX, 50, np.random.default_rng(seed))
    assert all(len(set(slate)) == 10 for slate in slates.tolist())
    assert slates.min() >= 0
    assert slates.max() < 1000


def test_random_slates_are_uniform():
    small = environment("diffuse_mix", num_items=12, slate_size=10)
    slates = random_slates(small, 20_000, np.random.default_rng(0))
    for rank in range(10):  # every item equally often at every rank
        share = np.bincount(slates[:, rank], minlength=12) / 20_000
        np.testing.assert_allclose(share, 1 / 12, atol=0.01)


def test_epsilon_greedy_replaces_half_of_the_slots():
    slates = SLATE_POLICIES["epsilon_greedy_oracle"](MIX, 5000, np.random.default_rng(0))
    assert (slates == -1).mean() == pytest.approx(0.5, abs=0.01)
