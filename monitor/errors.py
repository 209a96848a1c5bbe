"""The exceptions a caller can meet. Each message says what is wrong, what was found, what is accepted, what to do."""


class GradiometerError(Exception):
    """Base of every exception raised on purpose by this project."""


class RunError(GradiometerError):
    """A run directory that cannot be created, found or read."""


class ConfigError(GradiometerError):
    """A configuration value that is refused; the message names the field."""


class MonitorWarning(UserWarning):
    """A part of the monitor stopped recording; the training goes on."""
