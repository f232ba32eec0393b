"""`mav verify --against-base` where base and data are no longer what or where they were."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.caches.verification import PAIRS, World, compared
from tests.support.models.tiny import rows, save_base, tiny_base, write_rows
from tests.support.running.commands import done, refused


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
