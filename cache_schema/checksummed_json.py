"""JSON documents that carry their own digest, so that no flipped bit in them goes unseen.

A document has one member `seal`, at any depth: the SHA-256, in hexadecimal, of the document's bytes
with the 64 digits of the seal themselves set to `0`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from mav.cache_schema.storage.base import Bytes

UNSEALED: Final = "0" * 64
_SEAL: Final = re.compile(rb'"seal": "([0-9a-f]{64})"')


def add_checksum(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON, its one member `add_checksum` (given as `UNSEALED`) filled in."""
    blank = json.dumps(document, sort_keys=True, indent=1).encode()
    found = list(_SEAL.finditer(blank))
    assert len(found) == 1, f"{len(found)} seals"
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank[: found[0].start(1)] + digest + blank[found[0].end(1) :]


def check_checksum(data: Bytes) -> Any:
    """Return a sealed document.

    Raises:
        ValueError: It is not JSON, has no checksum, or does not match it.
    """
    text = bytes(data)
    document = json.loads(text)
    found = list(_SEAL.finditer(text))
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} seals, expected 1")
    blank = text[: found[0].start(1)] + UNSEALED.encode() + text[found[0].end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != found[0][1]:
        raise ValueError("its bytes are not those that were sealed")
    return document
