"""The flags of `run_tune.py train` that set an algorithm: one for every field of its config, and `--set` for all."""

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from gems_ray.errors import ConfigError

DEFAULT = "td3_bc"  # algorithm
FLAGS = {"normalize_states": "normalize"}  # flags with another name than their field
OPTIONS = "gems_ray.cli.settings"  # of the chosen algorithm, in the command's context


class SettingsCommand(TyperCommand):
    """A command with a flag for every setting of the algorithm that `--algorithm` names; `ctx.obj` has their values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Looks which algorithm is meant before it reads the other flags."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--algorithm", nargs="?", const=DEFAULT, default=DEFAULT)
        options = _options(parser.parse_known_args(args)[0].algorithm)
        own = {param.name for param in self.params}  # a setting of the same name is given by --set
        ctx.meta[OPTIONS] = [option for option in options if option.name not in own]
        rest = super().parse_args(ctx, args)
        ctx.obj = {option.name: ctx.params.pop(option.name) for option in ctx.meta[OPTIONS]}
        return rest

    def get_params(self, ctx: Any) -> list[Any]:
        """The flags of the command itself, then those of the algorithm."""
        return [*super().get_params(ctx), *ctx.meta.get(OPTIONS, ())]


def read_settings(
    algorithm: str, given: Mapping[str, str | bool | None], texts: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that the flags ask for.

    Args:
        algorithm: its name.
        given: values of the flags by setting, None where a flag was not given.
        texts: values of `--set`, NAME=VALUE.
    Returns:
        the settings, and for each of them the flag as it was typed.
    Raises:
        ConfigError: a value is not YAML, or a setting is given twice.
    """
    from gems_ray.algorithms import ALGORITHMS
    from gems_ray.yaml_file import parse_yaml_value

    fields = ALGORITHMS[algorithm].Config.model_fields
    settings: dict[str, Any] = {}
    flags: dict[str, str] = {}
    for name, value in given.items():
        flag = FLAGS.get(name, name)
        if isinstance(value, bool):
            flags[name] = f"--{flag}" if value else f"--no-{flag}"
            if value != fields[name].default:  # else the same cell as without the flag
                settings[name] = value
        elif value is not None:
            flags[name] = f"--{flag}"
            settings[name] = parse_yaml_value(value, flags[name])
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"--set {text}: expected NAME=VALUE, for example --set expectile=0.8.")
        if name in flags:
            raise ConfigError(
                f"--set {text}: {name} is given a second time, by {flags[name]}. Leave out one of the two."
            )
        flags[name] = f"--set {name}"
        settings[name] = parse_yaml_value(value, f"--set {text}")
    return settings, flags


def _options(algorithm: str) -> list[Any]:
    """An option for every setting of an algorithm; its value is a text, which the config checks.

    Raises:
        UnknownNameError: there is no such algorithm.
    """
    from gems_ray.algorithms import ALGORITHMS
    from gems_ray.yaml_file import yaml_text

    parameters = []
    for name, field in ALGORITHMS[algorithm].Config.model_fields.items():
        flag, is_switch = FLAGS.get(name, name), field.annotation is bool
        spellings = dict.fromkeys((flag, flag.replace("_", "-")))
        names = [f"--{spelling}/--no-{spelling}" if is_switch else f"--{spelling}" for spelling in spellings]
        default = "" if field.default is None else f" [default: {yaml_text(field.default)}]"
        option = typer.Option(
            None, *names, metavar=None if is_switch else "VALUE", help=f"{field.description}{default}"
        )
        kind = bool if is_switch else str
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind))

    def settings() -> None: ...

    settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(settings)
    return list(typer.main.get_command(app).params)
