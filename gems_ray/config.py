"""Strict YAML: every mistake is an error that names the file, the line, the key and what was expected there."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from gems_ray.errors import ConfigError
from gems_ray.registry import did_you_mean


class Config(BaseModel):
    """Base of everything that is read from YAML: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


C = TypeVar("C", bound=BaseModel)
Location = tuple[str | int, ...]


class YamlDocument:
    """A parsed YAML file that knows the line of every key.

    Args:
        path: file, for messages.
        text: its content.
    Raises:
        ConfigError: not YAML, a duplicate key, or not a mapping.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        try:
            self.data = YAML(typ="rt", pure=True).load(text)
        except DuplicateKeyError as error:
            mark = error.problem_mark
            key = str(error.problem).split('"')[1] if '"' in str(error.problem) else "?"
            line = mark.line + 1 if mark else "?"
            raise ConfigError(f"{path}:{line}: `{key}` stands here a second time. Remove one of the two.") from None
        except MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else "?"
            raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}.") from None
        if not isinstance(self.data, dict):
            found = "an empty file" if self.data is None else type(self.data).__name__
            raise ConfigError(f"{path}: expected `key: value` lines, found {found}.")

    def line(self, location: Location) -> int:
        """The line, from 1, of the deepest part of a key path that stands in the file."""
        node, line = self.data, 1
        for part in location:
            if not isinstance(node, CommentedBase):
                break
            try:
                line = (node.lc.key(part) if isinstance(node, dict) else node.lc.item(part))[0] + 1
                node = node[part]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                break
        return line

    def error(self, location: Location, message: str) -> ConfigError:
        """An error that points at a key of this file."""
        return ConfigError(f"{self.path}:{self.line(location)}: {message}")


def read_yaml(path: Path) -> YamlDocument:
    """Parses a YAML file.

    Raises:
        ConfigError: the file is missing or not valid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Check the path; examples are in tune_configs/.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from None
    return YamlDocument(path, text)


def load_config(path: Path, model: type[C]) -> C:
    """Reads a YAML file into a model.

    Raises:
        ConfigError: one line per mistake.
    """
    document = read_yaml(path)
    return validate(document.data, model, document)


def validate(data: Any, model: type[C], document: YamlDocument | None = None, prefix: Location = ()) -> C:
    """Turns plain data into a model.

    Args:
        data: mapping to check.
        model: what it must be.
        document: file that the data comes from, for lines in messages.
        prefix: where in the file `data` stands.
    Raises:
        ConfigError: one line per mistake.
    """
    try:
        return model.model_validate(plain(data))
    except ValidationError as error:
        lines = []
        for mistake in error.errors():
            location = (*prefix, *mistake["loc"])
            text = _explain(model, mistake, prefix)
            lines.append(f"{document.path}:{document.line(location)}: {text}" if document else text)
        raise ConfigError("\n".join(lines)) from None


def plain(data: Any) -> Any:
    """The data with ordinary dictionaries, lists and scalars in place of ruamel's."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    for kind in (bool, int, float, str):
        if isinstance(data, kind):
            return kind(data)
    return data


def parse_yaml_value(text: str, where: str) -> Any:
    """A single YAML value: `0.8` is a number, `[64, 64]` a list.

    Args:
        text: the value.
        where: for the message.
    Raises:
        ConfigError: not YAML.
    """
    try:
        return plain(YAML(typ="safe", pure=True).load(text))
    except MarkedYAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error.problem}.") from None


def dump_yaml(data: Any) -> str:
    """Plain data as block-style YAML, keys in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 10_000  # a value stays on its line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(plain(data), stream)
    return stream.getvalue()


def describe_fields(model: type[BaseModel]) -> str:
    """`alpha (2.5), batch_size (256), ...`: the fields and their defaults."""
    return ", ".join(
        f"{name} ({field.default})" if not field.is_required() and field.default_factory is None else name
        for name, field in model.model_fields.items()
    )


def _explain(model: type[BaseModel], mistake: Any, prefix: Location) -> str:
    location: Location = tuple(mistake["loc"])
    key = ".".join(str(part) for part in (*prefix, *location))
    if mistake["type"] == "extra_forbidden":
        owner = _owner(model, location[:-1])
        name = str(location[-1])
        return (
            f"`{key}` is not a field of {owner.__name__}. {did_you_mean(name, list(owner.model_fields))}"
            f"Fields: {describe_fields(owner)}."
        )
    if mistake["type"] == "missing":
        return f"`{key}` is missing. Add it."
    reason = mistake["msg"].removeprefix("Value error, ")
    if not key:
        return f"{reason}."
    reason = reason[0].lower() + reason[1:]
    found = "" if isinstance(mistake["input"], dict | list) else f", found `{mistake['input']}`"
    return f"`{key}`: {reason}{found}."


def _owner(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    """The model that the key path leads to."""
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        for kind in get_args(annotation):  # `SearchSpec | None`
            annotation = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model
