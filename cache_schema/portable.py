"""What of a manifest goes with a head: names and digests, no folders of whoever made it."""

import dataclasses
from pathlib import PurePath

from mav.cache_schema.manifest import Manifest


def portable_name(named: str) -> str:
    """Return a hub id or a name as it is, and of an absolute path its last part."""
    path = PurePath(named)
    return path.name if path.is_absolute() else named


def portable(manifest: Manifest) -> Manifest:
    """Return a manifest without the absolute paths that caches of earlier programs hold."""
    sources = tuple(
        dataclasses.replace(source, id=portable_name(source.id)) for source in manifest.data.sources
    )
    return dataclasses.replace(
        manifest,
        base=dataclasses.replace(manifest.base, id=portable_name(manifest.base.id)),
        data=dataclasses.replace(manifest.data, sources=sources),
    )
