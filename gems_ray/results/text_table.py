"""Tables as people read them, in Markdown, LaTeX and HTML."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from rich.table import Table
from rich.text import Text

from gems_ray.results.text import escape_markdown, one_line, visible

HTML_STYLE = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
    "table{border-collapse:collapse}th,td{padding:.2em .6em;border-bottom:1px solid #8886;text-align:right}"
    "th{border-bottom:2px solid}td,th{white-space:nowrap}td.word,th.word{text-align:left;white-space:normal}"
    "p{max-width:50em}div{overflow-x:auto}"
)


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of texts.

    Args:
        title: one line.
        header: a heading for each column.
        rows: a text for each column.
        left: how many columns hold words; numbers follow, which stand at the right.
        notes: what stands under the table, a sentence each.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 2
    notes: Sequence[str] = ()


def draw(table: TextTable, folded: Sequence[str] = ()) -> Table:
    """A table for the terminal: what repeats in the first column is left out, and nothing in it is markup.

    Args:
        table: with a header.
        folded: headings of the columns that are broken where the terminal is too narrow.
    """
    drawn = Table(box=None, pad_edge=False)
    for index, name in enumerate(table.header):
        justify: Literal["left", "right"] = "left" if index < table.left else "right"
        folds = name in folded
        drawn.add_column(name, justify=justify, no_wrap=not folds, overflow="fold" if folds else "ellipsis")
    before = None
    for row in table.rows:
        if before not in (None, row[0]):
            drawn.add_section()
        first = row[0] if row[0] != before else ""
        drawn.add_row(*(Text(visible(cell)) for cell in (first, *row[1:])))
        before = row[0]
    return drawn


def to_markdown(tables: Sequence[TextTable]) -> str:
    """Tables of GitHub Markdown, each below its title."""
    parts = []
    for table in tables:
        notes = "".join(f"- {escape_markdown(note)}\n" for note in table.notes)
        body = markdown_table(table.header, table.rows, table.left) if table.header else ""
        parts.append("\n".join(part for part in (f"## {escape_markdown(table.title)}\n", body, notes) if part))
    return "\n".join(parts)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """A table of GitHub Markdown whose first `left` columns hold words."""
    line = ["---"] * left + ["---:"] * (len(header) - left)
    lines = [map(escape_markdown, header), line, *(map(escape_markdown, row) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def to_latex(tables: Sequence[TextTable]) -> str:
    """Tables of LaTeX, with the rules of the package booktabs; the notes are part of the caption."""
    parts = ["% \\usepackage{booktabs}\n"]
    for table in tables:
        caption = " ".join([f"{table.title}.", *table.notes])
        if not table.header:
            lines = (f"{table.title}:", *table.notes)
            parts.append(_latex_signs("".join(f"{_latex(line)}\\par\n" for line in lines)))
            continue
        columns = [str(index) for index in range(len(table.header))]
        frame = pd.DataFrame([[one_line(cell) for cell in row] for row in table.rows], columns=columns, dtype=object)
        frame.columns = [one_line(name) for name in table.header]
        form = "l" * table.left + "r" * (len(columns) - table.left)
        text = frame.to_latex(index=False, escape=True, column_format=form, caption=_latex(caption), position="htbp")
        parts.append(_latex_signs(text))
    return "\n".join(parts)


def to_html(title: str, tables: Sequence[TextTable]) -> str:
    """A page of HTML with tables and nothing else: it asks for no other file."""
    parts = [_html_table(table) for table in tables]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_html(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{HTML_STYLE}</style></head>\n'
        f"<body>\n<h1>{_html(title)}</h1>\n{''.join(parts)}</body></html>\n"
    )


def _html_table(table: TextTable) -> str:
    def line(kind: str, cells: Sequence[str]) -> str:
        words = (' class="word"' if index < table.left else "" for index in range(len(cells)))
        return "".join(f"<{kind}{word}>{_html(cell)}</{kind}>" for word, cell in zip(words, cells, strict=True))

    body = ""
    if table.header:
        rows = "".join(f"<tr>{line('td', row)}</tr>\n" for row in table.rows)
        head = f"<thead><tr>{line('th', table.header)}</tr></thead>"
        body = f"<div><table>{head}\n<tbody>\n{rows}</tbody></table></div>\n"
    notes = "".join(f"<p>{_html(note)}</p>\n" for note in table.notes)
    return f"<h2>{_html(table.title)}</h2>\n{body}{notes}"


def _html(text: str) -> str:
    return html.escape(one_line(text))


def _latex(text: str) -> str:
    """A text that LaTeX prints as it is."""
    codes = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    codes |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(codes.get(sign, sign) for sign in one_line(text))


def _latex_signs(text: str) -> str:
    """Signs of these tables that are no ASCII, for every engine of LaTeX."""
    signs = {"±": r"$\pm$", "≈": r"$\approx$", "≤": r"$\leq$"}
    signs |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # other signs in LaTeX's first fonts
    return "".join(signs.get(sign, sign) for sign in text)
