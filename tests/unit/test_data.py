"""The dataset format: round trip, same bytes, and every kind of damage."""

import os
import stat
import zipfile

import numpy as np
import pytest
import torch

from gems_ray.data.normalizer import state_statistics
from gems_ray.data.npz import check_dataset, find_dataset, load_dataset
from gems_ray.data.replay import ReplayBuffer
from gems_ray.data.schema import REQUIRED
from gems_ray.errors import ConfigError, DatasetError
from gems_ray.worldmaking.collect import collect_dataset


def plain_arrays(rows=6):
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(rows, 20)).astype(np.float32),
        "actions": rng.normal(size=(rows, 32)).astype(np.float32),
        "rewards": rng.integers(0, 5, rows).astype(np.float32),
        "next_observations": rng.normal(size=(rows, 20)).astype(np.float32),
        "terminals": np.arange(rows) % 3 == 2,
    }


def buffer(arrays, **options):
    center, scale = np.full(32, 0.5, dtype=np.float32), np.full(32, 2.0, dtype=np.float32)
    options = {"normalize_states": True, "action_center": center, "action_scale": scale} | options
    replay = ReplayBuffer(20, 32, len(arrays["rewards"]), **options)
    replay.load_d4rl_dataset(arrays)
    return replay


class TestCollection:
    def test_format(self, dataset, world):
        assert len(dataset) == 1200
        assert dataset.observations.shape == (1200, 20)
        assert dataset.slates.shape == (1200, 10)
        np.testing.assert_array_equal(dataset.terminals.reshape(12, 100)[:, :-1], False)
        np.testing.assert_array_equal(dataset.terminals.reshape(12, 100)[:, -1], True)
        np.testing.assert_array_equal(dataset.rewards, dataset.clicks.sum(axis=1))
        inside = ~dataset.terminals[:-1]
        np.testing.assert_array_equal(dataset.next_observations[:-1][inside], dataset.observations[1:][inside])
        assert dataset.metadata.world_fingerprint == world.fingerprint
        assert dataset.metadata.expert_share == pytest.approx(1 / 3)
        episode_returns = dataset.rewards.reshape(12, 100).sum(axis=1)
        assert dataset.metadata.behavior_return == pytest.approx(episode_returns.mean(), abs=1e-4)

    def test_slates_are_the_decoded_actions(self, dataset, world):
        decoded = world.ranker.decode(torch.from_numpy(dataset.actions[:200]))
        np.testing.assert_array_equal(decoded, dataset.slates[:200])

    def test_beliefs_are_those_of_the_slates_and_clicks(self, dataset, world):
        slates = torch.from_numpy(dataset.slates[:100].astype(np.int64))
        state = torch.from_numpy(dataset.observations[0:1])
        for t in range(100):
            state = world.belief.step(slates[t : t + 1], torch.from_numpy(dataset.clicks[t : t + 1]), state)
            np.testing.assert_allclose(dataset.next_observations[t], state[0].numpy(), atol=1e-5)

    def test_random_latents_fill_the_inner_half_of_the_box(self, world):
        actions = collect_dataset(world, "random", 3, seed=0).actions
        assert np.abs(actions).max() <= 1.5
        assert np.abs(actions).max() > 1.45

    def test_mixed_holds_whole_episodes_of_both(self, world):
        mixed = collect_dataset(world, "mixed", 10, seed=1, expert_share=0.5)
        outside = np.abs(mixed.actions.reshape(10, -1)).max(axis=1) > 1.5  # random latents never are
        assert outside.sum() == 5
        assert 0 < np.flatnonzero(outside).mean() < 9, "expert episodes are spread over the file"

    def test_medium_observations_come_from_the_world_belief(self, world):
        medium = collect_dataset(world, "medium", 2, seed=0)
        slates = torch.from_numpy(medium.slates[:1].astype(np.int64))
        state = world.belief.step(
            slates, torch.from_numpy(medium.clicks[:1]), torch.from_numpy(medium.observations[:1])
        )
        np.testing.assert_allclose(medium.next_observations[:1], state.numpy(), atol=1e-5)

    def test_same_seed_same_bytes(self, world, tmp_path):
        for name in ("a", "b"):
            collect_dataset(world, "mixed", 5, seed=3).save(tmp_path / f"{name}.npz")
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        other = collect_dataset(world, "mixed", 5, seed=4)
        assert other.fingerprint != load_dataset(tmp_path / "a.npz").fingerprint

    def test_deterministic_takes_the_mean_action(self, world):
        logged = collect_dataset(world, "expert", 2, seed=0, deterministic=True)
        with torch.no_grad():
            mean = world.agents["expert"].act(torch.from_numpy(logged.observations))
        np.testing.assert_allclose(logged.actions, mean.numpy(), atol=1e-5)

    @pytest.mark.parametrize(
        ("quality", "episodes", "share"), [("best", 1, 0.5), ("expert", 0, 0.5), ("mixed", 1, 1.5)]
    )
    def test_impossible_requests(self, world, quality, episodes, share):
        with pytest.raises(ConfigError):
            collect_dataset(world, quality, episodes, 0, expert_share=share)


class TestFiles:
    def test_round_trip(self, dataset, dataset_file):
        loaded = load_dataset(dataset_file)
        assert loaded.fingerprint == dataset.fingerprint
        assert loaded.metadata == dataset.metadata
        for name in (*REQUIRED, "slates", "clicks"):
            original = getattr(dataset, name)
            assert getattr(loaded, name).dtype == original.dtype
            np.testing.assert_array_equal(getattr(loaded, name), original)

    def test_foreign_file_with_the_five_arrays(self, tmp_path):
        arrays = plain_arrays()
        arrays["observations"] = arrays["observations"].astype(np.float64)
        arrays["terminals"] = arrays["terminals"].astype(np.uint8)
        np.savez_compressed(tmp_path / "foreign.npz", timeouts=np.zeros(6), **arrays)
        loaded = load_dataset(tmp_path / "foreign.npz")
        assert loaded.metadata is None
        assert loaded.observations.dtype == np.float32
        assert loaded.terminals.dtype == bool
        center, scale = loaded.action_box()
        normalised = (loaded.actions - center) / scale
        assert np.abs(normalised).max() == pytest.approx(1, abs=1e-5)

    def test_other_layout_is_found(self, tmp_path):
        assert find_dataset("diffuse_mix", "expert", tmp_path) == tmp_path / "diffuse_mix_expert.npz"
        (tmp_path / "diffuse_mix").mkdir()
        (tmp_path / "diffuse_mix" / "expert_data_d4rl.npz").touch()
        assert find_dataset("diffuse_mix", "expert", tmp_path).name == "expert_data_d4rl.npz"

    @pytest.mark.parametrize("keep", [0, 10, 100, 5_000, 0.5, 0.99])
    def test_truncated(self, dataset_file, tmp_path, keep):
        content = dataset_file.read_bytes()
        (tmp_path / "cut.npz").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
        with pytest.raises(DatasetError):
            load_dataset(tmp_path / "cut.npz")

    @pytest.mark.parametrize("position", [0.2, 0.5, 0.8])
    def test_flipped_bytes(self, dataset_file, tmp_path, position):
        content = bytearray(dataset_file.read_bytes())
        start = int(position * len(content))
        content[start : start + 64] = bytes(255 - byte for byte in content[start : start + 64])
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DatasetError, match="damaged"):
            load_dataset(tmp_path / "bad.npz")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("rewards", np.array([1, 2, np.nan, 4, 5, 6], dtype=np.float32), "`rewards`: 1 values are NaN"),
            ("actions", np.full((6, 32), np.inf, dtype=np.float32), "`actions`: 192 values are NaN or infinite"),
            ("observations", np.zeros((6, 19), dtype=np.float32), r"`observations`: expected shape \(6, 20\)"),
            ("actions", np.zeros((5, 32), dtype=np.float32), r"`actions`: expected shape \(6, 32\), found \(5, 32\)"),
            ("rewards", np.zeros((6, 1), dtype=np.float32), r"`rewards`: expected shape \(6,\)"),
            ("rewards", np.array([0, 0, 1e39, 0, 0, 0]), "`rewards`: 1 values are NaN or infinite in float32"),
            ("rewards", np.full(6, 1e308), "`rewards`: 6 values are NaN or infinite in float32"),
            ("slates", np.full((6, 10), 1.7), "`slates`: expected whole numbers of int16"),
            ("slates", np.full((6, 10), 99_999), "`slates`: expected whole numbers of int16"),
            ("clicks", np.full((6, 10), 3), "`clicks`: expected 0 and 1 or bool"),
            ("terminals", np.full(6, 2), "expected 0 and 1"),
            ("rewards", np.array(["a"] * 6), "expected float32, found <U1"),
            ("observations", np.zeros((0, 20), dtype=np.float32), "no rows"),
            ("rewards", np.array([1, 2, 3, 4, 5, object()], dtype=object), "unpickled"),
            ("metadata", np.array("{"), "`metadata` is not readable"),
        ],
    )
    def test_wrong_content(self, tmp_path, name, value, message):
        path = tmp_path / "wrong.npz"
        np.savez(path, **(plain_arrays() | {name: value}))
        with pytest.raises(DatasetError, match=message) as caught:
            load_dataset(path)
        assert str(path) in str(caught.value)

    def test_missing_array_names_what_is_there(self, tmp_path):
        arrays = plain_arrays()
        del arrays["next_observations"]
        np.savez(tmp_path / "wrong.npz", **arrays)
        with pytest.raises(DatasetError, match=r"`next_observations` is missing.*found observations, actions"):
            load_dataset(tmp_path / "wrong.npz")

    def test_single_array_and_missing_file_and_folder(self, tmp_path):
        np.save(tmp_path / "one.npy", np.zeros(3))
        with pytest.raises(DatasetError, match="single array"):
            load_dataset(tmp_path / "one.npy")
        with pytest.raises(DatasetError, match="no such dataset"):
            load_dataset(tmp_path / "none.npz")
        (tmp_path / "table.npz").write_text("a,b\n1,2\n")
        with pytest.raises(DatasetError, match="table.npz: not an npz archive"):
            load_dataset(tmp_path / "table.npz")
        with pytest.raises(DatasetError, match="folder"):
            load_dataset(tmp_path)

    def test_archives_of_other_programs(self, tmp_path):
        content = b"no array"
        with zipfile.ZipFile(tmp_path / "plain.npz", "w") as file:
            file.writestr("rewards", content)
        with pytest.raises(DatasetError, match="`rewards` is not an array"):
            load_dataset(tmp_path / "plain.npz")
        archive = bytearray((tmp_path / "plain.npz").read_bytes())
        for start, offset in ((0, 8), (archive.index(b"PK\x01\x02"), 10)):  # the method, in both of its places
            archive[start + offset : start + offset + 2] = (97).to_bytes(2, "little")  # WavPack, which nobody reads
        (tmp_path / "rare.npz").write_bytes(archive)
        with pytest.raises(DatasetError, match="cannot be read: .*compression"):
            load_dataset(tmp_path / "rare.npz")

    def test_failed_write_leaves_the_old_file(self, dataset, dataset_file, tmp_path, monkeypatch):
        path = tmp_path / "kept.npz"
        path.write_bytes(dataset_file.read_bytes())

        def fail(*args, **kwargs):
            raise OSError("No space left on device")

        monkeypatch.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="No space"):
            dataset.save(path)
        assert path.read_bytes() == dataset_file.read_bytes()
        assert [entry.name for entry in tmp_path.iterdir()] == ["kept.npz"]

    def test_the_permissions_stay_and_what_a_link_leads_to(self, dataset, dataset_file, tmp_path):
        target, link = tmp_path / "target.npz", tmp_path / "link.npz"
        target.write_bytes(b"old")
        target.chmod(0o600)
        link.symlink_to("target.npz")
        dataset.save(link)
        assert not link.is_symlink()
        assert target.read_bytes() == b"old"
        dataset.save(target)
        assert target.read_bytes() == link.read_bytes() == dataset_file.read_bytes()
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert {entry.name for entry in tmp_path.iterdir()} == {"target.npz", "link.npz"}

    def test_permissions_of_a_new_file(self, dataset, tmp_path):
        before = os.umask(0o027)
        try:
            dataset.save(tmp_path / "new.npz")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "new.npz").stat().st_mode) == 0o640


class TestReplay:
    def test_normalised_units(self):
        arrays = plain_arrays(50)
        replay = buffer(arrays)
        batch = replay.rows(torch.arange(50))
        np.testing.assert_allclose(batch.states.mean(dim=0), 0, atol=1e-5)
        np.testing.assert_allclose(batch.states.numpy().std(axis=0), 1, atol=5e-3)
        np.testing.assert_allclose(batch.actions, (arrays["actions"] - 0.5) / 2, atol=1e-6)
        mean, std = state_statistics(arrays["observations"])
        np.testing.assert_allclose(batch.next_states, (arrays["next_observations"] - mean) / std, atol=1e-5)
        np.testing.assert_array_equal(batch.rewards[:, 0], arrays["rewards"])
        np.testing.assert_array_equal(batch.dones[:, 0], arrays["terminals"].astype(np.float32))

    def test_states_as_they_are(self):
        arrays = plain_arrays()
        np.testing.assert_array_equal(
            buffer(arrays, normalize_states=False).rows(torch.arange(6)).states, arrays["observations"]
        )

    @pytest.mark.parametrize("batches", [0, 1, 5, 64])
    def test_continues_at_any_position(self, batches):
        arrays = plain_arrays(500)
        first = buffer(arrays, seed=1)
        for _ in range(batches):
            first.sample(8)
        second = buffer(arrays, seed=2)
        second.load_state_dict(first.state_dict())
        for _ in range(10):
            for ours, theirs in zip(first.sample(8), second.sample(8), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)

    def test_read_only_arrays_are_shared_not_copied(self):
        arrays = plain_arrays(100)
        for array in arrays.values():
            array.flags.writeable = False
        replay = buffer(arrays)
        batch = replay.sample(16)
        assert all(torch.isfinite(column).all() for column in batch)
        assert replay._columns["observations"].data_ptr() == arrays["observations"].ctypes.data

    def test_rows_are_uniform(self):
        arrays = plain_arrays(10)
        arrays["rewards"] = np.arange(10, dtype=np.float32)
        rewards = torch.cat([buffer(arrays, seed=0).sample(20_000).rewards]).flatten()
        np.testing.assert_allclose(torch.bincount(rewards.long(), minlength=10) / 20_000, 0.1, atol=0.01)

    def test_runs_code_that_was_written_for_corl(self):
        arrays = {name: array.astype(np.float64) for name, array in plain_arrays(30).items()}
        replay = ReplayBuffer(20, 32, 1_000, "cpu")
        replay.load_d4rl_dataset(arrays | {"timeouts": np.zeros(30)})
        states, actions, rewards, next_states, dones = [column.to("cpu") for column in replay.sample(8)]
        assert [tuple(c.shape) for c in (states, actions, rewards, next_states, dones)] == [
            (8, 20),
            (8, 32),
            (8, 1),
            (8, 20),
            (8, 1),
        ]
        assert {column.dtype for column in (states, actions, rewards, next_states, dones)} == {torch.float32}
        batch = replay.rows(torch.arange(30))  # as it is: CORL's scripts normalise the dictionary themselves
        np.testing.assert_array_equal(batch.states, arrays["observations"].astype(np.float32))
        np.testing.assert_array_equal(batch.actions, arrays["actions"].astype(np.float32))
        with pytest.raises(DatasetError, match="holds a dataset already"):
            replay.load_d4rl_dataset(arrays)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rewards": None}, "`rewards` is missing"),
            ({"actions": np.zeros((30, 31))}, r"`actions`: expected \(30, 32\), found \(30, 31\)"),
            ({"next_observations": np.zeros((29, 20))}, "`next_observations`: expected"),
            ({"rewards": np.array(["a"] * 30)}, "`rewards`: expected numbers, found <U1"),
            ({"rewards": np.array([None] * 30)}, "`rewards`: expected numbers, found object"),
        ],
    )
    def test_wrong_dictionaries(self, change, message):
        arrays = {name: value for name, value in (plain_arrays(30) | change).items() if value is not None}
        with pytest.raises(DatasetError, match=message):
            ReplayBuffer(20, 32, 1_000).load_d4rl_dataset(arrays)

    @pytest.mark.parametrize(
        "convert",
        [
            lambda array: array[::-1].copy()[::-1],
            lambda array: array.astype(array.dtype.newbyteorder(">")),
            lambda array: array.astype(np.longdouble),
            lambda array: np.asfortranarray(array.astype(np.float16)),
            lambda array: (array * 9).astype(np.int64).astype(np.uint32) if array.ndim == 1 else array[..., None],
        ],
    )
    def test_any_numeric_type_and_layout(self, convert):
        arrays = {name: convert(array) for name, array in plain_arrays(30).items()}
        replay = ReplayBuffer(20, 32, 30, normalize_states=True)
        if arrays["actions"].ndim == 3:
            arrays["actions"] = arrays["actions"][..., 0]
        replay.load_d4rl_dataset(arrays)
        batch = replay.rows(torch.arange(30))
        np.testing.assert_allclose(batch.rewards[:, 0], arrays["rewards"].astype(np.float32))
        np.testing.assert_allclose(batch.actions, arrays["actions"].astype(np.float32))
        np.testing.assert_allclose(batch.states.mean(dim=0), 0, atol=1e-5)

    def test_too_many_transitions(self):
        with pytest.raises(DatasetError, match="30 transitions, the buffer takes 1 to 29"):
            ReplayBuffer(20, 32, 29).load_d4rl_dataset(plain_arrays(30))

    def test_reward_scales(self):
        arrays = plain_arrays(50)
        every = torch.arange(50)
        np.testing.assert_array_equal(buffer(arrays).rows(every).rewards[:, 0], arrays["rewards"])
        np.testing.assert_allclose(buffer(arrays, reward_scale=0.1).rows(every).rewards[:, 0], arrays["rewards"] * 0.1)
        scaled = buffer(arrays, reward_scale="std").rows(every).rewards.numpy()
        assert scaled.std() == pytest.approx(1, rel=1e-5)
        assert scaled.mean() == pytest.approx(arrays["rewards"].mean() / arrays["rewards"].std(), rel=1e-5)
        constant = arrays | {"rewards": np.full(50, 2, dtype=np.float32)}
        np.testing.assert_array_equal(buffer(constant, reward_scale="std").rows(every).rewards, 2)

    def test_bootstrapping_through_the_time_limit(self):
        arrays = plain_arrays()
        assert buffer(arrays).rows(torch.arange(6)).dones.sum() == 2
        assert buffer(arrays, bootstrap_time_limit=True).rows(torch.arange(6)).dones.sum() == 0

    def test_chosen_rows_alone_are_drawn_and_counted(self):
        arrays = plain_arrays(100)
        arrays["rewards"] = np.arange(100, dtype=np.float32)
        replay = ReplayBuffer(20, 32, 100, normalize_states=True)
        replay.load_d4rl_dataset(arrays, np.array([3, 70, 71]))
        assert set(replay.sample(200).rewards.flatten().tolist()) == {3, 70, 71}
        chosen = arrays["observations"][[3, 70, 71]]
        np.testing.assert_allclose(replay.normalizer.state_mean, chosen.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_check_dataset_takes_plain_dictionaries():
    assert len(check_dataset(plain_arrays(), "memory")) == 6
