"""Worlds from files of the original program's layout; the files are made here, in that layout."""

import pickle
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import torch

import gems_ray
from gems_ray import action_box
from gems_ray.data import metadata, schema
from gems_ray.errors import GemsRayError, SimulatorError, WorldError
from gems_ray.simulator.items import read_items
from gems_ray.world.belief import BELIEF_DIM
from gems_ray.world.pytorch_file import read_checkpoint
from gems_ray.world.ranker import LATENT_DIM
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
        with warnings.catch_warnings(), pytest.raises(GemsRayError) as caught:
            warnings.simplefilter("error")
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
        assert "asks for `tests.unit.test_import_world.Opaque`, which is neither a plain tensor" in text

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
        monkeypatch.setattr("gems_ray.world.pytorch_file.LARGEST", 5_000_000)
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

    @pytest.mark.parametrize("old", [False, True])
    @pytest.mark.parametrize(
        ("command", "name"),
        [
            (b"c__builtin__\nbytearray\n(J\x00\x00\x00\x7ftR", "__builtin__.bytearray"),
            (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1tR", "_codecs.encode"),
            (b"ctorch\nTensor\n(J\x00\x00\x00\x7ftR", "torch.Tensor"),
        ],
    )
    def test_memory_that_a_number_asks_for(self, files, tmp_path, command, name, old):
        """Refused before it is followed, in the archives of today and in the stream of old versions."""
        content = b"\x80\x02" + command + b"."
        if old:
            head = (pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
            (tmp_path / "large.ckpt").write_bytes(b"".join(head) + content + pickle.dumps([], 2))
        else:
            with zipfile.ZipFile(tmp_path / "large.ckpt", "w") as archive:
                archive.writestr("a/data.pkl", content)
                archive.writestr("a/version", "3")
        assert f"asks for `{name}`" in self.refused(files, tmp_path, gems=tmp_path / "large.ckpt")

    def test_a_checkpoint_of_an_old_version(self, files, world, tmp_path):
        data = torch.load(files["gems"], weights_only=True)
        torch.save(data, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
        state, _ = read_checkpoint(tmp_path / "old.ckpt")
        assert torch.equal(state["decoder.0.weight"], world.ranker.decoder[0].weight)
        (tmp_path / "old.ckpt").write_bytes((tmp_path / "old.ckpt").read_bytes()[:200])
        assert "old.ckpt: " in self.refused(files, tmp_path, gems=tmp_path / "old.ckpt")

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda x: x[:1, :1].expand(10**9, 20), "that stand for them many times"),
            (lambda x: x.to_sparse(), "_rebuild_sparse_tensor"),
            (lambda x: x.to_sparse_csr(), "_rebuild_sparse_tensor"),
            (lambda x: x.to("meta"), "_rebuild_meta_tensor"),
            (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "asks for `torch."),
            (lambda x: torch.nested.nested_tensor([x, x]), "_rebuild_nested_tensor"),
            (lambda x: x.to(torch.complex64), "strided complex64 on cpu"),
            (lambda x: x.to(torch.float8_e4m3fn), "float8_e4m3fn|asks for `torch"),
            (lambda x: x.double() * 0 + 1e300, "finite numbers in single precision, found 1e+300"),
            (lambda x: x * torch.nan, "finite numbers in single precision, found nan and 511 more"),
            (lambda x: x.int(), "expected numbers with a fraction, found int32 (16, 32)"),
        ],
    )
    def test_tensors_of_another_kind(self, files, tmp_path, make, message):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = make(torch.load(files["gems"], weights_only=True)["state_dict"]["decoder.0.weight"])
            path = changed(files["gems"], tmp_path / "kind.ckpt", **{"decoder.0.weight": value})
        text = self.refused(files, tmp_path, gems=path)
        assert any(part in text for part in message.split("|")), text

    def test_a_wrong_checksum(self, files, tmp_path):
        content = bytearray(files["gems"].read_bytes())
        content[content.find(b"data/0") + 400] ^= 0x55
        (tmp_path / "flipped.ckpt").write_bytes(content)
        assert "damaged or cut off (the checksum" in self.refused(files, tmp_path, gems=tmp_path / "flipped.ckpt")

    def test_warnings_of_the_reader_stay_away(self, files, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.ckpt")
        assert "asks for `__torch__." in self.refused(files, tmp_path, gems=tmp_path / "script.ckpt")
        (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"state_dict": {}}, 4))
        assert "not a readable PyTorch file" in self.refused(files, tmp_path, gems=tmp_path / "plain.ckpt")

    def test_layers_of_impossible_width(self, files, tmp_path):
        """The manifest would not take them."""
        wide = {"inference.0.weight": torch.zeros(10_001, 210), "inference.0.bias": torch.zeros(10_001)}
        path = changed(files["gems"], tmp_path / "wide.ckpt", **wide)
        assert "a ranker of impossible size (`encoder_sizes.0`: " in self.refused(files, tmp_path, gems=path)
        path = changed(files["agent"], tmp_path / "wide.ckpt", **{"PolicyNet.0.weight": torch.zeros(100_001, 20)})
        assert "a policy of impossible width (100,001)" in self.refused(files, tmp_path, agent=path)

    @pytest.mark.parametrize("value", [10**30, -5.0, 1e308, float("nan"), True, "x"])
    def test_impossible_loss_weights(self, files, tmp_path, value):
        data = torch.load(files["gems"], weights_only=True)
        data["hyper_parameters"]["lambda_click"] = value
        torch.save(data, tmp_path / "weight.ckpt")
        text = self.refused(files, tmp_path, gems=tmp_path / "weight.ckpt")
        assert "`hyper_parameters.lambda_click`: expected a number from 0 to 1,000,000, found `" in text

    def test_a_box_of_large_weights(self, files, tmp_path):
        state = torch.load(files["gems"], weights_only=True)["state_dict"]
        large = {key: 1e6 * value for key, value in state.items() if key.startswith("inference")}
        path = changed(files["gems"], tmp_path / "large.ckpt", **large)
        text = self.refused(files, tmp_path, gems=path, bounds=None, sessions=files["sessions"])
        assert "makes no action box of the sessions (`" in text

    @pytest.mark.parametrize(
        ("scale", "message"),
        [
            (np.full(32, 1e-30), "`scale`: expected numbers from 1e-06 to 1e+06, found 1e-30"),
            (np.full(32, 1e-6), "found 1e-06"),  # a little less in single precision, and so are its datasets
            (np.full(32, 1e-45), "found 1.401e-45"),
            (np.full(32, np.nan), "found nan"),
            (np.full(32, True), "`scale`: expected 32 numbers, found bool (32,)"),
            (np.full(32, "1"), "found <U1 (32,)"),
        ],
    )
    def test_what_is_wrong_with_a_box(self, files, tmp_path, scale, message):
        np.savez(tmp_path / "box.npz", center=np.zeros(32), scale=scale)
        assert message in self.refused(files, tmp_path, bounds=tmp_path / "box.npz")

    def test_what_is_wrong_with_sessions(self, files, tmp_path):
        slates, clicks = np.zeros((2, 5, 10), dtype=int), np.zeros((2, 5, 10), dtype=int)
        slates[1, 2, 3], clicks[0, 1, 2] = 1_000, 2
        for shown, message in (
            (slates, "items from 0 to 999, found 1000 in row 7, slot 3"),
            (0 * slates, "clicks from 0"),
        ):
            np.savez(tmp_path / "sessions.npz", slate=shown, clicks=clicks)
            assert message in self.refused(files, tmp_path, bounds=None, sessions=tmp_path / "sessions.npz")

    @pytest.mark.parametrize(
        ("items", "message"),
        [
            (b"hello world\n" * 5, "another format. Save it with numpy.save"),
            (("()", "(1000, 20)"), "not a plain .npy array"),
            (("'<U0'", "(1000000000000,)"), "items.npy: "),
            (("'<f4'", "(1000000000, 20)"), "items.npy: "),
            (np.full((1000, 20), 3e38, dtype=np.float32), "largest number is 1e-06 to 1e+06, found 3e+38"),
            (np.full((1000, 20), 1e39), "found 1e+39"),
            (np.zeros((1000, 20)), "found 0"),
            (np.zeros((1000, 20)) - 1e30, "found 1e+30"),
        ],
    )
    def test_items_that_are_none(self, files, tmp_path, items, message):
        path = tmp_path / "items.npy"
        if isinstance(items, tuple):
            items = npy_header(*items)
        if isinstance(items, bytes):
            path.write_bytes(items)
        else:
            np.save(path, items)
        text = self.refused(files, tmp_path, items=path)
        assert text.startswith(str(path))
        assert message in text
        assert "pickle" not in text


def npy_header(kind, shape):
    """The beginning of an .npy file, with some numbers."""
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(80_000)


def test_items_of_python_2(world, tmp_path):
    (tmp_path / "items.npy").write_bytes(npy_header("'<f4'", "(1000L, 20L)")[:-80_000] + world.items.tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_items(world.environment, tmp_path / "items.npy"), world.items)


def test_items_of_another_shape_are_not_read(world, tmp_path, monkeypatch):
    """Three gigabytes of them would be."""
    np.save(tmp_path / "items.npy", np.zeros((2000, 20), dtype=np.float32))
    monkeypatch.setattr(np, "array", None)
    with pytest.raises(SimulatorError, match=r"expected float item vectors of shape \(1000, 20\)"):
        read_items(world.environment, tmp_path / "items.npy")


def test_one_range_of_boxes():
    """A world may have no box that the metadata of its own datasets could not hold."""
    assert (action_box.SMALLEST_SCALE, action_box.LARGEST_SIDE) == (metadata.SMALLEST_SCALE, metadata.LARGEST_SIDE)
    assert (LATENT_DIM, BELIEF_DIM) == (schema.ACTION_DIM, schema.STATE_DIM)
