"""Search spaces: what a file may say, and that whatever is proposed can be trained."""

import re
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gems_ray.algorithms import ALGORITHMS
from gems_ray.errors import ConfigError
from gems_ray.experiments.check import all_settings, check_experiment, load_experiment
from gems_ray.experiments.space import Domain, Space
from gems_ray.experiments.spec import search_domains
from gems_ray.yaml_file import dump_yaml

optuna.logging.set_verbosity(optuna.logging.WARNING)

HIDDEN = [[64, 64], [256, 256]]
DOMAINS = {
    "td3_bc": {
        "alpha": Domain(log_uniform=(0.05, 10)),
        "tau": Domain(uniform=(0, 0.02), step=0.005),
        "discount": Domain(uniform=(0.9, 1)),
        "policy_freq": Domain(int=(1, 5), step=2),
        "batch_size": Domain(log_int=(16, 512)),
        "normalize_states": Domain(choice=(True, False)),
        "reward_scale": Domain(choice=("none", "std", 0.1)),
        "hidden_sizes": Domain(choice=tuple(HIDDEN)),
    },
    "bc": {"learning_rate": Domain(log_uniform=(1e-5, 1e-2)), "hidden_sizes": Domain(choice=tuple(HIDDEN))},
    "cql": {"clip_diff_min": Domain(choice=(None, -1.0))},
}
GOOD = """\
environment: diffuse_mix
algorithm: [td3_bc, bc]
seed: 3
search:
  trials: 4
  initial:
    - algorithm: bc
      batch_size: 64
    - alpha: 0.5
  space:
    td3_bc:
      alpha: {uniform: [0, 1]}
    bc:
      batch_size: {choice: [64, 256]}
"""


def write(tmp_path, text):
    path = tmp_path / "search.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("given_domain", "inside", "outside"),
    [
        ({"choice": [64, 128]}, [64, 128], [96, "64"]),
        ({"choice": [True]}, [True], [False]),
        ({"choice": HIDDEN}, [[64, 64], (256, 256)], [[64], "[64]"]),
        ({"choice": [None, 0.5]}, [None, 0.5], [0]),
        ({"uniform": [0, 1]}, [0, 0.3, 1], [-0.1, 1.1, "0.5", None]),
        ({"uniform": [0, 1], "step": 0.25}, [0, 0.25, 1], [1.25]),
        ({"log_uniform": [0.1, 10]}, [0.1, 1, 10], [0, 0.09, 11]),
        ({"int": [-1, 3]}, [-1, 3], [-2, 4]),
        ({"int": [1, 7], "step": 2}, [1, 7], [0, 9]),
        ({"log_int": [1, 8]}, [1, 8], [0, 9]),
    ],
    ids=str,
)
def test_kinds_of_domains(given_domain, inside, outside):
    domain = Domain(**given_domain)
    assert all(domain.contains(value) for value in inside)
    assert not any(domain.contains(value) for value in outside)
    assert domain.model_dump(mode="json", by_alias=True, exclude_none=True) == given_domain
    assert all(kind in domain.describe() for kind in given_domain)


@pytest.mark.parametrize(
    ("given_domain", "message"),
    [
        ({}, "exactly one of choice, uniform, log_uniform, int, log_int"),
        ({"step": 1}, "exactly one of"),
        ({"uniform": [0, 1], "int": [0, 1]}, "exactly one of"),
        ({"choice": []}, "at least 1 item"),
        ({"uniform": [1, 0]}, r"expected \[lowest, highest\], found \[1, 0\]"),
        ({"uniform": [0, 0]}, r"found \[0, 0\]"),
        ({"int": [3, 3]}, r"found \[3, 3\]"),
        ({"log_int": [8, 1]}, r"found \[8, 1\]"),
        ({"log_uniform": [0, 1]}, "a log scale begins above 0, found 0"),
        ({"log_int": [-2, 4]}, "a log scale begins above 0, found -2"),
        ({"log_uniform": [0.1, 1], "step": 0.1}, "step goes with uniform and int"),
        ({"log_int": [1, 8], "step": 1}, "step goes with uniform and int"),
        ({"choice": [1, 2], "step": 1}, "step goes with uniform and int"),
        ({"int": [0, 3], "step": 1.5}, "the step of int is an integer"),
        ({"uniform": [0, 1], "step": 0}, "greater than 0"),
        ({"uniform": [0]}, "Field required"),
        ({"int": [0.5, 3]}, "valid integer"),
        ({"uniform": [0, float("inf")]}, "finite number"),
        ({"normal": [0, 1]}, "Extra inputs"),
    ],
    ids=str,
)
def test_refused_domains(given_domain, message):
    with pytest.raises(ValidationError, match=message):
        Domain(**given_domain)


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (Domain(choice=(3, 1)), [3, 1]),
        (Domain(int=(1, 8), step=3), [1, 4, 7]),
        (Domain(int=(-1, 1)), [-1, 0, 1]),
        (Domain(uniform=(0, 1), step=0.25), [0, 0.25, 0.5, 0.75, 1]),
        (Domain(uniform=(0.1, 0.75), step=0.3), [0.1, 0.4, 0.7]),
    ],
    ids=str,
)
def test_every_value(domain, values):
    assert domain.every_value() == pytest.approx(values)
    assert all(map(domain.contains, domain.every_value()))


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "log_int"])
def test_values_without_end(kind):
    with pytest.raises(ValueError, match="a grid needs choice, int, or uniform with a step"):
        Domain(**{kind: (1, 2)}).every_value()


def test_names_with_one_algorithm():
    space = Space({"td3_bc": {"alpha": DOMAINS["td3_bc"]["alpha"], "hidden_sizes": DOMAINS["td3_bc"]["hidden_sizes"]}})
    chosen = {"alpha": 2.5, "hidden_sizes": [256, 256]}
    point = space.encode("td3_bc", {**chosen, "tau": 1})
    assert point == {"alpha": 2.5, "hidden_sizes": "[256, 256]"}
    assert space.decode(point) == ("td3_bc", chosen)


def test_names_with_several_algorithms():
    space = Space(DOMAINS)
    chosen = {"learning_rate": 1e-3, "hidden_sizes": [64, 64]}
    point = space.encode("bc", chosen)
    assert point == {"algorithm": "bc", "bc.learning_rate": 1e-3, "bc.hidden_sizes": "[64, 64]"}
    assert space.decode(point) == ("bc", chosen)
    assert space.decode(space.encode("cql", {"clip_diff_min": None})) == ("cql", {"clip_diff_min": None})


def test_every_point_by_hand():
    space = Space(
        {
            "td3_bc": {"alpha": Domain(choice=(1.0, 2.5)), "policy_freq": Domain(int=(1, 2))},
            "bc": {},
            "cql": {"hidden_sizes": Domain(choice=([64],))},
        }
    )
    assert list(space.every_point()) == [
        {"algorithm": "td3_bc", "td3_bc.alpha": 1.0, "td3_bc.policy_freq": 1},
        {"algorithm": "td3_bc", "td3_bc.alpha": 1.0, "td3_bc.policy_freq": 2},
        {"algorithm": "td3_bc", "td3_bc.alpha": 2.5, "td3_bc.policy_freq": 1},
        {"algorithm": "td3_bc", "td3_bc.alpha": 2.5, "td3_bc.policy_freq": 2},
        {"algorithm": "bc"},
        {"algorithm": "cql", "cql.hidden_sizes": "[64]"},
    ]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    algorithms=st.lists(st.sampled_from(sorted(DOMAINS)), min_size=1, unique=True),
)
def test_every_proposal_can_be_trained(seed, algorithms):
    space = Space({name: DOMAINS[name] for name in algorithms})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    for _ in range(4):
        trial = study.ask()
        space.suggest(trial)
        algorithm, chosen = space.decode(trial.params)
        assert algorithm in algorithms
        assert set(chosen) == set(DOMAINS[algorithm])
        assert space.contains(algorithm, chosen)
        assert space.encode(algorithm, chosen) == trial.params
        resolved = all_settings(algorithm, chosen)
        assert {name: resolved[name] for name in chosen} == chosen
        assert space.contains(algorithm, resolved)


@settings(deadline=None, max_examples=30)
@given(
    low=st.floats(-1e3, 1e3, allow_subnormal=False),
    width=st.floats(0.01, 1e3),
    steps=st.integers(1, 20),
    whole=st.booleans(),
)
def test_a_grid_stays_in_its_range(low, width, steps, whole):
    if whole:
        low, width = int(low), max(int(width), 1)
        domain = Domain(int=(low, low + width), step=max(width // steps, 1))
    else:
        domain = Domain(uniform=(low, low + width), step=width / steps)
    values = domain.every_value()
    assert values[0] == pytest.approx(low)
    assert values == sorted(set(values))
    assert values[-1] <= domain.bounds[1] + 1e-6
    assert domain.bounds[1] - values[-1] < domain.step
    if not whole:
        assert len(values) == steps + 1


def test_a_good_search(tmp_path):
    experiment = load_experiment(write(tmp_path, GOOD))
    assert list(search_domains(experiment)) == ["td3_bc", "bc"]
    assert experiment.planned_trials == 4
    assert experiment.search.objectives == ()
    single = GOOD.replace("  trials: 4\n", "  objectives: coverage\n")
    assert load_experiment(write(tmp_path, single)).search.objectives == ("coverage",)


def test_an_algorithm_without_a_space_is_tried_as_it_is(tmp_path):
    text = GOOD.split("    bc:\n")[0].replace("    - algorithm: bc\n      batch_size: 64\n", "")
    assert search_domains(load_experiment(write(tmp_path, text)))["bc"] == {}


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (
            "      alpha: {",
            "      alfa: {",
            12,
            "`search.space.td3_bc.alfa` is not a field of `search.space.td3_bc`. Did you mean",
        ),
        ("    td3_bc:\n", "    td3:\n", 11, "algorithm of this search `td3` does not exist. Did you mean `td3_bc`?"),
        ("    bc:\n", "    cql:\n", 13, "algorithm of this search `cql` does not exist. Known: bc, td3_bc."),
        ("uniform: [0, 1]", "uniform: [-1, 1]", 12, "`search.space.td3_bc.alpha`: input should be greater than or"),
        ("uniform: [0, 1]", "choice: [0, -1]", 12, "`search.space.td3_bc.alpha`: input should be greater than or"),
        ("uniform: [0, 1]", "uniform: [1, 0]", 12, "`search.space.td3_bc.alpha`: expected [lowest, highest]"),
        ("uniform: [0, 1]", "log_uniform: [0, 1]", 12, "a log scale begins above 0"),
        ("uniform: [0, 1]", "unifrom: [0, 1]", 12, "`search.space.td3_bc.alpha.unifrom` is not a field"),
        (
            "choice: [64, 256]",
            "choice: [64, many]",
            14,
            "`search.space.bc.batch_size`: expected an integer, found `many`",
        ),
        ("alpha: 0.5", "alpha: 1.5", 9, "alpha 1.5 lies outside of search.space"),
        ("batch_size: 64\n", "batch_size: 65\n", 7, "lies outside of search.space"),
        ("alpha: 0.5", "tau: 0.5", 9, "`search.initial.1.tau` is not in search.space"),
        ("alpha: 0.5", "alpha: 0.5\n      tua: 1", 10, "`search.initial.1.tua` is not a field of `search.initial.1`"),
        ("alpha: 0.5", "alpha: -1", 9, "`search.initial.1.alpha`: input should be greater than or equal to 0"),
        ("trials: 4", "sampler: grid", 4, "`search`: a grid needs choice, int, or uniform with a step"),
        ("trials: 4", "sampler: best", 5, "`search.sampler`: input should be 'tpe', 'gp', 'random' or 'grid'"),
        ("trials: 4", "trails: 4", 5, "`search.trails` is not a field"),
        ("trials: 4", "objectives: [return, return]", 5, "`search.objectives`: every value may stand once, found ret"),
        ("uniform: [0, 1]", "uniform: [0, 1], step: 5", 12, "expected a step within the range of 1, found 5"),
        ("choice: [64, 256]", "int: [64, 256], step: 1000", 14, "expected a step within the range of 192, found 1000"),
        (
            "{uniform: [0, 1]}",
            "{log_unifrm: [0.1, 1]}",
            12,
            "not a field of `search.space.td3_bc.alpha`. Did you mean `log_uniform`?",
        ),
        (
            "{uniform: [0, 1]}",
            "0.5",
            12,
            "`search.space.td3_bc.alpha`: expected a domain, for example {uni",
        ),
        ("uniform: [0, 1]", "uniform: [0]", 12, "`search.space.td3_bc.alpha.uniform`: expected 2 values"),
        ("uniform: [0, 1]", "uniform: 3", 12, "`search.space.td3_bc.alpha.uniform`: expected a list, found `3`"),
        ("trials: 4", "trials: true", 5, "`search.trials`: expected a number, not true or false, found `true`"),
        ("trials: 4", "trials: 1000000000000", 5, "less than or equal to 100000"),
        ("trials: 4", "trials: 0", 5, "greater than or equal to 1"),
        ("trials: 4", "objectives: [return, clicks]", 5, "`search.objectives.1`"),
        ("trials: 4", "confirm: {candidate: 2}", 5, "`search.confirm.candidate` is not a field"),
        ("trials: 4", "asha: {}\n  seeds_per_trial: 2", 4, "`asha` compares single runs"),
        ("trials: 4", "asha: {}\n  objectives: [return, coverage]", 4, "`asha` compares single runs"),
        ("trials: 4", "asha: {}\n  objectives: fqe", 4, "`asha` compares single runs"),
        (
            "diffuse_mix\n",
            "[diffuse_mix, diffuse_topdown]\nevaluation: {test_users: 1}\n",
            2,
            "expected 0, or 2 and more",
        ),
        ("seed: 3", "seed: [3, 4]", 3, "a search begins at one `seed`; search.seeds_per_trial says how many"),
    ],
)
def test_mistakes(tmp_path, old, new, line, message):
    assert GOOD.count(old) == 1
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    (text,) = str(caught.value).splitlines()
    assert text.startswith(f"{path}:{line}: "), text
    assert message in text


def test_asha_has_one_environment(tmp_path):
    text = GOOD.replace("trials: 4", "asha: {grace_updates: 5}")
    assert load_experiment(write(tmp_path, text)).search.asha.grace_updates == 5
    with pytest.raises(ConfigError, match="`search.asha` compares single runs: one environment"):
        load_experiment(write(tmp_path, text.replace("diffuse_mix", "[diffuse_mix, diffuse_divpen]")))


def test_a_space_needs_a_setting(tmp_path):
    text = GOOD.split("  initial:")[0] + "  space: {td3_bc: {}}\n"
    with pytest.raises(ConfigError, match="`space` has no setting to search"):
        load_experiment(write(tmp_path, text))


def test_a_grid_counts_its_points():
    space = {"td3_bc": {"alpha": {"uniform": [0, 1], "step": 0.5}, "batch_size": {"choice": [64, 128]}}}
    search = {"sampler": "grid", "trials": 99, "space": space}
    assert check_experiment({"environment": "diffuse_mix", "search": search}).planned_trials == 6


def test_the_search_is_not_part_of_a_cell():
    base = {"environment": "diffuse_mix"}
    search = {"space": {"td3_bc": {"alpha": {"uniform": [0, 1]}}}}
    names = [check_experiment(base | more).cells()[0].name for more in ({}, {"search": search})]
    assert names[0] == names[1]


def test_grid_of_some_settings():
    search = {"space": {"td3_bc": {"alpha": {"uniform": [0, 1]}}}}
    data = {"environment": "diffuse_mix", "settings": {"td3_bc": {"tau": 0.1}}, "search": search}
    grid = check_experiment(data).with_settings("td3_bc", {"alpha": 0.5}, range(4, 6), test=False)
    assert (grid.search, grid.seed, grid.settings) == (None, (4, 5), {"td3_bc": {"alpha": 0.5}})
    assert grid.evaluation.test_users == 0
    assert check_experiment(grid.as_yaml()) == grid


SHIPPED = sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_read_back_the_same(tmp_path, path):
    experiment = load_experiment(path)
    assert (experiment.search is not None) == path.stem.startswith("search_")
    again = load_experiment(write(tmp_path, dump_yaml(experiment.as_yaml())))
    assert again == experiment
    assert dump_yaml(again.as_yaml()) == dump_yaml(experiment.as_yaml())


def test_every_kind_reads_back_the_same(tmp_path):
    spaces = {
        name: {
            setting: domain.model_dump(mode="json", by_alias=True, exclude_none=True) for setting, domain in of.items()
        }
        for name, of in DOMAINS.items()
    }
    search = {"space": spaces, "objectives": ["return", "coverage"], "initial": [{"algorithm": "cql"}]}
    experiment = check_experiment({"environment": "diffuse_mix", "algorithm": list(DOMAINS), "search": search})
    assert load_experiment(write(tmp_path, dump_yaml(experiment.as_yaml()))) == experiment
    assert experiment.search.space == DOMAINS
    assert set(DOMAINS) <= set(ALGORITHMS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("space: {td3_bc: {batch_size: {log_uniform: [64, 256]}}}", "`search.space.td3_bc.batch_size`"),
        ("space: {td3_bc: {normalize_states: {uniform: [0, 1]}}}", "`search.space.td3_bc.normalize_states`"),
        ("space: {td3_bc: {alpha: {choice: [1.0, 1.0]}}}", "every choice may stand once"),
        ("space: {td3_bc: {alpha: {int: [1, 5]}}}\n  initial: [{alpha: 2.7}]", "alpha 2.7 lies outside"),
        ("space: {td3_bc: {alpha: {int: [1, 5]}}}\n  initial: [{algorithm: nope}]", "nope is not an algorithm"),
        (
            "space: {td3_bc: {alpha: {int: [1, 5]}, batch_size: {choice: [64]}}}\n  initial: [{alpha: 1}]",
            "batch_size 256 (not named here, so its default) lies outside",
        ),
        ("space: {td3_bc: {alpha: {int: [1, 5]}}}\n  trails: 3", "Did you mean `trials`?"),
    ],
)
def test_what_would_fail_later_is_refused_with_its_line(tmp_path, lines, message):
    path = tmp_path / "search.yaml"
    path.write_text(f"environment: diffuse_mix\nalgorithm: td3_bc\nsearch:\n  {lines}\n")
    with pytest.raises(ConfigError, match=rf"search\.yaml:\d+: .*{re.escape(message)}"):
        load_experiment(path)


def test_a_grid_stays_inside_its_domain():
    domain = Domain(uniform=(0, 0.3), step=0.1)
    assert domain.every_value() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert all(domain.contains(value) for value in domain.every_value())
