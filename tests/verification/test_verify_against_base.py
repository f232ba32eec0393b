"""`mav verify --against-base`: caches that equal their base, and caches that only look sound."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mav.pipeline.base.loading import load_source
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.source import BaseSource
from mav.pipeline.extraction.block_runner import BlockForward
from mav.pipeline.runtime.load_options import LoadOptions
from mav.pipeline.verification import inputs
from tests.support.caches.verification import PAIRS, World, against, compared
from tests.support.models.tiny import HIDDEN
from tests.support.running.commands import done, refused


@pytest.fixture(scope="module", autouse=True)
def bases_are_loaded_once() -> Iterator[None]:
    """All caches are of one base, which is frozen; loading it takes as long as to run it."""
    loaded: dict[str, BaseModel] = {}

    def load_once(source: BaseSource, options: LoadOptions) -> BaseModel:
        wanted = f"{source.id} {options}"
        if wanted not in loaded:
            loaded[wanted] = load_source(source, options)
        return loaded[wanted]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "load_source", load_once)
        yield


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
