"""The manifest as it travels with a head: names and digests, without paths of its author."""

import dataclasses
from pathlib import PurePath

from mav.cache_schema.manifest import Manifest


def portable_name(name: str) -> str:
    """Return the last part of an absolute path, and any other name unchanged."""
    path = PurePath(name)
    return path.name if path.is_absolute() else name


def portable(manifest: Manifest) -> Manifest:
    """Return a manifest without the absolute paths that earlier programs stored."""
    sources = tuple(
        dataclasses.replace(source, id=portable_name(source.id)) for source in manifest.data.sources
    )
    return dataclasses.replace(
        manifest,
        base=dataclasses.replace(manifest.base, id=portable_name(manifest.base.id)),
        data=dataclasses.replace(manifest.data, sources=sources),
    )
