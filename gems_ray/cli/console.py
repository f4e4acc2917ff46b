"""The terminal: one line, as it is."""

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


def print_line(line: str) -> None:
    """Prints a line as it is."""
    console.print(line, markup=False)
