"""Errors that a user can act on: each names the offending value, the limit and the cure."""


class WristWorldError(Exception):
    """Base of every expected error of this package; the command line prints it without a trace."""


class InvalidInputError(WristWorldError, ValueError):
    """A value that came from outside (image, calibration, argument, file content) is not usable."""


class CalibrationError(InvalidInputError):
    """A camera model or transform is missing, not finite or not physically possible."""


class TransformLookupError(WristWorldError, LookupError):
    """The transform tree cannot connect two frames at the time asked for."""


class WeightsError(WristWorldError):
    """A weight file is missing, truncated, altered, or does not fit its model."""


class BagError(WristWorldError):
    """A bag cannot be read or written, or lacks what was asked of it."""


class EngineError(WristWorldError):
    """A compiled network cannot be built, found, read or run on this machine."""
