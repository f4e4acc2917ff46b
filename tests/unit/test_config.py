"""Strict YAML: every mistake names file, line and key."""

import pytest

from gems_ray.config import dump_yaml, load_config, read_yaml
from gems_ray.errors import ConfigError
from gems_ray.experiments.spec import Experiment, check_experiment, load_experiment

GOOD = """\
environment: [diffuse_mix]
algorithm: td3_bc
seed: [0, 1]
settings:
  td3_bc:
    alpha: 2.5
training:
  max_timesteps: 1000
"""


def write(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return path


def test_a_good_file(tmp_path):
    experiment = load_experiment(write(tmp_path, GOOD))
    assert experiment.environment == ("diffuse_mix",)
    assert experiment.algorithm == ("td3_bc",)
    assert [cell.seed for cell in experiment.cells()] == [0, 1]
    assert experiment.training.evaluation_interval == 5000


def test_resolved_experiment_reads_back_the_same(tmp_path):
    experiment = load_experiment(write(tmp_path, GOOD))
    again = load_config(write(tmp_path, dump_yaml(experiment.model_dump(mode="json"))), Experiment)
    assert again == experiment
    assert [cell.name for cell in again.cells()] == [cell.name for cell in experiment.cells()]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("seed: [0, 1]", "sed: [0, 1]", 3, "`sed` is not a field of Experiment. Did you mean `seed`?"),
        ("max_timesteps: 1000", "max_timestep: 1000", 8, "Did you mean `max_timesteps`?"),
        ("max_timesteps: 1000", "max_timesteps: many", 8, "`training.max_timesteps`"),
        ("max_timesteps: 1000", "max_timesteps: 0", 8, "greater than or equal to 1, found `0`"),
        ("alpha: 2.5", "alfa: 2.5", 6, "`settings.td3_bc.alfa` is not a field of TD3BCConfig. Did you mean `alpha`?"),
        ("alpha: 2.5", "alpha: -1", 6, "`settings.td3_bc.alpha`"),
        ("alpha: 2.5", "alpha: .nan", 6, "`settings.td3_bc.alpha`"),
        ("diffuse_mix", "difuse_mix", 1, "environment `difuse_mix` does not exist. Did you mean `diffuse_mix`?"),
        ("algorithm: td3_bc", "algorithm: td3bc", 2, "algorithm `td3bc` does not exist. Did you mean `td3_bc`?"),
        ("  td3_bc:\n", "  td3:\n", 5, "algorithm `td3` does not exist"),
        ("seed: [0, 1]", "seed: [0, 0]", 1, "every value may stand once"),
        ("seed: [0, 1]", "seed: [-1]", 3, "greater than or equal to 0"),
        ("seed: [0, 1]", "seed: [0, 1]\nseed: [2]", 4, "`seed` stands here a second time"),
        ("seed: [0, 1]", "seed: [0, 1", 4, "not valid YAML"),
        ("environment: [diffuse_mix]\n", "", 1, "`environment` is missing"),
    ],
)
def test_mistakes(tmp_path, old, new, line, message):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(f"{path}:{line}: "), str(caught.value)
    assert message in str(caught.value)


def test_every_mistake_has_its_line(tmp_path):
    text = GOOD.replace("alpha: 2.5", "alfa: 2.5\n    tua: 0.1")
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, text))
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["6", "7"]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_files_that_are_no_mapping(tmp_path, text):
    with pytest.raises(ConfigError, match="expected `key: value` lines"):
        read_yaml(write(tmp_path, text))


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_experiment(tmp_path / "nothing.yaml")


def test_yaml_1_2_scalars(tmp_path):
    """`3e-4` is a number and `on` a word, as everybody who writes such files expects."""
    path = write(tmp_path, GOOD.replace("alpha: 2.5", "learning_rate: 3e-4"))
    assert load_experiment(path).settings["td3_bc"]["learning_rate"] == 3e-4
    assert read_yaml(write(tmp_path, "compile: on\n")).data["compile"] == "on"


def test_cell_names_are_short_and_differ_with_every_setting():
    base = {"environment": ["diffuse_topdown"], "algorithm": ["td3_bc"], "seed": [12]}
    changes = [
        {},
        {"settings": {"td3_bc": {"alpha": 1.0}}},
        {"training": {"max_timesteps": 10}},
        {"dataset": {"quality": "mixed"}},
        {"evaluation": {"test_users": 7}},
        {"worlds": {"diffuse_topdown": "elsewhere"}},
    ]
    names = [check_experiment(base | change).cells()[0].name for change in changes]
    assert len(set(names)) == len(names)
    assert all(len(name) < 60 for name in names)
    assert names[0].startswith("diffuse_topdown-td3_bc-seed12-")


def test_resources_do_not_change_a_cell():
    base = {"environment": ["diffuse_topdown"]}
    names = {check_experiment(base | {"resources": {"cpu": cpu}}).cells()[0].name for cpu in (1, 2)}
    assert len(names) == 1


@pytest.mark.parametrize("name", ["grid", "demo"])
def test_shipped_experiments(name, request):
    experiment = load_experiment(request.config.rootpath / "tune_configs" / f"{name}.yaml")
    cells = [(cell.environment, cell.algorithm, cell.seed) for cell in experiment.cells()]
    expected = ("diffuse_topdown", "diffuse_mix", "diffuse_divpen")
    assert cells == [(environment, "td3_bc", seed) for environment in expected for seed in (0, 1, 2)]
    if name == "grid":
        assert experiment.training.max_timesteps == 1_000_000
        assert experiment.dataset.episodes == 10_000
    else:
        assert experiment.dataset.episodes >= 1_000
