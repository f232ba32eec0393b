"""What lies in a folder of objects."""

from pathlib import Path

from mav.cache_schema.storage.local import LocalObjectStore


def content(objects: LocalObjectStore, key: str) -> bytes:
    return objects.read(key).tobytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
