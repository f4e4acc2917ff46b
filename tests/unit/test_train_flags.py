"""`train` has a flag for every setting of the algorithm that `--algorithm` names."""

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from gems_ray.algorithms import ALGORITHMS
from gems_ray.cli.main import app
from gems_ray.cli.settings import read_settings
from gems_ray.errors import ConfigError
from gems_ray.yaml_file import yaml_text

TRAIN = get_command(app).commands["train"]
OF_THE_COMMAND = {param.name for param in TRAIN.params}


def parse(algorithm, *flags):
    """Settings and flags of a command line."""
    context = TRAIN.make_context("train", ["--env_name", "diffuse_mix", "--algorithm", algorithm, *flags])
    return read_settings(algorithm, context.obj, context.params["setting"] or [])


def spellings(name):
    name = {"normalize_states": "normalize"}.get(name, name)
    return {name, name.replace("_", "-")}


SETTINGS = [
    (algorithm, name, spelling)
    for algorithm in ALGORITHMS
    for name in ALGORITHMS[algorithm].Config.model_fields
    if name not in OF_THE_COMMAND
    for spelling in sorted(spellings(name))
]


@pytest.mark.parametrize(("algorithm", "name", "spelling"), SETTINGS)
def test_every_setting_is_a_flag_in_both_spellings(algorithm, name, spelling):
    config = ALGORITHMS[algorithm].Config
    default = config.model_fields[name].default
    if isinstance(default, bool):
        assert parse(algorithm, f"--no-{spelling}" if default else f"--{spelling}")[0] == {name: not default}
        assert parse(algorithm, f"--{spelling}" if default else f"--no-{spelling}")[0] == {}  # the same cell as without
    else:
        settings, _ = parse(algorithm, f"--{spelling}", yaml_text(default))
        assert list(settings) == [name]
        assert config(**settings) == config()


def test_values_are_yaml():
    settings, flags = parse("cql", "--hidden-sizes", "[64, 64]", "--alpha", "3e-1", "--lagrange", "--set", "tau=0.1")
    assert settings == {"hidden_sizes": [64, 64], "alpha": 0.3, "lagrange": True, "tau": 0.1}
    assert flags == {"hidden_sizes": "--hidden_sizes", "alpha": "--alpha", "lagrange": "--lagrange", "tau": "--set tau"}


def test_a_setting_with_the_name_of_another_flag_is_given_by_set():
    assert "max_timesteps" in OF_THE_COMMAND
    settings, _ = parse("iql", "--max_timesteps", "5", "--set", "max_timesteps=7")
    assert settings == {"max_timesteps": 7}


def test_whatever_is_no_yaml_is_one_line():
    with pytest.raises(ConfigError, match=r"^--hidden_sizes: not valid YAML: [^\n]*$"):
        parse("bc", "--hidden-sizes", "[")


def test_help_shows_the_flags_of_the_algorithm():
    shown = {
        name: " ".join(CliRunner().invoke(app, ["train", *flags, "--help"]).stdout.split())
        for name, flags in {"td3_bc": [], "cql": ["--algorithm", "cql"]}.items()
    }
    assert "--policy_freq" in shown["td3_bc"]
    assert "--policy_freq" not in shown["cql"]
    assert "--num_actions, --num-actions VALUE Sampled actions per state and source" in shown["cql"]
    assert "larger is more conservative. [default: 10]" in shown["cql"]
    for text in shown.values():
        assert "--normalize / --no-normalize States to zero mean and unit deviation (CORL). [default: true]" in text
