"""The cache format: what extraction writes and training reads.

Imports neither torch nor transformers, so any program that reads Zarr can use it.
"""

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
