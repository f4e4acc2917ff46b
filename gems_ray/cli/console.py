"""The terminal: one line, as it is."""

import re

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)

# Control characters but tabulator and end of line: a terminal would obey them, wherever they came from.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def print_line(line: str) -> None:
    """Prints a line as it is."""
    console.print(visible(line), markup=False)


def print_text(text: str) -> None:
    """Prints a piece of a text, which may end in the middle of a line."""
    console.print(visible(text), markup=False, end="")


def visible(text: str) -> str:
    """A text with its control characters written out as codes."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
