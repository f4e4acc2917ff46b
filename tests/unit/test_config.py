"""Strict YAML: every mistake names file, line and key."""

import contextlib
import copy
import os
from threading import Thread

import pytest

from gems_ray.algorithms import make_algorithm
from gems_ray.config import SHOWN_MISTAKES, load_config
from gems_ray.errors import ConfigError, DatasetError, Mistake
from gems_ray.experiments.check import check_experiment, check_placement, load_experiment
from gems_ray.experiments.spec import Experiment, Resources
from gems_ray.yaml_file import BY_HAND, DEEPEST, dump_yaml, parse_alike, parse_yaml_value, plain, read_yaml

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
        ("seed: [0, 1]", "sed: [0, 1]", 3, "`sed` is not a field of an experiment. Did you mean `seed`?"),
        ("max_timesteps: 1000", "max_timestep: 1000", 8, "Did you mean `max_timesteps`?"),
        ("max_timesteps: 1000", "max_timesteps: many", 8, "`training.max_timesteps`"),
        ("max_timesteps: 1000", "max_timesteps: 0", 8, "greater than or equal to 1, found `0`"),
        (
            "alpha: 2.5",
            "alfa: 2.5",
            6,
            "`settings.td3_bc.alfa` is not a field of `settings.td3_bc`. Did you mean `alpha`?",
        ),
        ("alpha: 2.5", "alpha: -1", 6, "`settings.td3_bc.alpha`"),
        ("alpha: 2.5", "alpha: .nan", 6, "`settings.td3_bc.alpha`"),
        ("diffuse_mix", "difuse_mix", 1, "environment `difuse_mix` does not exist. Did you mean `diffuse_mix`?"),
        ("algorithm: td3_bc", "algorithm: td3bc", 2, "algorithm `td3bc` does not exist. Did you mean `td3_bc`?"),
        ("  td3_bc:\n", "  td3:\n", 5, "algorithm `td3` does not exist"),
        ("seed: [0, 1]", "seed: [0, 0]", 3, "`seed`: every value may stand once"),
        ("seed: [0, 1]", "seed: [-1]", 3, "greater than or equal to 0"),
        ("seed: [0, 1]", "seed: [0, 1]\nseed: [2]", 4, "`seed` stands here a second time"),
        ("seed: [0, 1]", "seed: [0, 1", 4, "not valid YAML"),
        ("environment: [diffuse_mix]\n", "", 1, "`environment` is missing"),
        ("environment:", "enviroment:", 1, "`enviroment` is not a field of an experiment. Did you mean `environment`?"),
        ("[diffuse_mix]", "", 1, "`environment`: expected text, found `null`"),
        ("[diffuse_mix]", "3", 1, "`environment`: expected text, found `3`"),
        ("[diffuse_mix]", "[]", 1, "`environment`: expected at least 1 values, found 0"),
        ("seed: [0, 1]", "seed: -1", 3, "`seed`: input should be greater than or equal to 0, found `-1`"),
        ("seed: [0, 1]", "seed: one", 3, "`seed`: expected an integer, found `one`"),
        ("seed: [0, 1]", "seed: 1.5", 3, "`seed`: expected an integer, found `1.5`"),
        ("seed: [0, 1]", "seed: true", 3, "`seed`: expected a number, not true or false, found `true`"),
        ("seed: [0, 1]", "seed: [0, true]", 3, "`seed`: expected a number, not true or false."),
        ("seed: [0, 1]", "seed: [0, {a: 1}]", 3, "`seed.1`: expected an integer, found a mapping"),
        ("alpha: 2.5", "alpha: true", 6, "`settings.td3_bc.alpha`: expected a number, not true or false"),
        ("alpha: 2.5", "tau: [1]", 6, "`settings.td3_bc.tau`: expected a number, found a list"),
        ("alpha: 2.5", "normalize_states: maybe", 6, "`settings.td3_bc.normalize_states`: expected true or false"),
        ("alpha: 2.5", "hidden_sizes: 64", 6, "`settings.td3_bc.hidden_sizes`: expected a list, found `64`"),
        ("alpha: 2.5", "hidden_sizes: [-1]", 6, "`settings.td3_bc.hidden_sizes.0`: input should be greater than"),
        ("alpha: 2.5", "hidden_sizes: [64, 0]", 6, "`settings.td3_bc.hidden_sizes.1`: input should be greater than"),
        ("alpha: 2.5", "hidden_sizes: [1000000]", 6, "`settings.td3_bc.hidden_sizes.0`: input should be less than"),
        ("alpha: 2.5", f"hidden_sizes: {[64] * 21}", 6, "`settings.td3_bc.hidden_sizes`: expected at most 20 values"),
        ("  td3_bc:\n    alpha: 2.5", "  alpha: 1", 5, "by algorithm, for example {td3_bc: {alpha: 1}}, found `1`"),
        ("  td3_bc:\n    alpha: 2.5", "  iql: {beta: 1}", 5, "`settings.iql`: `algorithm` is td3_bc. Add iql to"),
        ("training:\n", "worlds: {focused_mix: x}\ntraining:\n", 7, "`worlds.focused_mix`: `environment` is"),
        (
            "training:\n  max_timesteps: 1000",
            "training: 5",
            7,
            "`training`: expected a mapping, `key: value` lines",
        ),
        ("training:\n", "resources: {cpu: 1e-9}\ntraining:\n", 7, "greater than or equal to 0.01, found `1e-09`"),
        ("training:\n", "resources: {gpu: 1e-9}\ntraining:\n", 7, "`resources.gpu`: expected 0, or 0.01 and more"),
        ("training:\n", "evaluation: {test_users: 1}\ntraining:\n", 7, "`evaluation.test_users`: expected 0, or 2"),
        ("training:\n", "evaluation: {validation_users: 1e12}\ntraining:\n", 7, "less than or equal to 100000"),
        ("training:\n", "dataset: {episodes: 1e12}\ntraining:\n", 7, "less than or equal to 1000000"),
        ("alpha: 2.5", "alpha: \x01", 6, "not valid YAML: control character #x01"),
        ("algorithm: td3_bc", 'algorithm: "td3\\nbc"', 2, "algorithm `td3 bc` does not exist"),
        ("alpha: 2.5", "alpha: 2.5\n---\na: b", 7, "expected one document, found a second one"),
    ],
)
def test_mistakes(tmp_path, old, new, line, message):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    (text,) = str(caught.value).splitlines()
    assert text.startswith(f"{path}:{line}: "), text
    assert message in text


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        ("cql", {"clip_diff_min": 2, "clip_diff_max": 1}, "min`: expected at most clip_diff_max, 1, found 2.$"),
        ("cql", {"hidden_sizes": [0]}, "hidden_sizes.0`: input should be greater"),
        ("decision_transformer", {"num_heads": 3}, "num_heads`: expected a divisor of embedding_dim, 128, found 3.$"),
    ],
)
def test_settings_that_do_not_fit(algorithm, settings, message):
    with pytest.raises(ConfigError, match=rf"`settings\.{algorithm}\..*{message}"):
        check_experiment({"environment": "diffuse_mix", "algorithm": algorithm, "settings": {algorithm: settings}})


def test_fields_are_listed_as_they_stand_in_a_file(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, GOOD.replace("seed:", "sed:")))
    assert "Fields: environment, algorithm ([td3_bc]), seed ([0]), settings, worlds, dataset, tr" in str(caught.value)


def test_a_cell_on_a_gpu_has_one():
    experiment = check_experiment({"environment": "diffuse_mix", "training": {"device": "cuda"}})
    with pytest.raises(ConfigError, match=r"a cell has no GPU: set resources\.gpu"):
        check_placement(experiment)
    check_placement(experiment.model_copy(update={"resources": Resources(gpu=0.25)}))


@pytest.mark.parametrize(
    "value",
    ["\0", "[" * 3000, "2001-99-99", "!!int x", "!!bool x", "9" * 5000, "!!omap [x]", '"\\xzz"', "*b"],
)
def test_whatever_is_no_yaml_is_one_line(tmp_path, value):
    with pytest.raises(ConfigError, match=r"^[^\n]*experiment\.yaml.*: not valid YAML: [^\n]*$"):
        read_yaml(write(tmp_path, f"a: {value}\n"))
    with pytest.raises(ConfigError, match=r"^--set x: not valid YAML: [^\n]*$"):
        parse_yaml_value(value, "--set x")


def test_escaped_control_characters(tmp_path):
    for text in ('dataset: {folder: "a\\0b"}', '"a\\x07": [1]'):
        with pytest.raises(ConfigError, match=r"experiment\.yaml: control character #x0"):
            read_yaml(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: &x [1, 1e-05]\nb: *x\n", {"a": [1, 1e-05], "b": [1, 1e-05]}),
        ("# mine\n---\na: yes\n\nb:\n- 0x1F\n- c: null\n...\n", {"a": "yes", "b": [31, {"c": None}]}),
        ("a: |\n  b: 1\n\nc: >-\n  d\n  e\n", {"a": "b: 1\n", "c": "d e"}),
        ("{a: 1,\nb: 2}\n", {"a": 1, "b": 2}),
        ("? a\n: 1\nb:\n", {"a": 1, "b": None}),
        ('"a": 1\n1: 2\n', {"a": 1, "1": 2}),
        ("a:\n  b: &x {c: 1}\n  d: {<<: *x, e: 2}\n", {"a": {"b": {"c": 1}, "d": {"e": 2, "c": 1}}}),
    ],
)
def test_parts_of_a_file_mean_what_they_mean_in_the_whole(tmp_path, text, data):
    """What cannot be read in parts is left to those who read the whole."""
    assert parse_alike(text) in (data, None)
    assert plain(read_yaml(write(tmp_path, text)).data) == data


def test_data_of_one_file_is_no_part_of_another():
    parse_alike("a: [1]\nb: 2\n")["a"].append(2)
    assert parse_alike("a: [1]\nb: 2\n") == {"a": [1], "b": 2}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "3: `a` stands here a second time"),
        ("a: 1\n---\nb: 2\n", "2: expected one document"),
        ("a: 1\n...\nb: 2\n", "3: "),
        ("a: [1,\nb: 2\n", "[23]: not valid YAML"),
        ("a: 1\nb c\nd: 2\n", "[23]: not valid YAML"),
        ("a: 1\nb: *x\n", "2: not valid YAML"),
    ],
)
def test_a_mistake_between_parts_has_its_line(tmp_path, text, line):
    with pytest.raises(ConfigError, match=rf"experiment\.yaml:{line}"):
        read_yaml(write(tmp_path, text))


def test_a_file_that_holds_itself(tmp_path):
    with pytest.raises(ConfigError, match="nested too deeply"):
        read_yaml(write(tmp_path, "&x\na: *x\n"))


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 8)}]\n" for level in range(1, 30)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [*a{level - 1}, *a{level - 1}], k{level}: 1}}\n" for level in range(1, 40)
)
LONG_TEXT = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 30_000)}]\n"


@pytest.mark.parametrize("text", [ALIASES, MERGES, LONG_TEXT], ids=["lists", "merged mappings", "a long text"])
def test_values_that_aliases_repeat_are_counted(tmp_path, text):
    for read in (lambda: read_yaml(write(tmp_path, text)), lambda: parse_yaml_value(text, "--set x")):
        with pytest.raises(ConfigError, match="^[^\n]*: too many values once its aliases are written out[^\n]*$"):
            read()


def test_aliases_within_the_bounds(tmp_path):
    text = "a: &a [1, 2]\nb: &b {c: *a, d: *a}\ne: {<<: *b, d: 3}\nf: *b\n"
    data = read_yaml(write(tmp_path, text)).data
    assert (data["b"]["c"], data["e"]["c"], data["e"]["d"], data["f"]["d"]) == ([1, 2], [1, 2], 3, [1, 2])


def test_the_number_of_values_is_bounded(tmp_path):
    text = f"environment: diffuse_mix\nseed: [{','.join(['1'] * BY_HAND.values)}]\n"
    with pytest.raises(ConfigError, match=r"experiment\.yaml:2: too many values, expected at most 50,000\. Shorten it"):
        read_yaml(write(tmp_path, text))


@pytest.mark.parametrize("level", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_the_number_of_levels_is_bounded(tmp_path, level):
    path = write(tmp_path, f"a:\n  {level * 2_000}\n")
    with pytest.raises(
        ConfigError, match=r"experiment\.yaml:2: not valid YAML: nested too deeply\. Write it flatter\.$"
    ):
        read_yaml(path)


def test_nested_block_mappings(tmp_path):
    def nested(levels):
        return write(tmp_path, "".join(f"{' ' * level}a:\n" for level in range(levels)))

    assert list(read_yaml(nested(DEEPEST - 1)).data) == ["a"]
    with pytest.raises(ConfigError, match=rf"experiment\.yaml:{DEEPEST}: not valid YAML: nested too deeply"):
        read_yaml(nested(600))
    with pytest.raises(ConfigError, match=r"expected at most 250,000 bytes, found 2,005,000\. Shorten it"):
        read_yaml(nested(2_000))


def test_a_file_may_be_as_large_as_said(tmp_path):
    text = f"environment: diffuse_mix\nalgorithm: td3_bc #{'x' * BY_HAND.size}"[: BY_HAND.size]
    assert load_experiment(write(tmp_path, text)).environment == ("diffuse_mix",)
    with pytest.raises(ConfigError, match=r"^[^\n]*experiment\.yaml: expected at most 250,000 bytes, found 250,001\."):
        load_experiment(write(tmp_path, text + "x"))


def test_what_the_program_resolved_may_be_larger_than_what_a_person_writes(tmp_path):
    experiment = Experiment(environment=("diffuse_mix",), seed=tuple(10**300 + seed for seed in range(1_000)))
    path = write(tmp_path, dump_yaml(experiment.as_yaml()))
    assert path.stat().st_size > BY_HAND.size
    assert load_config(path, Experiment) == experiment


def test_a_pipe_is_read_to_its_end(tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for text, message in ((GOOD, ""), ("x" * 300_000, "pipe.yaml: expected at most 250,000 bytes, found more.")):
        writer = Thread(target=_write_as_far_as_it_is_read, args=(pipe, text))
        writer.start()
        if message:
            with pytest.raises(ConfigError, match=message):
                load_experiment(pipe)
        else:
            assert load_experiment(pipe).algorithm == ("td3_bc",)
        writer.join()


def _write_as_far_as_it_is_read(pipe, text):
    with contextlib.suppress(BrokenPipeError), pipe.open("w") as file:
        file.write(text)


def test_line_ends_of_other_systems(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_bytes(GOOD.replace("2.5", "-1").replace("\n", "\r\n").encode())
    with pytest.raises(ConfigError, match=rf"^{path}:6: `settings\.td3_bc\.alpha`"):
        load_experiment(path)


def test_grids_that_nobody_can_train():
    message = r"environments x algorithms x seeds, 1 x 1 x 500,000, are 500,000 cells, expected at most 100,000\."
    with pytest.raises(ConfigError, match=f"^`seed`: {message} Make several files of it\\.$"):
        check_experiment({"environment": "diffuse_mix", "seed": list(range(500_000))})
    names = {"environment": ["diffuse_mix", "diffuse_topdown"], "algorithm": ["bc", "td3_bc"]}
    assert len(check_experiment(names | {"seed": list(range(25_000))}).cells()) == 100_000
    with pytest.raises(ConfigError, match="2 x 2 x 25,001, are 100,004 cells"):
        check_experiment(names | {"seed": list(range(25_001))})


def test_very_many_mistakes_are_not_listed():
    for wrong in ({"seed": ["x"] * 30_000}, {f"unknown_{number}": 1 for number in range(30_000)}):
        with pytest.raises(ConfigError) as caught:
            check_experiment({"environment": "diffuse_mix"} | wrong)
        lines = str(caught.value).splitlines()
        assert len(lines) == SHOWN_MISTAKES + 1
        assert lines[-1] == "29,980 more mistakes are not listed."


def test_a_value_that_stands_very_often_is_named_once():
    with pytest.raises(ConfigError) as caught:
        check_experiment({"environment": "diffuse_mix", "seed": [*range(30_000), 7]})
    assert str(caught.value) == "`seed`: every value may stand once, found 7 a second time."


def test_unknown_keys_name_the_section_where_they_stand():
    cases = [
        (
            {"dataset": {"files": "x"}},
            "`dataset.files` is not a field of `dataset`. Did you mean `file`? Fields: quality",
        ),
        ({"training": {"divergence": {"x": 1}}}, "`training.divergence.x` is not a field of `training.divergence`."),
        ({"sead": 1}, "`sead` is not a field of an experiment. Did you mean `seed`? Fields: environment,"),
    ]
    for wrong, message in cases:
        with pytest.raises(ConfigError) as caught:
            check_experiment({"environment": "diffuse_mix"} | wrong)
        assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError, match="^`alfa` is not a field of the settings. Did you mean `alpha`?"):
        make_algorithm("td3_bc", 2, 2, {"alfa": 1})


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="expected a YAML file, found a folder"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml: expected text in UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


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


def test_a_mistake_is_a_value():
    settings = {"td3_bc": {"alpha": -1, "hidden_sizes": [0]}}
    with pytest.raises(ConfigError) as caught:
        check_experiment({"environment": "diffuse_mix", "settings": settings})
    first, second = caught.value.args
    expected = "input should be greater than or equal to 0"
    assert first == Mistake(("settings", "td3_bc", "alpha"), expected=expected, found="`-1`")
    assert second.location == ("settings", "td3_bc", "hidden_sizes", 0)
    assert str(copy.copy(caught.value)) == str(caught.value)  # as between processes


def test_a_message_speaks_of_the_names_that_the_user_typed():
    error = ConfigError(Mistake(("training", "device"), problem="is missing", advice="Add it."), "Another line.")
    assert str(error) == "`training.device` is missing. Add it.\nAnother line."
    assert error.told(lambda location: f"--{location[-1]}") == "`--device` is missing. Add it.\nAnother line."
    error = DatasetError("none.npz: no such dataset. Check ", ("dataset", "file"), ".")
    assert str(error) == "none.npz: no such dataset. Check dataset.file."
    assert error.told(lambda location: "--dataset") == "none.npz: no such dataset. Check --dataset."
