"""The two ways in which a run ends early on purpose; the command line turns each into one line and an exit code."""


class RequestError(ValueError):
    """What was asked cannot be done; the message is one line: what, and what to do about it. Exit code 2."""


class InvalidMeasurement(RuntimeError):
    """What was measured cannot be trusted: throttled, a foreign process, a value that is not finite. Exit code 4."""
