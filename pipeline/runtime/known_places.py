"""Where bases and data sets were last seen on this machine, by their digests.

Caches and heads travel, so they keep the names and digests of what they were made from, never the
folders of their authors. Their places on this machine are kept here, one small
file per digest in the user's cache folder (`MAV_CACHE_HOME`, or `mav` in `XDG_CACHE_HOME` or
`~/.cache`); without it, places must be given.
"""

import contextlib
import json
import os
import uuid
from pathlib import Path

from mav.cache_schema.storage.addresses import is_remote


def cache_home() -> Path:
    """Return the folder for files that MAV can recreate."""
    if named := os.environ.get("MAV_CACHE_HOME"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mav"


def remember(digest: str, place: str | Path) -> None:
    """Note where something is, if it is a file or folder here; never fails."""
    path = Path(place)
    # Only a convenience: a home folder that cannot be written must not stop a run.
    with contextlib.suppress(OSError, RuntimeError):
        if not path.exists():
            return
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{digest}.{uuid.uuid4().hex}"
        partial.write_text(json.dumps({"path": str(path.resolve())}), encoding="utf-8")
        partial.replace(folder / f"{digest}.json")


def recall(digest: str) -> Path | None:
    """Return where something was last seen, or None if unknown or gone."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, KeyError):
        path = Path(json.loads((_folder() / f"{digest}.json").read_bytes())["path"])
        return path if path.exists() else None
    return None


def shown_place(location: str | Path) -> str:
    """Return the name of a place for reports that others read.

    An address, a relative path or a hub id is shown as it is, of an absolute path only the name; of
    a head in the output of a training, that folder's name too.
    """
    if is_remote(location) or not Path(location).is_absolute():
        return str(location)
    path = Path(location)
    return f"{path.parent.name}/{path.name}" if path.name in ("best", "last") else path.name


def _folder() -> Path:
    return cache_home() / "places"
