"""A cache in object storage: the same cache as in a folder, and as safe."""

import itertools
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import obstore.store
import pytest
import zarr
from numpy.typing import NDArray
from zarr.storage import ObjectStore as ZarrObjectStore

from mav.cache_schema.errors import CacheError, CacheIncompleteError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import commit_key
from mav.cache_schema.storage import remote as remote_objects
from mav.cache_schema.storage.base import ObjectStore, replace
from mav.cache_schema.storage.lock import LOCK
from mav.cache_schema.storage.open import open_object_store
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.block_runner import BlockForward
from mav.pipeline.extraction.extract import ExtractReport, extract
from mav.pipeline.loader.dataset import prefetch
from mav.pipeline.loader.sampler import StepLayout
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train
from tests.support.caches.s3_server import S3Server
from tests.support.caches.streams import assert_same_batches, stream
from tests.support.caches.written_caches import contents
from tests.support.models.tiny import save_base, tiny_base, tiny_extraction, write_rows
from tests.support.running.commands import done, refused, unsound
from tests.support.running.limits import NEVER
from tests.support.running.runs import assert_same, weights


@dataclass(frozen=True, kw_only=True)
class World:
    """A base, data, and the same cache in a folder and in a bucket; read only."""

    base: BaseModel
    folder: Path
    local: Path
    url: str

    @property
    def data(self) -> Path:
        return self.folder / "pairs.jsonl"

    def extract(self, output: str | Path) -> ExtractReport:
        return extract(tiny_extraction(self.data, output), base=self.base)


@pytest.fixture(scope="module")
def world(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    made = World(
        base=tiny_base(), folder=folder, local=folder / "cache", url=server.url("world/cache")
    )
    write_rows(made.data, 24)
    report = made.extract(made.url)
    assert report.pairs_done == 24
    assert made.extract(made.local).manifest == report.manifest
    return made


def test_a_bucket_holds_what_a_folder_does(world: World) -> None:
    remote, local = open_object_store(world.url), open_object_store(world.local)
    assert remote.sizes().keys() == local.sizes().keys()
    assert contents(world.url) == contents(world.local)
    assert len(contents(world.url)) > 5
    for key in local.sizes():
        # Records name the attempt that wrote them.
        if not key.startswith("commits/"):
            assert remote.read(key).tobytes() == local.read(key).tobytes(), key
    reader = CacheReader(world.url)
    assert reader.location == world.url
    assert reader.stored_bytes() == sum(remote.sizes().values())


def test_a_complete_cache_is_left_as_it_is(world: World) -> None:
    before = {
        key: open_object_store(world.url).version(key)
        for key in open_object_store(world.url).sizes()
    }
    assert world.extract(world.url).pairs_done == 0
    assert before == {
        key: open_object_store(world.url).version(key)
        for key in open_object_store(world.url).sizes()
    }


def test_zarr_reads_it(world: World) -> None:
    store = obstore.store.from_url(world.url, client_options={"allow_http": True})
    remote = zarr.open_group(ZarrObjectStore(store, read_only=True), mode="r")
    local = zarr.open_group(world.local, mode="r")
    for path in ("hidden_states", "labels", "pairs/pair_id", "unembedding/weight"):
        found, expected = remote[path], local[path]
        assert isinstance(found, zarr.Array) and isinstance(expected, zarr.Array)
        assert np.array_equal(found[:], expected[:])
    assert dict(remote.attrs) == dict(local.attrs)


@pytest.fixture
def damaged(world: World, url: str) -> ObjectStore:
    """A copy in the bucket to damage."""
    objects = open_object_store(url)
    original = open_object_store(world.url)
    for key in original.sizes():
        objects.write(key, original.read(key).tobytes(), None)
    return objects


def test_an_interrupted_extraction_goes_on(
    world: World, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = BlockForward.run
    begun = itertools.count()

    def fails(self: BlockForward, *args: Any) -> dict[str, NDArray[Any]]:
        if next(begun) == 2:
            raise KeyboardInterrupt
        return run(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BlockForward, "run", fails)
        world.extract(url)
    written = contents(url)
    assert 0 < len(written) < len(contents(world.url))
    assert LOCK not in open_object_store(url).sizes()
    with pytest.raises(CacheIncompleteError, match=f"{len(written)} of"):
        CacheReader(url)
    assert 0 < world.extract(url).pairs_done < 24
    assert contents(url) == contents(world.url)
    assert CacheReader(url).manifest == CacheReader(world.url).manifest


def test_damage_is_found_and_mended(world: World, damaged: ObjectStore) -> None:
    url = damaged.location
    for how in ("--full", "--fast"):
        assert done("verify", url, how).endswith("\nSound.\n")
    changed = bytearray(damaged.read("labels/c.2").tobytes())
    changed[9] ^= 1
    replace(damaged, "labels/c.2", bytes(changed))
    assert done("verify", url, "--fast").endswith("\nSound.\n")
    with pytest.raises(CacheError, match=rf"{url}/labels/c\.2: damaged"):
        CacheReader(url).read_block(2)
    damaged.delete("hidden_states/c.0.0.0")
    replace(damaged, commit_key(4), b"{}")
    fast = json.loads(unsound("verify", url, "--fast", "--json"))
    assert set(fast["damaged_blocks"]) == {"0", "4"}
    assert "block 2: labels/c.2: its SHA-256 is not the one recorded" in unsound("verify", url)
    unsound("verify", url, "--repair")
    assert LOCK not in damaged.sizes()
    assert commit_key(2) not in damaged.sizes()
    with pytest.raises(CacheIncompleteError):
        CacheReader(url)
    assert 0 < world.extract(url).pairs_done < 24
    assert done("verify", url).endswith("\nSound.\n")
    assert contents(url) == contents(world.url)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_threads_read_ahead(world: World, workers: int) -> None:
    layout = StepLayout(batch_size=2, grad_accum=1)
    found = list(prefetch(stream(world.url, layout, window_blocks=2, workers=workers)))
    assert_same_batches(found, list(stream(world.local, layout, window_blocks=2)))
    assert len(found) == 12


def test_training_and_evaluating_are_the_same_from_both(world: World, tmp_path: Path) -> None:
    for name, cache in (("remote", world.url), ("local", world.local)):
        options = TrainOptions(
            cache=cache,
            output_dir=tmp_path / name,
            eval_fraction=0.3,
            expansion_size=16,
            batch_size=4,
            grad_accum=1,
            bf16=False,
        )
        train(options)
    assert_same(weights(tmp_path / "remote" / "last"), weights(tmp_path / "local" / "last"))
    results = []
    for cache in (world.url, world.local):
        args = ["--cache", cache, "--device", "cpu", "--alphas", "0,1", "--json"]
        results.append(json.loads(done("evaluate", "--head", tmp_path / "remote", *args)))
    assert [found.pop("cache") for found in results] == [world.url, world.local.name]
    assert results[0] == results[1]


def test_it_is_inspected(world: World) -> None:
    found = json.loads(done("inspect", world.url, "--json"))
    assert found["complete"] is True
    assert found["path"] == world.url
    assert found["stored_bytes"] == sum(open_object_store(world.url).sizes().values())
    local = json.loads(done("inspect", world.local, "--json"))
    assert {key for key in found if found[key] != local[key]} <= {"path", "stored_bytes"}


@pytest.fixture(scope="module")
def saved(world: World) -> Path:
    return save_base(world.base, world.folder / "base")


def commands(world: World, saved: Path, url: str) -> list[list[object]]:
    """Every command that takes the URL of a cache; no head is looked for before the cache is."""
    return [
        ["extract", "--base-model", saved, "--dataset", world.data, "--output", url],
        ["verify", url],
        ["verify", url, "--fast", "--repair"],
        ["inspect", url],
        ["train", "--cache", url, "--output-dir", world.folder / "run"],
    ]


@pytest.mark.parametrize("place", ["ftp://x", "ftp://x/cache", "s4://bucket/cache", "s3://"])
def test_urls_nobody_understands_are_usage_errors(world: World, saved: Path, place: str) -> None:
    for command in commands(world, saved, place):
        told = refused(2, *command)
        assert told.startswith(f"{place}: cannot hold a cache")
        assert "such as s3://" in told


def test_a_missing_bucket_is_named(world: World, saved: Path) -> None:
    for command in commands(world, saved, "s3://no-such-bucket/cache"):
        told = refused(1, *command)
        assert told.startswith("s3://no-such-bucket/cache: the bucket does not exist. Create it")


def test_a_missing_cache_is_named(world: World, saved: Path, url: str) -> None:
    for command in commands(world, saved, url)[1:]:
        assert refused(1, *command).startswith(
            f"{url}: no such cache. `mav extract --output {url}`"
        )
    open_object_store(url).write("notes.txt", b"mine", None)
    for command in commands(world, saved, url):
        assert "not a MAV cache" in refused(1, *command)
    assert open_object_store(url).sizes() == {"notes.txt": 4}


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_told(
    world: World, saved: Path, name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(name, "wrong")
        for place in (world.url, url):
            for command in commands(world, saved, place):
                told = refused(1, *command)
                assert told.startswith(f"{place}: access refused (")
                assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION" in told
                assert "<?xml" not in told and "\n" not in told.strip()
    assert open_object_store(url).sizes() == {}


def test_a_server_that_is_down_is_told(
    world: World, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    # So that it is the retries that end it, however slow they are.
    monkeypatch.setattr(remote_objects, "_RETRY_TIMEOUT", timedelta(seconds=NEVER))
    told = refused(1, "verify", world.url)
    assert told.startswith(f"{world.url}/zarr.json: ")
    assert "after 5 retries" in told and "\n" not in told.strip()
