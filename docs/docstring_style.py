"""Lets the reference pages read our style: docstrings, comments after fields, and the fields of pydantic models."""

import ast
import re
from textwrap import dedent
from typing import Any

import griffe

SECTION = re.compile(r"(?<=[^\n])\n(?=(?:Args|Returns|Raises|Yields|Example):\n)")
VALUE = re.compile(r"^(Returns|Yields):\n {4}", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:\n((?: {4}.*\n?)+)", re.MULTILINE)


class DocstringStyle(griffe.Extension):
    """Gives every object the docstring that the parser looks for."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = _with_sections(obj.docstring.value)
        elif isinstance(obj, griffe.Attribute) and (text := _described(obj.value) or _commented(obj)):
            obj.docstring = griffe.Docstring(text, lineno=obj.lineno, parent=obj)


def _with_sections(text: str) -> str:
    """A docstring as the parser wants it: empty lines between the sections, and code in fences."""
    text = SECTION.sub("\n\n", text)
    text = VALUE.sub(r"\1:\n    : ", text)  # what is before a colon would be taken for a type
    return EXAMPLE.sub(lambda found: "```python\n" + dedent(found[1]) + "\n```\n", text)


def _described(value: str | griffe.Expr | None) -> str:
    """The description of a pydantic field."""
    arguments = value.arguments if isinstance(value, griffe.ExprCall) else []
    texts = [each.value for each in arguments if isinstance(each, griffe.ExprKeyword) and each.name == "description"]
    return str(ast.literal_eval(str(texts[0]))) if texts else ""


def _commented(attribute: griffe.Attribute) -> str:
    """The comment in the line of a field of a class."""
    in_class = attribute.parent is not None and attribute.parent.is_class and not attribute.name.startswith("_")
    return attribute.source.partition("  # ")[2].strip() if in_class else ""
