"""Addresses of object storage and names of folders: each character stands for itself."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mav.cache_schema.errors import UsageError
from mav.cache_schema.storage.addresses import is_remote, local_folder, parse_address
from mav.cache_schema.storage.open import open_object_store
from tests.support.caches.addresses import SEGMENTS

PREFIXES = st.lists(SEGMENTS, max_size=4).map("/".join)
SCHEMES = st.sampled_from(["s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss"])


@given(SCHEMES, PREFIXES)
@example("s3", "exp#1/c")
@example("gs", "a%20b/a b/a+b?x=1&y=2;z")
@example("az", "a@b:c/*/~")
def test_an_address_is_the_same_after_parsing_and_printing(scheme: str, prefix: str) -> None:
    named = f"{scheme}://my-bucket.x_1" + (f"/{prefix}" if prefix else "")
    address = parse_address(named)
    assert address.location == named
    assert (address.bucket, address.prefix) == ("my-bucket.x_1", prefix)
    assert parse_address(address.location) == address
    assert parse_address(f"{named}/") == address


@given(PREFIXES, PREFIXES)
@example("exp#1/c", "exp#2/c")
@example("a%20b", "a b")
@example("é", "e\u0301")
def test_two_names_are_two_places(one: str, other: str) -> None:
    same = parse_address(f"s3://bucket/{one}") == parse_address(f"s3://bucket/{other}")
    assert same == (one == other)


@pytest.mark.parametrize(
    ("location", "store"),
    [
        ("s3://bucket/exp#1/a b", "S3Store"),
        ("S3a://bucket/exp#1/a b", "S3Store"),
        ("gs://bucket/exp#1/a b", "GCSStore"),
        ("az://bucket/exp#1/a b", "AzureStore"),
        ("abfss://bucket@account.dfs.core.windows.net/exp#1/a b", "AzureStore"),
    ],
)
def test_the_library_is_given_the_name_as_it_stands(
    location: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "elsewhere")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    objects = open_object_store(location)
    scheme, _, rest = location.partition("://")
    assert objects.location == f"{scheme.lower()}://{rest}"
    made = objects._store  # type: ignore[attr-defined]
    assert type(made).__name__ == store
    assert made.prefix == "exp#1/a b"
    bucket = made.config.get("container_name") or made.config["bucket"]
    assert bucket == "bucket"
    if "@" in location:
        assert made.config["account_name"] == "account"


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("s3://bucket/a//b", "two slashes in a row"),
        ("s3://bucket//b", "two slashes in a row"),
        ("s3://bucket/a//", "two slashes in a row"),
        ("s3://bucket/../b", "'..' as a segment"),
        ("gs://bucket/a/./b", "'.' as a segment"),
        ("az://bucket/a\x01b", r"the character '\x01'"),
        ("s3://bucket/a\\b", "a backslash"),
        ("s3://bucket/a\nb", r"the character '\n'"),
        ("s3://bucket/a\udc80b", "not valid UTF-8"),
        ("s3://bucket/" + "ü" * 451, "902 bytes long, expected at most 900"),
        ("s3://", "not a bucket name"),
        ("s3:///a", "not a bucket name"),
        ("s3://exp#1/a", "'exp#1' is not a bucket name"),
        ("s3://bucket?x=1", "not a bucket name"),
        ("s3://user@bucket/a", "not a bucket name"),
        ("s3://bucket:9000/a", "not a bucket name"),
        ("abfss://bucket@/a", "not a bucket name"),
        ("https://bucket.s3.amazonaws.com/a", "cannot hold a cache"),
        ("ftp://bucket/a", "cannot hold a cache"),
    ],
)
def test_what_is_no_place_is_refused(location: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_object_store(location)
    message = str(caught.value)
    assert why in message
    assert "\n" not in message
    assert message.endswith((".", "llama.cache."))


@pytest.mark.parametrize(
    "name",
    ["a%20b", "a#b", "a?b=c&d", "~", "a b", "a+b;c@d:e", "é/ü*", "runs/s3://b", "./s3:/x", "-"],
)
@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_is_used_as_named(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = name if form == "{}" else f"{tmp_path}/{name}"
    objects = open_object_store(form.format(whole))
    assert objects.location == str(Path(whole))
    objects.write("x", b"1", None)
    assert (tmp_path / name / "x").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "not a valid folder name"),
        ("a\0b", "not a valid folder name"),
        ("s3:/bucket/a", r"Name s3://bucket/a, or \./s3:/bucket/a for a folder"),
        ("file:/data/a", "Name file:///data/a"),
        ("file://data/a", "expected an absolute path after file://"),
        ("file://", "expected an absolute path after file://"),
    ],
)
def test_what_is_no_folder_is_refused(name: str, why: str) -> None:
    assert not is_remote(name)
    with pytest.raises(UsageError, match=why):
        open_object_store(name)


def test_a_path_made_of_an_address_is_refused() -> None:
    with pytest.raises(UsageError, match="two slashes after its scheme"):
        open_object_store(Path("s3://bucket/a"))


def test_a_scheme_in_capitals_is_the_same(tmp_path: Path) -> None:
    assert local_folder(f"FILE://{tmp_path}") == tmp_path
    assert parse_address("S3://bucket/A#b") == parse_address("s3://bucket/A#b")
