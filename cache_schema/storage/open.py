"""Opening the place where a cache is kept."""

from pathlib import Path

from mav.cache_schema.storage.addresses import is_remote, local_folder
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.local import LocalObjectStore


def open_object_store(location: str | Path) -> ObjectStore:
    """Open a folder, `file:///…`, or a prefix of a bucket: `s3://`, `gs://`, `az://`, ….

    Args:
        location: Folder or address, each character of which stands for itself. Nothing needs to be
            there yet.

    Raises:
        UsageError: It names no place that can be used.
    """
    if is_remote(location):
        # Its library takes a tenth of a second to import, which most runs need not pay.
        from mav.cache_schema.storage.remote import RemoteObjectStore

        return RemoteObjectStore(str(location))
    return LocalObjectStore(local_folder(location))
