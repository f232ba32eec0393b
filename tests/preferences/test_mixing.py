"""Pairs of several data sets: each once, in proportion, whatever order they come in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.errors import DataError, MismatchError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.preferences.mixture import MixedPairs, mix
from mav.pipeline.preferences.reader import PreferencePair
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train
from tests.support.models.tiny import tiny_base, tiny_tokenizer


def pair(number: int) -> PreferencePair:
    prompt = f"\n\nHuman: {number // 2}?\n\nAssistant:"
    return PreferencePair(prompt=prompt, chosen=f" yes {number}", rejected=" no", source_row=number)


PAIRS = [pair(number) for number in range(40)]
IDS = {one.pair_id: number for number, one in enumerate(PAIRS)}


def tokenized(numbers: Sequence[int]) -> TokenizedPairs:
    return tokenize_pairs([PAIRS[number] for number in numbers], tiny_tokenizer(), 64)


def mixed(numbers: Sequence[Sequence[int]], **fields: Sequence[Any]) -> MixedPairs:
    sources = [
        DataSource(id=str(at), **{name: values[at] for name, values in fields.items()})
        for at in range(len(numbers))
    ]
    held_out = {
        PAIRS[number].prompt_id
        for some, source in zip(numbers, sources, strict=True)
        if source.is_held_out
        for number in some
    }
    return mix([tokenized(some) for some in numbers], sources, held_out)


def by_source(found: MixedPairs, sources: int) -> list[set[int]]:
    return [
        {IDS[one] for one in found.pairs.pair_id[found.source == number].tolist()}
        for number in range(sources)
    ]


NUMBERS = st.lists(st.lists(st.integers(0, 39), max_size=30), min_size=1, max_size=4)


@given(NUMBERS, st.data())
def test_every_pair_once_and_those_for_evaluation_there(
    numbers: list[list[int]], data: st.DataObject
) -> None:
    held_out = [data.draw(st.booleans()) for _ in numbers]
    found = mixed(numbers, held_out=held_out)
    kept = by_source(found, len(numbers))
    apart = {number for at, some in enumerate(numbers) if held_out[at] for number in some}
    assert sum(map(len, kept)) == len(found.pairs)
    assert found.pairs.pair_id.tolist() == sorted(found.pairs.pair_id.tolist())
    for number in set().union(*map(set, numbers)):
        having = [at for at, some in enumerate(numbers) if number in some]
        first = min(having, key=lambda at: (not held_out[at], at))
        # A pair of numbers has one prompt.
        leaks = not held_out[first] and bool({number, number ^ 1} & apart)
        assert [at for at, some in enumerate(kept) if number in some] == [first] * (not leaks)
    for at, some in enumerate(numbers):
        assert len(some) == len(kept[at]) + found.dropped[at].total()
        assert set(found.dropped[at]) <= {"duplicate", "held_out_prompt"}


def test_what_is_kept_of_a_pair_is_that_pair() -> None:
    found = mixed([[3, 5, 7], [5, 9, 11]])
    for place, pair_id in enumerate(found.pairs.pair_id.tolist()):
        alone = tokenized([IDS[pair_id]])
        for got, want in zip(found.pairs.parts(place), alone.parts(0), strict=True):
            assert got.tolist() == want.tolist()
        assert found.pairs.source_row[place] == IDS[pair_id]
        assert found.pairs.prompt_id[place] == alone.prompt_id[0]


@pytest.mark.parametrize(
    ("sizes", "weights", "kept"),
    [
        ((20, 10), (1.0, 1.0), (10, 10)),
        ((20, 10), (2.0, 1.0), (20, 10)),
        ((20, 10), (3.0, 1.0), (20, 7)),
        ((20, 10), (0.7, 0.3), (20, 9)),
        ((20, 10), (None, None), (20, 10)),
        ((8, 8, 8), (1.0, 3.0, None), (3, 8, 8)),
    ],
)
def test_proportions(
    sizes: tuple[int, ...], weights: tuple[float | None, ...], kept: tuple[int, ...]
) -> None:
    begins = np.cumsum([0, *sizes])
    numbers = [range(int(a), int(a) + size) for a, size in zip(begins, sizes, strict=False)]
    found = mixed(numbers, weight=weights)
    assert tuple(map(len, by_source(found, len(sizes)))) == kept
    assert [dropped["beyond_weight"] for dropped in found.dropped] == [
        size - some for size, some in zip(sizes, kept, strict=True)
    ]


def test_a_weight_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"weight of 1: got 0\.01, of which nothing is left"):
        mixed([range(10), range(10, 20)], weight=(10.0, 0.01))


def test_more_of_the_scarcest_data_set_keeps_those_that_were_kept() -> None:
    few = by_source(mixed([range(10), range(20, 24)], weight=(1.0, 1.0)), 2)
    more = by_source(mixed([range(20), range(20, 24)], weight=(1.0, 1.0)), 2)
    most = by_source(mixed([range(20), range(20, 30)], weight=(1.0, 1.0)), 2)
    assert few[1] == more[1] <= most[1]
    assert more[0] <= most[0]
    assert len(more[0] & few[0]) > 0


def write(path: Path, numbers: Sequence[int]) -> DataSource:
    rows = [
        {"chosen": one.prompt + one.chosen, "rejected": one.prompt + one.rejected}
        for one in (PAIRS[number] for number in numbers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(id=str(path))


def options(root: Path, *sources: DataSource) -> ExtractOptions:
    return ExtractOptions(
        base_model="tiny",
        data=sources,
        output=root / "cache",
        pooled_size=32,
        max_length=64,
        dtype="float32",
        storage_dtype="float32",
        device="cpu",
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs 0 to 19 to train on, 18 to 25 to evaluate on, and 4 of something else."""
    root = tmp_path_factory.mktemp("mixed")
    train, other = write(root / "train.jsonl", range(20)), write(root / "o.jsonl", range(30, 34))
    write(root / "test.jsonl", range(17, 26))
    test = DataSource(id=str(root / "test.jsonl"), held_out=True)
    extract(options(root, train, test, other), base=tiny_base())
    return root / "cache"


def test_a_cache_tells_its_data_sets_apart(cache: Path) -> None:
    reader = CacheReader(cache)
    train, test, other = reader.manifest.data.sources
    # Pairs 16 and 17 have one prompt.
    assert (train.rows, train.pairs) == (20, 16)
    assert train.dropped == {"duplicate": 3, "held_out_prompt": 1}
    assert (test.rows, test.pairs, test.held_out) == (9, 9, True)
    assert (other.pairs, other.held_out) == (4, False)
    assert (reader.manifest.data.rows, reader.manifest.data.pairs) == (33, 29)
    numbers = [IDS[one] for one in reader.pair_id.tolist()]
    source = reader.read_sources()
    for number, at in zip(numbers, source.tolist(), strict=True):
        assert at == (1 if 17 <= number < 26 else 0 if number < 20 else 2)
    rows = reader.read_source_rows()
    begins = (0, 17, 30)
    for number, row, at in zip(numbers, rows.tolist(), source.tolist(), strict=True):
        assert row == number - begins[at]


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_no_prompt_of_an_evaluation_set_is_trained_on(cache: Path, fraction: float) -> None:
    reader = CacheReader(cache)

    def chosen(which: Any) -> set[int]:
        subset = PairSubset(split=which, fraction=fraction)
        found = in_subset(reader.prompt_id, subset, reader.evaluation_only)
        return {IDS[one] for one in reader.pair_id[found].tolist()}

    training, held_out = chosen("training"), chosen("held-out")
    assert not training & set(range(16, 26))
    assert set(range(17, 26)) <= held_out
    assert training | held_out == chosen("all")
    assert not training & held_out
    if not fraction:
        assert training == {*range(16), *range(30, 34)}


def test_the_same_data_sets_go_on_and_others_are_refused(cache: Path) -> None:
    root = cache.parent
    sources = [
        DataSource(id=str(root / name), held_out=held_out)
        for name, held_out in (("train.jsonl", None), ("test.jsonl", True), ("o.jsonl", None))
    ]
    assert extract(options(root, *sources), base=tiny_base()).pairs_done == 0
    with pytest.raises(
        MismatchError, match=r"data\.sources\[1\]\.held_out: stored True, asked for"
    ):
        extract(options(root, sources[0], write(root / "test.jsonl", range(17, 26)), sources[2]),
                base=tiny_base())  # fmt: skip


def test_another_data_set_in_the_place_of_one_is_refused(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl", range(10)), write(tmp_path / "b.jsonl", range(10, 20))
    apart = [DataSource(id=source.id, held_out=True) for source in (one, other)]
    extract(options(tmp_path, one, apart[1]), base=tiny_base())
    moved = DataSource(id=str(tmp_path / "moved.jsonl"))
    (tmp_path / "moved.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert extract(options(tmp_path, moved, apart[1]), base=tiny_base()).pairs_done == 0
    with pytest.raises(MismatchError, match=r"data\.sources\[0\]\.fingerprint"):
        extract(options(tmp_path, other, apart[0]), base=tiny_base())
    with pytest.raises(MismatchError, match=r"data\.sources: stored 2, asked for 1"):
        extract(options(tmp_path, one), base=tiny_base())


def test_prompts_of_rows_that_were_dropped_are_held_out_too(tmp_path: Path) -> None:
    plain = write(tmp_path / "train.jsonl", range(20))
    rows = [
        {"chosen": f"{PAIRS[0].prompt} ", "rejected": f"{PAIRS[0].prompt} no"},
        {"chosen": f"{PAIRS[2].prompt} no", "rejected": f"{PAIRS[2].prompt} no"},
        {"chosen": f"{PAIRS[4].prompt} no", "rejected": f"{PAIRS[6].prompt} no"},
        {"chosen": f"{PAIRS[8].prompt} no", "rejected": "no answer"},
        {"chosen": f"{PAIRS[10].prompt} yes", "rejected": f"{PAIRS[10].prompt} no"},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = DataSource(id=str(tmp_path / "test.jsonl"), held_out=True)
    extract(options(tmp_path, plain, test), base=tiny_base())
    reader = CacheReader(tmp_path / "cache")
    found = {IDS.get(one) for one in reader.pair_id[reader.read_sources() == 0].tolist()}
    assert found == {*range(12, 20)}
    assert reader.manifest.data.sources[0].dropped == {"held_out_prompt": 12}


def test_a_cache_for_evaluation_alone_is_not_trained_on(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", range(10))
    extract(options(tmp_path, DataSource(id=test.id, held_out=True)), base=tiny_base())
    asked = TrainOptions(cache=tmp_path / "cache", output_dir=tmp_path / "head", expansion_size=8)
    with pytest.raises(DataError, match=r"all of its 10 pairs are of data sets for evaluation"):
        train(asked)
