"""Sealed documents: what was sealed comes back, and no change of their bytes goes unseen."""

import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.checksummed_json import BLANK_CHECKSUM, add_checksum, check_checksum

DOCUMENT: dict[str, Any] = {
    "block": 7,
    "share": -1.5e-7,
    "names": {"città/\u2028\U0001f600": [None, True, False, ""], "quoted": 'a "b" \\ \n'},
    "digests": ["ab" * 32, "0f" * 32],
    "seal": BLANK_CHECKSUM,
}
SEALED = add_checksum(DOCUMENT)

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text().filter(lambda key: key != "seal"), inner, max_size=3)
    ),
    max_leaves=10,
)


def without_seal(document: Any) -> Any:
    return {key: value for key, value in document.items() if key != "seal"}


@given(fields=st.dictionaries(st.text().filter(lambda key: key != "seal"), plain_values))
def test_what_is_sealed_comes_back(fields: dict[str, Any]) -> None:
    document = check_checksum(add_checksum(fields | {"seal": BLANK_CHECKSUM}))
    assert without_seal(document) == fields
    assert re.fullmatch("[0-9a-f]{64}", document["seal"])


def test_the_seal_is_the_digest_of_the_bytes_with_the_seal_zeroed() -> None:
    digest = json.loads(SEALED)["seal"]
    assert SEALED.count(digest.encode()) == 1
    blank = SEALED.replace(digest.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == digest
    assert json.loads(blank) == DOCUMENT


def test_the_seal_may_lie_at_any_depth() -> None:
    data = add_checksum({"attributes": {"mav": {"x": 1}, "seal": BLANK_CHECKSUM}, "zarr_format": 3})
    assert check_checksum(data)["attributes"]["mav"] == {"x": 1}


def test_text_that_looks_like_a_seal_is_text() -> None:
    looks = f'"seal": "{"ab" * 32}"'
    data = add_checksum({"note": looks, looks: 1, "seal": BLANK_CHECKSUM})
    assert without_seal(check_checksum(data)) == {"note": looks, looks: 1}


def test_equal_documents_are_equal_bytes() -> None:
    assert add_checksum(dict(reversed(DOCUMENT.items()))) == SEALED


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(form: Any) -> None:
    assert without_seal(check_checksum(form(SEALED))) == without_seal(DOCUMENT)


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_is_an_error(bit: int) -> None:
    # Among them are spaces that become other white space, digits that change their case, and
    # escapes that stand for the same letter in other digits.
    for place in range(len(SEALED)):
        damaged = bytearray(SEALED)
        damaged[place] ^= 1 << bit
        with pytest.raises(ValueError):
            check_checksum(bytes(damaged))


def test_any_byte_cut_off_or_doubled_is_an_error() -> None:
    for place in range(len(SEALED)):
        for damaged in (
            SEALED[:place],
            SEALED[:place] + SEALED[place + 1 :],
            SEALED[: place + 1] + SEALED[place:],
        ):
            with pytest.raises(ValueError):
                check_checksum(bytes(damaged))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'\n "block"', b'\n\t"block"'),
        (b'"block": 7', b'"block": 7.0'),
        (b'"block": 7', b'"block":  7'),
        (b"\\u2028", b"\\U2028"),
        (b"\\ud83d", b"\\uD83D"),
        (b"\\u00e0", "à".encode()),
        (b"-1.5e-07", b"-1.5E-07"),
        (b"abab", b"ABab"),
        (b"}", b"}\n"),
    ],
)
def test_other_bytes_of_the_same_meaning_are_an_error(before: bytes, after: bytes) -> None:
    assert before in SEALED
    with pytest.raises(ValueError):
        check_checksum(after.join(SEALED.rsplit(before, 1)))


def test_a_seal_in_capitals_is_none() -> None:
    digest = json.loads(SEALED)["seal"].encode()
    with pytest.raises(ValueError, match="it has 0 members"):
        check_checksum(SEALED.replace(digest, digest.upper()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Expecting value"),
        (b"\0" * 100, "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe\xff", "truncated data"),
        (b"[]", "it has 0 members"),
        (b"null", "it has 0 members"),
        (b'{"seal": 3}', "it has 0 members"),
        (b'{"seal": "abc"}', "it has 0 members"),
        (b'{"seal": "%s"}' % (b"0" * 64), "do not match its checksum"),
        (b'{"a": {"seal": "%s"}, "seal": "%s"}' % (b"0" * 64, b"0" * 64), "it has 2 members"),
    ],
)
def test_what_was_never_sealed_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_checksum(data)
