"""The page: its content, its style and its script in one file of HTML."""

import base64
import hashlib
import html
from datetime import datetime
from importlib import resources
from string import Template
from typing import Any

from gems_ray.results.report.content import content, embedded
from gems_ray.results.results import Results

STYLES, SCRIPTS = ("page.css",), ("element.js", "table.js", "chart.js", "page.js")


def page(results: Results) -> str:
    """The report as HTML. The page asks for nothing: neither its own machine nor another one.

    Args:
        results: of one or many runs.
    """
    return write_page(content(results), live=False)


def write_page(data: dict[str, Any], live: bool) -> str:
    """The page around its content.

    Args:
        data: of `content`.
        live: whether it asks the server that it comes from for newer content.
    """
    style, script = _read(STYLES), _read(SCRIPTS)
    policy = "; ".join(
        [
            "default-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "img-src data:",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            *(["connect-src 'self'"] if live else []),
        ]
    )
    return Template(_read(["page.html"])).substitute(
        title=html.escape(f"Report of {data['title']}"),
        policy=html.escape(policy, quote=True),
        style=style,
        script=script,
        data=embedded(data),
        live="live" if live else "still",
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        version=html.escape(data["version"]),
    )


def _read(names: Any) -> str:
    folder = resources.files("gems_ray.results.report")
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _digest(text: str) -> str:
    """What a content security policy calls a text; nothing else can be executed on the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
