"""The name of the command line, for messages that tell what to type."""

import shlex
import sys
from pathlib import Path

SCRIPT, INSTALLED = "run_tune.py", "gems-ray"
COMMAND = "GEMS_RAY_COMMAND"  # environment variable of a submitted run: its words, which may hold a password


def program_name() -> str:
    """The script of a checkout where that was started, else the installed command."""
    return SCRIPT if sys.argv and Path(sys.argv[0]).name == SCRIPT else INSTALLED


def command_line(*words: str) -> str:
    """A command to copy, such as `python run_tune.py resume runs/demo` or `gems-ray resume runs/demo`."""
    program = ["python", SCRIPT] if program_name() == SCRIPT else [INSTALLED]
    return shlex.join([*program, *words])


def same_command() -> str:
    """The command that this process was started with."""
    program = ["python", sys.argv[0]] if program_name() == SCRIPT else [INSTALLED]
    return shlex.join([*program, *sys.argv[1:]])
