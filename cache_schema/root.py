"""The root of a cache: one Zarr group description, which holds the manifest under a seal."""

import json
from typing import Any, Final

from mav.cache_schema.checksummed_json import UNSEALED, add_checksum, check_checksum
from mav.cache_schema.errors import CacheError
from mav.cache_schema.manifest import ATTRIBUTE, FORMAT_VERSION, Manifest
from mav.cache_schema.storage.base import ObjectStore

ROOT: Final = "zarr.json"


def encode_root(manifest: Manifest) -> bytes:
    """Return the description of the root group."""
    return add_checksum(
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {ATTRIBUTE: manifest.to_json(), "seal": UNSEALED},
        }
    )


def read_manifest(objects: ObjectStore) -> Manifest:
    """Read the manifest of a cache, complete or not.

    Raises:
        CacheError: There is no cache, or its description is damaged or of another format.
    """
    location = objects.location
    try:
        data = objects.read(ROOT)
    except (FileNotFoundError, NotADirectoryError) as error:
        if objects.sizes():
            raise CacheError(
                f"{location}: not a MAV cache (it has no {ROOT}). Name what "
                f"`mav extract --output` wrote."
            ) from error
        raise CacheError(
            f"{location}: no such cache. `mav extract --output {location}` makes one."
        ) from error
    try:
        manifest: Any = json.loads(data.tobytes())["attributes"][ATTRIBUTE]
        # Another version may be sealed in another way.
        if manifest["format_version"] == FORMAT_VERSION:
            check_checksum(data.data)
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{location}: not a MAV cache, or damaged: {ROOT} holds no sealed manifest ({error}). "
            f"If it was a cache, put {ROOT} back from a copy, or extract again."
        ) from error
    return Manifest.from_json(manifest, location)
