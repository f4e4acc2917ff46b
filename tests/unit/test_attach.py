"""What is said of foreign files, and which world they are bound to."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

import gems_ray
from gems_ray.data.npz import load_dataset
from gems_ray.data.report import histogram, inspect_dataset, quality_of
from gems_ray.data.schema import REQUIRED, Attachment
from gems_ray.errors import DatasetError, WorldError
from gems_ray.evaluation.examine import Belonging, examine
from gems_ray.evaluation.replay import explain
from gems_ray.evaluation.watching import watch
from gems_ray.execution.listener import RunListener
from gems_ray.execution.sources import open_source
from gems_ray.experiments.check import check_experiment
from gems_ray.simulator import environment
from gems_ray.simulator.items import draw_items
from gems_ray.world.bundle import find_world
from gems_ray.worldmaking.collect import collect_dataset
from tests.conftest import make_world
from tests.unit.test_data import plain_arrays


@pytest.fixture(scope="module")
def mix():
    """A trained world: users click enough to be told apart."""
    return find_world("diffuse_mix")


@pytest.fixture(scope="module")
def logged(mix):
    return collect_dataset(mix, "expert", 12, seed=3)


def foreign(dataset, **changes):
    """The five published arrays alone."""
    return dataclasses.replace(dataset, slates=None, clicks=None, metadata=None, **changes)


# Byte of the local header, and of the one in the list at the end, and what is written there.
DAMAGES = {
    "encryption": ((6, 1), (8, 1)),
    "method": ((8, 97), (10, 97)),
    "content": ((30 + len("odd.npy") + 5, 0), None),
    "packing": ((30 + len("odd.npy") + 12, 255), None),
    "header": ((0, 0), None),
}


class TestReplay:
    def test_the_clicks_are_found_without_being_in_the_file(self, mix, logged):
        rows = np.arange(0, 1200, 5)
        found = explain(mix, foreign(logged), rows)
        np.testing.assert_array_equal(found.slates, logged.slates[rows])
        np.testing.assert_array_equal(found.clicks, logged.clicks[rows])
        assert found.errors.max() < 1e-5

    def test_and_for_no_other_action_at_all(self, mix, logged):
        found = explain(mix, foreign(logged, actions=logged.actions[::-1].copy()), np.arange(0, 1200, 40))
        assert found.explained.mean() < 0.1

    def test_rewards_that_are_no_numbers_of_clicks_do_not_mislead(self, mix, logged):
        rows = np.arange(0, 200, 10)
        found = explain(mix, foreign(logged, rewards=logged.rewards * 0.1 + 0.05), rows)
        np.testing.assert_array_equal(found.clicks, logged.clicks[rows])

    def test_watching_expects_what_the_right_click_model_shows(self, mix, logged):
        history = np.concatenate([np.zeros((12, 1, 10), dtype=np.int64), logged.slates.reshape(12, 100, 10)], axis=1)
        clicks = np.concatenate([np.zeros((12, 1, 10), dtype=bool), logged.clicks.reshape(12, 100, 10)], axis=1)
        active = np.ones((12, 100), dtype=bool)
        found = watch(mix.environment, mix.items, history, clicks, active, np.random.default_rng(0))
        assert abs(found.surprise) < 6
        assert found.slots > 5_000
        other = watch(environment("diffuse_topdown"), mix.items, history, clicks, active, np.random.default_rng(0))
        assert other.log_likelihood < found.log_likelihood - 100


class TestExamine:
    def test_its_own_world(self, mix, logged):
        found = examine(foreign(logged), mix)
        assert found.refusal is None
        assert (found.facts.explained, found.facts.episodes) == (found.facts.transitions, 12)
        assert any("explained by ranker and belief encoder" in line for line in found.lines())
        assert any("of the file came from elsewhere, 99%" in line for line in found.lines())

    def test_with_slates_and_clicks_too(self, mix, logged):
        whole = dataclasses.replace(logged, metadata=None)
        assert examine(whole, mix).refusal is None
        clicks = np.roll(logged.clicks, 1, axis=1)
        assert "the clicks of" in examine(dataclasses.replace(whole, clicks=clicks), mix).refusal
        slates = np.roll(logged.slates, 1, axis=0)
        assert "the slates of" in examine(dataclasses.replace(whole, slates=slates), mix).refusal

    def test_another_ranker(self, mix, logged):
        other = dataclasses.replace(mix, ranker=find_world("diffuse_divpen").ranker)
        assert "cannot have happened" in examine(foreign(collect_dataset(other, "random", 5, seed=0)), mix).refusal

    def test_shuffled_actions(self, mix, logged):
        order = np.random.default_rng(0).permutation(len(logged))
        assert "cannot have happened" in examine(foreign(logged, actions=logged.actions[order]), mix).refusal

    def test_a_few_shuffled_actions(self, mix, logged):
        actions = logged.actions.copy()
        actions[300:320] = actions[320:340]
        assert "cannot have happened" in examine(foreign(logged, actions=actions), mix).refusal

    def test_another_item_table(self, mix):
        other = dataclasses.replace(mix, items=draw_items(mix.environment, np.random.default_rng(5)))
        found = examine(foreign(collect_dataset(other, "expert", 5, seed=0)), mix)
        assert "do not follow from the first slate" in found.refusal

    def test_another_environment_with_the_same_ranker_and_items(self, mix):
        other = dataclasses.replace(mix, environment=environment("diffuse_topdown"))
        found = examine(foreign(collect_dataset(other, "expert", 12, seed=0)), mix)
        assert "the users click as in diffuse_topdown" in found.refusal

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d, w: {"actions": w.bounds.normalise(d.actions)}, "Its actions are normalised"),
            (lambda d, w: {"actions": d.actions * 3}, "times as far as the action box"),
            (lambda d, w: {"observations": d.observations * 9}, "They may have been normalised"),
            (lambda d, w: {"rewards": d.rewards / 10}, "not the number of clicks"),
            (lambda d, w: {"terminals": np.zeros_like(d.terminals)}, "an episode has 1,200 steps"),
            (lambda d, w: {"terminals": np.roll(d.terminals, 1)}, "do not begin at the start"),
        ],
    )
    def test_what_else_may_be_wrong(self, mix, logged, change, message):
        found = examine(foreign(logged, **change(logged, mix)), mix)
        assert message in found.refusal
        assert "\n" not in found.refusal

    def test_where_the_clicks_are_too_few(self, world):
        few = foreign(collect_dataset(world, "random", 1, seed=0))
        assert any("not tested" in line or "Not sure" in line for line in examine(few, world).lines())


class TestAttach:
    @pytest.fixture
    def file(self, logged, tmp_path):
        (tmp_path / "diffuse_mix").mkdir()
        path = tmp_path / "diffuse_mix" / "expert_data_d4rl.npz"
        np.savez_compressed(path, **logged.arrays, infos=np.arange(3))
        return path

    def test_the_file_is_bound_and_nothing_in_it_is_lost(self, file, mix, logged):
        found = gems_ray.attach_dataset(file, "diffuse_mix")
        assert found.refusal is None
        bound = load_dataset(file)
        assert bound.fingerprint == logged.fingerprint
        assert bound.metadata.world_fingerprint == mix.fingerprint
        assert bound.metadata.attached == found.facts
        assert (bound.metadata.quality, bound.metadata.episodes, bound.metadata.seed) == ("expert", 12, None)
        with np.load(file) as arrays:
            np.testing.assert_array_equal(arrays["infos"], np.arange(3))
        with pytest.raises(DatasetError, match="bound to world .* already. There is nothing to do"):
            gems_ray.attach_dataset(file, mix)
        with pytest.raises(DatasetError, match=r"is bound to world .* \(diffuse_mix\) already"):
            gems_ray.attach_dataset(file, make_world())

    def test_a_run_takes_it_for_a_collected_one(self, file, mix):
        experiment = {"environment": "diffuse_mix", "dataset": {"folder": str(file.parents[1]), "episodes": 12}}
        refused = check_experiment(experiment | {"worlds": {"diffuse_mix": "diffuse_mix"}})
        with pytest.raises(DatasetError, match="dataset attach .*expert_data_d4rl.npz --world diffuse_mix"):
            open_source(refused, "diffuse_mix", RunListener())
        gems_ray.attach_dataset(file, mix)
        assert open_source(refused, "diffuse_mix", RunListener()).world.fingerprint == mix.fingerprint
        assert open_source(check_experiment(experiment), "diffuse_mix", RunListener()).world is not None

    def test_another_file_is_written_where_one_is_named(self, file, mix):
        before = file.read_bytes()
        gems_ray.attach_dataset(file, mix, quality="mine", output=file.parent / "bound.npz")
        assert file.read_bytes() == before
        assert load_dataset(file.parent / "bound.npz").metadata.quality == "mine"

    def test_a_link_stays_a_link(self, file, mix, untested):
        link = file.parent / "link.npz"
        link.symlink_to(file.name)
        gems_ray.attach_dataset(link, mix)
        assert link.is_symlink()
        assert load_dataset(file).metadata.world_fingerprint == mix.fingerprint

    @pytest.fixture
    def untested(self, monkeypatch):
        """Every file belongs to every world."""
        counts = dict.fromkeys(("transitions", "explained", "episodes", "watched_slots"), 0)
        found = Belonging("a world", None, Attachment(**counts, surprise=0.0, nearest_rival="none", log_odds=0.0))
        monkeypatch.setattr("gems_ray.evaluation.attach.examine", lambda *_: found)

    @pytest.mark.parametrize("method", [*DAMAGES])
    def test_damage_in_an_array_that_nobody_reads(self, file, mix, untested, method):
        with zipfile.ZipFile(file, "a") as archive:
            packing = zipfile.ZIP_LZMA if method == "packing" else zipfile.ZIP_STORED
            archive.writestr("odd.npy", b"x" * 1_000, packing)
        content = bytearray(file.read_bytes())
        local, central = content.index(b"odd.npy") - 30, content.rindex(b"odd.npy") - 46
        for start, byte in zip((local, central), DAMAGES[method], strict=True):
            if byte is not None:
                content[start + byte[0]] = byte[1]
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=r"expert_data_d4rl.npz: `odd.npy`: (cannot be read|damaged)") as caught:
            gems_ray.attach_dataset(file, mix)
        assert "\n" not in str(caught.value)
        assert file.read_bytes() == content
        assert [entry.name for entry in file.parent.iterdir()] == [file.name]

    def test_a_full_disk_is_not_taken_for_damage(self, file, mix, untested, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("zipfile._ZipWriteFile.write", full)
        with pytest.raises(OSError, match="No space left"):
            gems_ray.attach_dataset(file, mix)
        assert [entry.name for entry in file.parent.iterdir()] == [file.name]

    def test_a_place_that_cannot_be_written_is_refused_before_the_work(self, file, command_line, monkeypatch):
        monkeypatch.setattr("gems_ray.api.attach_dataset", None)
        code, _, error = command_line("dataset", "attach", file, "--world", "diffuse_mix", "--output", file.parent)
        assert (code, error.count("\n")) == (2, 1)
        assert error.startswith("error: --output: expected a file to write, found the folder")

    def test_a_refused_file_stays_as_it_is(self, file):
        before = file.read_bytes()
        with pytest.raises(WorldError, match=r"expert_data_d4rl.npz: does not belong to world .* \(diffuse_divpen\)"):
            gems_ray.attach_dataset(file, "diffuse_divpen")
        assert file.read_bytes() == before
        assert [entry.name for entry in file.parent.iterdir()] == [file.name]


class TestReport:
    def test_a_collected_file(self, dataset_file, dataset):
        report = inspect_dataset(dataset_file)
        text = "\n".join(report.lines())
        assert report.problems == ()
        assert "a dataset that names its world" in report.layout
        assert (report.environment, report.quality) == ("diffuse_mix", "mixed")
        assert "observations: (1200, 20) float32" in text
        assert "transitions: 1,200 in 12 episodes of 100 to 100 steps" in text
        assert "all inside the action box" in text
        assert "duplicates: 0 transitions and 0 whole episodes" in text
        assert "every observation is the next observation of the step before" in text
        np.testing.assert_allclose(report.returns, dataset.rewards.reshape(12, 100).sum(axis=1))
        assert "returns, scores and tables" in text

    def test_layouts_in_circulation(self, tmp_path):
        arrays = plain_arrays()
        (tmp_path / "diffuse_topdown").mkdir()
        places = {
            "diffuse_topdown_expert.npz": ("diffuse_topdown", "expert"),
            "diffuse_topdown/random_data_d4rl.npz": ("diffuse_topdown", "random"),
            "focused_mix_medium_replay.npz": ("focused_mix", "medium_replay"),
            "mine.npz": (None, None),
        }
        for place, expected in places.items():
            np.savez(tmp_path / place, **arrays)
            report = inspect_dataset(tmp_path / place)
            assert "the five published arrays" in report.layout
            assert (report.environment, report.quality) == expected
            assert any("dataset attach" in line for line in report.impossible)
        assert quality_of(tmp_path / "mine.npz") == "foreign"
        np.savez(tmp_path / "mine.npz", **arrays, timeouts=np.zeros(6))
        assert "D4RL's arrays with `timeouts`" in inspect_dataset(tmp_path / "mine.npz").layout

    def test_minari_and_hdf5(self, tmp_path):
        data = tmp_path / "name" / "data"
        data.mkdir(parents=True)
        (data / "metadata.json").write_text(json.dumps({"dataset_id": "gems/mix-v0", "total_episodes": 7}))
        (data / "main_data.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
        for place in (tmp_path / "name", data):
            report = inspect_dataset(place)
            assert report.layout == "a dataset of Minari"
            assert "total_episodes: 7" in report.figures
            assert "dataset import" in report.problems[0]
        file = inspect_dataset(data / "main_data.hdf5")
        assert (file.layout, bool(file.problems)) == ("an HDF5 file of Minari", True)
        (data / "metadata.json").write_text("[")
        with pytest.raises(DatasetError, match="not readable as the facts of a Minari dataset"):
            inspect_dataset(data)
        with pytest.raises(DatasetError, match="another folder"):
            inspect_dataset(tmp_path)

    def test_names_of_arrays_do_not_break_lines(self, tmp_path):
        np.savez(tmp_path / "odd.npz", **plain_arrays(), **{"a\nb": np.zeros(1), "c" * 5_000: np.zeros(1)})
        lines = inspect_dataset(tmp_path / "odd.npz").lines()
        assert "  a b: not read" in lines
        assert max(map(len, lines)) < 500
        assert not any("\n" in line for line in lines)

    def test_every_problem_is_named(self, tmp_path):
        arrays = plain_arrays()
        del arrays["terminals"]
        arrays["rewards"] = np.full(6, np.nan)
        arrays["actions"] = np.zeros((6, 31))
        np.savez(tmp_path / "bad.npz", **arrays)
        problems = "\n".join(inspect_dataset(tmp_path / "bad.npz").problems)
        assert "`terminals` is missing" in problems
        assert "`rewards`: 6 values are NaN" in problems
        assert "`actions`: expected shape (6, 32), found (6, 31)" in problems
        np.savez(tmp_path / "none.npz", **{name: np.zeros(0) for name in REQUIRED})
        assert "there are no rows." in inspect_dataset(tmp_path / "none.npz").problems

    def test_duplicates_gaps_and_normalised_actions(self, tmp_path, dataset):
        arrays = {name: np.concatenate([array[:300], array[100:200]]) for name, array in dataset.arrays.items()}
        arrays["observations"][[5, 6]] = arrays["observations"][[6, 5]]
        arrays["actions"] = arrays["actions"] / 10
        np.savez(tmp_path / "twice.npz", **arrays)
        text = "\n".join(inspect_dataset(tmp_path / "twice.npz").lines())
        assert "duplicates: 100 transitions and 1 whole episodes" in text
        assert "steps are not followed by their next observation" in text
        assert "They may have been normalised" in text

    def test_actions_against_a_world(self, tmp_path, dataset, world):
        np.savez(tmp_path / "far.npz", **dataset.arrays | {"actions": dataset.actions * 3})
        report = gems_ray.check_dataset(tmp_path / "far.npz", world)
        assert any("outside the action box in 32 of 32 dimensions" in line for line in report.figures)

    def test_histogram_by_hand(self):
        lines = histogram(np.array([0.0, 0.0, 5.0, 10.0]))
        assert lines[0].split()[3:] == ["2", "#" * 40]
        assert lines[5].split()[3:] == ["1", "#" * 20]
        assert len(histogram(np.full(3, 7.0))) == 10
