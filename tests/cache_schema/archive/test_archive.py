"""Caches of every format version that ever was are read as they were written."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from mav.cache_schema.array_table import TABLE
from mav.cache_schema.arrays import layouts
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from tests.cache_schema.archive.make import CACHES, HERE, decoded

VERSIONS = sorted(path.stem.removesuffix(".tar") for path in HERE.glob("version-*.tar.xz"))
KEPT = [(version, name) for version in VERSIONS for name in CACHES]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All archives, each in a folder of its version."""
    folder = tmp_path_factory.mktemp("archive")
    for version in VERSIONS:
        with tarfile.open(HERE / f"{version}.tar.xz") as tar:
            tar.extractall(folder / version, filter="data")
    return folder


@pytest.mark.parametrize(("version", "name"), KEPT)
def test_an_archived_cache_reads_as_it_was_written(unpacked: Path, version: str, name: str) -> None:
    expected = json.loads((HERE / f"{version}.json").read_text())[name]
    assert decoded(CacheReader(unpacked / version / name)) == expected


@pytest.mark.parametrize(("version", "name"), KEPT)
def test_an_archived_cache_verifies(unpacked: Path, version: str, name: str) -> None:
    found = verify(open_object_store(unpacked / version / name), full=True)
    assert found.sound
    assert found.unknown == []


@pytest.mark.parametrize(("version", "name"), KEPT)
def test_plain_zarr_reads_an_archived_cache(unpacked: Path, version: str, name: str) -> None:
    reader = CacheReader(unpacked / version / name)
    group = zarr.open_group(unpacked / version / name, mode="r")
    block = reader.read_block(0)
    labels = group["labels"]
    assert isinstance(labels, zarr.Array)
    assert np.array_equal(np.asarray(labels[: len(block.rows["labels"])]), block.rows["labels"])


def test_the_archive_holds_every_array_of_the_table(unpacked: Path) -> None:
    stored = {
        path
        for version, name in KEPT
        for path in layouts(CacheReader(unpacked / version / name).manifest)
    }
    # No tiny Llama has a bias in its output embedding.
    assert stored == {spec.path for spec in TABLE} - {"unembedding/bias"}
