"""Files of a repository as the hub names and lists them."""

import hashlib
from collections.abc import Mapping
from typing import Final

LARGE: Final = (".safetensors", ".gguf", ".parquet", ".gz", ".bin")
"""What the hub keeps as LFS files, away from the rest."""


def entries(files: Mapping[str, bytes], folder: str, *, deep: bool) -> list[dict[str, object]]:
    """List a folder as the hub does: files with what they are stored as, and folders."""
    begin = f"{folder}/" if folder else ""
    found: dict[str, dict[str, object]] = {}
    for path, contents in sorted(files.items()):
        if not path.startswith(begin):
            continue
        parts = path.removeprefix(begin).split("/")
        for depth in range(1, len(parts) if deep else min(len(parts), 2)):
            parent = begin + "/".join(parts[:depth])
            found[parent] = {"type": "directory", "path": parent, "oid": blob(b""), "size": 0}
        if deep or len(parts) == 1:
            entry: dict[str, object] = {
                "type": "file",
                "path": path,
                "size": len(contents),
                "oid": blob(contents),
            }
            if path.endswith(LARGE):
                entry["lfs"] = {
                    "oid": sha256(contents),
                    "size": len(contents),
                    "pointerSize": 134,
                }
            found[path] = entry
    return list(found.values())


def sha256(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def blob(contents: bytes) -> str:
    """Return git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()
