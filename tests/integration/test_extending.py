"""The diffs of the extension guide apply to this code, stay within two files, and add what the guide says."""

import os
import re
import shutil
import subprocess
import sys

import pytest

TRAIN = """
import gems_ray
from gems_ray.policies.latents import SampledAgent

world = gems_ray.load_world("diffuse_mix")
dataset = gems_ray.collect(SampledAgent(world.agents["medium"]), world, episodes=3, seed=0)
trainer = gems_ray.Trainer(dataset, {name!r}, max_timesteps=60, world=world, validation_users=3)
first, *_, last = trainer
assert last["train/cloning_error"] < first["train/cloning_error"]
policy = trainer.policy()
policy.save("policy")
results = [gems_ray.evaluate(each, world, users=5).return_mean for each in (policy, gems_ray.load_policy("policy"))]
assert results[0] == results[1]
"""
CHECKS = {
    "An algorithm": TRAIN.format(name="click_cloning"),
    "A sequence model": TRAIN.format(name="convolution"),
    "A diagnostic": TRAIN.format(name="bc") + "assert 0 <= last['train/saturated_actions'] <= 1",
    "A table column": """
import gems_ray
from gems_ray.results.tables import to_markdown

experiment = {
    "environment": "diffuse_mix",
    "algorithm": "iql",
    "dataset": {"episodes": 3},
    "training": {"max_timesteps": 2},
    "evaluation": {"validation_users": 2, "test_users": 2},
}
run = gems_ray.run(experiment, folder="run", in_process=True)
text = to_markdown(run.table())
assert "| TD error |" in text and "TD error: mean distance" in text
""",
}


def diffs(root):
    """The diffs of the guide by the heading above them."""
    text = (root / "docs" / "extending.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    found = zip(parts[::2], parts[1::2], strict=True)
    return {heading: "\n".join(re.findall(r"```diff\n(.*?)```", part, re.DOTALL)) for heading, part in found}


def test_every_part_has_a_diff(request):
    assert {heading for heading, text in diffs(request.config.rootpath).items() if text} == set(CHECKS)


@pytest.mark.parametrize("heading", CHECKS)
def test_the_diff_adds_what_the_guide_says(heading, tmp_path, request):
    root = request.config.rootpath
    diff = diffs(root)[heading]
    assert len(re.findall(r"^\+\+\+ b/", diff, re.MULTILINE)) <= 2
    for part in ("gems_ray", "tests", "docs", "tune_configs"):
        shutil.copytree(root / part, tmp_path / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(root / part, tmp_path)

    def run(*line, **options):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, **options
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("git", "apply", "-", input=diff)
    run(sys.executable, "-c", CHECKS[heading])
    run(sys.executable, "-m", "pytest", "-q", "tests/unit/test_docs.py")
