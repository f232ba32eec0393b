"""`mav verify`: what it says of sound and damaged caches, and of caches that only look sound."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from numpy.typing import NDArray

from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import commit_key
from mav.cache_schema.storage.open import open_object_store
from mav.pipeline.extraction.block_runner import BlockForward
from tests.support.commands import done, extract_args, mav, refused, unsound
from tests.support.dry_runs import tree
from tests.support.tiny import HIDDEN, rows, save_base, tiny_base, write_rows
from tests.support.written_caches import contents, quick_disk

PAIRS = 24
JSON_KEYS = {
    *("location", "full", "blocks", "committed", "complete", "objects", "bytes", "sound"),
    *("damaged_blocks", "damaged_layout", "unknown", "against_base"),
}


@dataclass(frozen=True, kw_only=True)
class World:
    """A base, data and a cache of several blocks that the command made; read only."""

    base: Path
    data: Path
    cache: Path

    def extract(self, output: Path, *options: object) -> list[object]:
        return extract_args(self.base, self.data, output, *options)


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """No option of the command makes blocks so small that a tiny cache has several."""
    with pytest.MonkeyPatch.context() as patch, quick_disk():
        patch.setattr("mav.cache_schema.plan.MOST_BLOCK_TOKENS", 256)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    made = World(
        base=save_base(tiny_base(), folder / "base"),
        data=write_rows(folder / "pairs.jsonl", PAIRS),
        cache=folder / "cache",
    )
    done(*made.extract(made.cache))
    return made


@pytest.fixture
def cache(world: World, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(world.cache, tmp_path / "cache")


def change(file: Path, place: int = 100) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


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
    assert found["damaged_layout"] == found["unknown"] == []
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
    assert f"block 1: {name}: its bytes have another SHA-256" in text
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
    assert f"\n  - {name}: its bytes have another SHA-256" in unsound("verify", cache)
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
    assert f"- {blocks - 3} blocks are not written; `mav extract` goes on" in text
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
    assert "zarr.json holds no sealed manifest" in refused(1, "verify", cache)


# Against the base


def against(cache: Path, count: int, *options: object) -> Result:
    return mav("verify", cache, "--against-base", count, "--device", "cpu", *options)


def compared(cache: Path, count: int = PAIRS, *options: object) -> dict[str, Any]:
    """Compare a cache with its base; return what was found of pairs."""
    result = against(cache, count, "--json", *options)
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["sound"] else 1)
    assert found["sound"] == (not found["against_base"]["differing"])
    return dict(found["against_base"])


def test_a_sound_cache_equals_its_base(world: World) -> None:
    result = against(world.cache, 5)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if "pairs run again" in line)
    assert line.startswith("5 pairs run again, largest relative errors: ")
    for name in ("labels", "layer 1", "layer 2", "layer 4", "logits"):
        assert f" {name} " in line
    assert "(tolerance 0.0001)" in line
    assert result.stdout.endswith("\nSound.\n")


@pytest.mark.parametrize(("count", "pairs"), [(1, 1), (7, 7), (PAIRS, PAIRS), (1000, PAIRS)])
def test_so_many_pairs_are_run(world: World, count: int, pairs: int) -> None:
    found = compared(world.cache, count, "--fast")
    assert (found["pairs"], found["differing"]) == (pairs, {})
    assert 0 <= max(found["errors"].values()) < 1e-5


@pytest.mark.parametrize("count", [0, -1])
def test_no_pairs_are_a_usage_error(world: World, count: int) -> None:
    assert "--against-base" in refused(2, "verify", world.cache, "--against-base", count)


@pytest.mark.parametrize(
    "options",
    [
        ["--logits", "dense"],
        ["--logits", "topk", "--top-k", 5],
        ["--logits", "factored", "--pooled-size", HIDDEN // 2],
        ["--layer-selection", "0,3", "--pooled-size", 2 * HIDDEN],
        ["--storage-dtype", "int8"],
        ["--storage-dtype", "fp8"],
        ["--storage-dtype", "int8", "--logits", "dense", "--compression", "zstd"],
        ["--storage-dtype", "fp8", "--logits", "topk", "--compression", "blosc"],
        ["--storage-dtype", "bfloat16"],
        ["--storage-dtype", "float16", "--logits", "dense"],
        ["--dtype", "bfloat16"],
        ["--dtype", "bfloat16", "--storage-dtype", "bfloat16"],
        ["--dtype", "bfloat16", "--storage-dtype", "int8"],
        ["--max-length", 40],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_every_way_to_store_equals_the_base(
    world: World, options: list[object], tmp_path: Path
) -> None:
    done(*world.extract(tmp_path / "cache", *options))
    found = compared(tmp_path / "cache")
    assert found["differing"] == {}
    assert ("logits" in found["errors"]) == ("topk" not in options)
    lossy = {"int8": 0.02, "fp8": 0.05}
    # That of the coarsest type; codes are restored to bfloat16.
    coarsest = next((one for one in ("bfloat16", "int8", "fp8", "float16") if one in options), "")
    expected = {"": 1e-4, "float16": 2e-2}.get(coarsest, 5e-2)
    expected += next((loss for name, loss in lossy.items() if name in options), 0)
    assert found["tolerance"] == pytest.approx(expected)
    assert max(found["errors"].values()) < found["tolerance"]


# A cache may say of itself that it is sound and still be wrong.

Rows = dict[str, NDArray[Any]]


def another_layer(found: Rows) -> Rows:
    return {**found, "hidden_states": found["hidden_states"][:, ::-1].copy()}


def the_next_token(found: Rows) -> Rows:
    return {**found, "hidden_states": np.roll(found["hidden_states"], -1, axis=0)}


def no_numbers(found: Rows) -> Rows:
    return {**found, "hidden_states": np.full_like(found["hidden_states"], np.nan)}


def other_labels(found: Rows) -> Rows:
    return {**found, "labels": found["labels"] ^ 1}


def other_logprobs(found: Rows) -> Rows:
    return {**found, "base_logprobs": 1.01 * found["base_logprobs"]}


def other_logits(found: Rows) -> Rows:
    return {**found, "base_logits": found["base_logits"] + np.float32(1)}


def second_block_wrong(
    world: World, output: Path, wrong: Callable[[Rows], Rows], *options: object
) -> set[str]:
    """Extract with one block changed before its digests are taken; return its pairs."""
    run = BlockForward.run
    pairs: list[range] = []

    def changed(self: BlockForward, some: range, *args: Any) -> Rows:
        pairs.append(some)
        found = run(self, some, *args)
        return wrong(found) if len(pairs) == 2 else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockForward, "run", changed)
        done(*world.extract(output, *options))
    return set(map(str, pairs[1]))


@pytest.mark.parametrize(
    ("wrong", "options", "named"),
    [
        (another_layer, [], ("layer ", "logits")),
        (another_layer, ["--storage-dtype", "int8"], ("layer ", "logits")),
        (another_layer, ["--storage-dtype", "fp8", "--logits", "topk"], "layer "),
        (the_next_token, ["--logits", "dense"], "layer "),
        pytest.param(
            *(no_numbers, ["--logits", "topk"], "layer "),
        ),
        (other_labels, [], "labels"),
        (other_logprobs, ["--logits", "dense"], "base_logprobs"),
        (other_logprobs, ["--logits", "topk"], "base_logprobs"),
        (other_logits, ["--logits", "dense"], "logits"),
    ],
)
def test_wrong_values_with_right_digests_are_found_against_the_base_alone(
    world: World,
    wrong: Callable[[Rows], Rows],
    options: list[object],
    named: str | tuple[str, ...],
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    pairs = second_block_wrong(world, cache, wrong, *options)
    assert done("verify", cache, "--full").endswith("\nSound.\n")
    found = compared(cache)
    assert set(found["differing"]) == pairs
    assert all(text.startswith(named) for text in found["differing"].values())
    result = against(cache, PAIRS)
    assert result.exit_code == 1
    for pair, text in found["differing"].items():
        assert f"  - pair {pair}: {text}\n" in result.stdout
    assert result.stdout.endswith("\nNot sound.\n")


@pytest.mark.parametrize("wrong", [other_labels, no_numbers])
def test_what_differs_beyond_measure_is_json_too(
    world: World, wrong: Callable[[Rows], Rows], tmp_path: Path
) -> None:
    second_block_wrong(world, tmp_path / "cache", wrong)
    constants: list[str] = []
    json.loads(against(tmp_path / "cache", PAIRS, "--json").stdout, parse_constant=constants.append)
    assert constants == []


def test_the_last_token_of_the_rejected_answer_counts(world: World, tmp_path: Path) -> None:
    def wrong(found: Rows) -> Rows:
        changed = found["base_logprobs"].copy()
        changed[-1] -= 1
        return {**found, "base_logprobs": changed}

    pairs = second_block_wrong(world, tmp_path / "cache", wrong, "--logits", "topk")
    assert set(compared(tmp_path / "cache")["differing"]) == {max(pairs, key=int)}


# Where base and data are now


def test_other_weights_are_refused(world: World, tmp_path: Path) -> None:
    other = save_base(tiny_base(seed=1), tmp_path / "other")
    options = ["--against-base", 2, "--device", "cpu"]
    told = refused(1, "verify", world.cache, *options, "--base-model", other)
    assert told.startswith(f"{other}: its weights ")
    assert "was extracted from, base (" in told and "--base-model" in told


def test_the_same_weights_under_another_configuration_are_refused(
    world: World, tmp_path: Path
) -> None:
    other = shutil.copytree(world.base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    options = ["--against-base", 2, "--device", "cpu"]
    told = refused(1, "verify", world.cache, *options, "--base-model", other)
    assert told.startswith(f"{other}: its configuration ") and "base (" in told


@pytest.fixture
def moved(world: World, tmp_path: Path) -> World:
    """A cache whose base and data are no longer where they were."""
    begun = World(
        base=shutil.copytree(world.base, tmp_path / "then" / "base"),
        data=write_rows(tmp_path / "then" / "pairs.jsonl", PAIRS),
        cache=tmp_path / "cache",
    )
    done(*begun.extract(begun.cache))
    now = (tmp_path / "then").rename(tmp_path / "now")
    return World(base=now / "base", data=now / "pairs.jsonl", cache=begun.cache)


def test_moved_base_and_data_are_named(moved: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAV_CACHE_HOME", str(moved.cache.parent / "nothing-known"))
    command = ["verify", moved.cache, "--against-base", 2, "--device", "cpu"]
    assert "with base (LlamaForCausalLM, 4 layers, " in refused(1, *command)
    told = refused(1, *command, "--base-model", moved.base)
    assert told.startswith(f"pairs.jsonl: this data set of {moved.cache} is not found here.")
    where = ["--base-model", moved.base, "--dataset", moved.data]
    assert compared(moved.cache, 4, *where)["differing"] == {}


def test_data_without_the_pairs_is_refused(world: World, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "few.jsonl", 5)
    command = ["verify", world.cache, "--against-base", PAIRS, "--device", "cpu"]
    told = refused(1, *command, "--dataset", data)
    assert told.startswith(f"{data}: of the {PAIRS} pairs that are to be compared 5 are there")
    assert "--dataset" in told


def test_data_in_another_order_with_more_pairs_will_do(world: World, tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in rows(PAIRS + 6)[::-1]]
    (tmp_path / "more.jsonl").write_text("\n".join(lines))
    found = compared(world.cache, PAIRS, "--dataset", tmp_path / "more.jsonl")
    assert (found["pairs"], found["differing"]) == (PAIRS, {})


def test_pairs_that_come_twice(world: World, tmp_path: Path) -> None:
    data = tmp_path / "twice.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(8) + rows(5)))
    twice = World(base=world.base, data=data, cache=tmp_path / "cache")
    done(*twice.extract(twice.cache))
    found = compared(twice.cache, 13)
    assert (found["pairs"], found["differing"]) == (8, {})
    # The data of a cache without them may have them now.
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in rows(PAIRS) * 2))
    assert compared(world.cache, 6, "--dataset", more)["differing"] == {}


def test_a_limit_holds_for_the_comparison_too(world: World, tmp_path: Path) -> None:
    done(*world.extract(tmp_path / "cache", "--limit", 9))
    assert compared(tmp_path / "cache", 9)["pairs"] == 9


@pytest.mark.parametrize("part", ["vocab", "merges"])
def test_another_tokenizer_with_the_same_weights_is_refused(
    world: World, part: str, tmp_path: Path
) -> None:
    other = shutil.copytree(world.base, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    if part == "merges":
        tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:3]
    else:
        vocabulary = tokenizer["model"]["vocab"]
        one, two = sorted(vocabulary)[40:42]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = ["--against-base", PAIRS, "--device", "cpu"]
    assert "tokenizer" in refused(1, "verify", world.cache, *options, "--base-model", other)


def test_data_of_a_split_may_be_a_file_now(world: World, tmp_path: Path) -> None:
    import datasets

    saved = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows(6))})
    saved.save_to_disk(str(tmp_path / "saved"))
    begun = World(base=world.base, data=tmp_path / "saved", cache=tmp_path / "cache")
    done(*begun.extract(begun.cache, "--split", "test"))
    assert compared(begun.cache, 6)["differing"] == {}
    done(
        *["verify", begun.cache, "--against-base", 6, "--device", "cpu"],
        *["--dataset", write_rows(tmp_path / "now.jsonl", 6)],
    )
