"""The root of a cache: told from anything else, and from its own damaged self."""

import json
from pathlib import Path

import pytest
import zarr

from mav.cache_schema.checksummed_json import BLANK_CHECKSUM, add_checksum
from mav.cache_schema.errors import CacheError, ManifestError
from mav.cache_schema.manifest import FORMAT_VERSION
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.root import ROOT, encode_root, read_manifest
from mav.cache_schema.storage.open import open_object_store
from tests.support.caches.manifests import llama_7b
from tests.support.caches.written_caches import write

pytestmark = pytest.mark.usefixtures("unflushed_disk")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write(tmp_path / "cache")
    return tmp_path / "cache"


def test_the_manifest_comes_back(tmp_path: Path) -> None:
    objects = open_object_store(tmp_path)
    objects.write(ROOT, encode_root(llama_7b()), None)
    assert read_manifest(objects) == llama_7b()


def test_zarr_sees_the_manifest_as_attributes_of_a_group(tmp_path: Path) -> None:
    (tmp_path / ROOT).write_bytes(encode_root(llama_7b()))
    assert zarr.open_group(tmp_path, mode="r").attrs["mav"] == llama_7b().to_json()


def test_a_sealed_manifest_that_contradicts_itself_is_refused(cache: Path) -> None:
    root = json.loads((cache / ROOT).read_text())
    root["attributes"]["mav"]["data"]["sources"][0]["rows"] += 1
    root["attributes"]["seal"] = BLANK_CHECKSUM
    (cache / ROOT).write_bytes(add_checksum(root))
    with pytest.raises(
        ManifestError, match=r"data\.sources\[0\]\.rows: got 6, expected pairs \+ dropped = 5"
    ):
        CacheReader(cache)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"zarr_format": 3, "node_type": "array"}', "\xff"]
)
def test_a_damaged_root_is_an_error(cache: Path, text: str) -> None:
    (cache / "zarr.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CacheError, match=r"not a MAV cache, or damaged: zarr\.json holds no"):
        CacheReader(cache)


def test_any_flipped_bit_of_the_root_is_an_error(cache: Path) -> None:
    whole = (cache / "zarr.json").read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (cache / "zarr.json").write_bytes(damaged)
        with pytest.raises(CacheError):
            CacheReader(cache)


@pytest.mark.parametrize("version", [0, 1, FORMAT_VERSION + 1, "2", None])
@pytest.mark.parametrize("sealed", [False, True])
def test_another_format_version_is_told_however_it_is_sealed(
    cache: Path, version: object, sealed: bool
) -> None:
    root = json.loads((cache / "zarr.json").read_text())
    root["attributes"]["mav"]["format_version"] = version
    root["attributes"]["seal"] = BLANK_CHECKSUM
    data = add_checksum(root) if sealed else json.dumps(root).encode()
    (cache / "zarr.json").write_bytes(data)
    with pytest.raises(CacheError, match=f"format version {version!r}, but this MAV reads"):
        CacheReader(cache)


def test_a_zarr_group_of_something_else_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "other", attributes={"made by": "someone else"})
    with pytest.raises(CacheError, match="not a MAV cache"):
        CacheReader(tmp_path / "other")


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CacheError, match=r"not a MAV cache \(it has no zarr\.json\)"):
        CacheReader(tmp_path)


def test_a_file_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CacheError, match="a file, so it is not a MAV cache"):
        CacheReader(tmp_path / "cache")


@pytest.mark.parametrize("exists", [False, True])
def test_a_cache_that_is_not_there_is_refused_with_the_remedy(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "nowhere").mkdir()
    with pytest.raises(CacheError, match=r"no such cache\. `mav extract --output"):
        CacheReader(tmp_path / "nowhere")
