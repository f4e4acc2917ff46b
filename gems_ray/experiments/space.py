"""Search spaces as data: what a setting may be, by algorithm."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from gems_ray.config import Config

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

ALGORITHM = "algorithm"  # name of the parameter that chooses among several algorithms

Params = dict[str, Any]  # a point of the space under the names that the study shows


class Domain(Config):
    """Values of one setting: exactly one of choice, uniform, log_uniform, int and log_int."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="One of these values.")
    uniform: tuple[float, float] | None = Field(None, description="Lowest and highest value.")
    log_uniform: tuple[float, float] | None = Field(None, description="The same, even on a log scale.")
    integer: tuple[int, int] | None = Field(None, alias="int", description="Lowest and highest integer.")
    log_integer: tuple[int, int] | None = Field(None, alias="log_int", description="The same, even on a log scale.")
    step: float | None = Field(None, gt=0, description="Distance between neighbours, with uniform and int.")

    @model_validator(mode="before")
    @classmethod
    def _is_a_domain(cls, value: Any) -> Any:
        if not isinstance(value, dict | cls):
            raise ValueError("expected a domain, for example {uniform: [0, 1]}, by algorithm and setting")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> "Domain":
        kinds = [name for name, field in type(self).model_fields.items() if name != "step" and getattr(self, name)]
        if len(kinds) != 1:
            raise ValueError("expected exactly one of choice, uniform, log_uniform, int, log_int")
        if self.choice is not None and len(set(map(_label, self.choice))) < len(self.choice):
            raise ValueError("every choice may stand once")
        if self.choice is None:
            low, high = self.bounds
            if not low < high:
                raise ValueError(f"expected [lowest, highest], found [{low:g}, {high:g}]")
            if kinds[0].startswith("log") and low <= 0:
                raise ValueError(f"a log scale begins above 0, found {low:g}")
        if self.step and not (self.uniform or self.integer):
            raise ValueError("step goes with uniform and int")
        if self.step and self.integer and self.step != int(self.step):
            raise ValueError("the step of int is an integer")
        if self.step and self.step > (high - low) * (1 + 1e-9):
            raise ValueError(f"expected a step within the range of {high - low:g}, found {self.step:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of a range."""
        bounds = self.uniform or self.log_uniform or self.integer or self.log_integer
        assert bounds is not None
        return bounds

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that stand for all others when the domain is checked: both ends and one between them."""
        if self.choice is not None:
            return self.choice
        low, high = self.bounds
        if self.integer or self.log_integer:
            return int(low), int(high)
        return low, low + (self.step or (high - low) / math.pi), high

    def describe(self) -> str:
        """The domain on a line."""
        given = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return ", ".join(f"{kind} {value}" for kind, value in given.items())

    @property
    def distribution(self) -> "CategoricalDistribution | FloatDistribution | IntDistribution":
        """The domain as a study knows it; a choice that a study cannot store is its JSON there."""
        from optuna import distributions  # not needed to read results

        if self.choice is not None:
            return distributions.CategoricalDistribution([_label(value) for value in self.choice])
        low, high = self.bounds
        if self.uniform or self.log_uniform:
            return distributions.FloatDistribution(low, high, log=self.log_uniform is not None, step=self.step)
        log, step = self.log_integer is not None, int(self.step or 1)
        return distributions.IntDistribution(int(low), int(high), log=log, step=step)

    def suggest(self, trial: "Trial", name: str) -> None:
        """Asks a trial for a value."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        asked = self.distribution
        if isinstance(asked, CategoricalDistribution):
            trial.suggest_categorical(name, asked.choices)
        elif isinstance(asked, IntDistribution):
            trial.suggest_int(name, asked.low, asked.high, step=asked.step, log=asked.log)
        else:
            trial.suggest_float(name, asked.low, asked.high, step=asked.step, log=asked.log)

    def contains(self, value: Any) -> bool:
        """Whether a value can be suggested; between two steps counts as well."""
        if self.choice is not None:
            return _label(value) in map(_label, self.choice)
        if not isinstance(value, int | float):
            return False
        low, high = self.bounds
        fractions = self.integer is None and self.log_integer is None
        return low <= value <= high and (fractions or value == int(value))

    def count(self) -> int:
        """How many values there are.

        Raises:
            ValueError: there is no end to them.
        """
        if self.choice is not None:
            return len(self.choice)
        low, high = self.bounds
        if self.integer or (self.uniform and self.step):
            return int((high - low) / (self.step or 1) + 1e-9) + 1
        raise ValueError("a grid needs choice, int, or uniform with a step")

    def every_value(self) -> list[Any]:
        """All values, lowest first.

        Raises:
            ValueError: there is no end to them.
        """
        if self.choice is not None:
            return list(self.choice)
        count, (low, high), step = self.count(), self.bounds, self.step or 1
        if self.integer:
            return list(range(int(low), int(high) + 1, int(step)))
        return [min(high, float(low + index * step)) for index in range(count)]


class Space:
    """The domains of every algorithm that a search chooses among.

    Args:
        domains: by algorithm and setting. With one algorithm the study shows `alpha`, with several `td3_bc.alpha`.
    """

    def __init__(self, domains: Mapping[str, Mapping[str, Domain]]) -> None:
        self._domains = domains

    def suggest(self, trial: "Trial") -> None:
        """Asks a trial for an algorithm, where there are several, and for its settings."""
        algorithm = next(iter(self._domains))
        if len(self._domains) > 1:
            algorithm = trial.suggest_categorical(ALGORITHM, list(self._domains))
        for setting, domain in self._domains[algorithm].items():
            domain.suggest(trial, self._name(algorithm, setting))

    def decode(self, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The algorithm and the settings that a point of the study stands for."""
        algorithm = str(params.get(ALGORITHM, next(iter(self._domains))))
        settings = {}
        for setting, domain in self._domains[algorithm].items():
            value = params[self._name(algorithm, setting)]
            labels = {_label(choice): choice for choice in domain.choice or ()}
            settings[setting] = labels.get(value, value)
        return algorithm, settings

    def encode(self, algorithm: str, settings: Mapping[str, Any]) -> Params:
        """The point of the study that stands for an algorithm and its settings."""
        params: Params = {} if len(self._domains) == 1 else {ALGORITHM: algorithm}
        for setting, domain in self._domains[algorithm].items():
            value = settings[setting]
            params[self._name(algorithm, setting)] = value if domain.choice is None else _label(value)
        return params

    def outside(self, algorithm: str, settings: Mapping[str, Any]) -> list[str]:
        """Settings that do not lie in their domains."""
        domains = self._domains[algorithm]
        return [setting for setting, domain in domains.items() if not domain.contains(settings[setting])]

    def contains(self, algorithm: str, settings: Mapping[str, Any]) -> bool:
        """Whether every setting lies in its domain."""
        return not self.outside(algorithm, settings)

    def every_point(self) -> Iterator[Params]:
        """The full grid.

        Raises:
            ValueError: a domain has no end of values.
        """
        for algorithm, domains in self._domains.items():
            for values in itertools.product(*(domain.every_value() for domain in domains.values())):
                yield self.encode(algorithm, dict(zip(domains, values, strict=True)))

    def _name(self, algorithm: str, setting: str) -> str:
        return setting if len(self._domains) == 1 else f"{algorithm}.{setting}"


def _label(value: Any) -> Any:
    """The value itself where a study can store it, else its JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
