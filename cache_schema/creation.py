"""Creating a cache: first its static objects and their record, last its root."""

import contextlib
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from mav.cache_schema.array_table import TABLE
from mav.cache_schema.errors import CacheBusyError, CacheError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.records import (
    COMMITS,
    STATIC_RECORD,
    ObjectRecord,
    StaticObjectsRecord,
    encode_record,
)
from mav.cache_schema.root import ROOT, encode_root
from mav.cache_schema.static_objects import static_objects
from mav.cache_schema.storage.base import Bytes, ETag, ObjectStore, put
from mav.cache_schema.storage.lock import LOCK, require_held


def require_free(objects: ObjectStore) -> bool:
    """Check that a store holds a cache or nothing.

    Returns:
        Whether it holds a cache.

    Raises:
        CacheError: It holds something else, or a cache without its root.
    """
    sizes = objects.sizes()
    if ROOT in sizes:
        return True
    if any(not is_cache_key(key) for key in sizes):
        raise CacheError(
            f"{objects.location}: exists and is not a MAV cache. Name another `output`, or "
            f"remove it."
        )
    if any(key.startswith(COMMITS) and key != STATIC_RECORD for key in sizes):
        raise CacheError(
            f"{objects.location}: it holds blocks of a cache, but {ROOT} is missing. Restore it "
            f"from a copy, or remove the whole cache and extract again."
        )
    return False


def create_cache(
    objects: ObjectStore,
    run: str,
    manifest: Manifest,
    plan: BlockPlan,
    pair_columns: Mapping[str, NDArray[Any]],
    unembedding: Mapping[str, NDArray[Any]],
) -> None:
    """Create a cache; see `CacheWriter.create`.

    Raises:
        CacheError: The store holds something else.
        CacheBusyError: Another run has created a cache in it.
    """
    assert not manifest.complete
    if require_free(objects):
        raise CacheBusyError(
            f"{objects.location}: another run has created a cache here in the meantime. Run the "
            f"command again; it resumes that cache if the settings are the same."
        )
    objects.remove_temporaries()
    cache = manifest.identity()
    records: dict[str, ObjectRecord] = {}
    etags: dict[str, ETag] = {}

    def write(key: str, data: Bytes) -> None:
        etags[key] = put(objects, key, data, lambda: require_held(objects, run))

    try:
        for key, data, record in static_objects(manifest, plan, pair_columns, unembedding):
            write(key, data)
            records[key] = record
        write(STATIC_RECORD, encode_record(StaticObjectsRecord(cache=cache, objects=records)))
        write(ROOT, encode_root(manifest))
    except BaseException:
        _rollback(objects, etags)
        raise


def is_cache_key(key: str) -> bool:
    """Return whether a cache may have an object with this key."""
    if key in (ROOT, LOCK, "pairs/zarr.json", "unembedding/zarr.json"):
        return True
    return key.startswith((COMMITS, *(f"{spec.path}/" for spec in TABLE)))


def _rollback(objects: ObjectStore, etags: Mapping[str, ETag]) -> None:
    """Remove what a failed creation wrote, except objects that were replaced since.

    If the root exists, only the response to its write was lost, and the cache is complete.
    """
    with contextlib.suppress(CacheError, OSError):
        if objects.version(ROOT) is not None:
            return
        for key, etag in reversed(list(etags.items())):
            if objects.version(key) == etag:
                objects.delete(key)
