"""Errors that a user can mend: what the rule is, what was got, what was expected, how to fix it."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave; printed as one line, exit code 2.

    Args:
        rule: What must hold, as one clause.
        got: What was found instead.
        expected: What would have been accepted; left out where the rule already says it.
        fix: What to do about it.
    """

    def __init__(self, rule: str, *, got: object, expected: object = None, fix: str) -> None:
        self.rule, self.got, self.expected, self.fix = rule, got, expected, fix
        wanted = "" if expected is None else f", expected {expected}"
        super().__init__(" ".join(f"{rule} (got {got}{wanted}); {fix}".split()))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with keyword arguments, so that the error can cross from actor to driver."""
        return _rebuild, (type(self), self.rule, self.got, self.expected, self.fix)


def _rebuild(
    kind: type[UserError], rule: str, got: object, expected: object, fix: str
) -> UserError:
    return kind(rule, got=got, expected=expected, fix=fix)


class DivergenceError(RuntimeError):
    """The loss is no number any more, or far above what it was; the message says what to do."""


class ConfigError(UserError):
    """A configuration value that cannot be used."""


class FactoryError(ConfigError):
    """Python code that a run needs and was not given, or that does not do what it must."""


class DataError(UserError):
    """A data set that is absent, incomplete or unreadable."""


class CheckpointError(UserError):
    """A checkpoint that is absent, damaged or made for another network."""


class ResourceError(UserError):
    """Fewer CPUs, GPUs or bytes than the run needs."""
