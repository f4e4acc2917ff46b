"""The files of deploy/, each against what will read it: Ray, Kubernetes, the shell, the builder of images."""

import json
import re
import shlex
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from gems_ray.cli.main import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RAY_UP = sorted(DEPLOY.glob("ray_up_*.yaml"))
BIN = Path(sys.executable).parent
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def with_value(data, keys, value):
    """A copy with one value changed or added; a key of None stands for every element of a list."""
    changed = deepcopy(data)
    parts = [changed]
    for key in keys[:-1]:
        parts = [found for part in parts for found in (part if key is None else [part[key]])]
    for part in parts:
        part[keys[-1]] = value
    return changed


@pytest.fixture(params=RAY_UP, ids=lambda path: path.stem)
def ray_up(request):
    return read(request.param)


@pytest.fixture(scope="module")
def ray_job():
    return read(DEPLOY / "rayjob.yaml")


@pytest.fixture(scope="module")
def ray_job_schema():
    schema = json.loads((Path(__file__).parent / "kuberay" / "rayjob.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_what_ray_up_reads_is_valid(ray_up):
    validate_config(prepare_config(ray_up))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["max_worker"], 3, "'max_worker' was unexpected"),
        (["auth", "ssh_usr"], "gems", "'ssh_usr' was unexpected"),
        (["rsync_exclude"], "runs", "is not of type 'array'"),
    ],
)
def test_a_typo_for_ray_up_is_caught(ray_up, keys, value, message):
    with pytest.raises(jsonschema.ValidationError, match=message):
        validate_config(prepare_config(with_value(ray_up, keys, value)))


def test_nodes_that_cannot_be_are_caught():
    aws = read(DEPLOY / "ray_up_aws.yaml")
    with pytest.raises(ValueError, match="`head_node_type` must be one of"):
        validate_config(prepare_config(with_value(aws, ["head_node_type"], "haed")))
    with pytest.raises(ValueError, match="smaller than the sum of `min_workers`"):
        validate_config(prepare_config(with_value(aws, ["available_node_types", "worker", "min_workers"], 10)))


def test_every_node_of_ray_up_has_the_pins_the_token_and_no_open_dashboard(ray_up):
    setup = "\n".join(ray_up["setup_commands"])
    assert f"torch=={PINS['torch']}" in setup
    assert "-c ~/gems_ray_install/constraints.txt" in setup
    assert (ROOT / ray_up["file_mounts"]["~/gems_ray_install/constraints.txt"]).is_file()
    assert ray_up["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = {
        kind: next(line for line in ray_up[f"{kind}_start_ray_commands"] if "ray start" in line)
        for kind in ("head", "worker")
    }
    assert all("RAY_AUTH_MODE=token" in line for line in starts.values())
    assert "--dashboard-host=127.0.0.1" in starts["head"]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in starts["head"], "or no worker is ever started"


def test_ray_start_has_the_options_that_it_is_given(ray_up):
    """Also those of the job script: a word that Ray does not know ends a node, when it is too late."""
    known = subprocess.run([BIN / "ray", "start", "--help"], capture_output=True, text=True, check=True).stdout
    commands = [*ray_up["head_start_ray_commands"], *ray_up["worker_start_ray_commands"]]
    commands += (DEPLOY / "slurm.sh").read_text().replace("\\\n", " ").splitlines()
    given = [line.split("ray start")[1] for line in commands if "ray start" in line]
    options = re.findall(r" (--[a-z-]+)", "".join(given))
    assert {"--head", "--block", "--address", "--num-cpus", "--dashboard-host"} <= set(options)
    assert not [option for option in options if option not in known]


def test_the_ray_job_has_the_fields_of_its_kind(ray_job, ray_job_schema):
    ray_job_schema.validate(ray_job)


WORKERS = ["spec", "rayClusterSpec", "workerGroupSpecs", None]
CONTAINERS = [*WORKERS, "template", "spec", "containers", None]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["spec", "ttlSecondsAfterFinish"], 600, "'ttlSecondsAfterFinish' was unexpected"),
        (["spec", "backoffLimit"], "2", "'2' is not of type 'integer'"),
        (["spec", "rayClusterSpec", "authOptions", "mode"], "tokens", "'tokens' is not one of"),
        ([*WORKERS, "maxReplica"], 3, "'maxReplica' was unexpected"),
        ([*WORKERS, "rayStartParams", "num-cpus"], 8, "8 is not of type 'string'"),
        ([*CONTAINERS, "volumeMount"], [], "'volumeMount' was unexpected"),
        ([*CONTAINERS, "resources", "limits", "memory"], "16 GB", "'16 GB' does not match"),
    ],
)
def test_a_typo_in_the_ray_job_is_caught(ray_job, ray_job_schema, keys, value, message):
    with pytest.raises(jsonschema.ValidationError, match=message):
        ray_job_schema.validate(with_value(ray_job, keys, value))


def test_the_ray_job_starts_nodes_of_one_kind_that_share_memory_and_results(ray_job):
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == PINS["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    templates = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert len({container["image"] for spec in templates for container in spec["containers"]}) == 1
    for spec in templates:
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        (container,) = spec["containers"]
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in mounted[container["workingDir"]]
    entrypoint = shlex.split(ray_job["spec"]["entrypoint"])
    assert entrypoint[:2] == ["gems-ray", "grid"]
    assert entrypoint[entrypoint.index("--address") + 1] == "auto"
    assert entrypoint[entrypoint.index("--storage") + 1].startswith("s3://")
    assert not [name for name in yaml.safe_load(ray_job["spec"]["runtimeEnvYAML"])["env_vars"] if "AWS" in name]


def test_the_job_script_is_a_script():
    script = DEPLOY / "slurm.sh"
    for check in (["bash", "-n"], [BIN / "shellcheck"]):
        done = subprocess.run([*check, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = script.read_text().splitlines()
    settings = [index for index, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=B:TERM@180" in lines
    assert all(line.startswith("#") for line in lines[: max(settings)]), "Slurm stops reading at the first command"


def test_a_job_without_a_run_ends_with_a_line():
    def submit(*words, **variables):
        return subprocess.run(
            ["bash", DEPLOY / "slurm.sh", *words],
            env={"PATH": "/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    for words in ([], ["grid"]):
        done = submit(*words, SLURM_JOB_ID="1")
        assert done.returncode == 2
        assert done.stderr.startswith("error: expected a command of gems-ray with its file")
        assert len(done.stderr.splitlines()) == 1
    outside = submit("grid", "grid.yaml")
    assert outside.returncode == 1
    assert "Submit this script: sbatch deploy/slurm.sh" in outside.stderr


def test_the_dockerfile_passes_its_linter():
    lint = [BIN / "hadolint", DEPLOY / "Dockerfile"]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    careless = "FROM python\nRUN cd /tmp && sudo apt-get install g++\n"
    caught = subprocess.run([BIN / "hadolint", "-"], input=careless, capture_output=True, text=True, check=False)
    assert caught.returncode == 1
    assert "DL3004" in caught.stdout, "it does find things"


def instructions():
    """Instructions of the Dockerfile, each with its words; a continued line is one."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split()[1:]) for line in lines if line.strip()]


def copied():
    """What the Dockerfile copies out of the checkout."""
    return [
        name for kind, words in instructions() if kind == "COPY" and "--from=wheel" not in words for name in words[:-1]
    ]


def test_what_the_dockerfile_copies_exists_and_is_not_ignored():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "all else stays here: datasets, runs, keys"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    for name in copied():
        assert (ROOT / name).exists(), name
    assert sorted(allowed) == sorted(copied())


def test_the_image_has_the_versions_of_everything_else():
    installs = [" ".join(words) for kind, words in instructions() if kind == "RUN" and "pip install" in " ".join(words)]
    assert installs
    assert all("-c /install/constraints.txt" in line for line in installs)
    assert any(f"torch=={PINS['torch']}" in line for line in installs)
    python = re.search(r'python_version = "([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert {words[0] for kind, words in instructions() if kind == "FROM"} == {f"python:{python}-slim"}
    users = [words for kind, words in instructions() if kind == "USER"]
    assert users == [["1000"]], "not root, and a number, which Kubernetes can check"
    assert ("ENTRYPOINT", ['["gems-ray"]']) in instructions()


def ray_commands():
    """Options of every command of Ray; its import warns, so that another process does it."""
    code = (
        "import json; from ray.scripts.scripts import cli;"
        "print(json.dumps({name: [option for parameter in command.params for option in parameter.opts]"
        " for name, command in cli.commands.items()}))"
    )
    shown = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(shown.stdout)


def test_the_commands_of_the_page_exist():
    """Each with its options; and so do the files that they name."""
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    own = typer.main.get_command(app).commands
    options = {
        "gems-ray": {name: [opt for param in command.params for opt in param.opts] for name, command in own.items()},
        "ray": ray_commands(),
    }
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    seen = set()
    for line in [*re.findall(r"^    (\S.*)$", text, re.MULTILINE), *inline]:
        words = [word for word in shlex.split(line) if "RAY_AUTH_MODE" not in word]
        if len(words) > 1 and words[0] in options:
            given = {word.split("=")[0] for word in words if word.startswith("--")}
            assert given <= set(options[words[0]][words[1]]), line
            seen.add((words[0], words[1]))
        for word in words:
            if word.startswith(("deploy/", "tune_configs/")):
                assert (ROOT / word).exists(), line
    commands = ["grid", "plan", "resume", "status", "logs", "init-configs", "submit"]
    assert {words[1] for words in seen if words[0] == "gems-ray"} == set(commands)
    assert {("ray", name) for name in ("up", "down", "attach", "dashboard", "rsync-down", "start", "status")} <= seen
