"""Things that are chosen by name in YAML and on the command line."""

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

from gems_ray.errors import UnknownNameError

T = TypeVar("T")


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint that names the nearest known name, or an empty string when none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean `{near[0]}`? " if near else ""


class Registry(Mapping[str, T]):
    """A read-only mapping from names to things, whose lookup error says what exists.

    Args:
        kind: what the names stand for, in the singular ("environment").
        entries: the things by name.
    """

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        self._kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            known, shown = sorted(self._entries), " ".join(str(name).split())
            raise UnknownNameError(
                f"{self._kind} `{shown}` does not exist. {did_you_mean(name, known)}Known: {', '.join(known)}."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def import_path(kind: type) -> str:
    """How `import_class` finds a class again."""
    return f"{kind.__module__}:{kind.__qualname__}"


def import_class(path: str, base: type, where: str) -> Any:
    """The class that an import path names.

    Args:
        path: `package.module:Class`.
        base: what it must be a subclass of.
        where: who names it, for the message.
    Raises:
        UnknownNameError: it cannot be imported, or it is no such class.
    """
    module, _, name = path.partition(":")
    try:
        found = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the code of a foreign module raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnknownNameError(
            f"{where} `{path}`: cannot be imported ({reason}). Expected `package.module:Class` of a package that "
            "is installed, or lies in a folder on PYTHONPATH."
        ) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UnknownNameError(f"{where} `{path}`: expected a subclass of {base.__name__}, found {found!r}.")
    return found
