"""Names of places in object storage, taken as they stand.

`s3://bucket/exp#1/a%20b` is the prefix `exp#1/a%20b` of a bucket, not a web address: no character
of it is cut off, decoded or escaped, so that two names are two places.
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mav.cache_schema.errors import UsageError

Storage = Literal["s3", "gs", "az"]

_SCHEMES: Final[dict[str, Storage]] = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "az": "az",
    "azure": "az",
    "adl": "az",
    "abfs": "az",
    "abfss": "az",
}
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_ONE_SLASH: Final = re.compile(rf"(file|https?|{'|'.join(_SCHEMES)}):/(?!/)", re.IGNORECASE)
"""What `pathlib.Path` makes of an address."""
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ACCOUNT: Final = re.compile(r"([A-Za-z0-9]+)(?:\.[A-Za-z0-9-]+)*")
_MOST_BYTES: Final = 900
"""Stores take keys of 1,024 bytes; the rest is for the names of a cache's own objects."""
_NO_CHARACTERS: Final = "\ufffe\uffff"
_EXAMPLE: Final = "Name a folder, or an address such as s3://bucket/llama.cache."


@dataclass(frozen=True, kw_only=True)
class StorageAddress:
    """A prefix of a bucket.

    Attributes:
        scheme: As it was named, in lower case.
        bucket: Bucket, or container on Azure.
        account: Account on Azure, where it is named as in `abfss://container@account.host/…`.
        host: What was named after the `@`, the account's first part included.
        prefix: Segments joined by `/`, without one at either end; empty for the whole bucket.
    """

    scheme: str
    bucket: str
    account: str | None
    host: str | None
    prefix: str

    @property
    def storage(self) -> Storage:
        """Kind of storage."""
        return _SCHEMES[self.scheme]

    @property
    def location(self) -> str:
        """The address, of which parsing gives this again."""
        place = self.bucket if self.host is None else f"{self.bucket}@{self.host}"
        return f"{self.scheme}://{place}" + (f"/{self.prefix}" if self.prefix else "")


def is_remote(location: str | Path) -> bool:
    """Tell whether a location is an address rather than a folder."""
    found = _SCHEME.fullmatch(str(location))
    return found is not None and found[1].lower() != "file"


def local_folder(location: str | Path) -> Path:
    """Return the folder that a location which is not remote names.

    What follows `file://` is a path as it stands, `%20` and `#` included.

    Raises:
        UsageError: It names none.
    """
    name = str(location)
    if not name or "\0" in name:
        raise UsageError(f"{name!r}: no name of a folder. {_EXAMPLE}")
    if _ONE_SLASH.match(name):
        scheme, _, rest = name.partition(":/")
        raise UsageError(
            f"{name}: an address has two slashes after its scheme (pathlib.Path takes one away). "
            f"Name {scheme}://{'/' if scheme.lower() == 'file' else ''}{rest}, or for a folder of "
            f"that name ./{name}."
        )
    found = _SCHEME.fullmatch(name)
    if found is None:
        return Path(name)
    if not found[2].startswith("/"):
        raise UsageError(
            f"{name}: expected an absolute path after file://, such as file:///data/llama.cache"
        )
    return Path(found[2])


def parse_address(location: str) -> StorageAddress:
    """Read an address of object storage.

    Args:
        location: Such as `s3://bucket/some/prefix`; one `/` at the end is left out.

    Raises:
        UsageError: It names no place that can be used.
    """
    found = _SCHEME.fullmatch(location)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise _refused(location, f"expected a folder, or an address that begins with {known}")
    place, _, prefix = found[2].partition("/")
    bucket, at, host = place.partition("@")
    account = _ACCOUNT.fullmatch(host) if at and scheme.startswith("abfs") else None
    if not _BUCKET.fullmatch(bucket) or (at and account is None):
        raise _refused(
            location,
            f"{place!r} is not a bucket name, which has letters, digits, '.', '-' and '_'",
        )
    prefix = prefix.removesuffix("/")
    if wrong := _wrong(prefix):
        raise _refused(location, wrong)
    return StorageAddress(
        scheme=scheme,
        bucket=bucket,
        account=account[1] if account else None,
        host=host if account else None,
        prefix=prefix,
    )


def _refused(location: str, why: str) -> UsageError:
    shown = location if location.isprintable() else repr(location)
    return UsageError(f"{shown}: not a place caches can be kept: {why}. {_EXAMPLE}")


def _wrong(prefix: str) -> str | None:
    """Return why objects cannot be kept under a prefix, if they cannot."""
    if not prefix:
        return None
    segments = prefix.split("/")
    if "" in segments:
        return "there is nothing between two slashes of it, which storage cannot be asked for"
    if refused := {".", ".."}.intersection(segments):
        return f"it has {min(refused)!r} between slashes, which storage cannot be asked for"
    if "\\" in prefix:
        return "it has a backslash, which some stores take for a slash"
    try:
        size = len(prefix.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8 text, as names in storage are"
    for character in prefix:
        if unicodedata.category(character) == "Cc" or character in _NO_CHARACTERS:
            return f"it has the character {character!r}, which storage cannot list"
    if size > _MOST_BYTES:
        return f"its prefix takes {size} bytes, expected at most {_MOST_BYTES}"
    return None
