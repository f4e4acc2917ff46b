"""Lets the reference pages read our docstrings, whose sections follow each other without an empty line."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<=[^\n])\n(?=(?:Args|Returns|Raises|Yields):\n)")


class DocstringSections(griffe.Extension):
    """Puts the empty line before every section of a docstring that the parser looks for."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
