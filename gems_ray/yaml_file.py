"""YAML files: read up to bounds, with the line of every key, and written."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.reader import ReaderError

from gems_ray.errors import ConfigError, Location, changed

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
TOP_LEVEL_PART = re.compile(r"^(?=\w|-{3}|\.{3})", re.MULTILINE)  # a key, the beginning or end of a document
LARGE = 1e7  # whole numbers with a fraction of zero are written with an exponent from here on
SHOWN_CHARACTERS = 60  # of a value in a message


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much YAML is read; the parser needs about 70 microseconds for each value.

    Args:
        size: bytes of the file.
        values: keys, scalars, lists and mappings, written out wherever an alias repeats them.
    """

    size: int
    values: int


BY_HAND = Bounds(size=250_000, values=50_000)
RESOLVED = Bounds(size=10_000_000, values=500_000)  # written by this program: the largest grid, a seed on each line
DEEPEST = 50  # levels
LONG = 1_000  # characters of a text that count as a value: an alias repeats them all


class YamlDocument:
    """A parsed YAML file that knows the line of every key.

    Args:
        path: file, for messages.
        text: its content.
        bounds: how much it may hold.
    Raises:
        ConfigError: not YAML, a duplicate key, too much, or not a mapping.
    """

    def __init__(self, path: Path, text: str, bounds: Bounds = BY_HAND) -> None:
        self.path = path
        self.data = _parse(text, "rt", lambda line: f"{path}:{line}" if line else str(path), bounds)
        if not isinstance(self.data, dict):
            found = "an empty file" if self.data is None else shown(self.data)
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

    def located(self) -> AbstractContextManager[None]:
        """Mistakes that are found inside say where they stand in this file."""
        return changed(lambda mistake: replace(mistake, place=f"{self.path}:{self.line(mistake.location)}"))


def read_yaml(path: Path, bounds: Bounds = BY_HAND) -> YamlDocument:
    """Parses a YAML file.

    Args:
        path: file, or a device or pipe, of which no more is read than the bounds allow.
        bounds: how much it may hold.
    Raises:
        ConfigError: the file is missing, too large, or not valid.
    """
    try:
        text = _read_text(path, bounds.size)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Check the path; examples are in tune_configs/.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: expected a YAML file, found a folder. Name a file in it.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected text in UTF-8, found other bytes. Save the file as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    return YamlDocument(path, text, bounds)


def _read_text(path: Path, largest: int) -> str:
    """The text of a file that has at most so many bytes."""
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0  # a device or pipe does not know
        content = b"" if size > largest else file.read(largest + 1)
    if max(size, len(content)) > largest:
        found = f"{size:,}" if size else "more"
        raise ConfigError(
            f"{path}: expected at most {largest:,} bytes, found {found}. Shorten it, or make several files of it."
        )
    return TextIOWrapper(BytesIO(content), encoding="utf-8").read()


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
    return plain(_parse(text, "safe", lambda line: where, BY_HAND))


def yaml_text(value: Any) -> str:
    """A value on one line, as it would stand in a file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml_text(key)}: {yaml_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_text, value)) + "]"
    return str(value)


def short_text(value: Any) -> str:
    """A value for a table or a title: three digits of a number with a fraction."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < LARGE):
        return f"{value:.3g}"
    # Whole numbers beside gaps are floats to pandas.
    return yaml_text(int(value) if isinstance(value, float) else value)


def dump_yaml(data: Any) -> str:
    """Plain data as block-style YAML, keys in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 10_000  # a value stays on its line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(plain(data), stream)
    return stream.getvalue()


def shown(value: Any) -> str:
    """A value for a message: its kind where it is long."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = " ".join(yaml_text(value).split())
    return f"`{text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + '...'}`"


def parse_alike(text: str) -> dict[str, Any] | None:
    """A mapping of a file that this program wrote, from the parts below its keys; None where that is impossible.

    The files of a thousand cells are alike in most of their parts, and such a part is parsed once.
    """
    try:
        parts = [_parse_part(part) for part in TOP_LEVEL_PART.split(text) if part]
    except ConfigError:  # whether it is one in the whole file, and in which line, is found by parsing all of it
        return None
    if not all(isinstance(part, dict) for part in parts):
        return None
    data = {key: value for part in parts for key, value in part.items()}
    return plain(data) if len(data) == sum(map(len, parts)) else None


@lru_cache(maxsize=4_096)
def _parse_part(text: str) -> Any:
    return _parse(text, "safe", str, RESOLVED)


class TooManyValuesError(MarkedYAMLError):
    """A document holds more values than its bounds allow."""


class BoundedComposer(Composer):
    """Reads a document up to its bounds, before anything is built of it.

    Args:
        loader: YAML that uses it.
        most: values.
    """

    def __init__(self, loader: Any = None, *, most: int) -> None:
        super().__init__(loader=loader)
        self._most = most
        self._values = 0
        self._level = 0
        self._anchored: dict[int, int] = {}  # values of a node that is complete, by its identity
        self._through = ""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node, counted; an alias counts for all values that it stands for.

        Raises:
            TooManyValuesError: they are more than allowed.
            ComposerError: nested too deeply, or without an end.
        """
        mark, before = self.parser.peek_event().start_mark, self._values
        if self._level == DEEPEST:
            raise ComposerError(None, None, "nested too deeply. Write it flatter", mark)
        is_alias = self.parser.check_event(AliasEvent)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if not is_alias:
            self._values += 1 + (len(node.value) // LONG if isinstance(node.value, str) else 0)
            if node.anchor is not None:
                self._anchored[id(node)] = self._values - before
        elif id(node) in self._anchored:
            self._values += self._anchored[id(node)]
            self._through = " once its aliases are written out"
        else:
            raise ComposerError(None, None, "nested too deeply: a value holds itself by its alias. Write it out", mark)
        if self._values > self._most:
            problem = f"too many values{self._through}, expected at most {self._most:,}"
            raise TooManyValuesError(None, None, problem, mark)
        return node


def _parse(text: str, kind: Literal["rt", "safe"], where: Callable[[int | None], str], bounds: Bounds) -> Any:
    """YAML of one document; `where` makes the beginning of a message from a line, if there is one."""
    try:
        yaml = YAML(typ=kind, pure=True)
        yaml.Composer = partial(BoundedComposer, most=bounds.values)  # type: ignore[assignment]
        data = yaml.load(text)
        codes = [CONTROL.search(part) for part in _texts(plain(data))]
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else "?"
        raise ConfigError(f"{where(_line(error))}: `{key}` stands here a second time. Remove one of the two.") from None
    except TooManyValuesError as error:
        advice = "Shorten it, or make several files of it"
        raise ConfigError(f"{where(_line(error))}: {error.problem}. {advice}.") from None
    except ComposerError as error:
        reason = f"not valid YAML: {error.problem}"
        if "another document" in str(error.problem):
            reason = "expected one document, found a second one after `---`. Make a file of each"
        raise ConfigError(f"{where(_line(error))}: {reason}.") from None
    except MarkedYAMLError as error:
        raise ConfigError(f"{where(_line(error))}: not valid YAML: {error.problem}.") from None
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise ConfigError(f"{where(line)}: not valid YAML: control character #x{code:02x}. Remove it.") from None
    except RecursionError:
        raise ConfigError(f"{where(None)}: not valid YAML: nested too deeply. Write it flatter.") from None
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # a date such as 2001-99-99
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{where(None)}: not valid YAML: a value cannot be read ({reason}).") from None
    if found := next(filter(None, codes), None):  # written as an escape, "\\0", which no path or name can hold
        raise ConfigError(f"{where(None)}: control character #x{ord(found[0]):02x} in a text. Remove it.")
    return data


def _texts(data: Any) -> Iterator[str]:
    """All texts in plain data, keys included."""
    if isinstance(data, str):
        yield data
    for part in [*data, *data.values()] if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _texts(part)


def _line(error: MarkedYAMLError) -> int | None:
    return error.problem_mark.line + 1 if error.problem_mark else None
