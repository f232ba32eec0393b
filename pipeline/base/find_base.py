"""Finds the base of a cache or a head, by its hub id, or by its digest and name."""

from collections.abc import Iterator
from pathlib import Path

from mav.cache_schema.errors import BaseModelError, UsageError
from mav.cache_schema.manifest import BaseModelRecord
from mav.pipeline.base.model import IN_MEMORY
from mav.pipeline.base.source import BaseSource, resolve_base
from mav.pipeline.runtime.known_places import recall

_FOLDERS_ABOVE = 3
"""A head is in `runs/NAME/best`, and its base may be beside `runs`."""


def find_base(
    record: BaseModelRecord,
    subject: str,
    *,
    near: Path | None,
    revision: str | None = None,
    gguf_file: str | None = None,
) -> BaseSource:
    """Find the base that something was made with.

    A base from the hub is loaded from there. Files are searched where this machine last saw them,
    in the working folder, and next to the cache or head; their digest must match.

    Args:
        record: What the manifest says about it.
        subject: The cache or head, for messages.
        near: Its folder, or None if it is in object storage.
        revision: Branch, tag or commit to take from the hub instead.
        gguf_file: File to take from its folder instead.

    Raises:
        UsageError: The base was built in memory.
        BaseModelError: It is not found.
    """
    if record.id.startswith(IN_MEMORY):
        raise UsageError(
            f"{subject} was made with a base built in memory; name one with `base_model`"
        )
    if record.revision is not None:
        return resolve_base(record.id, gguf_file or record.gguf_file, revision or record.revision)
    known = recall(record.weights_digest)
    other = []
    for place in _places(record, known, near):
        inside = None if place.suffix == ".gguf" else gguf_file or record.gguf_file
        try:
            source = resolve_base(str(place), inside, revision)
            same = source.weights_digest() == record.weights_digest
        except BaseModelError:
            continue
        if same or gguf_file is not None:
            return source
        other.append(source)
    # The weights there have changed; that is reported when they are used.
    was = (known, Path(record.id) if Path(record.id).is_absolute() else None)
    for source in other:
        if Path(source.id) in [place.resolve() for place in was if place is not None]:
            return source
    raise BaseModelError(
        f"{subject} was made with {_described(record)}, which is not found here"
        + "".join(f"; {source.id} has other weights" for source in other)
        + ". Name it with `base_model`."
    )


def _places(record: BaseModelRecord, known: Path | None, near: Path | None) -> Iterator[Path]:
    """Yield existing files and folders that may be the base."""
    named = Path(record.id)
    places = [known, named]
    if near is not None:
        above = near.resolve()
        for _ in range(_FOLDERS_ABOVE):
            above = above.parent
            places.append(above / named.name)
    seen = set()
    for place in places:
        if place is not None and place.exists() and place.resolve() not in seen:
            seen.add(place.resolve())
            yield place


def _described(record: BaseModelRecord) -> str:
    return (
        f"{record.id} ({record.architecture}, {record.num_hidden_layers} layers, weights SHA-256 "
        f"{record.weights_digest[:12]}…)"
    )
