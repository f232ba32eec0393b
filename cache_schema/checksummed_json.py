"""JSON documents that contain their own checksum, so that every flipped bit is detected.

A document has one member `seal`, at any depth: the SHA-256, in hexadecimal, of the document's bytes
with the 64 digits of this member set to `0`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from mav.cache_schema.storage.base import Bytes

BLANK_CHECKSUM: Final = "0" * 64
"""Value of the member `seal` before the checksum is computed."""
_MEMBER: Final = re.compile(rb'"seal": "([0-9a-f]{64})"')


def add_checksum(document: Mapping[str, Any]) -> bytes:
    """Encode a document whose one member `seal` is `BLANK_CHECKSUM`, and fill in the checksum."""
    blank = json.dumps(document, sort_keys=True, indent=1).encode()
    members = list(_MEMBER.finditer(blank))
    assert len(members) == 1, f"{len(members)} members 'seal'"
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank[: members[0].start(1)] + digest + blank[members[0].end(1) :]


def check_checksum(data: Bytes) -> Any:
    """Decode a document and check its checksum.

    Raises:
        ValueError: It is not JSON, has no checksum, or does not match it.
    """
    text = bytes(data)
    document = json.loads(text)
    members = list(_MEMBER.finditer(text))
    if len(members) != 1:
        raise ValueError(f'it has {len(members)} members "seal", expected 1')
    blank = text[: members[0].start(1)] + BLANK_CHECKSUM.encode() + text[members[0].end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != members[0][1]:
        raise ValueError("its bytes do not match its checksum")
    return document
