"""The command line: arguments, output, exit codes."""

from gems_ray.cli.main import main

__all__ = ["main"]
