"""Caches and heads that commands refuse: damaged, incomplete, of another version, or no such."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.checksummed_json import BLANK_CHECKSUM, add_checksum
from mav.cache_schema.reader import CacheReader
from tests.support.caches.written_caches import all_same_bits, read_all, stored_objects
from tests.support.running.commands import extract_args, mav, refused, tree
from tests.support.running.refusals import (
    DATA,
    Args,
    World,
    evaluate_args,
    generate_args,
    train_args,
)

# Caches that are refused

READERS: dict[str, Callable[[World, Path, Path], Args]] = {
    "train": lambda _, cache, output: train_args(cache, output),
    "evaluate": lambda world, cache, _: evaluate_args(world.head, cache),
}
ALL_READERS: dict[str, Callable[[World, Path, Path], Args]] = {
    **READERS,
    "inspect": lambda _, cache, __: ["inspect", cache],
    "extract": lambda world, cache, _: extract_args(world.base, world.data, cache),
}


@pytest.fixture
def cache(world: World, tmp_path: Path) -> Path:
    """A copy of the cache, to damage."""
    return shutil.copytree(world.cache, tmp_path / "cache")


def edit_manifest(cache: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    root = json.loads((cache / "zarr.json").read_text())
    edit(root["attributes"]["mav"])
    root["attributes"]["seal"] = BLANK_CHECKSUM
    (cache / "zarr.json").write_bytes(add_checksum(root))


@pytest.mark.parametrize("command", ALL_READERS)
def test_cache_of_another_format_version(
    world: World, cache: Path, output: Path, command: str
) -> None:
    edit_manifest(cache, lambda manifest: manifest.update(format_version=7))
    before = tree(cache)
    message = refused(DATA, *ALL_READERS[command](world, cache, output))
    assert message.startswith(f"{cache}: format version 7, but this MAV reads version 2.")
    assert tree(cache) == before
    assert not output.parent.exists()


@pytest.mark.parametrize("command", ALL_READERS)
def test_cache_with_a_broken_manifest(
    world: World, cache: Path, output: Path, command: str
) -> None:
    edit_manifest(cache, lambda manifest: manifest["base"].update(vocab_size="300", size=1))
    message = refused(DATA, *ALL_READERS[command](world, cache, output))
    assert "\n  - base.size: unknown field" in message
    assert "\n  - base.vocab_size: got '300', expected int" in message


@pytest.mark.parametrize("command", READERS)
def test_incomplete_cache(world: World, cache: Path, output: Path, command: str) -> None:
    commits = sorted((cache / "commits").glob("0*.json"))
    commits[1].unlink()
    message = refused(DATA, *READERS[command](world, cache, output))
    assert f"{cache}: incomplete, {len(commits) - 1} of {len(commits)} blocks" in message
    assert "Run the same `mav extract` command again" in message
    assert not output.parent.exists()


@pytest.mark.parametrize("command", READERS)
def test_cache_with_a_lost_shard(world: World, cache: Path, output: Path, command: str) -> None:
    (cache / "labels" / "c.1").unlink()
    message = refused(DATA, *READERS[command](world, cache, output))
    assert "\n  - labels/c.1: missing, expected " in message
    assert not output.parent.exists()


@pytest.mark.parametrize("command", READERS)
def test_cache_with_a_flipped_bit(world: World, cache: Path, output: Path, command: str) -> None:
    for shard in stored_objects(cache, "labels"):
        damaged = bytearray(shard.read_bytes())
        damaged[3] ^= 1
        shard.write_bytes(damaged)
    message = refused(DATA, *READERS[command](world, cache, output))
    assert message.startswith(f"{cache}/labels/c.")
    assert "checksum" in message
    assert f"`mav verify --repair {cache}` removes what is damaged" in message
    assert message.count("\n") <= 3


@pytest.mark.parametrize("command", READERS)
def test_not_a_cache(world: World, tmp_path: Path, output: Path, command: str) -> None:
    message = refused(DATA, *READERS[command](world, world.base, output))
    assert f"{world.base}: not a MAV cache (it has no zarr.json)" in message
    nowhere = tmp_path / "nowhere"
    message = refused(DATA, *READERS[command](world, nowhere, output))
    assert message.startswith(f"{nowhere}: no such cache. `mav extract --output {nowhere}`")
    assert not output.parent.exists()


def test_lost_shards_are_computed_again_by_the_same_command(world: World, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    assert mav(*extract_args(world.base, world.data, fresh)).exit_code == 0
    before, lost = read_all(fresh), fresh / "labels" / "c.0"
    blocks = CacheReader(fresh).manifest.plan.blocks
    lost.write_bytes(lost.read_bytes()[:-7])
    result = mav(*extract_args(world.base, world.data, fresh))
    assert result.exit_code == 0, result.output
    assert f"{blocks - 1} of {blocks} blocks are written" in result.stderr
    assert all_same_bits(read_all(fresh), before)


# Heads that are refused

HEAD_READERS: dict[str, Callable[[World, Path], Args]] = {
    "inspect": lambda _, head: ["inspect", head],
    "evaluate": lambda world, head: evaluate_args(head, world.cache),
    "generate": lambda _, head: [*generate_args(head), "--prompt", "Hi"],
}
EVERY_HEAD_READER = pytest.mark.parametrize("command", HEAD_READERS)


@EVERY_HEAD_READER
def test_missing_head(world: World, tmp_path: Path, command: str) -> None:
    nowhere = tmp_path / "nowhere"
    message = refused(DATA, *HEAD_READERS[command](world, nowhere))
    assert message == f"{nowhere}: no such folder\n"


@EVERY_HEAD_READER
def test_head_that_only_the_hub_could_have(world: World, command: str) -> None:
    message = refused(DATA, *HEAD_READERS[command](world, Path("mav-tests/no-such-head")))
    assert message.startswith("mav-tests/no-such-head: no such folder here, and the hub did not")


@EVERY_HEAD_READER
@pytest.mark.parametrize("name", ["head.pt", "pytorch_model.bin", "head.pkl", "head.pth"])
def test_head_that_is_a_pickle_only(world: World, tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    message = refused(DATA, *HEAD_READERS[command](world, tmp_path))
    assert f"{tmp_path}: no head here, expected config.json and model.safetensors." in message
    assert f"{name} is a pickle, which can run code when loaded; MAV reads none." in message


@EVERY_HEAD_READER
def test_head_that_is_a_base_model(world: World, command: str) -> None:
    message = refused(DATA, *HEAD_READERS[command](world, world.base))
    assert f"{world.base / 'config.json'}: kind None, expected 'mav-alignment-head'" in message


@pytest.mark.parametrize("command", ["evaluate", "generate"])
@pytest.mark.parametrize("keep", [0, 30, -9])
def test_head_with_damaged_weights(world: World, tmp_path: Path, command: str, keep: int) -> None:
    head = shutil.copytree(world.head / "best", tmp_path / "head")
    weights = head / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    message = refused(DATA, *HEAD_READERS[command](world, head))
    assert message.startswith(f"{weights}: cannot be read as safetensors: ")


@EVERY_HEAD_READER
def test_head_from_a_cache_of_another_format_version(
    world: World, tmp_path: Path, command: str
) -> None:
    head = shutil.copytree(world.head / "best", tmp_path / "head")
    config = json.loads((head / "config.json").read_text())
    config["cache"]["format_version"] = 7
    (head / "config.json").write_text(json.dumps(config))
    message = refused(DATA, *HEAD_READERS[command](world, head))
    assert message.startswith(f"{head / 'config.json'}: format version 7, but this MAV reads")


def test_inspecting_what_is_neither_cache_nor_head(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in refused(DATA, "inspect", tmp_path / "empty")
    (tmp_path / "file.txt").write_text("text")
    assert "no head here" in refused(DATA, "inspect", tmp_path / "file.txt")
