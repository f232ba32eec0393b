"""What MAV raises when the input, not the program, is at fault.

Every message names the subject, what was got, what was expected and what to do. The command line
prints the message alone and exits with `exit_code`; from Python the exceptions are caught as usual.
"""

from collections.abc import Sequence


class MAVError(Exception):
    """Base of all errors that a user can cause and mend; its text is meant to be read by them."""

    exit_code = 1


class UsageError(MAVError):
    """The options contradict each other or name something that cannot be."""

    exit_code = 2


class DataError(MAVError):
    """Preference data that cannot be read or understood."""


class BaseModelError(MAVError):
    """A base model that cannot be loaded, or does not behave as extraction needs."""


class HeadError(MAVError):
    """A head or checkpoint that cannot be loaded."""


class CacheError(MAVError):
    """A cache that is missing, damaged, incomplete, or of another format version."""


class CacheIncompleteError(CacheError):
    """A cache whose extraction has not finished."""


class CacheBusyError(CacheError):
    """A cache that another run writes to."""


class MismatchError(MAVError):
    """Two things that do not belong together: a cache, a head, a base model, a data set."""


class ManifestError(CacheError):
    """A manifest that does not follow the format; carries every problem found.

    Attributes:
        problems: One `path: what was got, what was expected` per problem.
    """

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        listed = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{subject} is not a valid MAV manifest:{listed}")
