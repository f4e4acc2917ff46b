"""The documentation names what there is."""

import inspect
import re
from types import NoneType, UnionType
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

import gems_ray
from gems_ray.algorithms import ALGORITHMS
from gems_ray.experiments.spec import Experiment, SearchSpec
from gems_ray.simulator.environments import ENVIRONMENTS


def fields(model, prefix=""):
    """Names of all fields, those of sections with a point: `dataset.quality`."""
    for name, field in model.model_fields.items():
        kinds = get_args(field.annotation) if get_origin(field.annotation) is UnionType else [field.annotation]
        section = next((kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, BaseModel)), NoneType)
        if section is NoneType:
            yield prefix + name
        else:
            yield from fields(section, f"{prefix}{name}.")


def documented(text):
    """The same from the tables of a page; a heading names the section."""
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = re.match(r"## `?([a-z]*)", line)[1]
        if match := re.match(r"\| `([a-z_.]+)` \| ([^|]*)", line):
            yield f"{section}.{match[1]}".lstrip("."), match[2].strip()


def settings_in_tables(text):
    """The names in the first column of tables of settings, several with commas between them."""
    is_table = False
    for line in text.splitlines():
        first = line.split("|")[1].strip() if line.startswith("|") else None
        is_table = first == "setting" or (is_table and first is not None)
        if is_table:
            yield from re.findall(r"[a-z_]+", re.sub(r"\(.*\)", "", first))


def test_every_field_of_an_experiment_is_documented(request):
    page = dict(documented((request.config.rootpath / "docs" / "experiments.md").read_text(encoding="utf-8")))
    assert set(fields(Experiment)) == set(page) - {"search.asha"}
    given = {name: str(default) for name, default in page.items()}
    for name, expected in (("dataset.episodes", "10000"), ("search.trials", "20"), ("evaluation.test_users", "1000")):
        assert given[name] == expected


def test_the_default_values_in_the_table_are_those_of_the_program(request):
    page = dict(documented((request.config.rootpath / "docs" / "experiments.md").read_text(encoding="utf-8")))
    search = SearchSpec(space={"td3_bc": {"alpha": {"uniform": [0, 1]}}}, asha={})
    experiment = Experiment(environment="diffuse_mix", search=search).model_dump(mode="json", by_alias=True)
    for name, text in page.items():
        value = experiment
        for part in name.split("."):
            value = value[part]
        if isinstance(value, bool | int | float) or (isinstance(value, str) and text):
            shown = {"true": True, "false": False, "1/3": 1 / 3}.get(text, text)
            assert shown == value or float(shown) == value, name


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_setting_of_an_algorithm_is_documented(request, name):
    folder = request.config.rootpath / "docs" / "algorithms"
    page = folder / ("bc.md" if name == "bc_best" else f"{name}.md")
    text = page.read_text(encoding="utf-8") + (folder / "README.md").read_text(encoding="utf-8")
    assert not set(ALGORITHMS[name].Config.model_fields) - set(settings_in_tables(text))


def test_every_environment_is_documented(request):
    text = (request.config.rootpath / "docs" / "simulator.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in ENVIRONMENTS)


def test_every_name_of_the_package_is_in_the_reference(request):
    folder = request.config.rootpath / "docs" / "reference"
    pages = "\n".join(page.read_text(encoding="utf-8") for page in folder.glob("*.md"))
    described = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    assert {f"gems_ray.{name}" for name in gems_ray.__all__} - described == {"gems_ray.__version__"}


def test_links_lead_to_pages_and_headings(request):
    root = request.config.rootpath
    for page in [root / "README.md", *(root / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]*(?:#[^)]*)?)\)", page.read_text(encoding="utf-8")):
            path, _, heading = target.partition("#")
            place = page.parent / path if path else page
            assert place.exists(), f"{page}: {target}"
            if heading:
                lines = [line for line in place.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
                slugs = {re.sub(r"[^a-z0-9 _-]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines}
                assert heading in slugs, f"{page}: {target}"
