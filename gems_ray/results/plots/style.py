"""How the plots look: colours that people with any colour vision can tell apart, and lines that can be told apart in
print without colours.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from gems_ray.files import atomic_path
from gems_ray.results.text import one_line

# After Okabe and Ito 2008, each with a contrast of at least 3 : 1 on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#8A4FA3", "#8C6D00", "#1B1B1B", "#C2185B", "#3A7D8C")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#5A5A5A"
MOST_GROUPS = 8  # as many as colours; of more, the best are drawn

STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,  # letters stay letters, as journals ask
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "gems_ray",  # the same run gives the same bytes
    "text.parse_math": False,  # a dollar in a name is a dollar
}
METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "ModDate": None},
}


@dataclass(frozen=True, slots=True)
class GroupStyle:
    """The look of a group in all panels of a figure."""

    color: str
    dashes: Any
    marker: str


@contextmanager
def styled() -> Iterator[None]:
    """Everything that is drawn within has the look of this module; nothing outside changes."""
    with mpl.rc_context(STYLE):
        yield


def group_styles(groups: Sequence[str]) -> dict[str, GroupStyle]:
    """A colour, a dash pattern and a marker for every group."""
    return {
        group: GroupStyle(COLORS[i % len(COLORS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, group in enumerate(groups)
    }


def panels(titles: Sequence[str], height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title, three in a row."""
    columns = min(3, max(1, len(titles)))
    rows = -(-max(1, len(titles)) // columns)
    figure = Figure(figsize=(1.2 + 3.1 * columns if columns > 1 else 5.2, height * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(one_line(title))
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    return figure, axes


def finish(figure: Figure, note: str, axes: Sequence[Axes]) -> Figure:
    """Adds one legend for all panels, and a note on what is shown, below them."""
    handles: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    width = int(figure.get_figwidth() * 17)  # letters of this size in a line
    text = "\n".join(textwrap.wrap(note, width))
    if not handles:
        figure.supxlabel(text, fontsize=7, color=GREY)
        return figure
    columns = max(1, min(8, int(figure.get_figwidth() * 13 // (max(map(len, handles)) + 8))))
    legend = figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=8)
    legend.set_title(text)
    legend.get_title().set(fontsize=7, color=GREY)
    return figure


def plain_log_ticks(axis: Axes) -> None:
    """Numbers as they are on logarithmic axes: powers would need the mathematical text that names must not have."""
    for side in (axis.xaxis, axis.yaxis):
        if side.get_scale() == "log":
            side.set_minor_locator(LogLocator(subs=(2, 5)))
            side.set_major_formatter(lambda value, _: f"{value:g}")
            side.set_minor_formatter(lambda value, _: f"{value:g}")


def empty(message: str) -> Figure:
    """A figure that says in words why there is nothing to see."""
    figure = Figure(figsize=(5.2, 2), layout="constrained")
    figure.text(0.5, 0.5, message, ha="center", va="center", color=GREY, wrap=True)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, whole or not at all, in the format of the path's suffix.

    Args:
        figure: that is written.
        path: of a .png, .svg or .pdf file.
    """
    kind = path.suffix.removeprefix(".")
    with styled(), atomic_path(path) as partial:
        figure.savefig(partial, format=kind, metadata=METADATA[kind])
