"""Windows of an episode: what they hold, by hand; nothing copied, continued to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gems_ray.data.sampler import Sampler
from gems_ray.data.windows import WindowBuffer
from tests.unit.test_data import plain_arrays


def windows(arrays, length=3, rows=None, **options):
    buffer = WindowBuffer(20, 32, len(arrays["rewards"]), length=length, **options)
    buffer.load_d4rl_dataset(arrays, rows)
    return buffer


@pytest.fixture
def episodes():
    """Three episodes of 3, 2 and 4 steps; the last one has no end."""
    arrays = plain_arrays(9)
    arrays["terminals"] = np.array([0, 0, 1, 0, 1, 0, 0, 0, 0], dtype=bool)
    arrays["rewards"] = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=np.float32)
    return arrays


def test_windows_by_hand(episodes):
    batch = windows(episodes, reward_scale=0.5).rows(torch.tensor([0, 1, 4, 5, 7]))
    assert batch.mask.tolist() == [
        [True, True, True],
        [True, True, False],
        [True, False, False],
        [True, True, True],
        [True, True, False],
    ]
    assert batch.time_steps.tolist() == [[0, 1, 2], [1, 2, 3], [1, 2, 3], [0, 1, 2], [2, 3, 4]]
    assert batch.rewards.tolist() == [[0.5, 1, 1.5], [1, 1.5, 0], [2.5, 0, 0], [3, 3.5, 4], [4, 4.5, 0]]
    assert batch.returns_to_go.tolist() == [[3, 2.5, 1.5], [2.5, 1.5, 0], [2.5, 0, 0], [15, 12, 8.5], [8.5, 4.5, 0]]
    np.testing.assert_array_equal(batch.states[0], episodes["observations"][:3])
    np.testing.assert_array_equal(batch.actions[4, :2], episodes["actions"][7:])
    assert batch.states[4, 2].abs().max() == batch.actions[4, 2].abs().max() == 0


def test_an_episode_ends_at_a_timeout_too(episodes):
    episodes["timeouts"] = np.array([0, 0, 0, 0, 0, 0, 1, 0, 0], dtype=bool)
    batch = windows(episodes).rows(torch.tensor([5]))
    assert batch.mask.tolist() == [[True, True, False]]
    assert batch.returns_to_go.tolist() == [[13, 7, 0]]


def test_normalised_units_and_zeros_after_the_end(episodes):
    center, scale = np.full(32, 0.5, dtype=np.float32), np.full(32, 2.0, dtype=np.float32)
    batch = windows(episodes, normalize_states=True, action_center=center, action_scale=scale).rows(torch.arange(9))
    np.testing.assert_allclose(batch.states[:, 0].mean(dim=0), 0, atol=1e-5)
    np.testing.assert_allclose(batch.actions[:, 0], (episodes["actions"] - 0.5) / 2, atol=1e-6)
    assert batch.states[~batch.mask].abs().max() == batch.actions[~batch.mask].abs().max() == 0


def test_read_only_arrays_are_shared_not_copied(episodes):
    for array in episodes.values():
        array.flags.writeable = False
    buffer = windows(episodes)
    assert buffer.sample(16).states.isfinite().all()
    for name in ("observations", "actions"):
        assert buffer._columns[name].data_ptr() == episodes[name].ctypes.data


def test_gathered_on_the_host_is_the_same(episodes, monkeypatch):
    """What a GPU does whose memory is too small for the dataset."""
    expected = windows(episodes).rows(torch.arange(9))
    monkeypatch.setattr(Sampler, "_fits", lambda self, columns: False)
    for ours, theirs in zip(windows(episodes).rows(torch.arange(9)), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("batches", [0, 1, 5, 64])
def test_continues_at_any_position(batches):
    arrays = plain_arrays(50)
    first, second = windows(arrays, seed=1), windows(arrays, seed=2)
    for _ in range(batches):
        first.sample(4)
    second.load_state_dict(first.state_dict())
    for _ in range(10):
        for ours, theirs in zip(first.sample(4), second.sample(4), strict=True):
            assert torch.equal(ours, theirs)


def test_chosen_rows_alone_begin_windows(episodes):
    batch = windows(episodes, rows=np.array([3, 6])).sample(100)
    assert set(batch.rewards[:, 0].tolist()) == {4, 7}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 8))
def test_a_window_never_leaves_its_episode(lengths, length):
    arrays = plain_arrays(sum(lengths))
    ends = np.cumsum(lengths) - 1
    arrays["terminals"] = np.isin(np.arange(sum(lengths)), ends)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    arrays["rewards"] = episode.astype(np.float32) + 1
    batch = windows(arrays, length=length).rows(torch.arange(len(episode)))
    for row, of_row in enumerate(episode):
        inside = batch.mask[row]
        assert inside.sum() == min(length, ends[of_row] - row + 1)
        assert set(batch.rewards[row][inside].tolist()) == {of_row + 1.0}
        assert batch.rewards[row][~inside].abs().sum() == 0
