"""Records: typed content of the JSON and YAML files of a run folder, with one reader and one writer for all of them."""

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gems_ray.errors import ConfigError, RecordVersionError, RunFolderError
from gems_ray.files import write_text_atomically
from gems_ray.yaml_file import RESOLVED, YamlDocument, dump_yaml, parse_alike, plain


class RecordPart(BaseModel):
    """A part of a record: it does not change, no text is taken for a number, and every number is finite."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Record(RecordPart):
    """The content of one file. Keys that are not known are left out: a later version may add some."""

    advice: ClassVar[str] = "Remove it to repeat that part."  # what to do with a damaged file

    schema_version: int = Field(1, ge=1, description="Version of the format; a file that states none has the first.")


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R | None:
    """The content of a record's file; None where there is none.

    Args:
        path: YAML or JSON, as its suffix says.
        kind: what the file holds.
    Raises:
        RecordVersionError: a later version of the program wrote it.
        RunFolderError: it is damaged, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = _read_yaml(path, text) if path.suffix == ".yaml" else json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"expected an object, found {type(data).__name__}")
        version, latest = data.get("schema_version", 1), kind.model_fields["schema_version"].default
        if isinstance(version, int) and version > latest:
            raise RecordVersionError(
                f"{path}: has schema version {version}, this program knows versions up to {latest}. "
                "Read it with the gems_ray that wrote it, or a later one."
            )
        return kind.model_validate({**data, "schema_version": version})
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise RunFolderError(f"{error} {kind.advice}") from None
    except ValidationError as error:
        reason = _describe_mistake(error)
    except (ValueError, OSError, RecursionError) as error:
        reason = str(error)
    raise RunFolderError(f"{path}: cannot be read ({reason}). {kind.advice}")


def write_record(path: Path, record: Record) -> None:
    """Writes a record, whole or not at all, as YAML or JSON as the suffix says."""
    write_text_atomically(path, record_text(path, record))


def record_text(path: Path, record: Record) -> str:
    """The text that stands for a record in a file of this name."""
    data = record.model_dump(mode="json")
    return dump_yaml(data) if path.suffix == ".yaml" else json.dumps(data, indent=2, allow_nan=False) + "\n"


def _read_yaml(path: Path, text: str) -> Any:
    return parse_alike(text) or plain(YamlDocument(path, text, RESOLVED).data)


def _describe_mistake(error: ValidationError) -> str:
    mistake = error.errors()[-1]
    key = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "missing":
        return f"`{key}` is missing"
    found = " ".join(repr(mistake["input"]).split())
    return f"{key}: {mistake['msg']}, found {found if len(found) <= 60 else found[:60] + '...'}"
