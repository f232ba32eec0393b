"""Addresses in object storage, taken literally.

`s3://bucket/exp#1/a%20b` names the prefix `exp#1/a%20b` of a bucket. It is not parsed as a URL: no
character is cut off, decoded or escaped, so different addresses name different prefixes.
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
"""An address after `pathlib.Path` has removed one of its slashes."""
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ACCOUNT: Final = re.compile(r"([A-Za-z0-9]+)(?:\.[A-Za-z0-9-]+)*")
_MOST_BYTES: Final = 900
"""Stores accept keys of 1,024 bytes; the rest is for the keys of a cache's own objects."""
_NO_CHARACTERS: Final = "\ufffe\uffff"
_EXAMPLE: Final = "Name a folder, or an address such as s3://bucket/llama.cache."


@dataclass(frozen=True, kw_only=True)
class StorageAddress:
    """A prefix of a bucket.

    Attributes:
        scheme: The scheme as given, in lower case.
        bucket: Bucket, or container on Azure.
        account: Account on Azure, if given as in `abfss://container@account.host/…`.
        host: What follows the `@`, including the account.
        prefix: Segments joined by `/`, without a slash at either end; empty for the whole bucket.
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
        """The address; parsing it gives an equal `StorageAddress`."""
        authority = self.bucket if self.host is None else f"{self.bucket}@{self.host}"
        return f"{self.scheme}://{authority}" + (f"/{self.prefix}" if self.prefix else "")


def is_remote(location: str | Path) -> bool:
    """Return whether a location is an address in object storage rather than a folder."""
    match = _SCHEME.fullmatch(str(location))
    return match is not None and match[1].lower() != "file"


def local_folder(location: str | Path) -> Path:
    """Return the folder that a local location names.

    What follows `file://` is taken literally as a path, including `%20` and `#`.

    Raises:
        UsageError: It does not name a folder.
    """
    name = str(location)
    if not name or "\0" in name:
        raise UsageError(f"{name!r}: not a valid folder name. {_EXAMPLE}")
    if _ONE_SLASH.match(name):
        scheme, _, rest = name.partition(":/")
        raise UsageError(
            f"{name}: an address has two slashes after its scheme (pathlib.Path removes one). "
            f"Name {scheme}://{'/' if scheme.lower() == 'file' else ''}{rest}, or ./{name} for a "
            f"folder of that name."
        )
    match = _SCHEME.fullmatch(name)
    if match is None:
        return Path(name)
    if not match[2].startswith("/"):
        raise UsageError(
            f"{name}: expected an absolute path after file://, such as file:///data/llama.cache"
        )
    return Path(match[2])


def parse_address(location: str) -> StorageAddress:
    """Parse an address in object storage.

    Args:
        location: Such as `s3://bucket/some/prefix`; one `/` at the end is ignored.

    Raises:
        UsageError: It is not an address that can be used.
    """
    match = _SCHEME.fullmatch(location)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise _refused(location, f"expected a folder, or an address that begins with {known}")
    authority, _, prefix = match[2].partition("/")
    bucket, at, host = authority.partition("@")
    account = _ACCOUNT.fullmatch(host) if at and scheme.startswith("abfs") else None
    if not _BUCKET.fullmatch(bucket) or (at and account is None):
        raise _refused(
            location,
            f"{authority!r} is not a bucket name, which has letters, digits, '.', '-' and '_'",
        )
    prefix = prefix.removesuffix("/")
    if reason := _unusable(prefix):
        raise _refused(location, reason)
    return StorageAddress(
        scheme=scheme,
        bucket=bucket,
        account=account[1] if account else None,
        host=host if account else None,
        prefix=prefix,
    )


def _refused(location: str, reason: str) -> UsageError:
    shown = location if location.isprintable() else repr(location)
    return UsageError(f"{shown}: cannot hold a cache: {reason}. {_EXAMPLE}")


def _unusable(prefix: str) -> str | None:
    """Return why objects cannot be stored under a prefix, or None if they can."""
    if not prefix:
        return None
    segments = prefix.split("/")
    if "" in segments:
        return "it has two slashes in a row, which object storage does not support"
    if refused := {".", ".."}.intersection(segments):
        return f"it has {min(refused)!r} as a segment, which object storage does not support"
    if "\\" in prefix:
        return "it has a backslash, which some stores treat as a slash"
    try:
        size = len(prefix.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8, as keys in object storage must be"
    for character in prefix:
        if unicodedata.category(character) == "Cc" or character in _NO_CHARACTERS:
            return f"it has the character {character!r}, which object storage cannot list"
    if size > _MOST_BYTES:
        return f"its prefix is {size} bytes long, expected at most {_MOST_BYTES}"
    return None
