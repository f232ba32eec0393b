"""Errors that MAV raises when the input, not the program, is at fault.

Every message says what it is about, what was got, what was expected and what to do. The command
line prints only the message and exits with `exit_code`.
"""

from collections.abc import Sequence


class MAVError(Exception):
    """Base class of all errors that users can cause and correct; the text is written for them."""

    exit_code = 1


class UsageError(MAVError):
    """Options that contradict each other or have an impossible value."""

    exit_code = 2


class DataError(MAVError):
    """Preference data that cannot be read or parsed."""


class BaseModelError(MAVError):
    """A base model that cannot be loaded, or does not behave as extraction requires."""


class HeadError(MAVError):
    """A head or checkpoint that cannot be loaded."""


class CacheError(MAVError):
    """A cache that is missing, damaged or incomplete, or has another format version."""


class CacheIncompleteError(CacheError):
    """A cache whose extraction has not finished."""


class CacheBusyError(CacheError):
    """A cache that another run is writing to."""


class MismatchError(MAVError):
    """A cache, head, base model or data set that does not match another one."""


class ManifestError(CacheError):
    """A manifest that does not follow the format; lists every problem.

    Attributes:
        problems: One `path: what was got, what was expected` per problem.
    """

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        listed = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{subject} is not a valid MAV manifest:{listed}")
