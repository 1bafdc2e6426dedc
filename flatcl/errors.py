"""The errors that flatcl raises: what happened, the value seen, the remedy."""

from __future__ import annotations


class FlatclError(Exception):
    """Base of every error that flatcl raises on purpose."""


class OptionError(FlatclError, ValueError):
    """An option or argument has a value that cannot be used."""


class DataError(FlatclError, ValueError):
    """A data set is missing, malformed, or too small for what was asked."""


class StateError(FlatclError, RuntimeError):
    """Calls came in an order, or a saved state has a content, that cannot be used."""


class NonFiniteError(FlatclError, ArithmeticError):
    """A loss, a gradient or a weight is NaN or infinite."""


class WorkerError(FlatclError, RuntimeError):
    """A process that made runs was killed."""


class HostError(FlatclError, ImportError):
    """Avalanche, the host library, cannot be imported on this machine."""
