"""A GGUF base as safetensors, converted once and kept in the user's cache folder.

transformers takes many seconds to parse a GGUF file, but loads safetensors instantly. A copy is
identified by the SHA-256 of the GGUF file and the versions of the packages that converted it. Its
folder gets its name when complete, and is used only if every file in it matches its checksum. It
holds the dequantized values in float32, or in 16 bits where that is exact, so a base computes the
same with and without it in every type.
"""

import dataclasses
import importlib.metadata
import json
import logging
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import filelock
import psutil

from mav.pipeline.base.gguf_conversion import convert
from mav.pipeline.base.gguf_header import read_gguf_header
from mav.pipeline.base.source import BaseSource, file_digest, resolve_base
from mav.pipeline.runtime.durable_files import measure, new_folder
from mav.pipeline.runtime.known_places import cache_home

_log = logging.getLogger(__name__)

_RECORD: Final = "copy.json"
_LAYOUT: Final = 1
"""Increased when the way copies are written changes, so that older ones are not used."""
_MADE_BY: Final = ("transformers", "gguf", "tokenizers")
_FLOAT32: Final = 4
_ROOM: Final = 1.1
"""Upper bound of the disk a copy takes and the memory to make it, in bytes per weight."""


def resolve_with_copy(
    base_model: str,
    gguf_file: str | None = None,
    revision: str | None = None,
    *,
    gguf_cache: bool = True,
) -> BaseSource:
    """Find a base model's files; for a GGUF base, those of its converted copy.

    Args:
        base_model: Hub id, folder, or a `.gguf` file.
        gguf_file: File inside the folder or repository, for weights in GGUF.
        revision: Branch, tag or commit of a hub repository.
        gguf_cache: Whether to keep GGUF weights as safetensors in the cache folder, and use them.

    Raises:
        BaseModelError: Nothing is there, or it cannot be converted.
        UsageError: A revision is given for local files, or a file inside a file.
    """
    source = resolve_base(base_model, gguf_file, revision)
    return with_copy(source, gguf_cache=gguf_cache)


def with_copy(source: BaseSource, *, gguf_cache: bool) -> BaseSource:
    """Return a source that reads the converted copy of its GGUF file; see `resolve_with_copy`."""
    if source.gguf_file is None or not gguf_cache:
        return source
    return dataclasses.replace(source, converted=_copy(source))


def _copy(source: BaseSource) -> Path | None:
    """Return the folder of a source's converted copy, made if missing, or None if impossible."""
    path = source.weight_files()[0]
    elements = sum(read_gguf_header(path).elements.values())
    digest = file_digest(path)
    made_by = {name: importlib.metadata.version(name) for name in _MADE_BY}
    releases = "-".join(f"{name}-{version}" for name, version in made_by.items())
    folder = cache_home() / "gguf" / digest / f"{releases}-{_LAYOUT}"
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / "lock"):
            # Another process may have made it in the meantime.
            if not _is_whole(folder):
                if lacking := _lacking(folder.parent, int(elements * _FLOAT32 * _ROOM)):
                    _log.warning(f"{path.name} is read as GGUF, which takes longer: {lacking}")
                    return None
                _log.info(f"Converting {path.name} to safetensors, once: {folder}")
                _make(source, folder, {"sha256": digest, **made_by})
    except OSError as error:
        _log.warning(
            f"{path.name} is read as GGUF, which takes longer: no copy can be kept in {folder}: "
            f"{error.strerror or error}. MAV_CACHE_HOME names another folder."
        )
        return None
    return folder


def _lacking(folder: Path, needed: int) -> str | None:
    """Return why a copy cannot be made, or None."""
    for what, free, remedy in (
        ("memory", psutil.virtual_memory().available, ""),
        ("disk", shutil.disk_usage(folder).free, "; MAV_CACHE_HOME names another folder"),
    ):
        if free < needed:
            return (
                f"a copy as safetensors takes up to {needed / 1e9:.1f} GB of {what}, and "
                f"{free / 1e9:.1f} are free{remedy}"
            )
    return None


def _make(source: BaseSource, folder: Path, origin: dict[str, str]) -> None:
    """Convert into a temporary folder and rename it; the caller holds the lock."""
    shutil.rmtree(folder, ignore_errors=True)  # damaged; the new one needs its space
    with new_folder(folder) as partial:
        convert(source, partial)
        files = sorted(partial.iterdir())
        for file in files:
            # safetensors writes files that only their owner can read.
            file.chmod(partial.stat().st_mode & 0o666)
        record = {"origin": origin, "files": {file.name: _checksum(file) for file in files}}
        (partial / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    """Whether a complete, undamaged copy exists; checked once per process."""
    try:
        status = (folder / _RECORD).stat()
    except OSError:
        return False
    try:
        return _has_checksums(folder, status.st_ino, status.st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@lru_cache
def _has_checksums(folder: Path, inode: int, modified: int) -> bool:  # noqa: ARG001
    record: dict[str, Any] = json.loads((folder / _RECORD).read_bytes())
    return all(_checksum(folder / name) == stored for name, stored in record["files"].items())


def _checksum(path: Path) -> list[int]:
    """Return a file's size and CRC32C, which detect damage but not forgery."""
    return list(measure(path).values())
