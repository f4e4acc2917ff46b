"""Texts out of run folders, which may hold anything: made visible, and escaped for what they are written into."""

import re

# Control characters but tabulator and end of line: a terminal would obey them, wherever they came from. And bytes of a
# path that are no text, which cannot be written in UTF-8.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A text with its control characters written out as codes."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """A text on one line, with its control characters written out as codes."""
    return visible(" ".join(text.split("\n")).replace("\t", " "))


def escape_markdown(text: str) -> str:
    """A text for a cell of a table of GitHub Markdown, where it is neither markup nor the end of the cell."""
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
