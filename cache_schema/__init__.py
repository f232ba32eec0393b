"""The cache format: what extraction writes and training reads.

Imports neither torch nor transformers, so any program that reads Zarr can use it. What is listed
here is loaded when it is first used, so that importing an error or a name loads nothing else.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mav.cache_schema.errors import (
        BaseModelError,
        CacheError,
        CacheIncompleteError,
        DataError,
        HeadError,
        ManifestError,
        MAVError,
        MismatchError,
        UsageError,
    )
    from mav.cache_schema.manifest import Manifest
    from mav.cache_schema.plan import BlockPlan, plan_blocks
    from mav.cache_schema.reader import Block, CacheReader
    from mav.cache_schema.writer import CacheWriter

_FROM = {
    **dict.fromkeys(
        (
            "BaseModelError",
            "CacheError",
            "CacheIncompleteError",
            "DataError",
            "HeadError",
            "MAVError",
            "ManifestError",
            "MismatchError",
            "UsageError",
        ),
        "mav.cache_schema.errors",
    ),
    "Block": "mav.cache_schema.reader",
    "BlockPlan": "mav.cache_schema.plan",
    "CacheReader": "mav.cache_schema.reader",
    "CacheWriter": "mav.cache_schema.writer",
    "Manifest": "mav.cache_schema.manifest",
    "plan_blocks": "mav.cache_schema.plan",
}
__all__ = [
    "BaseModelError",
    "Block",
    "BlockPlan",
    "CacheError",
    "CacheIncompleteError",
    "CacheReader",
    "CacheWriter",
    "DataError",
    "HeadError",
    "MAVError",
    "Manifest",
    "ManifestError",
    "MismatchError",
    "UsageError",
    "plan_blocks",
]


def lazy_names(
    package: str, modules: Mapping[str, str], originals: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """Return a package's `__getattr__`.

    Args:
        package: The package's name.
        modules: Name -> module that has it.
        originals: Name -> what that module calls it, where it is another name.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), (originals or {}).get(name, name))
        setattr(sys.modules[package], name, value)
        return value

    return get


__getattr__ = lazy_names(__name__, _FROM)
