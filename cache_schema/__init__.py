"""The cache format: what extraction writes and training reads.

Imports neither torch nor transformers, so any program that reads Zarr can use it. What is listed
here is loaded when it is first used, so that importing an error or a name loads nothing else.
"""

import importlib
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
        "errors",
    ),
    "Block": "reader",
    "BlockPlan": "plan",
    "CacheReader": "reader",
    "CacheWriter": "writer",
    "Manifest": "manifest",
    "plan_blocks": "plan",
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


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
