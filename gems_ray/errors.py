"""Errors that a user can cause or mend; each message says where, what was expected, what was found, what to do."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

Location = tuple[str | int, ...]  # key path in an experiment file, ("settings", "td3_bc", "alpha")


def dotted(location: Location) -> str:
    """A key path as text: `settings.td3_bc.alpha`."""
    return ".".join(" ".join(str(part).split()) for part in location)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong in an experiment file, or in what stands for one.

    Args:
        location: key that is wrong.
        expected: of its value: "expected a number".
        found: the value.
        problem: of the key itself, in place of `expected`: "is missing".
        whole: what the problem ends with where the key stands in no section, "an experiment"; else it is the section.
        text: whole sentences, in place of all other words, where they do not begin with the key.
        advice: whole sentences on what to do.
        place: file and line, where there is a file.
    """

    location: Location = ()
    expected: str = ""
    found: str = ""
    problem: str = ""
    whole: str = ""
    text: str = ""
    advice: str = ""
    place: str = ""

    def __str__(self) -> str:
        return self.told()

    def told(self, name: Callable[[Location], str] = dotted) -> str:
        """The mistake on a line.

        Args:
            name: what the user calls a key.
        """
        key, found = f"`{name(self.location)}`", f", found {self.found}" if self.found else ""
        sentence = f"{key}: {self.expected}{found}."
        if self.problem:
            section = f"`{name(self.location[:-1])}`" if self.location[1:] else self.whole
            sentence = f"{key} {self.problem} {section}." if self.whole else f"{key} {self.problem}."
        said = " ".join(filter(None, (self.text or sentence, self.advice)))
        return f"{self.place}: {said}" if self.place else said


def _line(text: str) -> str:
    """A text without the ends of lines in what it quotes: from a file, a command line, another program."""
    return " ".join(text.split("\n"))


class GemsRayError(Exception):
    """Base of every error that the command line prints as one line, without a stack trace.

    Its arguments are the parts of the message: texts, and locations of keys that the texts speak of.
    """

    def __str__(self) -> str:
        return self.told()

    def told(self, name: Callable[[Location], str] = dotted) -> str:
        """The message.

        Args:
            name: what the user calls a key: `dataset.file` in an experiment file is `--dataset` on a command line.
        """
        return _line("".join(name(part) if isinstance(part, tuple) else str(part) for part in self.args))


class ConfigError(GemsRayError):
    """A YAML file, a flag or a setting is wrong. Its arguments are mistakes, or texts, each a line of the message."""

    def told(self, name: Callable[[Location], str] = dotted) -> str:
        """The message, a line for each mistake."""
        return "\n".join(_line(part.told(name) if isinstance(part, Mistake) else str(part)) for part in self.args)


def below(*location: str | int) -> AbstractContextManager[None]:
    """Mistakes that are found inside stand below this key."""
    return changed(lambda mistake: replace(mistake, location=(*location, *mistake.location)))


@contextmanager
def changed(change: Callable[[Mistake], Mistake]) -> Iterator[None]:
    """Mistakes that are found inside are changed on their way out."""
    try:
        yield
    except ConfigError as error:
        mistakes = (part if isinstance(part, Mistake) else Mistake(text=str(part)) for part in error.args)
        raise type(error)(*map(change, mistakes)) from None


class UnknownNameError(ConfigError):
    """A name is not registered."""


class DatasetError(GemsRayError):
    """A dataset file is missing, damaged or not in the documented format."""


class WorldError(GemsRayError):
    """A world bundle is missing, damaged or not the one that a dataset was collected in."""


class PolicyError(GemsRayError):
    """A saved policy is missing, damaged, or not one that this program can read."""


class CheckpointError(GemsRayError):
    """A checkpoint is damaged, or is none."""


class SimulatorError(GemsRayError):
    """The simulator was given slates, clicks or users that it cannot take."""


class DeviceError(GemsRayError):
    """The requested device does not exist here."""


class ResourceError(GemsRayError):
    """The cluster can never satisfy what the experiment asks for."""


class TrainingError(GemsRayError):
    """The training itself went wrong, for example a loss that is not finite."""


class RunFolderError(GemsRayError):
    """A run folder is missing, damaged or belongs to another experiment."""


class RecordVersionError(RunFolderError):
    """A record of a run folder was written by a later version of the program: it is not damaged."""


class StudyError(GemsRayError):
    """The storage of a search's study cannot be opened, or holds another search."""
