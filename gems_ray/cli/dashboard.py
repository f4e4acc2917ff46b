"""`run_tune.py dashboard`: where Ray's dashboard is, and the token that it asks for."""

import os
import sys
from typing import Annotated

import typer

BROWSERS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # variables of which one says that a page can be shown


def dashboard(
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, HOST:PORT of its head [default: every Ray of this machine].")
    ] = None,
) -> None:
    """Show where the Ray dashboard of a run is, and its token.

    Opens it in a browser where there is one. A run that goes on has a Ray of its own; if there are several, each is
    listed with its run folder.
    """
    from gems_ray.cli.console import print_line
    from gems_ray.tune.cluster import keep_token_private, token, token_file
    from gems_ray.tune.dashboard import find_dashboards

    found = find_dashboards(address)
    for one in found:
        print_line(f"Ray dashboard{' of ' + ', '.join(one.runs) if one.runs else ''}: {one.url}")
        if one.head:
            place = one.url.removeprefix("http://")
            print_line(f"  Only {one.head} itself can open it; `ssh -N -L {place}:{place} {one.head}` brings it here.")
    if any(one.asks_for_token for one in found) and (text := token()):
        print_line(f"Token: {text}")
        if path := token_file():
            private = keep_token_private()
            print_line(
                f"It is the content of {path}, which only you can read."
                if private
                else f"It is the content of {path}, which others can read too: make it private by `chmod 600 {path}`."
            )
    if len(found) == 1 and found[0].head is None:
        _open_browser(found[0].url)


def _open_browser(url: str) -> None:
    """Opens a page where there is a screen: Python would also start a browser in this terminal."""
    import webbrowser

    if sys.platform == "darwin" or any(os.environ.get(name) for name in BROWSERS):
        webbrowser.open(url)
