"""`mav verify`: what it says of sound, damaged and incomplete caches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import commit_key
from mav.cache_schema.storage.open import open_object_store
from mav.pipeline.extraction.block_runner import BlockForward
from tests.support.caches.verification import World, change, cut
from tests.support.caches.written_caches import contents
from tests.support.running.commands import done, mav, refused, tree, unsound

JSON_KEYS = {
    *("location", "full", "blocks", "committed", "complete", "objects", "bytes", "sound"),
    *("damaged_blocks", "damaged_static", "unknown", "against_base"),
}


# Sound


@pytest.mark.parametrize("how", [[], ["--full"], ["--fast"]], ids=str)
def test_a_sound_cache(world: World, how: list[str]) -> None:
    before = tree(world.cache)
    text = done("verify", world.cache, *how)
    blocks = CacheReader(world.cache).plan.blocks
    assert blocks > 5
    checked = "sizes only" if "--fast" in how else "0.00 GB read"
    assert text.startswith(f"{world.cache}: {blocks} of {blocks} blocks committed, ")
    assert f"objects, {checked}\n" in text
    assert text.endswith("\nSound.\n")
    assert tree(world.cache) == before


@pytest.mark.parametrize("full", [True, False])
def test_a_sound_cache_as_json(world: World, full: bool) -> None:
    found = json.loads(done("verify", world.cache, "--full" if full else "--fast", "--json"))
    assert set(found) == JSON_KEYS
    objects = {
        key: size
        for key, size in open_object_store(world.cache).sizes().items()
        if not key.startswith("commits/") and key != "zarr.json"
    }
    assert (found["sound"], found["complete"], found["full"]) == (True, True, full)
    assert found["objects"] == len(objects)
    assert found["bytes"] == (sum(objects.values()) if full else 0)
    assert found["damaged_blocks"] == {}
    assert found["damaged_static"] == found["unknown"] == []
    assert found["against_base"] is None


def test_repairing_a_sound_cache_changes_nothing(world: World) -> None:
    before = tree(world.cache)
    assert done("verify", world.cache, "--repair").endswith("\nSound.\n")
    assert tree(world.cache) == before


# Damaged


@pytest.mark.parametrize("name", ["labels/c.1", "hidden_states/c.1.0.0"])
def test_a_changed_byte_is_found_by_reading_alone(cache: Path, name: str) -> None:
    change(cache / name)
    text = unsound("verify", cache)
    assert f"block 1: {name}: its SHA-256 is not the one recorded" in text
    assert "1 problems:" in text and "`mav verify --repair` marks what is damaged" in text
    assert text.endswith("\nNot sound.\n")
    found = json.loads(unsound("verify", cache, "--json"))
    assert list(found["damaged_blocks"]) == ["1"]
    assert not found["sound"]
    done("verify", cache, "--fast")


@pytest.mark.parametrize("how", ["--full", "--fast"])
@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("labels/c.2", Path.unlink, "block 2: labels/c.2: missing"),
        ("hidden_states/c.0.0.0", cut, "block 0: hidden_states/c.0.0.0: "),
        (commit_key(3), change, f"block 3: {commit_key(3)}: damaged"),
        ("pairs/pair_id/c.0", cut, "pairs/pair_id/c.0: "),
        ("unembedding/weight/zarr.json", Path.unlink, "unembedding/weight/zarr.json: missing"),
        (commit_key(4), Path.unlink, f"block 4: {commit_key(4)}: missing"),
    ],
)
def test_what_is_lost_is_found_by_looking(
    cache: Path, name: str, damage: Callable[[Path], None], said: str, how: str
) -> None:
    damage(cache / name)
    assert f"\n  - {said}" in unsound("verify", cache, how)
    assert not json.loads(unsound("verify", cache, how, "--json"))["sound"]


def test_objects_of_nobody_are_told_and_no_damage(cache: Path) -> None:
    (cache / "notes.txt").write_text("mine")
    text = done("verify", cache)
    assert "1 objects that are not part of it:\n  - notes.txt" in text
    assert text.endswith("\nSound.\n")


def test_the_first_of_many_problems_are_named(cache: Path) -> None:
    blocks = CacheReader(cache).plan.blocks
    for block in range(blocks):
        (cache / "labels" / f"c.{block}").unlink()
        (cache / "hidden_states" / f"c.{block}.0.0").unlink()
    text = unsound("verify", cache, "--fast")
    assert f"{2 * blocks} problems:" in text
    assert f"\n  and {2 * blocks - 10} more\n" in text
    assert text.count("\n  - ") == 10


@pytest.mark.parametrize("how", ["--full", "--fast"])
def test_repaired_and_extracted_again_it_is_as_it_was(world: World, cache: Path, how: str) -> None:
    (cache / "labels" / "c.2").unlink()
    cut(cache / "hidden_states" / "c.0.0.0")
    change(cache / commit_key(3))
    if how == "--full":
        change(cache / "hidden_states" / "c.5.0.0")
    marked = 4 if how == "--full" else 3
    result = mav("verify", cache, how, "--repair")
    assert result.exit_code == 1
    assert f"{marked} damaged blocks and 0 other objects are marked; run the same" in result.stderr
    assert "incomplete" in refused(1, "train", "--cache", cache, "--output-dir", cache / "run")
    blocks = CacheReader(world.cache).plan.blocks
    again = mav(*world.extract(cache))
    assert again.exit_code == 0, again.output
    assert f"{blocks - marked} of {blocks} blocks are written" in again.stderr
    assert done("verify", cache).endswith("\nSound.\n")
    assert contents(cache) == contents(world.cache)


@pytest.mark.parametrize("name", ["pairs/pair_id/c.0", "unembedding/weight/c.0.0"])
def test_what_the_cache_was_created_with_is_mended_too(
    world: World, cache: Path, name: str
) -> None:
    whole = (cache / name).read_bytes()
    change(cache / name)
    assert f"\n  - {name}: its SHA-256 is not the one recorded" in unsound("verify", cache)
    told = mav("verify", cache, "--repair")
    assert told.exit_code == 1
    assert "0 damaged blocks and 1 other objects are marked" in told.stderr
    again = mav(*world.extract(cache))
    assert f"Written again: {name}" in again.stderr
    assert (cache / name).read_bytes() == whole
    assert done("verify", cache).endswith("\nSound.\n")


# Incomplete, or nothing


def interrupted(world: World, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = BlockForward.run
    done_blocks: list[int] = []

    def fails(self: BlockForward, *args: Any) -> dict[str, NDArray[Any]]:
        if len(done_blocks) == 3:
            raise KeyboardInterrupt
        done_blocks.append(1)
        return run(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BlockForward, "run", fails)
        assert mav(*world.extract(output)).exit_code == 130


@pytest.mark.parametrize("how", ["--full", "--fast"])
def test_an_incomplete_cache_is_not_sound_but_not_damaged(
    world: World, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    interrupted(world, cache, monkeypatch)
    before = tree(cache)
    blocks = CacheReader(world.cache).plan.blocks
    text = unsound("verify", cache, how, "--repair")
    assert f"{cache}: 3 of {blocks} blocks committed" in text
    assert f"- {blocks - 3} blocks are not written; `mav extract` resumes" in text
    assert tree(cache) == before
    told = refused(1, "verify", cache, how, "--against-base", 2)
    assert "damaged or incomplete, so it was not compared with the base" in told
    done(*world.extract(cache))
    assert done("verify", cache, how).endswith("\nSound.\n")


def test_damage_in_an_incomplete_cache_is_repaired_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    interrupted(world, cache, monkeypatch)
    change(cache / "labels" / "c.1")
    assert "block 1: labels/c.1: " in unsound("verify", cache, "--repair")
    assert "block 1: " not in unsound("verify", cache)
    done(*world.extract(cache))
    assert contents(cache) == contents(world.cache)


def test_no_cache(tmp_path: Path) -> None:
    assert "no such cache" in refused(1, "verify", tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("mine")
    assert "not a MAV cache" in refused(1, "verify", tmp_path)
    assert "a file" in refused(1, "verify", tmp_path / "notes.txt")
    assert refused(1, "verify", tmp_path / "missing", "--repair", "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_root_is_an_error(cache: Path) -> None:
    change(cache / "zarr.json", place=400)
    assert "zarr.json holds no valid manifest" in refused(1, "verify", cache)
