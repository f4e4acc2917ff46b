"""Settings with types: every mistake names the key, what was expected there, and what was found."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticUndefined

from gems_ray.errors import ConfigError, Location, Mistake
from gems_ray.registry import did_you_mean
from gems_ray.yaml_file import RESOLVED, plain, read_yaml, shown, yaml_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Config(BaseModel):
    """Base of everything that is read from YAML: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    called: ClassVar[str] = "the settings"  # what a message calls the whole of it, which no key leads to

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take `true` for 1."""
        kinds = _scalars(cls.model_fields[str(info.field_name)].annotation)
        values = value if isinstance(value, list | tuple) else [value]
        if kinds & {int, float} and not kinds & {bool, str, Any} and any(isinstance(part, bool) for part in values):
            raise ValueError("expected a number, not true or false")
        return value


HiddenSizes = Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], Field(max_length=20)]  # units per layer

# `__pydantic_config__` of a dataclass that `checked` looks at: every value is of its very type.
STRICT = ConfigDict(strict=True, allow_inf_nan=False, revalidate_instances="always")

C = TypeVar("C", bound=Config)
D = TypeVar("D", bound="DataclassInstance")

MISTAKE = "mistake"  # the type of pydantic's error that `blame` makes
# What pydantic's types of mistakes mean in the words of a YAML file.
EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer of a sensible size",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping, `key: value` lines",
    "model_type": "a mapping, `key: value` lines",
    "model_attributes_type": "a mapping, `key: value` lines",
}
SHOWN_MISTAKES = 20  # of a file


def blame(mistake: Mistake) -> PydanticCustomError:
    """What a model's validator raises that finds one of its fields wrong; the location begins at the model."""
    return PydanticCustomError(MISTAKE, "{mistake}", {MISTAKE: mistake})


def load_config(path: Path, model: type[C]) -> C:
    """Reads a YAML file that this program has written into a model.

    Raises:
        ConfigError: one line per mistake.
    """
    document = read_yaml(path, RESOLVED)
    with document.located():
        return validate(document.data, model)


def validate(data: Any, model: type[C]) -> C:
    """Turns plain data into a model.

    Args:
        data: mapping to check.
        model: what it must be.
    Raises:
        ConfigError: one line per mistake; of very many, the first ones and their number.
    """
    try:
        return model.model_validate(plain(data))
    except ValidationError as error:
        causes = _causes(error.errors())
        mistakes = [_mistake(model, data, cause) for cause in causes[:SHOWN_MISTAKES]]
        if (more := len(causes) - SHOWN_MISTAKES) > 0:
            mistakes.append(Mistake(text=f"{more:,} more mistakes are not listed."))
        raise ConfigError(*mistakes) from None


def build(kind: type[D], values: Mapping[str, Any]) -> D:
    """A dataclass from plain data, lists turned to tuples.

    Raises:
        KeyError: a field is unknown.
        TypeError: a field is missing.
    """
    names = {field.name for field in fields(kind)}
    if unknown := set(values) - names:
        raise KeyError(f"unknown {kind.__name__} fields {sorted(unknown)}")
    required = {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}
    if missing := required - set(values):
        raise TypeError(f"`{min(missing)}` is missing")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def checked(values: D) -> D:
    """The dataclass itself, after every field was found to be of its type and within its bounds.

    It stays as it is: an integer that stands for a number with a fraction would change its text, and so a fingerprint.

    Raises:
        ValueError: a field is not.
    """
    try:
        TypeAdapter(type(values)).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        reason = problem["msg"].replace("Input should be", "expected")
        raise ValueError(f"`{place}`: {reason}, found {shown(problem['input'])}") from None
    return values


def describe_fields(model: type[BaseModel]) -> str:
    """`alpha (2.5), batch_size (256), ...`: the fields and their defaults."""
    return ", ".join(
        f"{field.alias or name} ({yaml_text(field.default)})" if _is_shown(field.default) else field.alias or name
        for name, field in model.model_fields.items()
    )


def _is_shown(default: Any) -> bool:
    """Whether a default says something: not a section, not the lack of a value."""
    return default not in (None, PydanticUndefined, ()) and not isinstance(default, BaseModel)


def _causes(errors: Sequence[Any]) -> list[Any]:
    """Pydantic's errors without those that only follow from another one."""
    places = [error["loc"] for error in errors]
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]

    def follows(error: Any) -> bool:
        place = error["loc"]
        if error["type"] == "too_short":  # of the items that are wrong nothing is left
            return any(len(other) > len(place) and other[: len(place)] == place for other in places)
        if error["type"] == "missing":  # it is there, misspelt
            return any(other[:-1] == place[:-1] and did_you_mean(str(other[-1]), [str(place[-1])]) for other in unknown)
        return False

    return [error for error in errors if not follows(error)]


def _mistake(model: type[Config], data: Any, error: Any) -> Mistake:
    """One of pydantic's errors in the words of a YAML file."""
    kind, place, given, facts = error["type"], error["loc"], error["input"], error.get("ctx", {})
    location = _written(data, place)
    if kind == MISTAKE:
        return replace(facts[MISTAKE], location=(*location, *facts[MISTAKE].location))
    if kind == "extra_forbidden":
        owner = _owner(model, place[:-1])
        hint = did_you_mean(str(place[-1]), [field.alias or name for name, field in owner.model_fields.items()])
        advice = f"{hint}Fields: {describe_fields(owner)}."
        return Mistake(location, problem="is not a field of", whole=model.called, advice=advice)
    if kind == "missing" and isinstance(place[-1], int):
        return Mistake(location[:-1], expected=f"expected {place[-1] + 1} values or more")
    if kind == "missing":
        return Mistake(location, problem="is missing", advice="Add it.")
    if kind in EXPECTED:
        return Mistake(location, expected=f"expected {EXPECTED[kind]}", found=shown(given))
    if kind in ("too_short", "too_long"):
        bound = f"at least {facts['min_length']}" if kind == "too_short" else f"at most {facts['max_length']}"
        return Mistake(location, expected=f"expected {bound} values", found=str(len(given)))
    reason = error["msg"].removeprefix("Value error, ")
    if not location:
        return Mistake(text=f"{reason}.")
    found = "" if isinstance(given, dict | list | tuple) else shown(given)
    return Mistake(location, expected=reason[0].lower() + reason[1:], found=found)


def _written(data: Any, place: Location) -> Location:
    """The key path as it stands in the data, where a single value may stand for a list of one."""
    written: list[str | int] = []
    for part in place:
        is_list = isinstance(data, list | tuple)
        if isinstance(part, int) and not is_list:
            continue
        written.append(part)
        if isinstance(data, dict):
            data = data.get(part)
        else:
            data = data[part] if is_list and isinstance(part, int) and part < len(data) else None
    return tuple(written)


def _owner(model: type[BaseModel], place: Location) -> type[BaseModel]:
    """The model that the key path leads to."""
    owner, annotation = model, model
    for part in place:
        annotation = _part_of(annotation, part)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            owner = annotation
    return owner


def _part_of(annotation: Any, part: str | int) -> Any:
    """The type of what a key or index of a type leads to."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        inner = next((field.annotation for name, field in fields if part in (name, field.alias)), None)
    else:
        arguments = get_args(annotation)
        inner = arguments[1 if get_origin(annotation) is dict else 0] if arguments else None
    while get_origin(inner) in (Annotated, Union, UnionType):  # `SearchSpec | None`
        inner = next(kind for kind in get_args(inner) if kind is not NoneType)
    return inner


def _scalars(annotation: Any) -> set[Any]:
    """The types at the leaves of an annotation."""
    arguments = get_args(annotation)
    return set().union(*map(_scalars, arguments)) if arguments else {annotation}
