"""The root of a cache: a Zarr group description that holds the manifest and a checksum."""

import json
from typing import Any, Final

from mav.cache_schema.checksummed_json import BLANK_CHECKSUM, add_checksum, check_checksum
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
            "attributes": {ATTRIBUTE: manifest.to_json(), "seal": BLANK_CHECKSUM},
        }
    )


def read_manifest(objects: ObjectStore) -> Manifest:
    """Read the manifest of a cache, complete or not.

    Raises:
        CacheError: There is no cache, or its root is damaged or of another format version.
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
        # Another format version may compute its checksum differently.
        if manifest["format_version"] == FORMAT_VERSION:
            check_checksum(data.data)
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{location}: not a MAV cache, or damaged: {ROOT} holds no valid manifest ({error}). "
            f"If it was a cache, put {ROOT} back from a copy, or extract again."
        ) from error
    return Manifest.from_json(manifest, location)
