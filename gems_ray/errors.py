"""Errors that a user can cause or mend; each message says where, what was expected, what was found, what to do."""


class GemsRayError(Exception):
    """Base of every error that the command line prints as one line, without a stack trace."""

    exit_code = 2


class ConfigError(GemsRayError):
    """A YAML file, a flag or a setting is wrong."""


class UnknownNameError(ConfigError):
    """A name is not registered."""


class DatasetError(GemsRayError):
    """A dataset file is missing, damaged or not in the documented format."""


class WorldError(GemsRayError):
    """A world bundle is missing, damaged or not the one that a dataset was collected in."""


class PolicyError(GemsRayError):
    """A saved policy is missing, damaged, or not one that this program can read."""


class SimulatorError(GemsRayError):
    """The simulator was given slates, clicks or users that it cannot take."""


class DeviceError(GemsRayError):
    """The requested device does not exist here."""


class ResourceError(GemsRayError):
    """The cluster can never satisfy what the experiment asks for."""


class TrainingError(GemsRayError):
    """The training itself went wrong, for example a loss that is not finite."""

    exit_code = 1


class RunFolderError(GemsRayError):
    """A run folder is missing, damaged or belongs to another experiment."""


class StudyError(GemsRayError):
    """The storage of a search's study cannot be opened, or holds another search."""
