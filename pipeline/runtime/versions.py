"""Versions of packages, for records of what made a file."""

import importlib.metadata
from collections.abc import Iterable
from functools import cache

UNKNOWN = "unknown"


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each package; `unknown` for one that is imported but not installed.

    Args:
        names: Names of the packages. MAV itself is not installed where it is run from a checkout.
    """
    return {name: _version(name) for name in names}


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN
