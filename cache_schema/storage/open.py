"""Opening the object store that a location names."""

from pathlib import Path

from mav.cache_schema.storage.addresses import is_remote, local_folder
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.local import LocalObjectStore


def open_object_store(location: str | Path) -> ObjectStore:
    """Open a folder, `file:///…`, or a prefix of a bucket: `s3://`, `gs://`, `az://`, ….

    Args:
        location: Folder or address, taken literally. It need not exist yet.

    Raises:
        UsageError: It is not a location that can be used.
    """
    if is_remote(location):
        # Imported here because obstore takes a tenth of a second to import.
        from mav.cache_schema.storage.remote import RemoteObjectStore

        return RemoteObjectStore(str(location))
    return LocalObjectStore(local_folder(location))
