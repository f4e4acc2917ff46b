"""In which formats tables are written; apart, because the command line names them before it reads anything."""

from enum import StrEnum


class Format(StrEnum):
    """A format of tables."""

    CSV = "csv"
    PARQUET = "parquet"
    MARKDOWN = "markdown"
    LATEX = "latex"
    HTML = "html"
    EXCEL = "excel"


STANDARD = (Format.CSV, Format.MARKDOWN)
SUFFIXES = {Format.CSV: ".csv", Format.MARKDOWN: ".md", Format.LATEX: ".tex", Format.HTML: ".html"}  # of texts
