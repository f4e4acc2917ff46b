"""Things that are chosen by name in YAML and on the command line."""

import difflib
from collections.abc import Iterator, Mapping
from typing import TypeVar

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
