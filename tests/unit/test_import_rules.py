"""The architecture, read from the syntax trees: layers point down, Ray stays in its folder, nothing is unpickled."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gems_ray"
LAYERS = [
    {
        "errors",
        "rng",
        "registry",
        "files",
        "yaml_file",
        "config",
        "metrics",
        "device",
        "machine",
        "processor",
        "program",
        "record",
        "action_box",
        "archive",
        "networks",
        "flat_state",
        "checkpoints",
        "__init__",
    },
    {"simulator"},
    {"data", "world"},
    {"policies"},
    {"algorithms", "envs"},
    {"evaluation"},
    {"experiments"},
    {"learning", "worldmaking", "results"},
    {"execution"},
    {"tune"},
    {"api"},
    {"cli"},
]
RANK = {module: rank for rank, modules in enumerate(LAYERS) for module in modules}
# `experiments` checks settings against the algorithms when a file is loaded; reading results does not import them.
LATE = {("experiments", "algorithms")}
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [ROOT / "run_tune.py", *sorted((ROOT / "analysis").glob("*.py"))]


def imports(path):
    """Names of the modules that a file imports, at its start or later, and for its types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def executed_imports(path):
    """Modules and names from modules that a file imports when it, or one of its functions, is executed."""
    waiting = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part(module):
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def test_every_module_has_a_layer():
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert found == set(RANK)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        if module.split(".")[0] != "gems_ray" or here == "__init__":
            continue
        there = part(module)
        if there != here and (here, there) not in LATE:
            assert RANK[there] < RANK[here] or RANK[there] == 0, f"{path}: imports {module}"


def test_no_module_imports_itself_on_a_detour():
    """An import within a function counts too: it hides a circle, it does not open it. A module may ask its package."""
    modules = {module_name(path) for path in (*FILES, *SCRIPTS)}
    graph = {}
    for path in (*FILES, *SCRIPTS):
        found = {name if name in modules else name.rpartition(".")[0] for name in executed_imports(path)}
        graph[module_name(path)] = found & modules - {module_name(path.parent / "__init__.py")}
    assert graph["gems_ray.cli.main"] >= {"gems_ray.cli.plan", "gems_ray.errors"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_use_the_interface_alone(path):
    inside = {module for module in imports(path) if module.split(".")[0] == "gems_ray"}
    assert inside == {"gems_ray.cli" if path.name == "run_tune.py" else "gems_ray"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_is_imported_under_tune_alone(path):
    if "ray" in {module.split(".")[0] for module in imports(path)}:
        assert path.is_relative_to(PACKAGE / "tune")


@pytest.mark.parametrize("path", sorted((PACKAGE / "results").rglob("*.py")), ids=lambda path: path.name)
def test_results_are_read_from_plain_files(path):
    allowed = {"gems_ray.config", "gems_ray.errors", "gems_ray.files", "gems_ray.metrics", "gems_ray.yaml_file"}
    for module in imports(path):
        if module.split(".")[0] == "gems_ray":
            assert module in allowed or module.startswith(("gems_ray.experiments", "gems_ray.results")), module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path):
    assert "pickle" not in set(imports(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if (owner, node.func.attr) == ("torch", "load"):
                assert any(word.arg == "weights_only" and word.value.value is True for word in node.keywords)
            if (owner, node.func.attr) == ("np", "load"):
                assert any(word.arg == "allow_pickle" and word.value.value is False for word in node.keywords)


def test_reading_results_imports_neither_ray_nor_torch():
    code = (
        "import sys, gems_ray.results.tables, gems_ray.experiments.run_folder, gems_ray.cli.export; "
        "sys.exit(bool({'ray', 'torch', 'optuna'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_opening_a_world_does_not_import_the_compiler_of_torch():
    """It takes seconds, in every process that trains."""
    code = (
        "import sys; from gems_ray.world.bundle import find_world; find_world('diffuse_mix'); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "modules",
    [
        "gems_ray.worldmaking.world, gems_ray.execution.sources, gems_ray.cli, gems_ray.results.tables",
        "gems_ray.tune.run",
    ],
)
def test_importing_changes_nothing(modules):
    state = (
        "(random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), "
        "threading.active_count(), torch.get_num_threads(), dict(os.environ))"
    )
    code = (
        # These draw a number or set variables of the environment themselves when they are imported.
        "import os, random, threading, gymnasium.vector, numpy as np, ray.tune.search.optuna, rich.style, torch; "
        f"before = {state}; import {modules}; assert {state} == before; assert not torch.cuda.is_initialized()"
    )
    # Variables that were set in this process would hide those that are set in the other one.
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={}, check=False).returncode == 0
