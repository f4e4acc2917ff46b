"""The terminal: one line, as it is."""

from rich.console import Console

from gems_ray.results.text import visible as visible

console = Console(highlight=False, soft_wrap=True)


def print_line(line: str) -> None:
    """Prints a line as it is."""
    console.print(visible(line), markup=False)


def print_text(text: str) -> None:
    """Prints a piece of a text, which may end in the middle of a line."""
    console.print(visible(text), markup=False, end="")
