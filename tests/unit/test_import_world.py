"""Worlds from files of the original program's layout; the files are made here, in that layout."""

import shutil
import zipfile

import numpy as np
import pytest
import torch

import gems_ray
from gems_ray.errors import GemsRayError, WorldError
from gems_ray.worldmaking.collect import collect_dataset
from tests.conftest import make_world


def original_state(world, prefix=""):
    """The ranker's tensors under the names of the original program, which ours are too."""
    return {f"{prefix}{key}": value.clone() for key, value in world.ranker.state_dict().items()}


def agent_state(world):
    """An agent's checkpoint: the actor's and the critic's belief, five networks, the ranker twice."""
    agent = world.agents["expert"]
    state = {}
    for copy in ("actor", "critic"):
        state[f"belief.item_embeddings.{copy}.embedd.weight"] = agent.belief.item_embeddings.weight.clone()
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            state[f"belief.gru.{copy}.{name}"] = getattr(agent.belief.gru, name).clone()
    for name in ("QNet", "target_QNet", "QNet2", "target_QNet2"):
        state |= {f"{name}.0.weight": torch.zeros(256, 52), f"{name}.2.weight": torch.zeros(1, 256)}
    state |= {f"PolicyNet.{key}": value.clone() for key, value in agent.policy.state_dict().items()}
    return state | original_state(world, "ranker.") | original_state(world, "belief.ranker.")


def write_original(folder, world, name=None):
    """The files of the original program for a world."""
    name = name or world.environment.name
    folder.mkdir(parents=True, exist_ok=True)
    hyper = {"latent_dim": 32, "lambda_click": 0.5, "lambda_KL": 1.0, "lambda_prior": 0.0, "fixed_embedds": "scratch"}
    gems = {
        "state_dict": original_state(world),
        "hyper_parameters": hyper,
        "epoch": 3,
        "pytorch-lightning_version": "1",
    }
    torch.save(gems, folder / f"GeMS_{name}_latentdim32_seed1.ckpt")
    torch.save({"state_dict": agent_state(world), "epoch": 0}, folder / f"SAC+GeMS_GeMS_{name}_seed1_gamma0.8.ckpt")
    np.save(folder / "item_embeddings.npy", world.items)
    np.savez(folder / f"action_bounds_{name}.npz", center=world.bounds.center, scale=world.bounds.scale)
    sessions = collect_dataset(world, "random", 3, seed=0)
    slates, clicks = sessions.slates.reshape(3, 100, 10), sessions.clicks.reshape(3, 100, 10).astype(np.int8)
    np.savez(folder / f"logged_slates_{name}.npz", slate=slates, clicks=clicks)
    return {
        "gems": folder / f"GeMS_{name}_latentdim32_seed1.ckpt",
        "agent": folder / f"SAC+GeMS_GeMS_{name}_seed1_gamma0.8.ckpt",
        "items": folder / "item_embeddings.npy",
        "bounds": folder / f"action_bounds_{name}.npz",
        "sessions": folder / f"logged_slates_{name}.npz",
    }


@pytest.fixture(scope="module")
def files(world, tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("original"), world)


@pytest.fixture(autouse=True)
def few_users(monkeypatch):
    monkeypatch.setattr("gems_ray.worldmaking.world.TEST_USERS", 4)


def imported(files, output, environment="diffuse_mix", **changes):
    chosen = {name: files[name] for name in ("gems", "items", "agent", "bounds")} | changes
    given = {name: path for name, path in chosen.items() if path is not None}
    return gems_ray.import_world(environment, given.pop("gems"), given.pop("items"), output, **given)


def test_the_same_world_comes_out(files, world, tmp_path):
    result = imported(files, tmp_path / "w")
    beliefs, latents = torch.randn((6, 20)), torch.randn((50, 32))
    np.testing.assert_array_equal(result.ranker.decode(latents), world.ranker.decode(latents))
    assert torch.equal(result.agents["expert"].act(beliefs), world.agents["expert"].act(beliefs))
    np.testing.assert_array_equal(result.items, world.items)
    assert result.ranker.config.lambda_click == 0.5
    assert result.ranker.config.lambda_kl == 1.0
    assert result.environment.items == "file:item_embeddings.npy"
    assert gems_ray.load_world(tmp_path / "w").fingerprint == result.fingerprint
    assert set(result.facts["test"]) == {"users", "random", "oracle", "expert"}
    assert result.facts["imported"]["gems"]["file"] == files["gems"].name
    with pytest.raises(WorldError, match="finished world is here already"):
        imported(files, tmp_path / "w")


def test_where_the_files_lie_does_not_change_the_world(files, tmp_path):
    elsewhere = {name: shutil.copy(path, tmp_path) for name, path in files.items()}
    first, second = imported(files, tmp_path / "a"), imported(elsewhere, tmp_path / "b")
    assert first.fingerprint == second.fingerprint


def test_sessions_span_the_box(files, world, tmp_path):
    result = imported(files, tmp_path / "w", bounds=None, sessions=files["sessions"])
    with np.load(files["sessions"]) as arrays:
        slates, clicks = (torch.from_numpy(arrays[key].reshape(-1, 10).astype(np.int64)) for key in ("slate", "clicks"))
    expected = world.ranker.action_box(slates, clicks)
    np.testing.assert_array_equal(result.bounds.scale, expected.scale)
    np.testing.assert_array_equal(result.bounds.center, expected.center)


def test_the_simulator_logs_sessions_where_there_are_none(files, tmp_path, monkeypatch):
    monkeypatch.setattr("gems_ray.worldmaking.imported.BOUNDS_SESSIONS", 5)
    result = imported(files, tmp_path / "w", bounds=None)
    assert (result.bounds.scale > 0).all()


@pytest.mark.parametrize("source", ["checkpoint", "world"])
def test_a_ranker_with_the_belief_encoder_of_another(files, world, world_folder, tmp_path, source):
    belief = files["agent"] if source == "checkpoint" else world_folder
    result = imported(files, tmp_path / "w", agent=None, belief=belief)
    loaded = gems_ray.load_world(tmp_path / "w")
    assert loaded.fingerprint == result.fingerprint
    assert torch.equal(loaded.belief.gru.weight_ih_l0, world.belief.gru.weight_ih_l0)
    assert set(result.facts["test"]) == {"users", "random", "oracle"}
    assert len(collect_dataset(loaded, "random", 2, seed=0)) == 200
    with pytest.raises(WorldError, match="holds no behaviour agent.*--agent"):
        collect_dataset(loaded, "expert", 2, seed=0)


def test_a_ranker_alone_gets_an_agent_of_its_own(files, tmp_path):
    chosen = {"agent": None, "episodes": 100, "seed": 3}
    result = imported(files, tmp_path / "w", **chosen)
    assert result.belief is result.agents["expert"].belief
    assert result.facts["recipe"]["agent_training"]["episodes"] == 100
    assert not (tmp_path / "w" / "training").exists()


def changed(path, target, **changes):
    """A copy of a checkpoint with other tensors; None removes one."""
    data = torch.load(path, weights_only=True)
    state = {**data["state_dict"], **changes}
    data["state_dict"] = {key: value for key, value in state.items() if value is not None}
    torch.save(data, target)
    return target


class Opaque:
    """What only unpickling would give."""


class TestRefusals:
    def refused(self, files, tmp_path, **changes):
        with pytest.raises(GemsRayError) as caught:
            imported(files, tmp_path / "w", **changes)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "w").exists()
        return str(caught.value)

    def test_files_in_each_others_place(self, files, tmp_path):
        assert "found that of an agent. Give it as the agent" in self.refused(files, tmp_path, gems=files["agent"])
        assert "found that of a ranker. Give it as the ranker" in self.refused(files, tmp_path, agent=files["gems"])
        assert "`center` is missing" in self.refused(files, tmp_path, bounds=files["gems"])
        assert "`center` is missing" in self.refused(files, tmp_path, bounds=files["sessions"])
        assert "not a readable PyTorch file" in self.refused(files, tmp_path, gems=files["items"])
        assert "expected float item vectors" in self.refused(files, tmp_path, items=files["bounds"])

    def test_another_environment(self, files, tmp_path):
        text = self.refused(files, tmp_path, environment="focused_divpen")
        assert "its name says that it is of diffuse_mix, expected focused_divpen" in text

    def test_another_ranker(self, files, tmp_path):
        other = write_original(tmp_path / "other", make_world(seed=5))
        assert "was trained with another ranker: its `ranker." in self.refused(files, tmp_path, agent=other["agent"])

    def test_other_sizes(self, files, tmp_path):
        cut = changed(files["gems"], tmp_path / "cut.ckpt", **{"item_embeddings.weight": torch.zeros(900, 20)})
        assert "has 900 items, and diffuse_mix expects 1000" in self.refused(files, tmp_path, gems=cut)
        thin = changed(files["gems"], tmp_path / "thin.ckpt", **{"decoder.0.weight": torch.zeros(16, 16)})
        assert "has 16 numbers in a latent action, and" in self.refused(files, tmp_path, gems=thin)
        short = changed(files["gems"], tmp_path / "short.ckpt", **{"click_decoder.bias": torch.zeros(5)})
        assert "has 5 slots in a slate" in self.refused(files, tmp_path, gems=short)
        wide = changed(files["gems"], tmp_path / "wide.ckpt", **{"slate_decoder.bias": torch.zeros(100)})
        assert "checkpoint of another size" in self.refused(files, tmp_path, gems=wide)
        small = changed(
            files["agent"], tmp_path / "small.ckpt", **{"belief.gru.actor.weight_ih_l0": torch.zeros(30, 210)}
        )
        assert "an agent of another size" in self.refused(files, tmp_path, agent=small)
        np.save(tmp_path / "items.npy", np.zeros((900, 20), dtype=np.float32))
        assert "shape (1000, 20), found float32 (900, 20)" in self.refused(
            files, tmp_path, items=tmp_path / "items.npy"
        )

    @pytest.mark.parametrize("value", [None, torch.full((200,), torch.nan), torch.zeros(200, dtype=torch.int64)])
    def test_tensors_that_are_none(self, files, tmp_path, value):
        path = changed(files["gems"], tmp_path / "bad.ckpt", **{"slate_decoder.bias": value})
        assert "`slate_decoder.bias`" in self.refused(files, tmp_path, gems=path)

    def test_more_than_tensors(self, files, tmp_path):
        torch.save({"state_dict": {}, "hyper_parameters": Opaque()}, tmp_path / "code.ckpt")
        text = self.refused(files, tmp_path, gems=tmp_path / "code.ckpt")
        assert "asks for `tests.unit.test_import_world.Opaque`, which only unpickling gives" in text

    @pytest.mark.parametrize("data", [[1], {}, {"state_dict": 7}, {"state_dict": {}}, torch.zeros(3)])
    def test_other_contents(self, files, tmp_path, data):
        torch.save(data, tmp_path / "other.ckpt")
        assert self.refused(files, tmp_path, gems=tmp_path / "other.ckpt")

    @pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
    def test_cut_off(self, files, tmp_path, keep):
        content = files["gems"].read_bytes()
        (tmp_path / "cut.ckpt").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
        assert self.refused(files, tmp_path, gems=tmp_path / "cut.ckpt")

    def test_a_checkpoint_that_expands(self, files, tmp_path, monkeypatch):
        monkeypatch.setattr("gems_ray.world.original.LARGEST", 5_000_000)
        with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data/0", bytes(6_000_000))
        assert "expected at most 5,000,000 bytes, found 6,000," in self.refused(
            files, tmp_path, gems=tmp_path / "bomb.ckpt"
        )

    def test_links_and_folders(self, files, tmp_path):
        (tmp_path / "device.ckpt").symlink_to("/dev/zero")
        (tmp_path / "broken.ckpt").symlink_to(tmp_path / "gone")
        for path in (tmp_path / "device.ckpt", tmp_path / "broken.ckpt", tmp_path, tmp_path / "gone.ckpt"):
            assert self.refused(files, tmp_path, gems=path).startswith(str(path))
            assert self.refused(files, tmp_path, items=path).startswith(str(path))
            assert self.refused(files, tmp_path, bounds=path).startswith(str(path))

    @pytest.mark.parametrize(
        "sides",
        [
            {"center": np.zeros(32), "scale": np.zeros(32)},
            {"center": np.zeros(31), "scale": np.ones(31)},
            {"center": np.full(32, np.nan), "scale": np.ones(32)},
            {"center": np.full(32, 1e39), "scale": np.ones(32)},
            {"center": np.array("x"), "scale": np.ones(32)},
            {"scale": np.ones(32)},
        ],
    )
    def test_boxes_that_are_none(self, files, tmp_path, sides):
        np.savez(tmp_path / "box.npz", **sides)
        assert self.refused(files, tmp_path, bounds=tmp_path / "box.npz")

    @pytest.mark.parametrize(
        ("slate", "clicks"),
        [
            (np.full((2, 5, 10), 1_000), np.zeros((2, 5, 10), dtype=bool)),
            (np.full((2, 5, 10), -1), np.zeros((2, 5, 10), dtype=bool)),
            (np.zeros((2, 5, 10)), np.zeros((2, 5, 10), dtype=bool)),
            (np.zeros((2, 5, 10), dtype=int), np.full((2, 5, 10), 2)),
            (np.zeros((2, 5, 9), dtype=int), np.zeros((2, 5, 9), dtype=bool)),
            (np.zeros((0, 5, 10), dtype=int), np.zeros((0, 5, 10), dtype=bool)),
        ],
    )
    def test_sessions_that_are_none(self, files, tmp_path, slate, clicks):
        np.savez(tmp_path / "sessions.npz", slate=slate, clicks=clicks)
        assert self.refused(files, tmp_path, bounds=None, sessions=tmp_path / "sessions.npz")

    def test_two_sources_of_one_thing(self, files, tmp_path):
        assert "bounds and sessions: expected one" in self.refused(files, tmp_path, sessions=files["sessions"])
        assert "agent and belief: expected one" in self.refused(files, tmp_path, belief=files["agent"])
