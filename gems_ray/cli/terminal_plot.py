"""Curves in the terminal: dots of Braille letters, two in a column and four in a row."""

from collections.abc import Mapping, Sequence

from rich.text import Text

COLORS = ("blue", "red", "green", "magenta", "yellow", "cyan")
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a Braille letter, by column and row
LABEL = 8  # letters of the numbers at the left


def line_plot(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], width: int, height: int) -> Text:
    """Lines above a common axis, with a legend.

    Args:
        lines: by name, x and y of at least one point.
        width: letters.
        height: rows of the plot alone.
    """
    xs, ys = ([value for line in lines.values() for value in line[axis]] for axis in (0, 1))
    if not xs:
        return Text("Nothing has been measured yet.")
    columns, rows = 2 * (width - LABEL - 1), 4 * height
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    dots = [[0] * (columns // 2) for _ in range(height)]
    colors = [[""] * (columns // 2) for _ in range(height)]
    for (x, y), color in zip(lines.values(), _colors(len(lines)), strict=True):
        for column in range(columns):
            at = left + (right - left) * column / max(1, columns - 1)
            if x[0] <= at <= x[-1]:
                share = (_between(x, y, at) - low) / ((high - low) or 1)
                row = round((1 - share) * (rows - 1))
                dots[row // 4][column // 2] |= DOTS[column % 2][row % 4]
                colors[row // 4][column // 2] = color
    text = Text(no_wrap=True, overflow="crop")
    for index, (letters, tints) in enumerate(zip(dots, colors, strict=True)):
        value = high if index == 0 else low if index == height - 1 else None
        text.append(f"{'' if value is None else f'{value:.1f}':>{LABEL}} ")
        for letter, tint in zip(letters, tints, strict=True):
            text.append(chr(0x2800 + letter) if letter else " ", tint)
        text.append("\n")
    text.append(f"{'':>{LABEL}} {left:<,.0f}{f'{right:,.0f} updates':>{width - LABEL - 2 - len(f'{left:,.0f}')}}\n")
    text.append(" " * (LABEL + 1))
    for name, color in zip(lines, _colors(len(lines)), strict=True):
        text.append(f"\u25cf {name}  ", color)
    return text


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _between(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """The value of a line at a place between its first and its last point."""
    after = next(index for index, value in enumerate(x) if value >= at)
    if x[after] == at or after == 0:
        return y[after]
    share = (at - x[after - 1]) / (x[after] - x[after - 1])
    return y[after - 1] + share * (y[after] - y[after - 1])
