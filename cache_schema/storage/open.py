"""Opening the place where a cache is kept."""

from pathlib import Path

from mav.cache_schema.storage.addresses import is_remote, local_folder
from mav.cache_schema.storage.base import Objects
from mav.cache_schema.storage.local import LocalObjects


def open_objects(location: str | Path) -> Objects:
    """Open a folder, `file:///…`, or a prefix of a bucket: `s3://`, `gs://`, `az://`, ….

    Args:
        location: Folder or address, each character of which stands for itself. Nothing needs to be
            there yet.

    Raises:
        UsageError: It names no place that can be used.
    """
    if is_remote(location):
        # Its library takes a tenth of a second to import, which most runs need not pay.
        from mav.cache_schema.storage.remote import RemoteObjects

        return RemoteObjects(str(location))
    return LocalObjects(local_folder(location))
