"""Creating a cache: its layout, then the root, which makes it a cache."""

import contextlib
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from mav.cache_schema.arrays import TABLE
from mav.cache_schema.errors import CacheBusyError, CacheError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.records import COMMITS, LAYOUT, LayoutRecord, ObjectRecord, encode_record
from mav.cache_schema.root import ROOT, encode_root
from mav.cache_schema.static_objects import static_objects
from mav.cache_schema.storage.base import Bytes, ETag, ObjectStore, put
from mav.cache_schema.storage.lock import LOCK, require_held


def require_free(objects: ObjectStore) -> bool:
    """Refuse a place that holds something other than a cache, or a cache without its root.

    Returns:
        Whether a cache is there.

    Raises:
        CacheError: Something else is in the way.
    """
    sizes = objects.sizes()
    if ROOT in sizes:
        return True
    if any(not is_part(key) for key in sizes):
        raise CacheError(
            f"{objects.location}: exists and is not a MAV cache. Name another `output`, or "
            f"remove it."
        )
    if any(key.startswith(COMMITS) and key != LAYOUT for key in sizes):
        raise CacheError(
            f"{objects.location}: it holds blocks of a cache, but {ROOT} is missing. Put it back "
            f"from a copy, or remove all of it to extract again."
        )
    return False


def create_layout(
    objects: ObjectStore,
    run: str,
    manifest: Manifest,
    plan: BlockPlan,
    pair_columns: Mapping[str, NDArray[Any]],
    unembedding: Mapping[str, NDArray[Any]],
) -> None:
    """Write metadata, plan and unembedding, then the root; see `CacheWriter.create`."""
    assert not manifest.complete
    if require_free(objects):
        raise CacheBusyError(
            f"{objects.location}: another run made a cache here in the meantime. Run the "
            f"command again; it goes on with that one, if it is the same."
        )
    objects.remove_temporaries()
    cache = manifest.identity()
    records: dict[str, ObjectRecord] = {}
    written: dict[str, ETag] = {}

    def write(key: str, data: Bytes) -> None:
        written[key] = put(objects, key, data, lambda: require_held(objects, run))

    try:
        for key, data, record in static_objects(manifest, plan, pair_columns, unembedding):
            write(key, data)
            records[key] = record
        write(LAYOUT, encode_record(LayoutRecord(cache=cache, objects=records)))
        write(ROOT, encode_root(manifest))
    except BaseException:
        _take_back(objects, written)
        raise


def is_part(key: str) -> bool:
    """Tell whether a cache could have an object of this name."""
    if key in (ROOT, LOCK, "pairs/zarr.json", "unembedding/zarr.json"):
        return True
    return key.startswith((COMMITS, *(f"{spec.path}/" for spec in TABLE)))


def _take_back(objects: ObjectStore, written: Mapping[str, ETag]) -> None:
    """Remove what a failed creation wrote, and nobody has replaced since.

    Where the root is there, only the answer to the last write was lost, and the cache is whole.
    """
    with contextlib.suppress(CacheError, OSError):
        if objects.version(ROOT) is not None:
            return
        for key, version in reversed(list(written.items())):
            if objects.version(key) == version:
                objects.delete(key)
