"""Files of strangers: whatever is in them, the answer is the dataset or world, or one line of our own."""

import dataclasses
import io
import json
import os
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

import gems_ray
from gems_ray.data.metadata import ADVICE, read_metadata
from gems_ray.data.npz import load_dataset
from gems_ray.errors import DatasetError, GemsRayError, WorldError
from gems_ray.evaluation.belonging import check_world
from gems_ray.world.bundle import load_world
from tests.conftest import make_world
from tests.unit.test_data import plain_arrays


def with_metadata(dataset, path, **changes):
    """A copy of a collected file that says something else about itself; a change to ... leaves the field out."""
    facts = json.loads(dataset.metadata.model_dump_json(exclude_none=True)) | changes
    facts = {key: value for key, value in facts.items() if value is not ...}
    arrays = {**dataset.arrays, "slates": dataset.slates, "clicks": dataset.clicks}
    np.savez(path, **arrays, metadata=np.array(json.dumps(facts)))
    return path


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 1_000
    return text


class TestMetadata:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("action_scale", [1.0], "action_scale with 1 values, expected 32"),
            ("action_center", [1.0], "action_center with 1 values, expected 32"),
            ("action_scale", [-1e38] * 32, "action_scale with a value of 1e"),
            ("action_scale", [3.0] * 31 + [-1.0], "action_scale with a value of -1, expected 1e-06 or larger"),
            ("action_scale", [0.0] * 32, "action_scale with a value of 0"),
            ("action_scale", [1e-4] * 32, "actions exceed"),
            ("action_center", [1e39] * 32, "action_center with a value of 1e"),
            ("action_center", [], "action_center with 0 values"),
            ("episodes", 13, "episodes 13, expected the 12 of its arrays"),
            ("episodes", -1, "episodes -1"),
            ("behavior_return", 5000.0, "behavior_return 5000, expected the"),
            ("seed", -1, "seed -1"),
            ("expert_share", 1.5, "expert_share 1.5"),
            ("environment", "diffuse_mixx", "environment diffuse_mixx, expected one of .* Did you mean `diffuse_mix`"),
            ("environment", "a\nb", "environment a b, expected one of"),
            ("program_version", "v\n" * 200, "program_version v v "),
            ("quality", "", "quality"),
            ("world_fingerprint", "../../etc", "world_fingerprint"),
            ("world_fingerprint", "", "16 hexadecimal digits"),
            ("schema_version", 2, "schema version 2, this program reads 1"),
            ("schema_version", [[1]], "schema version"),
            ("colour", "red", "not readable at `colour`"),
            ("environment", 7, "not readable at `environment`"),
            ("environment", ..., "not readable at `environment`"),
            ("action_scale", ..., "not readable at `action_scale`"),
            ("world_fingerprint", ..., "not readable at `world_fingerprint`"),
        ],
    )
    def test_every_field_is_compared_with_the_arrays(self, dataset, tmp_path, field, value, message):
        path = with_metadata(dataset, tmp_path / "changed.npz", **{field: value})
        with pytest.raises(DatasetError, match=message) as caught:
            load_dataset(path)
        text = one_line(caught)
        assert text.startswith(str(path))
        assert "?." not in text
        assert text.endswith(ADVICE) or field == "schema_version"

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_json_in_any_field(self, dataset, data):
        field = data.draw(st.sampled_from(sorted(type(dataset.metadata).model_fields)))
        values = st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers(-(10**30), 10**30) | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
            max_leaves=5,
        )
        facts = json.loads(dataset.metadata.model_dump_json(exclude_none=True)) | {field: data.draw(values)}
        try:
            read_metadata(np.array(json.dumps(facts)), dataset.arrays, "here")
        except DatasetError as error:
            assert "\n" not in str(error)

    @pytest.mark.parametrize("text", ["[" * 100_000, "7", "null", '"text"', "{}", "NaN", "\ud800"])
    def test_text_that_is_no_metadata(self, tmp_path, text):
        np.savez(tmp_path / "bad.npz", **plain_arrays(), metadata=np.array(text))
        with pytest.raises(DatasetError, match="metadata") as caught:
            load_dataset(tmp_path / "bad.npz")
        assert one_line(caught).endswith(ADVICE)

    def test_characters_that_are_none(self, tmp_path):
        array = np.array([0x110000], dtype=np.uint32).view("<U1").reshape(())
        np.savez(tmp_path / "bad.npz", **plain_arrays(), metadata=array)
        with pytest.raises(DatasetError, match="`metadata` is not readable at `JSON`") as caught:
            load_dataset(tmp_path / "bad.npz")
        assert one_line(caught).endswith(ADVICE)

    @pytest.mark.parametrize("array", [np.zeros(3), np.array(["{}"]), np.array(b"{}"), np.array(True)])
    def test_metadata_is_one_text(self, tmp_path, array):
        np.savez(tmp_path / "bad.npz", **plain_arrays(), metadata=array)
        with pytest.raises(DatasetError, match="`metadata` is not readable") as caught:
            load_dataset(tmp_path / "bad.npz")
        assert one_line(caught).endswith(ADVICE)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("environment", "diffuse_topdown", "says environment diffuse_topdown, but world .* simulates diffuse_mix"),
            ("action_scale", [4.0] * 32, "another action_scale than the action box"),
            ("action_center", [0.5] * 32, "another action_center than the action box"),
        ],
    )
    def test_every_field_is_compared_with_the_world(self, dataset, world, tmp_path, field, value, message):
        changed = load_dataset(with_metadata(dataset, tmp_path / "changed.npz", **{field: value}))
        with pytest.raises(WorldError, match=message) as caught:
            check_world(changed, world)
        one_line(caught)
        with pytest.raises(WorldError, match=message):
            gems_ray.Trainer(changed, "bc", world=world)

    def test_metadata_of_another_world_altogether(self, dataset, tmp_path):
        """All fields are those of the other world, so that only the transitions betray it."""
        other = make_world("diffuse_topdown", seed=1)
        facts = {
            "environment": "diffuse_topdown",
            "world_fingerprint": other.fingerprint,
            "action_center": other.bounds.center.tolist(),
            "action_scale": other.bounds.scale.tolist(),
        }
        changed = load_dataset(with_metadata(dataset, tmp_path / "changed.npz", **facts))
        with pytest.raises(WorldError, match="cannot have happened in it"):
            check_world(changed, other)

    def test_items_that_the_world_does_not_have(self, dataset, world):
        slates = dataset.slates.copy()
        slates[7, 3] = 1_000
        with pytest.raises(DatasetError, match="`slates`: expected items 0 to 999, found 0 to 1000|found .* to 1000"):
            check_world(dataclasses.replace(dataset, slates=slates), world)

    def test_collected_files_keep_their_bytes(self, dataset):
        """Fields that only attached files have are not in the others."""
        written = json.loads(dataset.metadata.model_dump_json(exclude_none=True))
        assert "attached" not in written
        assert written["seed"] == 0


def npz(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members with one name
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(shape, descr="<f4"):
    return header_text(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}")


def header_text(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def members(**changes):
    return [(f"{name}.npy", npy(array)) for name, array in plain_arrays().items() if name not in changes] + [
        (f"{name}.npy", content) for name, content in changes.items()
    ]


class TestArchives:
    @pytest.mark.parametrize("shape", [(10**12, 20), (10**30,), (6, 20, 0), (2**63, 2**63), (3, 20), ()])
    def test_headers_that_promise_what_is_not_there(self, tmp_path, shape):
        path = npz(tmp_path / "lies.npz", members(observations=header(shape) + b"\0" * 480))
        with pytest.raises(DatasetError, match="`observations` promises .* bytes, .* and has 480") as caught:
            load_dataset(path)
        assert "batch_size" not in one_line(caught)

    @pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00" + b" " * 64])
    def test_headers_that_are_none(self, tmp_path, content):
        with pytest.raises(DatasetError) as caught:
            load_dataset(npz(tmp_path / "none.npz", members(actions=content)))
        one_line(caught)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        text=st.text(max_size=80) | st.from_regex(r"\{'descr': '<f\d', 'fortran_order': \w+, 'shape': \(\d*,\d*\)\}")
    )
    def test_any_header(self, tmp_path, text):
        written = text.encode("utf-8", "surrogatepass")
        content = b"\x93NUMPY\x01\x00" + len(written).to_bytes(2, "little") + written + b"\0" * 40
        with pytest.raises(GemsRayError) as caught:
            load_dataset(npz(tmp_path / "any.npz", members(rewards=content)))
        one_line(caught)

    @pytest.mark.parametrize(
        "content",
        [
            header((6,), ()),
            header((6,), ("<f4",)),
            header((True,)) + b"\0" * 4,
            header_text("-" * 9_000 + "1"),
            header_text("1**" * 3_000 + "1"),
            header((10**12, 20), "<U0"),
            header((10**12,), "|V0"),
            header_text("{'descr': '\\d'}"),  # of which Python warns
        ],
        ids=["no dtype", "half a dtype", "a truth as a size", "deep", "powers", "no letters", "no bytes", "warning"],
    )
    def test_headers_that_numpy_stumbles_over(self, tmp_path, content):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(
                DatasetError, match="`rewards` (has no readable header|is not an array of plain)"
            ) as caught:
                load_dataset(npz(tmp_path / "odd.npz", members(rewards=content)))
        assert "()" not in one_line(caught), "the reason is told"

    def test_a_long_header_is_not_read(self, tmp_path, monkeypatch):
        """Two of its four gigabytes would be blanks that take the archive two megabytes."""
        content = b"\x93NUMPY\x02\x00" + (2 * 10**9).to_bytes(4, "little") + b" " * 1_000_000
        path, read = npz(tmp_path / "long.npz", members(rewards=content), zipfile.ZIP_DEFLATED), []
        original = zipfile.ZipExtFile.read
        monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda file, n=-1: read.append(n) or original(file, n))
        with pytest.raises(
            DatasetError, match="`rewards` has a header of 2,000,000,000 bytes, expected at most 10,000"
        ):
            load_dataset(path)
        assert max(read) <= 10_000

    def test_headers_of_python_2(self, tmp_path):
        rewards = np.arange(6, dtype=np.float32)
        text = "{'descr': '<f4', 'fortran_order': False, 'shape': (6L,), }\n"
        path = npz(tmp_path / "old.npz", members(rewards=header_text(text) + rewards.tobytes()))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(load_dataset(path).rewards, rewards)

    @pytest.mark.parametrize("name", ["rewards", "other"])
    def test_bombs_in_any_member(self, tmp_path, name):
        path = npz(tmp_path / "bomb.npz", members(**{name: bytes(100_000_001)}), zipfile.ZIP_DEFLATED)
        with pytest.raises(DatasetError, match="expand to 100,0.*, as no logged numbers do"):
            load_dataset(path)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_every_compression_and_its_damage(self, tmp_path, method):
        path = npz(tmp_path / "packed.npz", members(), method)
        assert len(load_dataset(path)) == 6
        content = bytearray(path.read_bytes())
        start = content.index(b"actions.npy") + 60
        content[start : start + 400] = b"\xff" * 400
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="`actions`: damaged or cut off") as caught:
            load_dataset(path)
        one_line(caught)

    def test_a_bomb_is_not_unpacked(self, tmp_path):
        rows = 1_500_000
        path = tmp_path / "bomb.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("observations.npy", "w", force_zip64=True) as file:
                file.write(header((rows, 20)))
                for _ in range(rows * 80 // 6_000_000):
                    file.write(bytes(6_000_000))
            for name, content in members(observations=b"")[:-1]:
                archive.writestr(name, content)
        with pytest.raises(DatasetError, match="expand to 120,0.*, as no logged numbers do"):
            load_dataset(path)

    def test_more_than_the_memory_holds(self, tmp_path, dataset_file, monkeypatch):
        class Memory:
            available = 100_000

        monkeypatch.setattr("psutil.virtual_memory", Memory)
        with pytest.raises(DatasetError, match="GB of memory, and 0.0 GB are free"):
            load_dataset(dataset_file)

    def test_names_that_lead_out_of_the_archive(self, tmp_path):
        (tmp_path / "inside").mkdir()
        names = ["../../evil.npy", "/etc/evil.npy", "a/../../evil", "..", "\x1b[31mred.npy"]
        path = npz(tmp_path / "inside" / "names.npz", [*members(), *((name, npy(np.zeros(3))) for name in names)])
        assert len(load_dataset(path)) == 6
        assert [entry.name for entry in tmp_path.rglob("*")] == ["inside", "names.npz"]
        with pytest.raises(DatasetError, match="`observations` is missing"):
            load_dataset(npz(tmp_path / "only.npz", [("../observations.npy", npy(np.zeros((6, 20))))]))

    def test_the_same_name_twice(self, tmp_path):
        path = npz(tmp_path / "twice.npz", [*members(), ("rewards.npy", npy(np.zeros(6)))])
        with pytest.raises(DatasetError, match="`rewards` stands in the archive twice"):
            load_dataset(path)

    def test_very_many_members(self, tmp_path):
        path = npz(tmp_path / "many.npz", [(f"a{index}.npy", b"") for index in range(1_001)])
        with pytest.raises(DatasetError, match="at most 1000 arrays, found 1,001"):
            load_dataset(path)

    def test_links(self, tmp_path, dataset_file):
        (tmp_path / "good.npz").symlink_to(dataset_file)
        assert len(load_dataset(tmp_path / "good.npz")) == 1200
        targets = {"broken": tmp_path / "gone", "circle": tmp_path / "circle.npz", "device": "/dev/zero"}
        for name, target in {**targets, "folder": tmp_path}.items():
            (tmp_path / f"{name}.npz").symlink_to(target)
            with pytest.raises(DatasetError, match=f"{name}.npz: ") as caught:
                load_dataset(tmp_path / f"{name}.npz")
            one_line(caught)
        os.mkfifo(tmp_path / "pipe.npz")
        with pytest.raises(DatasetError, match="a device or a pipe"):
            load_dataset(tmp_path / "pipe.npz")

    @pytest.mark.parametrize("name", ["actions", "observations", "rewards"])
    def test_values_near_the_end_of_float32(self, tmp_path, name):
        arrays = plain_arrays()
        arrays[name] = np.full_like(arrays[name], 3e38)
        np.savez(tmp_path / "large.npz", **arrays)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DatasetError, match=f"`{name}`: expected values up to 1,000,000, found 3e"):
                load_dataset(tmp_path / "large.npz")

    @pytest.mark.parametrize("values", [np.array([np.inf, -np.inf], np.float32), np.array([1e300, -1e300])])
    def test_infinities_of_both_signs(self, tmp_path, values):
        np.savez(tmp_path / "infinite.npz", **plain_arrays() | {"rewards": np.tile(values, 3)})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DatasetError, match="`rewards`: 6 values are NaN or infinite"):
                load_dataset(tmp_path / "infinite.npz")


def keys_of(data, before=()):
    for key, value in data.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*before, key))


class TestManifests:
    def manifest(self, folder):
        return YAML(typ="safe").load((folder / "manifest.yaml").read_text())

    def write(self, folder, data):
        with (folder / "manifest.yaml").open("w") as file:
            YAML(typ="safe").dump(data, file)

    @pytest.fixture
    def bundle(self, world, tmp_path):
        """A copy of the world whose facts have a level of their own."""
        copy = dataclasses.replace(world, facts={"test": {"users": 3}})
        copy.save(tmp_path / "bundle")
        return tmp_path / "bundle"

    def test_without_any_of_its_keys(self, bundle):
        whole = self.manifest(bundle)
        for key in keys_of(whole):
            if len(key) > 1 and key[-1] > "e":  # the others are read in the same way
                continue
            data = json.loads(json.dumps(whole))
            owner = data
            for part in key[:-1]:
                owner = owner[part]
            del owner[key[-1]]
            self.write(bundle, data)
            try:  # a default value may stand in for a missing one, and then it is the same world
                assert load_world(bundle).fingerprint == whole["fingerprint"]
            except WorldError as error:
                assert "\n" not in str(error)
                assert str(error).startswith(str(bundle))
                assert key[0] != "facts" or len(key) == 1
        for key in ("fingerprint", "environment", "ranker", "agents", "facts"):
            assert f"`{key}` is missing" in self.refused(bundle, whole, key, ...)

    def refused(self, bundle, data, key, value):
        data = {**data, key: value} if value is not ... else {name: v for name, v in data.items() if name != key}
        self.write(bundle, data)
        with pytest.raises(WorldError) as caught:
            load_world(bundle)
        return one_line(caught)

    @pytest.mark.parametrize("value", [None, 7, "x", [], [[]], {"a": 1}, {"expert": {"hidden_size": 10**12}}, 1e300])
    def test_any_value_in_any_section(self, bundle, value):
        whole = self.manifest(bundle)
        for key in whole:
            if key == "facts" and isinstance(value, dict):
                continue
            if key == "agent_sizes" and value == {"a": 1}:
                continue
            assert self.refused(bundle, whole, key, value)

    @pytest.mark.parametrize(
        ("section", "key", "value"),
        [
            ("environment", "num_items", 10**12),
            ("environment", "num_items", "many"),
            ("environment", "name", None),
            ("ranker", "num_items", 10**15),
            ("ranker", "latent_dim", -1),
            ("ranker", "encoder_sizes", [10**9, 10**9]),
            ("ranker", "decoder_sizes", []),
            ("ranker", "lambda_kl", "x"),
            ("ranker", "noise_scale", "loud"),
            ("ranker", "encoder_sizes", [1] * 20_000),
        ],
    )
    def test_sizes_that_no_weights_have(self, bundle, section, key, value):
        whole = self.manifest(bundle)
        assert self.refused(bundle, whole, section, {**whole[section], key: value})

    def test_files_that_are_none(self, bundle, tmp_path):
        for name in ("manifest.yaml", "weights.safetensors"):
            kept = (bundle / name).read_bytes()
            for target in (tmp_path / "gone", "/dev/zero", bundle, bundle / name):
                (bundle / name).unlink()
                (bundle / name).symlink_to(target)
                with pytest.raises(WorldError, match=r"no file|no manifest") as caught:
                    gems_ray.load_world(bundle)
                one_line(caught)
            (bundle / name).unlink()
            (bundle / name).write_bytes(kept)
        assert gems_ray.load_world(bundle).facts == {"test": {"users": 3}}
