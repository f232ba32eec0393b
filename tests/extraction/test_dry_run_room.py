"""A dry run knows whether a cache fits the disk; an extraction that does not is refused."""

import dataclasses
import re
from typing import Any

import pytest

from mav.cache_schema.errors import CacheError
from mav.cache_schema.size_estimate import METADATA, ExpectedSize, expected_size
from mav.cache_schema.storage.local import LocalObjectStore
from mav.pipeline.extraction.dry_run import screen
from tests.support.caches.dry_runs import Asked, interrupt, with_free
from tests.support.running.commands import tree

pytestmark = pytest.mark.usefixtures("unflushed_disk")


def test_there_is_room_for_what_is_yet_to_be_written_and_a_little_more(asked: Asked) -> None:
    found = asked.expected()
    assert found.free_bytes is not None and found.free_bytes > found.size.total

    def fits(free: int | None, to_write: int) -> bool:
        size = ExpectedSize(arrays={METADATA: 10 * to_write}, to_write=to_write)
        return dataclasses.replace(found, free_bytes=free, size=size).fits

    assert fits(None, 10**15)
    assert fits(1020, 1000)
    assert not fits(1019, 1000)
    assert fits(0, 0)


def test_too_little_room_is_refused_before_anything_is_written(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = asked.expected().size.total
    with_free(monkeypatch, total)
    found = asked.expected()
    assert not found.fits
    assert screen(found).endswith("The disk cannot hold it.")
    with pytest.raises(CacheError, match=r"`compression` blosc, `storage_dtype` int8"):
        asked.run()
    assert not asked.output.exists()
    with_free(monkeypatch, 1.03 * total)
    assert asked.expected().fits
    asked.run()


def test_the_refusal_names_what_is_needed_and_what_is_free(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gigabytes(*args: Any, **options: Any) -> ExpectedSize:
        return dataclasses.replace(expected_size(*args, **options), to_write=5_430_000_000)

    monkeypatch.setattr("mav.pipeline.extraction.dry_run.expected_size", gigabytes)
    with_free(monkeypatch, 3.21e9)
    with pytest.raises(
        CacheError, match=r"needs 5\.43 GB more, but only 3\.21 GB are free"
    ) as told:
        asked.run()
    assert str(told.value).startswith(str(asked.output))


def test_only_what_is_missing_has_to_fit(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(asked, monkeypatch, 5)
    found = asked.expected()
    assert found.size.to_write < 0.6 * found.size.total
    with_free(monkeypatch, found.size.to_write)
    kept = tree(asked.output)
    with pytest.raises(CacheError, match="GB are free"):
        asked.run()
    assert tree(asked.output) == kept
    with_free(monkeypatch, 1.03 * found.size.to_write)
    assert asked.expected().fits
    assert asked.run().manifest.complete


def test_a_complete_cache_needs_no_room(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.run()
    with_free(monkeypatch, 0)
    assert asked.expected().fits
    assert asked.run().pairs_done == 0


def test_compression_counts_before_refusing(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = asked.expected().size.total
    smaller = asked.changed(compression="blosc")
    compressed = smaller.expected().size.total
    assert 1.1 * compressed < plain
    with_free(monkeypatch, 1.06 * compressed)
    with pytest.raises(CacheError, match="GB are free"):
        asked.run()
    assert smaller.expected().fits
    smaller.run()


def test_places_without_a_limit_hold_everything(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalObjectStore, "free_bytes", lambda _: None)
    found = asked.expected()
    assert found.fits
    assert re.search(r"^free there +no limit$", screen(found), re.MULTILINE)
    asked.run()
